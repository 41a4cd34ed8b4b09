"""Sections that measured different genes, through the command line: no gene and no spot is lost, nothing is zero."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from calls import run
from PIL import Image
from scipy.sparse import csr_matrix

from stpredict.data.tiles import read_tiles
from stpredict.model.file import load_model

pytestmark = pytest.mark.usefixtures("small_patches")

WIDE = [f"G{i:02}" for i in range(60)]
PANEL, OWN = WIDE[:20], ["X0", "X1"]
SECTIONS = {"A": WIDE, "B": WIDE, "C": [*PANEL, *OWN], "D": WIDE}
MPP = 1.0


def write_section(folder: Path, name: str, image: np.ndarray, genes: list[str], seed: int) -> None:
    """A section in an .h5ad that names all its genes, whose counts follow the brightness of the image."""
    rng = np.random.default_rng(seed)
    Image.fromarray(image).save(folder / f"{name}.png")
    centres = np.array([(x, y) for y in range(100, image.shape[0] - 100, 100) for x in range(100, 900, 100)], float)
    dark = np.array([1 - image[int(y) - 25 : int(y) + 25, int(x) - 25 : int(x) + 25].mean() / 255 for x, y in centres])
    rate = np.linspace(20, 80, 60)[: len(genes)] * (1 + dark[:, None] * np.linspace(-0.9, 0.9, len(genes)))
    counts = rng.poisson(rate * rng.uniform(0.5, 1.5, (len(centres), 1)))
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(len(centres))])
    data = anndata.AnnData(csr_matrix(counts.astype("float32")), obs, pd.DataFrame(index=genes))
    data.obsm["spatial"] = centres
    data.write_h5ad(folder / f"{name}.h5ad")


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory, coarse_region: np.ndarray) -> Path:
    """Three sections of 60 genes and one of 20 of these and two more, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("differing")
    lines = ["section,patient,image,counts,mpp,spot_diameter_um,pitch_um"]
    for seed, (name, genes) in enumerate(SECTIONS.items()):
        part = coarse_region[:900, :1000]
        image = np.ascontiguousarray((part, part[::-1], part[:, ::-1], part[::-1, ::-1])[seed])
        write_section(folder, name, image, genes, seed)
        lines.append(f"{name},p{name},{name}.png,{name}.h5ad,{MPP},50,100")
    (folder / "sections.csv").write_text("\n".join(lines) + "\n")
    return folder


def train(dataset: Path, out: Path, *options: object) -> str:
    """What a call that succeeds says on stderr."""
    done = run("train", dataset, "-o", out, "--min-depth", "1", "--unlabelled", "0", "--threads", "1", *options)
    assert done.exit_code == 0, done.output
    return done.stderr


@pytest.fixture(scope="module")
def trained(differing: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    return out, train(differing, out, "--arch", "dictionary", "--folds", "2")


def test_a_gene_that_some_sections_measured_stays_and_so_do_all_spots(trained: tuple[Path, str]):
    out, said = trained
    assert "sections measured 22 to 60 of 62 genes, all of them 20" in said
    assert "panel: 60 genes, each measured in 3 to 4 of 4 sections" in said
    assert "genes left out" not in said
    assert "without counts in the panel" not in said
    model = load_model(out)
    assert model.panel == WIDE
    assert model.card["training"]["spots"] == len(read_tiles(out.with_suffix(".run") / "dataset.tiles.h5").spot)


def test_the_card_says_where_each_gene_was_measured(trained: tuple[Path, str]):
    shown = run("models", "show", trained[0])
    assert "genes: each measured in 3 to 4 of 4 sections" in shown.stdout
    genes = json.loads(run("models", "show", trained[0], "--json").stdout)["genes"]
    assert [gene["measured_in_sections"] for gene in genes] == [4] * 20 + [3] * 40
    assert [gene["measured_in_patients"] for gene in genes] == [4] * 20 + [3] * 40
    assert all(gene["measured_in_training"] for gene in genes)


def test_what_nothing_measured_has_no_score(tmp_path: Path, differing: Path):
    """Of the held-out part that is section C alone, 40 genes have no score, and none of 0."""
    train(differing, tmp_path / "m.safetensors", "--arch", "dictionary", "--folds", "none", "--hold-out", "C")
    (fold,) = load_model(tmp_path / "m.safetensors").card["held_out"]
    assert fold["train"] == ["A", "B", "D"]
    known = np.array([value is not None for value in fold["per_gene"]["correlation"]])
    np.testing.assert_array_equal(known, [gene in PANEL for gene in load_model(tmp_path / "m.safetensors").panel])
    assert fold["rows"]["model"]["depth_controlled"] > 0.05


def test_predictions_are_of_all_genes_in_one_unit(trained: tuple[Path, str], differing: Path, tmp_path: Path):
    spots = tmp_path / "spots.csv"
    spots.write_text("x,y\n" + "".join(f"{x},300\n" for x in range(200, 800, 100)))
    call = ("predict", differing / "A.png", "-m", trained[0], "--spots", spots, "--mpp", MPP, "-o", tmp_path)
    done = run(*call, "--engine", "eager", "--precision", "fp32", "--threads", "1")
    assert done.exit_code == 0, done.output
    result = anndata.read_h5ad(next(tmp_path.rglob("*.h5ad")))
    assert np.isfinite(np.asarray(result.X)).all()
    assert (result.var["measured_in_training"] == 1).all()
    # 60 genes share a million counts in sections of all of them, whatever the part of 20 alone.
    shares = np.expm1(load_model(trained[0]).card["genes"]["training_mean"])
    assert shares.sum() == pytest.approx(1e6, rel=0.02)


def test_genes_of_few_sections_are_taken_where_fewer_are_asked_for(trained: tuple[Path, str], tmp_path: Path):
    tiles = trained[0].with_suffix(".run") / "dataset.tiles.h5"
    said = train(tiles, tmp_path / "m.safetensors", "--arch", "dictionary", "--folds", "none", "--min-sections", "1")
    assert "panel: 62 genes, each measured in 1 to 4 of 4 sections" in said
    model = load_model(tmp_path / "m.safetensors")
    assert model.card["genes"]["measured_in_sections"] == [4] * 20 + [3] * 40 + [1] * 2
    assert np.isfinite(model.card["genes"]["training_spread"]).all()
    assert min(model.card["genes"]["training_spread"]) > 0


def test_genes_alone_that_all_measured_are_refused_where_they_are_few(differing: Path, tmp_path: Path):
    done = run("train", differing, "-o", tmp_path / "m.safetensors", "--arch", "dictionary", "--panel", "variance")
    assert done.exit_code == 2
    assert "all sections measured 20 genes, though one section measured 60" in done.stderr
    assert "take genes that only some sections measured (--panel coverage)" in done.stderr
    assert not (tmp_path / "m.run").exists()


@pytest.mark.parametrize(
    "options", [("--arch", "bleep"), ("--arch", "egn"), ("--arch", "hist2st"), ("--normalisation", "panel")]
)
def test_who_wants_all_genes_of_a_spot_says_so_before_patches_are_cut(differing: Path, tmp_path: Path, options):
    done = run("train", differing, "-o", tmp_path / "m.safetensors", "--min-depth", "1", *options)
    assert done.exit_code == 2, done.output
    assert "that only some sections measured; take genes that all measured" in done.stderr
    assert not (tmp_path / "m.run").exists()


def test_a_network_learns_each_gene_where_it_was_measured(trained: tuple[Path, str], tmp_path: Path):
    tiles, out = trained[0].with_suffix(".run") / "dataset.tiles.h5", tmp_path / "m.safetensors"
    options = ("--arch", "m2ort-small:depth=1", "--epochs", "1", "--objective", "nb", "--hold-out", "C")
    said = train(tiles, out, *options, "--folds", "none")
    assert "nan" not in said
    assert "panel: 60 genes, each measured in 3 to 4 of 4 sections" in said
    assert np.isfinite(load_model(out).card["genes"]["training_spread"]).all()


def test_the_file_keeps_what_was_measured_and_grows_by_counts_alone(trained: tuple[Path, str]):
    path = trained[0].with_suffix(".run") / "dataset.tiles.h5"
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 4
        assert file["measured"].shape == (4, 62)
        assert (
            len(file["counts/data"])
            < sum(len(read_tiles(path).spot) / 4 * len(genes) for genes in SECTIONS.values()) + 1
        )
    tiles = read_tiles(path)
    own = tiles.section == "C"
    counts = tiles.panel_counts([*WIDE, *OWN])
    assert np.isnan(counts[own][:, 20:60]).all()
    assert np.isnan(counts[~own][:, 60:]).all()
    assert np.isfinite(counts[own][:, [*range(20), 60, 61]]).all()


def test_a_model_is_scored_where_sections_measured_its_genes(
    trained: tuple[Path, str], differing: Path, tmp_path: Path
):
    """Three sections measured all of its genes, C 20 of them, and E none."""
    folder = shutil.copytree(differing, tmp_path / "more")
    image = np.asarray(Image.open(folder / "A.png"))
    write_section(folder, "E", image, [*OWN, *(f"Y{i:02}" for i in range(58))], 9)
    with (folder / "sections.csv").open("a") as table:
        table.write(f"E,pE,E.png,E.h5ad,{MPP},50,100\n")
    out = tmp_path / "scores"
    done = run("evaluate", trained[0], folder, "--min-depth", 1, "--allow-patient-leak", "--engine", "eager", "-o", out)
    assert done.exit_code == 0, done.output
    assert "- sections that measured none of the predicted genes are left out: E" in done.stdout
    assert "- 20 genes measured in all 4 sections, 40 in 3 of 4; each is scored in the sections that" in done.stdout
    (everything,) = out.glob("*.evaluation.json")
    found = json.loads(everything.read_text())
    assert {one["section"]: one["genes"] for one in found["sections"]} == {"A": 60, "B": 60, "C": 20, "D": 60}
    assert all(one["rows"]["ridge on colour and texture"] is not None for one in found["sections"])
    (table,) = out.glob("*.genes.csv")
    in_sections = pd.read_csv(table).set_index("gene")["sections"].to_dict()
    assert in_sections == {gene: 4 if gene in PANEL else 3 for gene in WIDE}


def test_systems_are_compared_where_sections_measured_the_genes(trained: tuple[Path, str], tmp_path: Path):
    out, tiles = tmp_path / "compared", trained[0].with_suffix(".run") / "dataset.tiles.h5"
    call = ("--arch", "dictionary", "--folds", 2, "--seeds", 1, "--min-depth", 1, "--threads", 1, "--panel", "coverage")
    done = run("compare", tiles, *call, "-o", out)
    assert done.exit_code == 0, done.output
    assert "- not all held-out sections measured all genes" in done.stdout
    genes = pd.read_csv(out / "genes.csv").set_index("gene")
    assert genes["sections"].to_dict() == {gene: 4 if gene in PANEL else 3 for gene in WIDE}
    assert genes["dictionary"].notna().all()


def test_of_many_spots_sums_give_the_same_model(differing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where some genes were measured in few spots, which are read again."""
    monkeypatch.setattr("stpredict.training.programmes.STRENGTHS", np.array([100.0]))
    options = ("--arch", "dictionary", "--folds", "none", "--hold-out", "D")
    train(differing, tmp_path / "all.safetensors", *options)
    monkeypatch.setattr("stpredict.training.head_sums.FEW_SPOTS", 10)
    n_spots, width = len(read_tiles(tmp_path / "all.run" / "dataset.tiles.h5").spot), 600
    monkeypatch.setattr("stpredict.training.head_sums.SPOTS_PER_FEATURE", 0.6 * n_spots / width)
    train(differing, tmp_path / "sums.safetensors", *options)
    whole, sums = (load_model(tmp_path / f"{name}.safetensors") for name in ("all", "sums"))
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(tensor, sums.tensors[name], rtol=1e-3, atol=1e-3)
    assert whole.card["genes"] == sums.card["genes"]
    per_gene = [model.card["held_out"][0]["per_gene"]["correlation"] for model in (whole, sums)]
    np.testing.assert_allclose(*per_gene, atol=2e-3)
