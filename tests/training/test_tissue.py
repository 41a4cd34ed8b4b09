"""`--tissue`: slides without counts give unlabelled patches, and do not teach what holds their patient out."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import make_quick_model
from patch_networks import PATCH_PX
from scipy.sparse import csr_array
from slides_without_counts import DENSE, QUICK, write_slide

from stpredict.data.counts import in_memory
from stpredict.data.cutting import places_by_section
from stpredict.data.section import Section
from stpredict.data.stored_patches import StoredPatches
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.data.tissue import places_of, tissue_beside
from stpredict.data.twins import Twins
from stpredict.model.file import load_model
from stpredict.model.show import show_card
from stpredict.slides.slide import Mpp
from stpredict.training import plan
from stpredict.training.sampling import groups_to_balance
from stpredict.training.settings import Settings

pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def table(slides: Path) -> Path:
    """Which says that the first slide is of patient A, who has sections."""
    path = slides.parent / "slides.csv"
    path.write_text(f"image,patient\n{slides / 'one.tif'},A\n{slides / 'more' / 'two.tif'},Z\n")
    return path


@pytest.fixture(scope="module")
def trained(dataset: Path, table: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "mine.safetensors"
    done = run("train", dataset, "-o", out, "--arch", "dictionary", *QUICK, "--tissue", table)
    assert done.exit_code == 0, done.output
    return out, done


@pytest.fixture(scope="module")
def tiles(trained) -> Tiles:
    return read_tiles(trained[0].with_suffix(".run") / "dataset.tiles.h5")


def test_all_slides_give_unlabelled_patches_alike(tiles: Tiles):
    names, places = np.unique(tiles.unlabelled_section, return_counts=True)
    assert dict(zip(names, places, strict=True)) == {"A1": 12, "A2": 12, "B1": 12, "one.tif": 12, "two.tif": 12}
    assert tiles.tissue == {"one.tif": "A", "two.tif": "Z"}
    assert set(tiles.section) == {"A1", "A2", "B1"}  # spots are of sections alone
    patches = tiles.read_patches(np.arange(60), unlabelled=True).astype(float)
    reddest = patches[..., 0].max(axis=(1, 2))
    np.testing.assert_array_equal(reddest > 160, ~np.isin(tiles.unlabelled_section, ["one.tif", "two.tif"]))


def test_a_slide_whose_patient_is_held_out_does_not_teach(tiles: Tiles, trained):
    out, done = trained
    assert tissue_beside(tiles, ["A1", "A2", "B1"]) == ["one.tif", "two.tif"]
    assert tissue_beside(tiles, ["B1"]) == ["two.tif"]
    assert tissue_beside(tiles, ["A1", "B1"]) == ["two.tif"]  # another section of the same patient is held out
    assert tissue_beside(tiles, ["A1", "A2"]) == ["one.tif", "two.tif"]
    same = replace(tiles, twins=(Twins("A1", "B1", "equal images"),))  # so that A and B are one patient
    assert tissue_beside(same, ["A1", "A2"]) == ["two.tif"]
    assert set(tiles.unlabelled_section[places_of(tiles, ["B1"])]) == {"B1", "two.tif"}
    cards = [load_model(path).card["training"] for path in sorted(out.with_suffix(".run").glob("fold-*/*.safetensors"))]
    told = [(card["patients"], card["tissue_slides"], card["unlabelled_patches"]) for card in cards]
    assert told == [(["B"], 1, 24), (["A"], 2, 48)]
    assert (
        "1 slide of --tissue is of a patient with sections (A); a part that holds a patient out does not learn from "
        "that patient's slides\n"
    ) in done.stderr
    assert (
        "1 slide of --tissue is of a patient without sections (Z); if one has sections, name that patient as the data "
        "set does\n"
    ) in done.stderr
    assert "nothing names the patient" not in done.stderr


def test_the_card_says_how_much_taught(trained):
    model = load_model(trained[0])
    training = model.card["training"]
    assert (training["tissue_slides"], training["tissue_patches"], training["unlabelled_patches"]) == (2, 24, 60)
    assert training["tissue_patients"] == ["A", "Z"]
    assert training["sections"] == ["A1", "A2", "B1"]
    assert "taught also on 24 unlabelled places of 2 slides without counts" in list(show_card(model))
    assert "one.tif" not in json.dumps(model.card)


def test_a_model_is_not_scored_on_patients_whose_tissue_taught_it(trained, dataset: Path, tmp_path: Path):
    folder = shutil.copytree(dataset, tmp_path / "other")
    for path in folder.glob("A1*"):
        path.rename(path.with_name(path.name.replace("A1", "Z1")))
    done = run("evaluate", trained[0], folder, "--min-depth", 1, "-o", tmp_path)
    assert done.exit_code == 2, done.output
    assert "Z" in done.stderr


def test_a_dictionary_sees_the_slides(trained, dataset: Path, tmp_path: Path):
    alone = tmp_path / "alone.safetensors"
    done = run("train", dataset, "-o", alone, "--arch", "dictionary", *QUICK, "--folds", "none")
    assert done.exit_code == 0, done.output
    assert "tissue" not in json.loads((tmp_path / "alone.run" / "run.json").read_text())
    assert "tissue_slides" not in load_model(alone).card["training"]
    other, own = (load_model(path).tensors["centres"] for path in (alone, trained[0]))
    assert not np.array_equal(other, own)


def test_groups_count_slides_by_their_patients(tiles: Tiles):
    by_patient = groups_to_balance(tiles, "patients", tiles.unlabelled_section)
    by_section = groups_to_balance(tiles, "sections", tiles.unlabelled_section)
    assert by_patient is not None
    assert by_section is not None
    of = {name: set(by_patient[tiles.unlabelled_section == name]) for name in (*tiles.tissue, "A1", "B1")}
    assert of["one.tif"] == of["A1"] != of["B1"]
    assert len({*by_patient}) == 3
    assert len({*by_section}) == 5


def test_a_network_is_taught_densely_and_a_dry_run_says_how(
    dataset: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan, "MEASURE_S", 0.05)
    out = tmp_path / "mine.safetensors"
    call = ("train", dataset, "-o", out, *DENSE, *QUICK, "--balance", "patients", "--tissue", slides, "--folds", "none")
    planned = run(*call, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not list(tmp_path.iterdir())
    assert "3 sections of 2 patients, 72 spots; 2 slides without counts\n" in planned.stdout
    assert f"patches of {PATCH_PX} px, of 72 spots and 60 unlabelled places" in planned.stdout
    assert "epochs x steps: teach 1 x 4" in planned.stdout
    done = run(*call)
    assert done.exit_code == 0, done.output
    assert "nothing names the patient of 2 slides of --tissue, so each counts as a patient of its own" in done.stderr
    assert "24 unlabelled places on 2 slides without counts" in done.stderr
    card = load_model(out).card
    assert (card["training"]["tissue_slides"], card["training"]["tissue_patients"]) == (2, [])
    assert run(*call).stderr.strip() == f"{out}: up to date"
    assert f'tissue = ["{slides}"]' in (tmp_path / "mine.run" / "config.toml").read_text()
    other = run(*call[:-4], "--folds", "none")
    assert other.exit_code == 1
    assert "holds a run with other settings (with tissue instead of without)" in other.stderr


def test_an_anonymous_card_names_no_patient_of_a_slide(dataset: Path, table: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    how = ("--arch", "dictionary", *QUICK, "--folds", "none", "--anonymous", "--tissue", table)
    assert run("train", dataset, "-o", out, *how).exit_code == 0
    training = load_model(out).card["training"]
    assert training["tissue_patients"] == ["patient 1", "patient 3"]
    with (tmp_path / "mine.run" / "names.csv").open() as file:
        assert dict(csv.reader(file))["patient 3"] == "Z"


def test_a_dictionary_learns_from_tissue_whatever_teaches_networks():
    assert Settings("dictionary", teach_patches=0).learns_from_tissue
    assert not Settings("m2ort-tiny", teach_patches=0).learns_from_tissue
    assert Settings("m2ort-tiny").learns_from_tissue


@pytest.fixture
def broken(slides: Path, coarse_region: np.ndarray, tmp_path: Path) -> Path:
    folder = shutil.copytree(slides, tmp_path / "slides")
    (folder / "half.tif").write_bytes((folder / "one.tif").read_bytes()[:2000])
    write_slide(folder / "coarse.tif", coarse_region[::4, ::4], 4)
    write_slide(folder / "unsized.tif", coarse_region, None)
    write_slide(folder / "white.tif", np.full((600, 600, 3), 250, np.uint8))
    return folder


def test_all_broken_slides_are_named_before_anything_is_cut(dataset: Path, broken: Path, tmp_path: Path):
    call = ("train", dataset, "-o", tmp_path / "mine.safetensors", "--arch", "dictionary", *QUICK, "--tissue", broken,
            "--folds", "none")  # fmt: skip
    refused = run(*call)
    assert refused.exit_code == 2
    assert "4 slides of --tissue cannot be used: coarse.tif (coarse.tif: 4 um per pixel is too coarse" in refused.stderr
    assert "unsized.tif: the file does not say its micrometres per pixel; name it in a table" in refused.stderr
    assert "white.tif: no tissue found" in refused.stderr
    assert "half.tif (half.tif: " in refused.stderr
    assert not (tmp_path / "mine.run").exists()
    done = run(*call, "--skip-broken")
    assert done.exit_code == 1, done.output
    said = "4 slides cannot be used and are left out: coarse.tif, half.tif, unsized.tif, white.tif; "
    assert "may not be H&E, and teaches all the same: one.tif (most of its colours are green" in done.stderr
    assert f"{said}{tmp_path / 'mine.run' / 'broken-tissue.csv'} says why" in done.stderr
    assert load_model(tmp_path / "mine.safetensors").card["training"]["tissue_slides"] == 2
    with (tmp_path / "mine.run" / "broken-tissue.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["coarse.tif", "half.tif", "unsized.tif", "white.tif"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--arch", "dictionary", "--unlabelled", 0), "--unlabelled is 0"),
        (("--arch", "m2ort-tiny", "--teach-patches", 0), "--teach-patches is 0"),
        (("--arch", "histogene"), "histogene learns from measured spots alone"),
        (("--arch", "m2ort-small", "--recipe", "m2ort-paper"), "a recipe teaches on measured spots alone"),
        (
            ("--arch", "dictionary", "--unlabelled", 4),
            "--unlabelled 4 is less than a patch of each of 5 slides, 2 without counts and 3 of sections; name 5 or "
            "more",
        ),
    ],
)
def test_where_nothing_would_learn_from_it_tissue_is_refused(
    dataset: Path, slides: Path, tmp_path: Path, options: tuple[str, ...], reason: str
):
    refused = run("train", dataset, "-o", tmp_path / "mine.safetensors", "--tissue", slides, "--min-depth", 1, *options)
    assert refused.exit_code == 2
    assert f"--tissue: {reason}" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_an_encoder_learns_nothing_from_tissue(dataset: Path, slides: Path, encoder: Path, tmp_path: Path):
    how = ("--encoder", encoder, "--mpp", 1, "--tissue", slides)
    refused = run("train", dataset, "-o", tmp_path / "mine.safetensors", *how)
    assert refused.exit_code == 2
    assert (
        "--tissue: an encoder is not taught, so nothing would learn from these slides; leave it out" in refused.stderr
    )


def test_tiles_hold_the_patches_of_tissue(dataset: Path, broken: Path, table: Path, tmp_path: Path):
    model, out = make_quick_model(tmp_path / "tiny.safetensors", mpp=1.0), tmp_path / "mine.safetensors"
    call = ("tile", dataset, "-m", model, "-o", tmp_path / "t", "--tissue", broken)
    refused = run(*call)
    assert refused.exit_code == 2
    assert "--tissue: gives unlabelled patches; say by --unlabelled how many to cut" in refused.stderr
    cut = run(*call, "--unlabelled", 50, "--skip-broken")
    assert cut.exit_code == 1, cut.output
    path = tmp_path / "t" / f"{dataset.name}.tiles.h5"
    assert (tmp_path / "t" / f"{dataset.name}.broken-tissue.csv").read_text().count(".tif,") == 4
    assert dict(zip(*np.unique(read_tiles(path).unlabelled_section, return_counts=True), strict=True))["two.tif"] == 10
    refused = run("train", path, "-o", out, *DENSE, "--tissue", table)
    assert "--tissue: needs a folder of sections; `stpredict tile --tissue` cuts both into one file" in refused.stderr
    done = run("train", path, "-o", out, "--arch", "dictionary", *QUICK, "--folds", "none")
    assert done.exit_code == 0, done.output
    assert "2 slides without counts teach too\n" in done.stderr
    assert load_model(out).card["training"]["tissue_slides"] == 2
    compared = run("compare", path, "-o", tmp_path / "c", "--arch", "dictionary", "--min-depth", 1, "--threads", 1)
    assert compared.exit_code == 0, compared.output
    assert "; those that learn from unlabelled tissue saw that of 2 slides without counts too; " in compared.stdout


def test_sections_without_slides_leave_all_places_to_tissue():
    spots = ["1x1", "1x2", "1x3"]
    section = Section("A1", "A", Path("A1.jpg"), Mpp(1, 1), spots, np.zeros((3, 2)), [], in_memory(csr_array((3, 0))))
    slide = replace(section, spot_names=[])
    stored = StoredPatches(Path("A1.h5"), 224, 1.0, (0, 1, 2))
    assert places_by_section([replace(section, patches=stored)], 10, [slide, slide]) == [0, 5, 5]
    assert places_by_section([section, replace(section, spot_names=spots[:1])], 10, [slide]) == [5, 1, 3]
    assert places_by_section([section], 10) == [10]


def test_ridge_teaches_on_the_slides_too(dataset: Path, slides: Path, tmp_path: Path):
    how = ("--arch", "m2ort-tiny", "--teach", "ridge", "--epochs", 1, "--teach-patches", 60, "--batch-size", 16)
    done = run("train", dataset, "-o", tmp_path / "m.safetensors", *how, *QUICK, "--folds", "none", "--tissue", slides)
    assert done.exit_code == 0, done.output
    assert load_model(tmp_path / "m.safetensors").card["training"]["tissue_slides"] == 2
    with np.load(tmp_path / "m.run" / "features.npz") as features:
        assert len(features["unlabelled"]) == 60
    stage = torch.load(tmp_path / "m.run" / "all" / "teach.pt", weights_only=True)
    assert stage["schedule"]["last_epoch"] == 4  # batches of the sections' places and of the slides'
