"""HIPT and iStar, which read slides in tiles through frozen networks of the user's, through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from calls import run
from conftest import SLIDE
from held_out import check_reported_correlation

from stpredict.model.file import load_model
from stpredict.networks.hierarchy import RegionViT
from stpredict.networks.trunks.vit import random_vit
from stpredict.result.file import read_result

OPTIONS = "--threads 1 --mpp 1 --min-depth 1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name files of tiny networks."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    safetensors.torch.save_file(random_vit(24, (1,), 224, 6).state_dict(), folder / "vit256.safetensors")
    safetensors.torch.save_file(RegionViT(24, 12, 1, 6).state_dict(), folder / "vit4k.safetensors")
    return ["--encoder-weights", folder / "vit256.safetensors", "--region-weights", folder / "vit4k.safetensors"]


def train(source: Path, out: Path, architecture: str, *more: object):
    epochs = ("--epochs", 2, "--learning-rate", "1e-3") if architecture == "istar" else ()
    return run("train", source, "-o", out, "--arch", architecture, *OPTIONS.split(), *epochs, *more)


@pytest.fixture(scope="module")
def trained(dataset: Path, weights, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    for name, folds in (("hipt", "none"), ("istar", "patient")):
        done = train(dataset, folder / f"{name}.safetensors", name, *weights, "--folds", folds,
                     "--encoder-licence", "Apache-2.0 with Commons Clause")  # fmt: skip
        assert done.exit_code == 0, done.output
    return {name: folder / f"{name}.safetensors" for name in ("hipt", "istar")}


@pytest.mark.parametrize("name", ["hipt", "istar"])
def test_a_card_knows_the_weights_and_a_run_leaves_no_features(trained, name: str):
    card = load_model(trained[name]).card
    for of in ("encoder_weights", "region_weights"):
        assert card["training"][of]["licence"] == "Apache-2.0 with Commons Clause"
        assert len(card["training"][of]["sha256"]) == 64
    assert not list(trained[name].with_suffix(".run").rglob("features-*.npy"))
    shown = run("models", "show", trained[name])
    assert shown.exit_code == 0
    assert name in shown.stdout


def test_predicting_at_the_held_out_spots_gives_the_reported_correlation(trained, dataset: Path, tmp_path: Path):
    check_reported_correlation(trained["istar"].with_suffix(".run") / "fold-2", dataset, tmp_path, 0.5)


@pytest.mark.parametrize("name", ["hipt", "istar"])
def test_predict_render_and_evaluate(trained, dataset: Path, tmp_path: Path, name: str):
    slide, out = tmp_path / SLIDE.name, tmp_path / "out"
    shutil.copy(SLIDE, slide)
    done = run("predict", slide, "-m", trained[name], "-o", out, "--genes", "GNAS", "--pitch", 200, "--render")
    assert done.exit_code == 0, done.output
    assert np.ptp(read_result(out / f"{SLIDE.stem}.h5ad").expression("GNAS")) > 0
    assert [path.name for path in out.glob("*.parts")] == []
    if name == "istar":  # which is what takes long
        scored = run("evaluate", trained[name], dataset, "--allow-patient-leak", "--min-depth", 1, "-o", out)
        assert scored.exit_code == 0, scored.output
    for more, said in ((("--engine", "openvino"), "runs in eager alone"), (("--precision", "bf16"), "needs fp32")):
        refused = run("predict", SLIDE, "-m", trained[name], "-o", tmp_path, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr


def test_at_the_pitch_of_a_superpixel_istar_reads_each_by_itself_and_a_spot_is_their_mean(trained, tmp_path: Path):
    mask, spots = tmp_path / "part.geojson", tmp_path / "spots.csv"
    square = [[[800, 800], [1200, 800], [1200, 1200], [800, 1200], [800, 800]]]
    mask.write_text(json.dumps({"type": "Polygon", "coordinates": square}))
    call = ["predict", SLIDE, "-m", trained["istar"], "--genes", "GNAS"]
    done = run(*call, "-o", tmp_path / "map", "--pitch", 16, "--mask", mask)  # superpixels are of 16 um at 1 um/px
    assert done.exit_code == 0, done.output
    superpixels = read_result(tmp_path / "map" / f"{SLIDE.stem}.h5ad")
    assert superpixels.provenance["lattice"]["spot_diameter_um"] == 16
    at = superpixels.spots.centres
    middle = at[np.argmin(np.linalg.norm(at - 1000, axis=1))]
    np.savetxt(spots, middle[None], delimiter=",", header="x,y", comments="", fmt="%.6f")
    done = run(*call, "-o", tmp_path / "spot", "--spots", spots)
    assert done.exit_code == 0, done.output
    spot = read_result(tmp_path / "spot" / f"{SLIDE.stem}.h5ad")
    assert spot.provenance["lattice"]["spot_diameter_um"] == 100
    within = np.round((at - middle) * 0.499 / 16)
    within = (within**2).sum(axis=1) <= (50 / 16) ** 2
    assert within.sum() == 29
    values = superpixels.expression("GNAS")
    assert abs(values[within].mean() - spot.expression("GNAS")[0]) < 0.05 * values.std()


def test_istar_reads_shifted_layouts(weights, dataset: Path, tmp_path: Path):
    out, spots, one = tmp_path / "shifted.safetensors", tmp_path / "spots.csv", tmp_path / "one"
    one.mkdir()
    for path in dataset.glob("B1*"):
        (one / path.name).symlink_to(path)
    done = train(one, out, "istar:shifts=2", *weights, "--folds", "none", "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert load_model(out).card["parameters"]["shifts"] == 2
    spots.write_text("x,y\n3,3\n1000,1200\n2200,2900\n")
    done = run("predict", SLIDE, "-m", out, "--genes", "GNAS", "--spots", spots, "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert np.isfinite(read_result(tmp_path / f"{SLIDE.stem}.h5ad").expression("GNAS")).all()


def test_a_comparison_is_given_weights_by_system(weights, dataset: Path, tmp_path: Path):
    out, (lower, upper) = tmp_path / "compared", weights[1::2]
    call = ["compare", dataset, "--arch", "hipt", "-o", out, *OPTIONS.split(), "--seeds", 1, "--panel-size", 4,
            "--folds", "none", "--hold-out", "B", "--unlabelled", 0]  # fmt: skip
    for given, said in ((call, "--encoder-weights hipt=VIT256"), ([*call, "--region-weights", "hipt=x"], "ARCH=FILE")):
        refused = run(*given)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr.replace("\n", " ")
    done = run(*call, "--encoder-weights", f"hipt={lower}", "--region-weights", f"hipt={upper}")
    assert done.exit_code == 0, done.output
    assert len(list(out.glob("frozen/hipt-*/*.npy"))) == 1
    (path,) = out.glob("jobs/hipt-*/*/scores.json")
    found = json.loads(path.read_text())
    assert found["settings"]["region_weights"]["file"] == "vit4k.safetensors"
    assert found["row"]["per_gene"]


def test_what_does_not_apply_is_refused(trained, weights, dataset: Path, tmp_path: Path):
    out = tmp_path / "m.safetensors"
    tiles = trained["istar"].with_suffix(".run") / "dataset.tiles.h5"
    both, one = ["--arch", "istar", *weights], ["--arch", "hipt", *weights[:2]]
    for call, said in (
        ((tiles, "-o", out, *both, "--mpp", 1), "looks at the slides around the spots"),
        ((dataset, "-o", out, *both), "needs --mpp"), ((dataset, "-o", out, *one, "--mpp", 1), "--region-weights"),
        ((dataset, "-o", out, "--arch", "stnet", *weights), "only for --arch hipt and istar"),
        ((dataset, "-o", out, *both, "--mpp", 1, "--head", "linear"), "has a head of its own"),
        ((dataset, "-o", out, *both, "--mpp", 1, "--unlabelled", 3), "not taught"),
        ((dataset, "-o", out, "--arch", "hipt", *weights, "--mpp", 1, "--epochs", 3), "--epochs"),
    ):  # fmt: skip
        refused = run("train", *call)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr.replace("\n", " ")
