from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GENES

from stpredict.data.dataset import read_dataset
from stpredict.errors import DatasetError


def test_sections_patients_and_spots(dataset: Path):
    sections = read_dataset(dataset)
    assert [(s.name, s.patient) for s in sections] == [("A1", "A"), ("A2", "A"), ("B1", "B")]
    for section in sections:
        assert section.mpp == pytest.approx((0.5, 0.5), rel=1e-3)
        assert section.counts.shape == (len(section.spot_names), len(GENES) + 1)
        assert section.lost_spots == 1  # measured, but not in the selection
        assert section.genes[:-1] == GENES
    assert sections[0].spot_names[0] == "1x1"
    np.testing.assert_allclose(sections[0].centres[0], (400, 400), atol=100)


def test_layout_of_the_published_repository(dataset: Path, tmp_path: Path):
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs/A/A1"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(dataset / "A1.jpg", tmp_path / "ST-imgs/A/A1/HE_BT23287_other_name.jpg")
    (tmp_path / "ST-cnts/A1.tsv").write_bytes(gzip.decompress((dataset / "A1.tsv.gz").read_bytes()))
    shutil.copy(dataset / "A1_selection.tsv", tmp_path / "ST-spotfiles")
    (section,) = read_dataset(tmp_path)
    assert section.name == "A1"
    assert (section.counts.rows() != read_dataset(dataset)[0].counts.rows()).nnz == 0


def test_layout_of_the_archive(dataset: Path, tmp_path: Path):
    for folder in ("images/HE", "images/annotation", "count-matrices", "spot-selections"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("A1", "B1"):
        shutil.copy(dataset / f"{name}.jpg", tmp_path / "images/HE")
        shutil.copy(dataset / f"{name}.jpg", tmp_path / "images/annotation")  # with the pathologist's drawings
        shutil.copy(dataset / f"{name}_selection.tsv", tmp_path / "spot-selections")
        text = gzip.decompress((dataset / f"{name}.tsv.gz").read_bytes())
        (tmp_path / "count-matrices" / f"{name}.tsv").write_bytes(text)
    sections = read_dataset(tmp_path)
    assert [(s.name, s.image.relative_to(tmp_path).as_posix()) for s in sections] == [
        ("A1", "images/HE/A1.jpg"),
        ("B1", "images/HE/B1.jpg"),
    ]
    assert sections[0].mpp == read_dataset(dataset)[0].mpp


def test_a_csv_overrides_what_the_layout_says(dataset: Path, tmp_path: Path):
    for path in [*dataset.glob("A1*"), *dataset.glob("B1*")]:
        shutil.copy(path, tmp_path)
    (tmp_path / "A1.jpg").rename(tmp_path / "other.jpg")
    (tmp_path / "sections.csv").write_text("section,patient,image,mpp\nA1,someone,other.jpg,\n")
    (section,) = read_dataset(tmp_path)
    assert (section.name, section.patient, section.image.name) == ("A1", "someone", "other.jpg")
    assert section.mpp == pytest.approx((0.5, 0.5), rel=1e-3)


@pytest.mark.parametrize("missing", ["A1.jpg", "A1.tsv.gz"])
def test_missing_parts_are_named(dataset: Path, tmp_path: Path, missing: str):
    for path in dataset.glob("A1*"):
        if path.name != missing:
            shutil.copy(path, tmp_path)
    with pytest.raises(DatasetError, match=r"section A1 has no (image|counts)"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("1x1\t", "1x1\tx"), "must be numbers"),
        (lambda text: text.replace("1x1\t", "1x1\t-"), "not negative"),
        (lambda text: text.replace("1x1\t", "1x1\t0."), "raw counts are needed"),
        (lambda text: text.replace("2x1\t", "1x1\t"), "names spot 1x1 more than once"),
        (lambda text: text.replace("x1\t", "x77\t").replace("x2\t", "x78\t").replace("x3\t", "x79\t")
         .replace("x4\t", "x80\t").replace("x5\t", "x81\t").replace("x6\t", "x82\t"), "no spot in common"),
    ],
)  # fmt: skip
def test_damaged_counts_are_refused(dataset: Path, tmp_path: Path, change, says: str):
    for path in dataset.glob("A1*"):
        shutil.copy(path, tmp_path)
    text = gzip.decompress((dataset / "A1.tsv.gz").read_bytes()).decode()
    (tmp_path / "A1.tsv.gz").write_bytes(gzip.compress(change(text).encode()))
    with pytest.raises(DatasetError, match=says):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("\t1\n", "\t1\t7\n"), "its lines have more cells than its header"),
        (lambda text: text.replace("new_y\t", "x\t", 1), "it names the column x more than once"),
    ],
)
def test_tables_of_spots_whose_columns_shift_or_repeat_are_refused(dataset: Path, tmp_path: Path, change, says: str):
    for path in dataset.glob("A1*"):
        shutil.copy(path, tmp_path)
    text = (dataset / "A1_selection.tsv").read_text()
    (tmp_path / "A1_selection.tsv").write_text(change(text))
    with pytest.raises(DatasetError, match=says):
        read_dataset(tmp_path)


def test_truncated_counts_are_refused(dataset: Path, tmp_path: Path):
    for path in dataset.glob("A1*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "A1.tsv.gz").write_bytes((dataset / "A1.tsv.gz").read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"A1.tsv.gz: cannot be read"):
        read_dataset(tmp_path)


def test_unknown_layouts_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="known layout"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no such"):
        read_dataset(tmp_path / "nothing")
