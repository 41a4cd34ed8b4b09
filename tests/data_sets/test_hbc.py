from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.errors import DatasetError

STEP = 390  # pixels between spots, 200 um: 0.5128 um per pixel
SPOTS = [(x, y) for y in (2, 3, 4) for x in (5, 6, 7, 8)]
GENES = ["ENSG00000087460.12", "ENSG00000108654", "ENSG00000141736.3"]


def pixels(x: int, y: int) -> tuple[float, float]:
    return (x - 4.3) * STEP, (y - 1.4) * STEP


def counts_of(genes: list[str], seed: int) -> str:
    """A table as published: spots off the tissue too, and without genes of which the section has no count."""
    rng = np.random.default_rng(seed)
    lines = ["\t" + "\t".join(genes)]
    lines += [f"{x}x{y}\t" + "\t".join(map(str, rng.poisson(9, len(genes)) + 1)) for x, y in [*SPOTS, (30, 31)]]
    return "\n".join(lines) + "\n"


@pytest.fixture
def st_net(tmp_path: Path, region: np.ndarray) -> Path:
    """Two sections as ST-Net lays them out: SUBTYPE/PATIENT/PATIENT_SECTION.*, positions with tabs."""
    for patient, section, genes in (("BC23209", "C1", GENES), ("BC23288", "D2", GENES[1:])):
        stem = tmp_path / "Luminal_A" / patient / f"{patient}_{section}"
        stem.parent.mkdir(parents=True)
        Image.fromarray(region).save(f"{stem}.jpg")
        with gzip.open(f"{stem}.tsv.gz", "wt") as file:
            file.write(counts_of(genes, len(genes)))
        lines = ["x\ty\tpixel_x\tpixel_y"]
        lines += ["\t".join(str(value) for value in (x, y, *pixels(x, y))) for x, y in SPOTS]
        Path(f"{stem}.spots.txt").write_text("\n".join(lines) + "\n")
        labels = ["C1_x_y\tx\ty\tlabel"]  # a name too few, and coordinates that are not whole
        labels += [f"{x}x{y}\t{x + 0.04}\t{y - 0.03}\tL1\ttumor" for x, y in SPOTS[:-1]]
        Path(f"{stem}_Coords.tsv").write_text("\r".join(labels) + "\r", newline="")
    return tmp_path


def test_sections_spots_and_genes(st_net: Path):
    sections = read_dataset(st_net)
    assert [(s.name, s.patient) for s in sections] == [("BC23209_C1", "BC23209"), ("BC23288_D2", "BC23288")]
    first = sections[0]
    assert first.mpp == pytest.approx((200 / STEP, 200 / STEP))
    assert (first.spot_diameter_um, first.pitch_um) == (100, 200)
    assert first.spot_names == [f"{x}x{y}" for x, y in SPOTS[:-1]]  # the last has no label
    assert first.lost_spots == 2
    np.testing.assert_allclose(first.centres[0], pixels(5, 2))
    assert first.genes == ["ENSG00000087460", "ENSG00000108654", "ENSG00000141736"]
    written = np.array([line.split("\t")[1:] for line in counts_of(GENES, 3).splitlines()[1:]], dtype=float)
    np.testing.assert_array_equal(first.counts.rows().toarray(), written[: len(SPOTS) - 1])


def test_genes_that_a_section_lacks_are_zero_there(st_net: Path, tmp_path: Path):
    lines: list[str] = []
    write_tiles(read_dataset(st_net), tmp_path / "hbc.tiles.h5", patch_px=16, report=lines.append)
    tiles = read_tiles(tmp_path / "hbc.tiles.h5")
    gnas = tiles.panel_counts(["ENSG00000087460"])[:, 0]
    assert (gnas[tiles.section == "BC23288_D2"] == 0).all()
    assert (gnas[tiles.section == "BC23209_C1"] > 0).all()
    assert "BC23209_C1: 11 spots, 2 without counts or position" in lines[0]


def test_published_archive(st_net: Path, tmp_path: Path):
    """One folder, positions with commas, and BT for BC in the names of some files."""
    archive = tmp_path / "archive"
    archive.mkdir()
    stem = st_net / "Luminal_A/BC23209/BC23209_C1"
    (archive / "HE_BT23209_C1.jpg").write_bytes(Path(f"{stem}.jpg").read_bytes())
    (archive / "BC23209_C1_stdata.tsv.gz").write_bytes(Path(f"{stem}.tsv.gz").read_bytes())
    with gzip.open(archive / "BC23209_C1_Coords.tsv.gz", "wb") as file:
        file.write(Path(f"{stem}_Coords.tsv").read_bytes())
    for header in (",X,Y", "X,Y"):
        lines = [header, *("{}x{},{},{}".format(x, y, *pixels(x, y)) for x, y in SPOTS)]
        with gzip.open(archive / "spots_BT23209_C1.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
        (section,) = read_dataset(archive)
        ours = read_dataset(st_net / "Luminal_A/BC23209")[0]
        assert (section.name, section.spot_names, section.genes) == (ours.name, ours.spot_names, ours.genes)
        np.testing.assert_allclose(section.centres, ours.centres)
        assert section.mpp == pytest.approx(ours.mpp)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("BC23209_C1.spots.txt", "a\tb\n1\t2\n", "needs the columns x, y, pixel_x and pixel_y"),
        ("BC23209_C1.spots.txt", "x\ty\tpixel_x\tpixel_y\n1\t2\tthree\t4\n", "positions must be numbers"),
        ("BC23209_C1.spots.txt", ",X,Y\nfirst,1,2\n", "BC23209_C1.spots.txt: positions must be finite"),
        ("BC23209_C1_Coords.tsv", "nothing\n", "BC23209_C1_Coords.tsv: cannot be read as a table"),
        ("BC23209_C1_Coords.tsv", "h\tx\ty\n1\tone\ttwo\tL\ttumor\n", "BC23209_C1_Coords.tsv: positions must be numb"),
        ("BC23209_C1.tsv.gz", "\tENSG00000087460\n5x2\t1.5\n", "raw counts are needed"),
    ],
)
def test_damaged_tables_are_refused(st_net: Path, name: str, text: str, says: str):
    data = text.encode()
    (st_net / "Luminal_A/BC23209" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DatasetError, match=says):
        read_dataset(st_net)


def test_spots_that_do_not_lie_on_the_array_are_refused(st_net: Path):
    path = st_net / "Luminal_A/BC23209/BC23209_C1.spots.txt"
    rng = np.random.default_rng(0)
    lines = ["x\ty\tpixel_x\tpixel_y", *(f"{x}\t{y}\t{rng.uniform(0, 2000)}\t{rng.uniform(0, 2000)}" for x, y in SPOTS)]
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError, match="section BC23209_C1: pixel positions do not follow"):
        read_dataset(st_net)
