from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stpredict.data.dataset import read_dataset
from stpredict.data.reading import Reading
from stpredict.errors import DatasetError

GENES = ["GNAS", "DDX5", "CD74"]
CENTRES = np.array([(x, y) for y in (300.0, 700.0, 1100.0) for x in (300.0, 700.0)])


def write_slide(folder: Path, tech: str, slide: str, counts: np.ndarray) -> None:
    """A slide in the published format: spots are named by the slide, and y comes before x."""
    for part in ("gene_exp", "coord", "image"):
        (folder / tech / part).mkdir(parents=True, exist_ok=True)
    spots = [f"{slide}_{i}x{i + 1}" for i in range(len(CENTRES))]
    pd.DataFrame(counts, spots, GENES).to_csv(folder / tech / "gene_exp" / f"{slide}_count.csv")
    coords = pd.DataFrame({"yaxis": CENTRES[:, 1], "xaxis": CENTRES[:, 0], "r": 100.0}, spots)
    coords.iloc[::-1].to_csv(folder / tech / "coord" / f"{slide}_coord.csv")
    Image.new("RGB", (1200, 1500), "white").save(folder / tech / "image" / f"{slide}.png")


@pytest.fixture
def stimage(tmp_path: Path) -> Path:
    counts = np.random.default_rng(0).poisson(3, (2, 6, 3))
    write_slide(tmp_path, "ST", "Human_Breast_A1", counts[0])
    write_slide(tmp_path, "Visium", "Human_Brain_B", counts[1])
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "meta_all_gene.csv").write_text(
        '"slide","tech","pmid","species","tissue"\n"Human_Breast_A1","ST","34650042","human","breast"\n'
        '"Human_Brain_B","Visium","1","human","brain"\n"Elsewhere","ST","2","mouse","brain"\n'
    )
    return tmp_path


def test_slides_of_every_technology_are_read(stimage: Path):
    visium, st = read_dataset(stimage)
    assert [(one.name, one.patient, one.technology, one.species) for one in (visium, st)] == [
        ("Human_Brain_B", "pmid 1", "Visium", "human"),
        ("Human_Breast_A1", "pmid 34650042", "ST", "human"),
    ]
    assert (st.spot_diameter_um, st.pitch_um, visium.spot_diameter_um, visium.pitch_um) == (100, 200, 55, 100)
    assert st.mpp == pytest.approx((0.5, 0.5))
    assert visium.mpp == pytest.approx((0.25, 0.25))
    np.testing.assert_array_equal(st.centres, CENTRES[::-1])  # in the order of their table
    counts = pd.read_csv(stimage / "ST" / "gene_exp" / "Human_Breast_A1_count.csv", index_col=0).to_numpy()
    np.testing.assert_array_equal(st.counts.rows().toarray(), counts[::-1])
    assert (st.genes, st.names_all_genes) == (GENES, True)
    assert st.notes == ("the data set names no patients, so each study counts as one",)


def test_slides_are_chosen_by_the_tables_columns(stimage: Path):
    assert [one.name for one in read_dataset(stimage, Reading(where="tissue=brain"))] == ["Human_Brain_B"]


def test_unknown_studies_and_distances_are_said(stimage: Path):
    (stimage / "Visium").rename(stimage / "VisiumHD")
    with pytest.raises(DatasetError, match="nothing says how far the spots of VisiumHD are apart"):
        read_dataset(stimage)
    (stimage / "meta" / "meta_all_gene.csv").unlink()
    with pytest.raises(DatasetError, match=r"which patient or study Human_Brain_B comes from; write .*sections.csv"):
        read_dataset(stimage)
