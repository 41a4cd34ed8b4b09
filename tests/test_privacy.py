"""What a scanner wrote into a slide, and where the slide lies, reach no output. Names of slides: test_anonymous.py."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from calls import run
from conftest import SLIDE
from openslide import OpenSlide
from PIL import Image
from what_files_say import contents

SECRET = "Marked_Patient7"
#: Pixels of the label and of the macro image, such as no tissue has.
INK = (3, 250, 7)
ABOUT = f"Aperio Image Library v1\r\nsome |AppMag = 20|MPP = 0.499|User = {SECRET}|Filename = {SECRET}|Title = {SECRET}"


@pytest.fixture
def slide(region: np.ndarray, tmp_path: Path) -> Path:
    """A slide whose every field that could hold a name holds one, with a label and a macro image."""
    (tmp_path / f"clinic_{SECRET}").mkdir()
    path = tmp_path / f"clinic_{SECRET}" / "s.svs"
    tags = [(tag, "s", 0, SECRET, True) for tag in (269, 271, 272, 285, 315, 316, 33432)]
    layout = {"photometric": "rgb", "metadata": None, "software": SECRET, "datetime": "1999:12:31 01:02:03"}
    ink = np.full((300, 300, 3), INK, np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        pixels = np.ascontiguousarray(region[:1400, :1400])
        jpeg = {"tile": (256, 256), "compression": "jpeg"}
        tiff.write(pixels, description=ABOUT, extratags=tags, **jpeg, **layout)
        tiff.write(pixels[::4, ::4], description=ABOUT, compression="jpeg", **layout)  # the thumbnail
        for name, kind in (("label", 1), ("macro", 9)):
            tiff.write(ink, description=f"{ABOUT}\r\n{name} 300x300", subfiletype=kind, **layout)
    with OpenSlide(path) as opened:
        assert sum(SECRET in value for value in opened.properties.values()) >= 5
        assert {"label", "macro"} <= set(opened.associated_images)
    return path


def test_nothing_of_a_slides_metadata_reaches_an_output(slide, quick_model_path, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("STPREDICT_CACHE", str(here / "cache"))
    Path("damaged.svs").write_bytes(SLIDE.read_bytes()[:5000])
    asked = ("-m", quick_model_path, "--genes", "GNAS,DDX5,ERBB2", "--pitch", "200")
    done = run("predict", slide, "damaged.svs", *asked, "-o", "out", "--render", "-v", "--log-json")
    assert done.exit_code == 1, done.output
    styles = "heatmap,overlay,channels,pca,spots,csv,report"
    for call in (
        ("render", "out/s.h5ad", "-o", "drawn", "--style", styles, "--gzip"),
        ("summary", "out", "-o", "cohort.csv"),
        ("tile", slide, "-m", quick_model_path, "--patches", "-o", "tiles"),
    ):
        output = run(*call)
        assert output.exit_code == 0, output.output
        assert SECRET not in output.stdout + output.stderr
    written = [path for path in here.rglob("*") if path.is_file() and path.name != "damaged.svs"]
    kinds = {".h5ad", ".tif", ".png", ".json", ".csv", ".gz", ".html", ".h5", ".bin"}
    assert kinds <= {path.suffix for path in written}
    way_to_slide = f"../../clinic_{SECRET}/s.svs"
    for path in written:
        for text in contents(path):
            said = text.replace(way_to_slide, "") if path.name == "s.h5ad" else text
            for secret in (SECRET, "1999:12:31", "Aperio", str(tmp_path)):
                place = said.find(secret)
                assert place < 0, f"{path}: {said[max(0, place - 80) :][:200]}"
    with h5py.File("out/s.h5ad") as file:
        assert json.loads(file["uns/stpredict"][()])["slide"]["path"] == way_to_slide
        pictures = [file["uns/spatial/s/images/hires"][:]]
    drawn = (path for path in written if path.suffix == ".png" and ".pca." not in path.name)  # which has any colours
    pictures += [np.asarray(Image.open(path).convert("RGB")) for path in drawn]
    assert len(pictures) > 5
    for picture in pictures:
        assert (np.abs(picture.astype(int) - INK).max(axis=2) < 6).mean() < 0.001
