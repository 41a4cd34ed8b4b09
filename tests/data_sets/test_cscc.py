from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stpredict.data.dataset import read_dataset
from stpredict.errors import DatasetError

MPP = 0.6
#: Pixels per unit of the array: nearest neighbours, a step along both axes, are 150 um apart.
UNIT_X, UNIT_Y = 85 / MPP, np.sqrt(150**2 - 85**2) / MPP
SPOTS = [(x, y) for y in range(4, 12) for x in range(10, 20) if (x + y) % 2 == 0]


@pytest.fixture
def cscc(tmp_path: Path, region: np.ndarray) -> Path:
    """Two sections of two patients, named as in GEO; the second one's tables are packed."""
    for gsm, name in (("GSM4284316", "P2_ST_rep1"), ("GSM4284325", "P10_ST_rep1")):
        Image.fromarray(region).save(tmp_path / f"{gsm}_{name}.jpg")
        lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y"]
        for x, y in [*SPOTS, (50, 50)]:
            px, py = (x - 9) * UNIT_X, (y - 3) * UNIT_Y
            lines.append(f"{x}\t{y}\t{x + 0.01}\t{y - 0.01}\t{px:.2f}\t{py:.2f}")
        counts = ["\tKRT5\tKRT14\tMMP1", *(f"{x}x{y}\t{x}\t{y}\t0" for x, y in SPOTS)]
        selection = "\n".join(lines).encode()
        table = "\n".join(counts).encode()
        packed = name.startswith("P10")
        for stem, content in ((f"{gsm}_spot_data-selection-{name}", selection), (f"{gsm}_{name}_stdata", table)):
            path = tmp_path / (f"{stem}.tsv.gz" if packed else f"{stem}.tsv")
            path.write_bytes(gzip.compress(content) if packed else content)
    return tmp_path


def test_sections_spots_and_scale(cscc: Path):
    sections = read_dataset(cscc)
    assert [(s.name, s.patient) for s in sections] == [("P10_ST_rep1", "P10"), ("P2_ST_rep1", "P2")]
    for section in sections:
        assert section.mpp == pytest.approx((MPP, MPP), rel=1e-3)
        assert (section.spot_diameter_um, section.pitch_um) == (110, 150)
        assert len(section.spot_names) == len(SPOTS)
        assert section.lost_spots == 1  # in the selection, but without counts
        assert section.genes == ["KRT5", "KRT14", "MMP1"]
        np.testing.assert_array_equal(section.counts.rows().toarray()[:, :2], SPOTS)


def test_a_csv_gives_another_mpp_and_chooses_sections(cscc: Path):
    (cscc / "sections.csv").write_text("section,patient,mpp\nP2_ST_rep1,second,0.7\n")
    (section,) = read_dataset(cscc)
    assert (section.name, section.patient, section.mpp) == ("P2_ST_rep1", "second", (0.7, 0.7))
    (note,) = section.notes
    assert note == "mpp 0.7000 x 0.7000 by sections.csv, but 0.6000 x 0.6000 by the array's spots"


def test_packed_and_missing_files_are_named(cscc: Path):
    image = cscc / "GSM4284316_P2_ST_rep1.jpg"
    image.rename(cscc / "GSM4284316_P2_ST_rep1.jpg.gz")
    with pytest.raises(DatasetError, match=r"gunzip GSM4284316_P2_ST_rep1.jpg.gz"):
        read_dataset(cscc)
    (cscc / "GSM4284316_P2_ST_rep1.jpg.gz").unlink()
    with pytest.raises(DatasetError, match="section P2_ST_rep1 has no image"):
        read_dataset(cscc)
    (cscc / "GSM4284316_P2_ST_rep1_stdata.tsv").unlink()
    with pytest.raises(DatasetError, match="section P2_ST_rep1 has no counts"):
        read_dataset(cscc)
