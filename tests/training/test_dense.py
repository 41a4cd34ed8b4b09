from __future__ import annotations

from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_networks import PATCH_PX

from stpredict.cli.compare import compare
from stpredict.cli.train import train
from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.engines.eager import load_network
from stpredict.model.file import load_model
from stpredict.model.show import show_card
from stpredict.networks import ARCHITECTURES, FLAGSHIP, architecture_config, has_tokens, make_network
from stpredict.networks.dictionary import Dictionary, DictionaryConfig
from stpredict.networks.m2ort import M2ORT
from stpredict.statistics.regression import LinearMap
from stpredict.training.dense import read_lessons, teach_densely
from stpredict.training.fit import Course
from stpredict.training.heads import describe_patches, write_taught_head
from stpredict.training.log import Log
from stpredict.training.settings import Settings
from stpredict.training.teachers import DictionaryTeacher, token_means

TINY = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "mixing": "per_level"}
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    path = tmp_path_factory.mktemp("tiles") / "mine.tiles.h5"
    write_tiles(read_dataset(dataset), path, patch_px=PATCH_PX, unlabelled=40, report=print)
    return read_tiles(path)


def make_teacher(px: int = PATCH_PX, centres: int = 5) -> Dictionary:
    torch.manual_seed(0)
    teacher = Dictionary(DictionaryConfig(1, spot_px=px / 2, components=4, centres=centres, patch_px=px))
    torch.nn.init.normal_(teacher.whiten.weight, std=0.1)
    return teacher


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 4, 7]), st.integers(0, 100))
def test_a_tokens_lesson_is_the_mean_over_the_windows_whose_middle_lies_in_it(side: int, seed: int):
    px, teacher = 56, make_teacher(56)
    patches = torch.randint(0, 256, (2, px, px, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    with torch.inference_mode():
        found = token_means(teacher, patches, side).numpy()
        near = teacher.nearness(patches).numpy()
    per_row = round(near.shape[2] ** 0.5)
    stride, window = teacher.config.stride_px, teacher.config.window_px
    wanted: dict[tuple[int, int], list[np.ndarray]] = {}
    for y in range(per_row):
        for x in range(per_row):
            token = tuple(min(side - 1, int((stride * i + window / 2) * side / px)) for i in (y, x))
            wanted.setdefault(token, []).append(near[:, :, y * per_row + x])
    for (y, x), windows in wanted.items():
        np.testing.assert_allclose(found[:, y, x], np.mean(windows, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", ["", ":pool=mean:pixels=density"])
def test_a_network_learns_what_the_teacher_sees_in_each_token(tiles: Tiles, tmp_path: Path, options: str):
    network = make_network(architecture_config(f"m2ort-tiny{options}", n_genes=3, patch_px=PATCH_PX))
    assert isinstance(network, M2ORT)
    told: list[str] = []
    how = Settings(teach_patches=160, batch_size=8, stain_jitter=0)
    course = Course(how, Log(tmp_path / "log.csv", told.append), tmp_path, CPU)
    lessons = teach_densely(
        network, DictionaryTeacher(make_teacher()), tiles, np.arange(len(tiles.unlabelled_section)), course
    )
    losses = [float(row["loss"]) for row in course.log.rows]
    assert losses[-1] < 0.8 * losses[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.csv",
        "teach.pt",
    ]  # lessons go when they are learnt

    # A head fitted to what was learnt says through the network what the fit says of the lessons.
    rows = np.arange(6)
    features = describe_patches(network, tiles, rows, CPU)
    said = read_lessons(lessons, features)
    rng = np.random.default_rng(0)
    found = LinearMap(said.mean(axis=0), 1 / said.std(axis=0), rng.normal(size=(5, 3)), rng.normal(size=3))
    write_taught_head(network, lessons, found)
    with torch.inference_mode():
        predicted = network(torch.from_numpy(tiles.read_patches(rows))).numpy()
    np.testing.assert_allclose(predicted, found.predict(said), rtol=1e-3, atol=1e-3)


def test_dense_teaching_goes_on_where_it_was_killed(tiles: Tiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def taught(folder: Path) -> M2ORT:
        torch.manual_seed(0)
        network = make_network(
            architecture_config("m2ort-tiny:depth=1:pool=mean:pixels=density", n_genes=1, patch_px=PATCH_PX)
        )
        assert isinstance(network, M2ORT)
        folder.mkdir(exist_ok=True)
        course = Course(Settings(teach_patches=20, batch_size=8), Log(folder / "log.csv", print), folder, CPU)
        teach_densely(network, DictionaryTeacher(make_teacher()), tiles, np.arange(10), course)
        return network

    whole, real = taught(tmp_path / "whole"), Log.add

    def die(self: Log, stage: str, epoch: int, *more: float) -> None:
        real(self, stage, epoch, *more)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "add", die)
        with pytest.raises(KeyboardInterrupt):
            taught(tmp_path / "killed")
    assert (tmp_path / "killed" / "lessons.npy").exists()  # what the teacher said is not asked again
    resumed = taught(tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, atol=2e-3, rtol=0)


def test_the_lesson_of_a_patch_turns_with_it(tiles: Tiles, tmp_path: Path):
    """Taught long on one patch that is light on one side, a network tells that side in every turn."""
    network = make_network(
        architecture_config("m2ort-tiny:depth=1:pool=mean:pixels=density:mixing=none", n_genes=1, patch_px=PATCH_PX)
    )
    assert isinstance(network, M2ORT)
    teacher = make_teacher()
    course = Course(
        Settings(teach_patches=400, batch_size=8, stain_jitter=0), Log(tmp_path / "log.csv", print), tmp_path, CPU
    )
    lessons = teach_densely(
        network, DictionaryTeacher(teacher), tiles, np.arange(len(tiles.unlabelled_section)), course
    )
    network.eval()
    with torch.inference_mode():
        patches = torch.from_numpy(tiles.read_patches(np.arange(8), unlabelled=True))
        wanted = token_means(teacher, patches, 4).flatten(1, 2)
        said = lessons.cpu()(network.tokens(patches)[0])
    correlation = [
        np.corrcoef(said[..., k].flatten(), wanted[..., k].flatten())[0, 1]
        for k in range(5)
        if wanted[..., k].std() > 0
    ]
    assert np.mean(correlation) > 0.5  # lessons that did not turn with the patches would tell a mean over the places


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("dense") / "mine.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m2ort-tiny", TINY)
        call = (
            "--arch m2ort-tiny:pool=mean:pixels=density --epochs 1 --unlabelled 40 --teach-patches 40 --batch-size 16"
        )
        done = run("train", str(dataset), "-o", str(out), *call.split(), "--threads", "1", "--min-depth", "1")
    assert done.exit_code == 0, done.output
    return out, done


def test_a_densely_taught_model_may_be_best_without_an_epoch_on_spots(trained):
    out, done = trained
    lines = done.stderr.splitlines()
    assert any(line.startswith("select epoch 0: validation depth-controlled correlation") for line in lines)
    card = load_model(out).card
    assert card["training"]["teach"] == "dense"
    assert card["training"]["gene_programmes"] == 40
    assert {fold["epochs"] for fold in card["held_out"]} <= {0, 1}
    assert card["training"]["epochs_used"] in {0, 1}
    unvalidated = next(fold for fold in card["held_out"] if not fold["validation"])
    assert unvalidated["epochs"] == 0  # nothing says that training on spots would do good


def test_its_card_says_its_network(trained):
    model = load_model(trained[0])
    assert model.card["parameters"]["pixels"] == "density"
    assert "m2ort-tiny:pool=mean:pixels=density" in "\n".join(show_card(model))
    network = load_network(model)
    assert isinstance(network, M2ORT)
    assert network.head_reads_mean


def test_no_epoch_on_spots_sets_no_section_aside():
    assert Settings().validates
    assert not Settings(epochs=0).validates


def test_help_tells_what_the_settings_are():
    told = {name: parameter.default for name, parameter in signature(train).parameters.items()}
    assert told["arch"] == FLAGSHIP == Settings.architecture
    shared = ("epochs", "teach_patches", "teach_learning_rate", "batch_size", "learning_rate", "stain_jitter", "seed")
    assert {name: told[name] for name in shared} == {name: getattr(Settings, name) for name in shared}
    for name, parameter in signature(compare).parameters.items():
        if name not in ("context", "dataset", "out", "arch", "seeds", "encoder_weights", "cluster"):
            assert parameter.default == told[name], name


def test_what_has_no_tokens_cannot_be_taught_densely(dataset: Path, tmp_path: Path):
    refused = run("train", str(dataset), "-o", str(tmp_path / "x.safetensors"), "--arch", "stnet", "--teach", "dense")
    assert refused.exit_code == 2
    assert (
        "--teach dense: stnet has no tokens that could be taught; an M2ORT, an M2OST and a TRIPLEX have."
        in refused.stderr
    )
    assert has_tokens("m2ost")
    assert not has_tokens("dictionary")
