"""`--tissue`: which slides a call names, by files, folders and tables, and which files are one slide."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from calls import run
from conftest import SLIDE
from slides_without_counts import DENSE, QUICK, bluish, write_slide

from stpredict.training.tissue import recorded_tissue

pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


def planned(dataset: Path, tmp_path: Path, *tissue: Path):
    named = [part for path in tissue for part in ("--tissue", path)]
    return run("train", dataset, "-o", tmp_path / "m.safetensors", "--arch", "dictionary", *QUICK, *named, "--dry-run")


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["image,patient,mpp", *lines, ""]))
    return path


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("one.tif,A,", "one.tif,B,", "one.tif: one slide, named with more than one patient (A, B)."),
        ("one.tif,,1", "one.tif,,2", "one.tif: one slide, named with more than one mpp (1, 2)."),
        ("one.tif,A,", "same.tif,B,", "same.tif: one slide, named with more than one patient (A, B)."),
        ("one.tif,,1", "same.tif,,2", "same.tif: one slide, named with more than one mpp (1, 2)."),
    ],
)
def test_a_slide_with_two_patients_is_refused(
    dataset: Path, slides: Path, tmp_path: Path, first: str, second: str, reason: str
):
    for name in ("one.tif", "same.tif"):
        shutil.copy(slides / "one.tif", tmp_path / name)
    tables = [write_table(tmp_path / f"{n}.csv", line) for n, line in enumerate((first, second))]
    refused = planned(dataset, tmp_path, *tables)
    assert refused.exit_code == 2, refused.output
    assert reason in refused.stderr
    assert planned(dataset, tmp_path, tables[0]).exit_code == 0


def test_equal_files_share_what_one_of_them_states(dataset: Path, coarse_region: np.ndarray, tmp_path: Path):
    for name in ("one.tif", "same.tif"):
        write_slide(tmp_path / name, coarse_region, None)
    table = write_table(tmp_path / "slides.csv", "one.tif,Y,", "same.tif,,1")
    done = planned(dataset, tmp_path, table)
    assert done.exit_code == 0, done.output
    assert "left out of --tissue, as it is there already: same.tif (the same as one.tif)" in done.stderr
    assert "is of a patient without sections (Y)" in done.stderr


def test_an_equal_file_that_can_be_opened_teaches(dataset: Path, slides: Path, tmp_path: Path):
    shutil.copy(slides / "one.tif", tmp_path / "a.mrxs")  # which no reader opens under this name
    shutil.copy(slides / "one.tif", tmp_path / "b.tif")
    done = planned(dataset, tmp_path, tmp_path / "a.mrxs", tmp_path / "b.tif")
    assert done.exit_code == 0, done.output
    assert "left out of --tissue, as it is there already: a.mrxs (the same as b.tif)" in done.stderr


def test_slides_that_differ_in_little_are_two(dataset: Path, coarse_region: np.ndarray, tmp_path: Path):
    image = np.tile(bluish(coarse_region), (4, 4, 1))
    first = write_slide(tmp_path / "one.tif", image)
    content = bytearray(first.read_bytes())
    size = len(content)
    assert size > 6 << 20
    content[size // 4] ^= 1  # between the beginning and the middle
    (tmp_path / "two.tif").write_bytes(content)
    done = planned(dataset, tmp_path, first, tmp_path / "two.tif")
    assert done.exit_code == 0, done.output
    assert "72 spots; 2 slides without counts" in done.stdout
    assert "as it is there already" not in done.stderr


def test_sections_images_alone_are_refused(dataset: Path, tmp_path: Path):
    refused = planned(dataset, tmp_path, dataset / "A1.jpg", dataset / "B1.jpg")
    assert refused.exit_code == 2
    assert "--tissue: names images of sections alone, which give unlabelled patches anyway" in refused.stderr


def test_what_is_passed_over_in_a_folder_is_told(dataset: Path, slides: Path, tmp_path: Path):
    folder = shutil.copytree(slides, tmp_path / "slides")
    (folder / "linked").symlink_to(slides / "more")
    done = planned(dataset, tmp_path, folder)
    assert done.exit_code == 0, done.output
    assert done.stderr.count(f"--tissue {folder}: passed over 1 file: .pdf, not a slide's") == 1
    assert f"--tissue {folder / 'linked'}: a link to a folder, not followed; name it to search it\n" in done.stderr


def test_the_order_in_which_slides_are_named_does_not_matter(slides: Path, tmp_path: Path):
    table = write_table(tmp_path / "slides.csv", f"{slides / 'one.tif'},A,")
    one, two = slides / "one.tif", slides / "more" / "two.tif"
    assert recorded_tissue([one, two]) == recorded_tissue([two, one]) == recorded_tissue([slides])
    assert recorded_tissue([one]) != recorded_tissue([one, two])
    assert recorded_tissue([one]) != recorded_tissue([table])


def test_a_sections_image_and_an_equal_file_are_left_out(dataset: Path, slides: Path, tmp_path: Path):
    folder = shutil.copytree(slides, tmp_path / "slides")
    shutil.copy(folder / "one.tif", folder / "same.tif")
    out = tmp_path / "mine.safetensors"
    named = ("--tissue", folder, "--tissue", dataset / "A1.jpg", "--tissue", folder / "one.tif")
    (tmp_path / "named.csv").write_text("image\tpatient\nslides/same.tif\tA\n")
    call = ("train", dataset, "-o", out, "--arch", "dictionary", *QUICK, *named, "--dry-run")
    of_patient = run(*call, "--tissue", tmp_path / "named.csv")
    assert "left out of --tissue, as it is there already: one.tif (the same as same.tif)" in of_patient.stderr
    done = run(*call)
    assert done.exit_code == 0, done.output
    left_out = "same.tif (the same as one.tif), A1.jpg (the image of section A1)"
    assert f"left out of --tissue, as it is there already: {left_out}\n" in done.stderr
    assert "72 spots; 2 slides without counts" in done.stdout


def test_a_table_gives_the_mpp_that_a_slide_does_not_state(dataset: Path, coarse_region: np.ndarray, tmp_path: Path):
    write_slide(tmp_path / "unsized.png", coarse_region, None)
    (tmp_path / "slides.csv").write_text("image;mpp\nunsized.png;1\n")
    call = ("train", dataset, "-o", tmp_path / "mine.safetensors", "--arch", "dictionary", *QUICK, "--dry-run")
    done = run(*call, "--tissue", tmp_path / "slides.csv", "--tissue", SLIDE)
    assert done.exit_code == 0, done.output
    assert "72 spots; 2 slides without counts" in done.stdout


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("image,mpp\nno.tif,1\n", "there is no slide"),
        ("image,mpp\none.tif,-1\n", "line 2: mpp must be a positive number of micrometres, not '-1'"),
        ("slide\none.tif\n", "needs a header line with the column image"),
        ("image,patient\n", "names no slide"),
    ],
)
def test_a_table_with_a_mistake_is_refused(dataset: Path, slides: Path, tmp_path: Path, lines: str, reason: str):
    shutil.copy(slides / "one.tif", tmp_path)
    (tmp_path / "slides.csv").write_text(lines)
    refused = run("train", dataset, "-o", tmp_path / "m.safetensors", *DENSE, "--tissue", tmp_path / "slides.csv")
    assert refused.exit_code == 2
    assert reason in refused.stderr
