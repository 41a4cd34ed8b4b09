"""What cannot be read is called by its name, and the way out is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from calls import run
from PIL import Image

from stpredict.errors import SlideError
from stpredict.slides.slide import open_slide

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


def retagged(path: Path, compression: int, image: np.ndarray, **options) -> Path:
    """A TIFF file that says it is compressed in another way."""
    tifffile.imwrite(path, image, compression="jpeg", photometric="rgb", metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[259].overwrite(compression)
    return path


@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize(
    ("compression", "name"),
    [
        (6, "old-style JPEG"),
        (34934, "JPEG XR"),
        (34892, "lossy JPEG of DNG"),
        (34661, "JBIG"),
        (61234, "compression 61234"),
    ],
)
def test_a_compression_that_is_not_read_is_named(tmp_path, region, tile, compression, name):
    path = retagged(tmp_path / "strange.tif", compression, region[:256, :256], tile=tile)
    with pytest.raises(SlideError) as error:
        open_slide(path)
    assert str(error.value) == (
        f"strange.tif: stored as {name}, which cannot be read here; save it with JPEG, LZW or deflate compression, as "
        "`vips tiffsave` or QuPath do."
    )


def test_jpeg_of_12_bits_and_colours_of_other_kinds_are_named(tmp_path, region):
    deep = region[:256, :256].astype(np.uint16) * 16
    jpeg = {"compression": "jpeg", "bitspersample": 12, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "deep.tif", deep, tile=(128, 128), **jpeg)
    with pytest.raises(SlideError, match=r"deep\.tif: stored as JPEG of an unusual kind, which cannot be read here"):
        open_slide(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "icclab.tif", region[:256, :256], photometric="icclab", tile=(128, 128))
    with pytest.raises(SlideError, match=r"icclab\.tif: its colours are ICCLAB; save it as RGB"):
        open_slide(tmp_path / "icclab.tif")


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [(".tif", "bmp", "a BMP image"), (".jpg", "jpeg2000", "a JPEG 2000 image"),
     (".svs", b"ZISRAWFILE" + bytes(99), "a Zeiss CZI file"), (".tif", b"PK\x03\x04" + bytes(99), "a ZIP archive"),
     (".png", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file")],
)  # fmt: skip
def test_files_of_other_kinds_are_named(tmp_path, region, suffix, content, kind):
    path = tmp_path / f"other{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(region[:99, :99]).save(path, content)
    with pytest.raises(SlideError, match=rf"other{suffix}: .*{kind}.* cannot be read here; save it as"):
        open_slide(path)


@pytest.mark.parametrize("suffix", [".btf", ".tf2", ".tf8", ".qptiff", ".ome.tif", ".ome.tiff", ".TIF", ".BTF"])
@pytest.mark.parametrize("options", [{"rowsperstrip": 64}, {"tile": (128, 128)}])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_names_that_tiff_files_have(tmp_path, region, suffix, options, bigtiff):
    path = tmp_path / f"image{suffix}"
    tifffile.imwrite(
        path, region[:300, :300], photometric="rgb", compression="lzw", bigtiff=bigtiff, metadata=None, **options
    )
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 300, 300), region[:300, :300])


def test_a_folder_is_searched_for_them(tmp_path, tiny_model_path, region):
    (tmp_path / "slides").mkdir()
    options = {
        "resolution": (20_000, 20_000),
        "resolutionunit": "CENTIMETER",
        "photometric": "rgb",
        "compression": "lzw",
    }
    tifffile.imwrite(
        tmp_path / "slides" / "image.btf", region[600:1400, 600:1400], rowsperstrip=64, metadata=None, **options
    )
    done = run("predict", tmp_path / "slides", "-m", tiny_model_path, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "image.h5ad" in done.stdout


READ = "import sys; from stpredict.slides.slide import open_slide; open_slide(sys.argv[1])"
NOT_ROOT = [] if os.name == "nt" or os.geteuid() else ["unshare", "-U", "--map-user=12345"]


@pytest.mark.parametrize("name", ["no.svs", "no.tif", "no.png"])
def test_a_file_that_may_not_be_read(tmp_path, name):
    if NOT_ROOT and subprocess.run([*NOT_ROOT, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may read everything, and cannot be another user here")
    shutil.copy(SLIDE, tmp_path / name)
    (tmp_path / name).chmod(0)
    call = [*NOT_ROOT, sys.executable, "-c", READ, str(tmp_path / name)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1].endswith(f"{name}: cannot be read (Permission denied).")
