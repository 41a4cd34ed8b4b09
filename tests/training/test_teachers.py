"""Encoders that teach tokens in place of a dictionary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import run
from conftest import DATA
from encoders_to_try import Tiny, export
from patch_networks import PATCH_PX
from torch import nn
from torch.nn import functional as F

from stpredict.data.cutting import write_tiles
from stpredict.data.dataset import read_dataset
from stpredict.data.tiles import Tiles, read_tiles
from stpredict.errors import ModelFileError
from stpredict.model.file import load_model
from stpredict.model.show import show_card
from stpredict.networks.encoder_maps import Maps, as_map, count_channels
from stpredict.networks.encoder_settings import describe_teacher
from stpredict.networks.trunks.densenet import DenseNet
from stpredict.networks.trunks.resnet import ResNet
from stpredict.training import teachers as room
from stpredict.training.dense import write_lessons
from stpredict.training.teachers import EncoderTeacher
from stpredict.training.whole_run import open_teacher

VIT = DATA / "timm_vit_plain" / "model.safetensors"
SIDE, CPU = 4, torch.device("cpu")
TINY = {"channels": 12, "depth": 1, "heads": 1, "head_dim": 12, "mixing": "per_level"}
OPTIONS = (
    "--arch m2ort-tiny:pool=mean:pixels=density --epochs 0 --unlabelled 30 --teach-patches 30 --batch-size 16 "
    "--threads 1 --min-depth 1"
)


class Convolutions(nn.Module):
    """A map of squares of 8 px, or what is made of it."""

    def __init__(self, channels: int = 5, form: str = "map") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.form = nn.Conv2d(3, channels, 8, stride=8), form

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = self.conv(pixels)
        tokens = seen.flatten(2).transpose(1, 2)
        made = {"map": seen, "tokens": tokens, "odd": tokens[:, :-2], "oblong": seen[:, :, 1:]}
        return made[self.form] if self.form in made else torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


pytestmark = pytest.mark.usefixtures("tiny_architecture")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Path:
    return small_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teachers' files are."""
    made = tmp_path_factory.mktemp("teachers")
    export(made / "map.pt2", Convolutions(), px=PATCH_PX)
    export(made / "vector.pt2", Tiny(), px=PATCH_PX)
    return made


@pytest.fixture(scope="module")
def tiles(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    path = tmp_path_factory.mktemp("tiles") / "mine.tiles.h5"
    write_tiles(read_dataset(dataset), path, patch_px=PATCH_PX, unlabelled=20, report=print)
    return read_tiles(path)


def lessons_of(path: Path, tiles: Tiles, out: Path) -> tuple[EncoderTeacher, np.ndarray, torch.Tensor]:
    """The teacher, its lessons as written, and what its file gives of the normalised pixels."""
    known = describe_teacher(path, "0.5,0.5,0.5", "0.25,0.25,0.25", None)
    places = np.arange(len(tiles.unlabelled_section))
    teacher = EncoderTeacher(open_teacher(path, known, PATCH_PX), tiles, places, 0, print)
    lessons = write_lessons(teacher, tiles, places, SIDE, out, CPU, print)
    pixels = torch.from_numpy(tiles.read_patches(places, unlabelled=True)).permute(0, 3, 1, 2).float() / 255
    assert teacher.network.encoder is not None
    with torch.inference_mode():
        return teacher, np.array(lessons.values, float), teacher.network.encoder((pixels - 0.5) / 0.25)


def test_lessons_are_the_means_of_the_teachers_map_over_each_square(tiles: Tiles, folder: Path, tmp_path: Path):
    teacher, lessons, maps = lessons_of(folder / "map.pt2", tiles, tmp_path / "lessons.npy")
    assert maps.shape[2] == 2 * SIDE
    wanted = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).permute(0, 2, 3, 1).double().numpy()
    wanted -= wanted.mean(axis=(0, 1, 2))
    wanted /= float(maps.transpose(0, 1).flatten(1).std(dim=1, correction=0).max())
    assert teacher.values == 5
    np.testing.assert_allclose(lessons, wanted, atol=5e-3)


def test_many_channels_become_their_principal_directions(
    tiles: Tiles, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "MOST_VALUES", 2)
    teacher, lessons, maps = lessons_of(folder / "map.pt2", tiles, tmp_path / "lessons.npy")
    assert lessons.shape[3] == teacher.values == 2
    tokens = maps.transpose(0, 1).flatten(1).double().numpy()
    variances, vectors = np.linalg.eigh(np.cov(tokens, bias=True))
    pooled = F.avg_pool2d(maps, 2).permute(0, 2, 3, 1).double().numpy() - tokens.mean(axis=1)
    wanted = pooled @ vectors[:, :-3:-1] / variances[-1] ** 0.5
    signs = np.sign((wanted * lessons).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(lessons * signs, wanted, atol=5e-3)
    again = lessons_of(folder / "map.pt2", tiles, tmp_path / "again.npy")[1]
    np.testing.assert_array_equal(again, lessons)


def test_a_vision_transformer_teaches_its_patchs_tokens(tiles: Tiles, tmp_path: Path):
    teacher, lessons, maps = lessons_of(VIT, tiles, tmp_path / "lessons.npy")
    assert maps.shape[1:] == (16, SIDE, SIDE)
    vit = teacher.network.encoder.encoder  # type: ignore[union-attr]
    pixels = torch.rand(2, 3, PATCH_PX, PATCH_PX)
    with torch.inference_mode():
        tokens = vit.tokens(pixels)[:, 1:]  # type: ignore[operator,union-attr]
        found = teacher.network.encoder(pixels)  # type: ignore[misc]
    np.testing.assert_array_equal(found[:, :, 1, 2], tokens[:, SIDE + 2])
    wanted = (maps - maps.mean(dim=(0, 2, 3), keepdim=True)).permute(0, 2, 3, 1).numpy()
    wanted = wanted / float(maps.transpose(0, 1).flatten(1).std(dim=1, correction=0).max())
    np.testing.assert_allclose(lessons, wanted, atol=5e-3)


def test_coarser_maps_are_interpolated():
    maps = torch.tensor([[0.0, 4.0], [0.0, 4.0]])[None, None]
    np.testing.assert_allclose(room.resampled(maps, 4)[0, 0, 0], [0, 1, 3, 4])
    np.testing.assert_allclose(room.resampled(maps, 2), maps)


@pytest.mark.parametrize("network", [ResNet(width=2), DenseNet(4, (1, 1, 1, 1))])
def test_networks_that_give_the_mean_of_a_map_teach_the_map(network: nn.Module):
    maps, pixels = Maps(network.eval()), torch.rand(2, 3, PATCH_PX, PATCH_PX)
    with torch.inference_mode():
        torch.testing.assert_close(maps(pixels).mean(dim=(2, 3)), network(pixels))
    assert count_channels(maps, PATCH_PX, "it") == network.n_features


def test_tokens_may_have_a_class_token_before_them():
    pixels = torch.rand(3, 3, PATCH_PX, PATCH_PX)
    wanted = Maps(Convolutions())(pixels)
    assert wanted.shape == (3, 5, 8, 8)
    for form in ("tokens", "class"):
        torch.testing.assert_close(Maps(Convolutions(form=form))(pixels), wanted)


@pytest.mark.parametrize(
    ("form", "said"), [("odd", "its 62 tokens are no square"), ("oblong", "its map of 7 x 8 is not of several squares")]
)
def test_what_is_no_square_map_is_refused(form: str, said: str):
    with pytest.raises(ModelFileError, match=f"it: cannot teach tokens of patches of 64 px .{said}"):
        count_channels(Maps(Convolutions(form=form)), PATCH_PX, "it")


@pytest.mark.parametrize("seen", [torch.zeros(2, 6), torch.zeros(2, 2, 6), torch.zeros(2, 6, 1, 1)])
def test_one_vector_per_patch_is_no_map(seen: torch.Tensor):
    with pytest.raises(ValueError, match=r"no map of a patch|not of several squares"):
        as_map(seen)


def test_a_teacher_that_sees_the_same_everywhere_is_refused(tiles: Tiles, tmp_path: Path):
    blind = Convolutions()
    nn.init.zeros_(blind.conv.weight)
    path = export(tmp_path / "blind.pt2", blind, px=PATCH_PX)
    with pytest.raises(ModelFileError, match=r"blind.pt2: cannot teach; what it sees is the same everywhere"):
        lessons_of(path, tiles, tmp_path / "lessons.npy")
    assert not (tmp_path / "lessons.npy").exists()


@pytest.mark.parametrize("kind", ["map", "vit"])
def test_training_tells_record_and_card_its_teacher(dataset: Path, folder: Path, tmp_path: Path, kind: str):
    path, out = VIT if kind == "vit" else folder / "map.pt2", tmp_path / "mine.safetensors"
    call = ("train", dataset, *OPTIONS.split(), "--folds", "none", "-o", out)
    taught = ("--teacher", path, "--encoder-mean", "0.5,0.5,0.5", "--encoder-licence", "CC BY 4.0")
    done = run(*call, *taught)
    assert done.exit_code == 0, done.output
    values = 16 if kind == "vit" else 5
    assert f"{path.name}: lessons of {values} values on" in done.stderr
    assert ("read by all tokens of the patch" in done.stderr) == (kind == "vit")
    model = load_model(out)
    known = model.card["training"]["teacher"]
    assert "stain" not in known  # as none was asked for
    assert (known["file"], known["licence"], known["mean"]) == (path.name, "CC BY 4.0", [0.5, 0.5, 0.5])
    assert len(known["sha256"]) == 64
    assert len(known["std"]) == 3
    assert str(path.parent) not in json.dumps(model.card)
    assert f"teacher: {path.name}, licence CC BY 4.0, sha256 {known['sha256'][:16]}" in list(show_card(model))
    record = json.loads((out.with_suffix(".run") / "run.json").read_text())
    assert record["teacher"]["sha256"] == known["sha256"]
    assert run(*call, *taught).stderr.endswith("up to date\n")
    for other in ((), (*taught[:-1], "MIT")):
        refused = run(*call, *other)
        assert refused.exit_code == 1
        assert "holds a run with other settings" in refused.stderr
        assert "teacher" in refused.stderr


def test_without_a_teacher_the_record_of_a_run_is_what_it_was(dataset: Path, tmp_path: Path):
    out = tmp_path / "mine.safetensors"
    assert run("train", dataset, *OPTIONS.split(), "--folds", "none", "-o", out).exit_code == 0
    assert "teacher" not in json.loads((out.with_suffix(".run") / "run.json").read_text())
    assert "teacher" not in load_model(out).card["training"]


def test_what_does_not_go_with_a_teacher_is_refused(dataset: Path, folder: Path, tmp_path: Path):
    out, teacher = tmp_path / "mine.safetensors", folder / "map.pt2"
    nothing = "with it nothing is taught densely, so leave --teacher out"
    for more, said in (
        (("--teach", "ridge"), "--teach ridge teaches the patch"),
        (("--arch", "stnet"), "--teacher: stnet has no tokens that could be taught"),
        (("--arch", "dictionary"), "--teacher: dictionary has no tokens that could be taught"),
        (("--encoder", teacher, "--mpp", "1"), f"--encoder: {nothing}"),
        (("--encoder-weights", teacher), f"--encoder-weights: {nothing}"),
        (("--recipe", "published"), f"--recipe published: {nothing}"),
        (("--unlabelled", "0"), "--unlabelled and --teach-patches must not be 0"),
        (("--teacher", folder / "vector.pt2", "--arch", "m2ort-tiny"), "a teacher gives a map, N x channels x side"),
        (("--encoder-mean", "2"), "--encoder-mean 2: three numbers"),
        (("--teacher", tmp_path / "none.pt2"), "none.pt2: cannot be read"),
    ):
        refused = run("train", dataset, "-o", out, "--teacher", teacher, *more)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    assert not list(tmp_path.iterdir())
    refused = run("train", dataset, "-o", out, "--encoder-mean", "0.5,0.5,0.5")
    assert "name it with --encoder FILE or --teacher FILE" in refused.stderr


def test_tiles_without_unlabelled_patches_are_refused(dataset: Path, folder: Path, tmp_path: Path):
    path = tmp_path / "labelled.tiles.h5"
    write_tiles(read_dataset(dataset), path, patch_px=PATCH_PX, unlabelled=0, report=print)
    call = ("train", path, *OPTIONS.split(), "-o", tmp_path / "mine.safetensors", "--teacher", folder / "map.pt2")
    refused = run(*call)
    assert refused.exit_code == 2
    assert "--teacher: teaches on unlabelled patches, of which labelled.tiles.h5 has none" in refused.stderr
