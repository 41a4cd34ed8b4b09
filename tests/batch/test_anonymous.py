from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from calls import LIGHT, PROGRAM, run
from conftest import SLIDE
from slides_to_try import tiff_pyramid
from what_files_say import contents

from stpredict.batch.anonymous import anonymous_names
from stpredict.errors import SlideError
from stpredict.prediction.job import Job, without_names
from stpredict.result.file import read_provenance, read_result

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

SECRET = "Marked_Patient7"
ABOUT = f"Aperio Image Library v1\r\nsome |AppMag = 20|MPP = 0.499|User = {SECRET}|Filename = {SECRET}|Title = {SECRET}"


@pytest.fixture
def slides(region: np.ndarray) -> Path:
    """A whole slide, full of marks, and a damaged one, in folders that are named after a patient too."""
    folder = Path("slides") / f"of_{SECRET}"
    folder.mkdir(parents=True)
    tifffile.imwrite(
        folder / f"{SECRET}.svs", np.ascontiguousarray(region[:1400, :1400]), tile=(256, 256), compression="jpeg",
        photometric="rgb", description=ABOUT, metadata=None, software=SECRET,
    )  # fmt: skip
    with openslide.OpenSlide(folder / f"{SECRET}.svs") as slide:
        assert slide.properties["aperio.User"] == slide.properties["aperio.Filename"] == SECRET
    (folder / f"damaged_{SECRET}.svs").write_bytes(SLIDE.read_bytes()[:5000])
    return Path("slides")


def table_of(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "slide"]
    return dict(rows)


def assert_says_nothing(text: str, tmp_path: Path) -> None:
    for secret in (SECRET, str(tmp_path)):
        assert secret.lower() not in text.lower(), text[:2000]


def test_no_output_holds_a_slides_name(slides, quick_model_path, tmp_path):
    asked = ("-m", quick_model_path, "--genes", "GNAS,DDX5,ERBB2", "--pitch", "200", "--anonymous", "names.csv")
    planned = run("predict", slides, *asked, "-o", "out", "--dry-run")
    assert not Path("names.csv").exists()
    done = run("predict", slides, *asked, "-o", "out", "--render", "-v")
    assert done.exit_code == 1, done.output
    table = table_of(Path("names.csv"))
    assert stat.S_IMODE(Path("names.csv").stat().st_mode) == 0o600
    named = {slide: name for name, slide in table.items()}
    good, damaged = (named[f"./{slides}/of_{SECRET}/{name}{SECRET}.svs"] for name in ("", "damaged_"))
    assert done.stdout.splitlines()[0] == f"out/{good}.h5ad"
    with Path("out/failures.csv").open(newline="") as file:
        (failed,) = csv.DictReader(file)
    assert failed["slide"] == damaged
    assert failed["reason"].startswith(f"{damaged}: not a slide, or a damaged one")

    result = Path("out", f"{good}.h5ad")
    drawn = run("render", result, "-o", "drawn", "--style", "heatmap,channels,pca,spots,csv", "--gzip")
    assert drawn.exit_code == 0, drawn.output
    lost = run("render", result, "-o", "drawn", "--style", "overlay")
    assert lost.exit_code == 1
    assert f"{good}.h5ad: does not say where its slide lies; name the slide with --slide" in lost.stderr
    slide = slides / f"of_{SECRET}" / f"{SECRET}.svs"
    found = run("render", result, "-o", "drawn", "--style", "overlay,report", "--slide", slide)
    assert found.exit_code == 0, found.output
    summed = run("summary", "out", "-o", "cohort.csv")
    assert summed.exit_code == 0, summed.output
    assert f'"{good}"' in Path("cohort.csv").read_text()

    files = [path for folder in ("out", "drawn") for path in Path(folder).rglob("*")] + [Path("cohort.csv")]
    assert len(files) > 25
    for path in files:
        for text in contents(path):
            assert_says_nothing(text, tmp_path)
    for output in (planned, done, drawn, lost, found, summed):
        assert_says_nothing(output.stdout + output.stderr, tmp_path)
    told = run("predict", slides, *asked, "-o", "out", "--log-json")
    assert_says_nothing(told.stdout + told.stderr, tmp_path)
    events = [json.loads(line) for line in told.stderr.splitlines()]
    assert {event["slide"] for event in events if "slide" in event} == {good, damaged}


def test_the_same_call_gives_the_same_names_and_other_tables_give_others(region, quick_model_path, tmp_path):
    for name in ("one/a", "two/a", "two/slide"):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        tiff_pyramid(Path("in", f"{name}.tif"), region[1000:1800, 600:1400], (0.5, 0.5))
    asked = ("-m", quick_model_path, "--genes", "GNAS", "--pitch", "100", "-o", "out")
    first = run("predict", "in", *asked, "--anonymous", "names.csv")
    assert first.exit_code == 0, first.output
    assert len(set(first.stdout.split())) == 3
    table = Path("names.csv").read_bytes()
    again = run("predict", "in/two/slide.tif", tmp_path / "in/one/a.tif", *asked, "--anonymous", "names.csv")
    assert again.exit_code == 0, again.output
    assert set(again.stdout.split()) < set(first.stdout.split())
    assert again.stderr.count("up to date") == 2
    assert Path("names.csv").read_bytes() == table
    refused = run("predict", "in/two/slide.tif", *asked, "--pitch", "50", "--anonymous", "names.csv")
    (name,) = (name for name, slide in table_of(Path("names.csv")).items() if slide.endswith("/slide.tif"))
    assert f"{name}.h5ad: exists with other settings (" in refused.stderr
    other = run("predict", "in", *asked, "--anonymous", "others.csv")
    assert not set(other.stdout.split()) & set(first.stdout.split())
    assert read_result(Path(first.stdout.split()[0])).provenance["slide"]["path"] == ""


def test_two_calls_on_one_folder_share_a_table(quick_model_path, tmp_path, region):
    (tmp_path / "in").mkdir()
    for i in range(3):
        tiff_pyramid(tmp_path / "in" / f"{i}.tif", region[1000:1800, 600:1400], (0.5, 0.5), levels=1)
    asked = ("-m", quick_model_path, *LIGHT, "--pitch", "7")
    call = [*PROGRAM, "predict", "in", *asked, "-o", "out", "-v"]
    both = [
        subprocess.Popen([*call, "--anonymous", "names.csv"], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 75}, outputs
    predicted = [line.split(":")[0] for stderr in outputs for line in stderr.splitlines() if "a second" in line]
    assert sorted(predicted) == sorted(table_of(tmp_path / "names.csv").keys() - {"salt"})
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(predicted)
    assert not list(tmp_path.glob("*.lease"))


def test_no_row_is_lost_when_many_add_to_a_table():
    table = Path("names.csv")

    def add(i: int) -> list[str]:
        return anonymous_names([Path(f"{i}.svs"), Path("same.svs")], table, keep=True)

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(add, range(16)))
    rows = table_of(table)
    assert len(rows) == 18
    assert {same for _, same in names} == {name for name, slide in rows.items() if slide == "./same.svs"}
    assert [path.name for path in Path().iterdir()] == ["names.csv"]


def test_a_name_stays_where_slides_and_table_move_together(tmp_path):
    first = anonymous_names([Path("in/a.svs"), Path("in/b.svs")], Path("names.csv"), keep=True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move("names.csv", moved / "names.csv")
    assert anonymous_names([moved / "in/a.svs", moved / "in/b.svs"], moved / "names.csv", keep=False) == first


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("out/names.csv", "lies in the folder of the results (out)"),
        ("out/below/names.csv", "lies in the folder of the results (out)"),
        (SLIDE, "not a table of anonymous names"),
        ("cohort.csv", "not a table of anonymous names"),
        ("empty.csv", "not a table of anonymous names"),
        ("unsalted.csv", "not a table of anonymous names"),
        ("nowhere/names.csv", "cannot be read or written (No such file"),
        ("folder", "cannot be read or written (Is a directory)"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(quick_model_path, table, says):
    Path("folder").mkdir()
    Path("empty.csv").touch()
    Path("cohort.csv").write_text("slide,spots\na,3\n")
    Path("unsalted.csv").write_text("name,slide\nslide-1,a.svs\n")
    before = SLIDE.stat().st_mtime_ns
    done = run("predict", SLIDE, "-m", quick_model_path, "--anonymous", table, "-o", "out")
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert Path("cohort.csv").read_text() == "slide,spots\na,3\n"
    assert SLIDE.stat().st_mtime_ns == before
    assert not list(Path().rglob("*.h5ad"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_table_that_others_can_read_is_told_of(quick_model_path):
    asked = ("predict", SLIDE, "-m", quick_model_path, "--genes", "GNAS", "-o", "out", "--anonymous", "names.csv")
    assert "others can read" not in run(*asked).stderr
    Path("names.csv").chmod(0o644)
    assert "names.csv: others can read which slide is which" in run(*asked).stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slide.svs: the file is empty.", "slide-1: the file is empty."),
        ("slide-1.h5ad: exists with other settings.", "slide-1.h5ad: exists with other settings."),
        ("in/Doe/slide.svs: no such file or folder.", "slide-1: no such file or folder."),
        ("no slides; cannot open in/Doe/slide/Index.dat", "no slides; cannot open slide-1/Index.dat"),
        ("in/Doe/masks/area.geojson: 3 features", "mask: 3 features"),
    ],
)
def test_errors_call_a_slide_by_its_anonymous_name(text, expected):
    job = Job(Path("in/Doe/slide.svs"), Path("out/slide-1.h5ad"), None, Path("in/Doe/masks/area.geojson"), "slide-1")
    error = SlideError(text)
    job.hide_names(error)
    assert str(error) == expected


def test_a_slide_that_is_not_anonymous_keeps_its_name_and_place(quick_model_path):
    assert run("predict", SLIDE, "-m", quick_model_path, "--genes", "GNAS", "-o", "out").exit_code == 0
    slide = read_provenance(Path("out/CMU-1-Small-Region.h5ad"))["slide"]
    assert slide["name"] == "CMU-1-Small-Region"
    assert [text for text in contents(Path("out/CMU-1-Small-Region.h5ad")) if "CMU-1-Small-Region:r" in text]
    assert Path("out", slide["path"]).resolve() == SLIDE.resolve()


@pytest.mark.skipif(os.sep != "/", reason="folders are written otherwise here")
def test_folders_go_from_messages_and_words_stay():
    names = {Path("/data/Smith_John/a.svs"): "slide-1", Path("../b.svs"): "slide-2", Path("slides/c.svs"): "slide-3"}
    assert without_names("/data/Smith_John: cannot be read", names) == "the slides' folder: cannot be read"
    assert without_names("/data/Smith_John/a.svs is damaged", names) == "slide-1 is damaged"
    for unchanged in ("2 slides failed ...", "/data/Smith_Johnson: gone", "compiling for this processor ..."):
        assert without_names(unchanged, names) == unchanged
    assert without_names("../b.svs and slides/c.svs", names) == "slide-2 and slide-3"
