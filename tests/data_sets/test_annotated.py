from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from conftest import SLIDE
from PIL import Image
from scipy.sparse import csc_matrix, csr_matrix

from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import read_tiles
from stpredict.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Transforming to str index")

MPP = 0.499  # the slide's own
SYMBOLS = ["GNAS", "DDX5", "MATR3", "MATR3"]
IDS = ["ENSG00000087460.12", "ENSG00000108654", "ENSG00000015479.20", "ENSG00000280987"]
CENTRES = np.array([(x, y) for y in range(300, 2700, 400) for x in range(300, 2000, 400)], dtype=float)
COUNTS = np.random.default_rng(0).poisson(3, (len(CENTRES), 4)).astype("float32")


def make_data(var: pd.DataFrame | None = None, counts=None, centres=CENTRES) -> anndata.AnnData:
    var = pd.DataFrame({"gene_ids": IDS}, index=SYMBOLS) if var is None else var
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(len(centres))])
    return anndata.AnnData(csr_matrix(COUNTS) if counts is None else counts, obs, var, obsm={"spatial": centres})


def write_folder(folder: Path, data: anndata.AnnData, lines: str = "", header: str = "", image: Path = SLIDE) -> Path:
    folder.mkdir(exist_ok=True)
    data.write_h5ad(folder / "s.h5ad")
    lines = lines or f"s,first,{image},s.h5ad\n"
    (folder / "sections.csv").write_text((header or "section,patient,image,counts") + "\n" + lines)
    return folder


@pytest.fixture
def plain_image(tmp_path: Path, region: np.ndarray) -> Path:
    """An image that does not say how large its pixels are."""
    Image.fromarray(region).save(tmp_path / "plain.png")
    return tmp_path / "plain.png"


def test_section_of_a_slide_that_knows_its_mpp(tmp_path: Path):
    (section,) = read_dataset(write_folder(tmp_path, make_data()))
    assert (section.name, section.patient, section.image) == ("s", "first", SLIDE)
    assert section.mpp == pytest.approx((MPP, MPP))
    assert section.pitch_um == pytest.approx(400 * MPP, abs=0.1)
    assert section.spot_diameter_um == section.pitch_um / 2
    assert "taken as half the pitch" in section.notes[0]
    assert section.genes == ["GNAS", "DDX5", "MATR3 (ENSG00000015479)", "MATR3 (ENSG00000280987)"]
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)
    np.testing.assert_array_equal(section.centres, CENTRES)
    assert section.spot_names[:2] == ["spot0", "spot1"]


def test_tile_writes_what_training_reads(tmp_path: Path, tiny_model_path: Path):
    folder = write_folder(
        tmp_path / "mine",
        make_data(),
        f"s,first,{SLIDE},s.h5ad,,100,200\nt,second,{SLIDE},s.h5ad,0.55,100,200\n",
        "section,patient,image,counts,mpp,spot_diameter_um,pitch_um",
    )
    done = run("tile", str(folder), "-m", str(tiny_model_path), "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "t: mpp 0.5500 x 0.5500 by sections.csv, but 0.5000 x 0.5000 by the pitch of sections.csv" in done.stderr
    assert "t: mpp 0.5500 x 0.5500 by the data set, but 0.4990 x 0.4990 by the image file" in done.stderr
    tiles = read_tiles(tmp_path / "mine.tiles.h5")
    assert (tiles.spot_diameter_um, tiles.pitch_um) == (100, 200)
    assert list(np.unique(tiles.patient)) == ["first", "second"]
    np.testing.assert_array_equal(tiles.panel_counts(["DDX5"])[:, 0], np.tile(COUNTS[:, 1], 2))


@pytest.fixture
def two(tmp_path: Path):
    """Makes a folder of two sections of two patients, with these tables."""

    def make(first: anndata.AnnData, second: anndata.AnnData) -> Path:
        line = f"{SLIDE},{{}}.h5ad,100,200"
        lines = f"s,first,{line.format('s')}\nt,second,{line.format('t')}\n"
        folder = write_folder(tmp_path / "two", first, lines, "section,patient,image,counts,spot_diameter_um,pitch_um")
        second.write_h5ad(folder / "t.h5ad")
        return folder

    return make


def test_a_gene_that_a_section_did_not_measure_stays_and_is_not_zero(two, tiny_model_path, tmp_path):
    lacking = make_data(pd.DataFrame(index=["GNAS", "KRT19", "CD74", "ERBB2"]))
    folder = two(make_data(pd.DataFrame(index=["GNAS", "DDX5", "CD74", "ERBB2"])), lacking)
    done = run("tile", folder, "-m", tiny_model_path, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert "sections measured 4 to 4 of 5 genes, all of them 3; a gene counts where it was measured" in done.stderr
    tiles = read_tiles(tmp_path / "two.tiles.h5")
    assert tiles.genes == ["CD74", "DDX5", "ERBB2", "GNAS", "KRT19"]
    np.testing.assert_array_equal(tiles.panel_counts(["CD74"])[:, 0], np.tile(COUNTS[:, 2], 2))
    of_one = np.concatenate([COUNTS[:, 1], np.full(len(COUNTS), np.nan)])
    np.testing.assert_array_equal(tiles.panel_counts(["DDX5"])[:, 0], of_one)


def test_ids_and_symbols_of_two_sections_are_one_naming(two):
    by_symbol, by_id = read_dataset(two(make_data(), make_data(pd.DataFrame(index=IDS))))
    assert by_symbol.genes == ["GNAS", "DDX5", "MATR3 (ENSG00000015479)", "MATR3 (ENSG00000280987)"]
    assert by_id.genes == ["GNAS", "DDX5", "ENSG00000015479", "ENSG00000280987"]  # whose symbol is not theirs alone


def test_sections_without_a_gene_in_common_are_refused(two, tiny_model_path, tmp_path):
    names = pd.DataFrame(index=["GNAS", "DDX5", "CD74", "ERBB2"]), pd.DataFrame(index=IDS)
    done = run("tile", two(*map(make_data, names)), "-m", tiny_model_path, "-o", tmp_path)
    assert done.exit_code == 2
    assert "no gene was measured in all sections" in done.stderr


def test_spots_outside_the_tissue_are_left_out(tmp_path):
    data = make_data()
    data.obs["in_tissue"] = [i % 2 for i in range(len(CENTRES))]
    (section,) = read_dataset(write_folder(tmp_path / "d", data))
    assert len(section.spot_names) == len(CENTRES) // 2
    assert f"{len(CENTRES) - len(CENTRES) // 2} spots not in tissue" in section.notes[-1]


def test_sources_of_the_mpp(tmp_path: Path, plain_image: Path):
    folder = tmp_path / "d"
    line, header = f"s,first,{plain_image},s.h5ad", "section,patient,image,counts"
    with pytest.raises(DatasetError, match=r"plain.png: neither .* in the column mpp of sections.csv"):
        read_dataset(write_folder(folder, make_data(), f"{line}\n"))
    (section,) = read_dataset(write_folder(folder, make_data(), f"{line},200\n", f"{header},pitch_um"))
    assert section.mpp == pytest.approx((0.5, 0.5))
    (section,) = read_dataset(write_folder(folder, make_data(), f"{line},0.6,200\n", f"{header},mpp,pitch_um"))
    assert section.mpp == (0.6, 0.6)
    assert section.notes[0] == "mpp 0.6000 x 0.6000 by sections.csv, but 0.5000 x 0.5000 by the pitch of sections.csv"


def test_visium_lattice(tmp_path: Path, plain_image: Path):
    array = np.array([(row, column) for row in range(8) for column in range(16) if (row + column) % 2 == 0])
    centres = np.column_stack([array[:, 1] * 100.0 + 200, array[:, 0] * np.sqrt(0.75) * 200 + 200])
    data = make_data(counts=csr_matrix(np.ones((len(array), 4))), centres=centres)
    data.obs["array_row"], data.obs["array_col"] = array.T
    (section,) = read_dataset(write_folder(tmp_path / "d", data, image=plain_image))
    assert section.mpp == pytest.approx((0.5, 0.5))
    assert (section.spot_diameter_um, section.pitch_um) == (55, 100)
    data.obs["array_row"] = 0  # a column of another meaning
    data.obs["array_col"] = 0
    with pytest.raises(DatasetError, match="neither the slide nor the spots"):
        read_dataset(write_folder(tmp_path / "d", data, image=plain_image))


@pytest.mark.parametrize(
    ("var", "genes"),
    [
        (pd.DataFrame(index=[*SYMBOLS[:3], "KRT19"]), ["GNAS", "DDX5", "MATR3", "KRT19"]),
        (pd.DataFrame(index=SYMBOLS), ["GNAS", "DDX5"]),  # which MATR3 is which nobody says
        (pd.DataFrame(index=IDS), [gene.split(".")[0] for gene in IDS]),
        (pd.DataFrame({"feature_name": pd.Categorical(["GNAS", "DDX5", "MATR3", None])}, index=IDS),
         ["GNAS", "DDX5", "MATR3", "ENSG00000280987"]),
        (pd.DataFrame({"Gene_Symbol": ["GNAS", "GNAS", "DDX5", ""]}, index=[IDS[0], IDS[0][:-3], *IDS[2:]]),
         ["DDX5", "ENSG00000280987"]),  # one id twice, but for the version
    ],
)  # fmt: skip
def test_names_of_genes(tmp_path: Path, var: pd.DataFrame, genes: list[str]):
    (section,) = read_dataset(write_folder(tmp_path, make_data(var)))
    assert section.genes == genes
    assert section.counts.shape == (len(CENTRES), len(genes))
    assert any("left out because others" in note for note in section.notes) == (len(genes) < 4)


def test_raw_counts_are_needed(tmp_path: Path):
    data = make_data(counts=csr_matrix(np.log1p(COUNTS)))
    with pytest.raises(DatasetError, match=r"s.h5ad: holds values that are not whole numbers.*raw counts are needed"):
        read_dataset(write_folder(tmp_path, data))
    data.layers["counts"] = csc_matrix(COUNTS)
    (section,) = read_dataset(write_folder(tmp_path, data))
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)
    (section,) = read_dataset(write_folder(tmp_path, make_data(counts=COUNTS.astype(int))))  # dense
    np.testing.assert_array_equal(section.counts.rows().toarray(), COUNTS)


@pytest.mark.parametrize(
    ("header", "lines", "says"),
    [
        ("section,image", "s,x\n", r"needs a header line with the columns section and patient"),
        (
            "section,patient,image,counts",
            f"s,,{SLIDE},s.h5ad\n",
            r"sections.csv, line 2: needs a section and a patient",
        ),
        ("section,patient,image,counts", "s,p,gone.svs,s.h5ad\n", r"line 2: there is no image file .*gone.svs"),
        ("section,patient,counts", "s,p,s.h5ad\n", r"header line section,patient,image,counts"),
        ("section,patient,image,counts,mpp", f"s,p,{SLIDE},s.h5ad,half\n", r"mpp must be a positive number .* 'half'"),
        ("section,patient,image,counts,pitch_um", f"s,p,{SLIDE},s.h5ad,-1\n", r"pitch_um must be a positive number"),
        ("section,patient,image,counts", f"s,p,{SLIDE},s.h5ad\ns,p,{SLIDE},s.h5ad\n", r"line 3: names section s a sec"),
        ("section,patient", "\n", "names no sections"),
    ],
)
def test_sections_csv_is_checked(tmp_path: Path, header: str, lines: str, says: str):
    with pytest.raises(DatasetError, match=says):
        read_dataset(write_folder(tmp_path, make_data(), lines, header))


def test_files_without_a_table_are_asked_for_one(tmp_path: Path):
    make_data().write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(DatasetError, match=r"write .*sections.csv with the header line section,patient,image,counts"):
        read_dataset(tmp_path)


def change(name: str, value: object):
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            attributes = dict(file[name].attrs)
            del file[name]
            file[name] = value
            file[name].attrs.update(attributes)

    return apply


def link_outside(path: Path) -> None:
    shutil.copy(path, path.with_name("other.h5"))
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink("other.h5", "/X")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "s.h5ad: cannot be read"),
        (lambda path: path.write_bytes(b"nothing"), "s.h5ad: cannot be read"),
        (link_outside, "s.h5ad: .*X is a link to another file"),
        (change("X/indices", np.full(np.count_nonzero(COUNTS), 10**9, "int32")), "s.h5ad: .*damaged"),
        (change("obsm/spatial", np.full((len(CENTRES), 2), np.nan)), "a finite x and y for each spot"),
        (change("obsm/spatial", np.zeros((len(CENTRES), 2))), "section s: too few spots"),
        (change("obsm/spatial", np.zeros((3, 2))), "s.h5ad: cannot be read as AnnData"),
        (lambda path: make_data(counts=np.full(COUNTS.shape, np.nan)).write_h5ad(path), "finite and not negative"),
        (lambda path: anndata.AnnData(COUNTS).write_h5ad(path), r"needs .* pixels in obsm\['spatial'\]; obsm is empty"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, damage, says: str):
    folder = write_folder(tmp_path / "d", make_data())
    damage(folder / "s.h5ad")
    with pytest.raises(DatasetError, match=says):
        read_dataset(folder)
