"""Vision Transformers under timm's names. The golden files are timm's own, of version 1.0.31, with weights in fp16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file, save_file

from stpredict.errors import ModelFileError
from stpredict.networks import build_network, network_parameters
from stpredict.networks.encoder import Encoded, EncoderConfig
from stpredict.networks.encoder_files import count_features, open_encoder
from stpredict.networks.timm_config import describe_checkpoint
from stpredict.networks.timm_vit import ViTReading

PLAIN, GIANT = DATA / "timm_vit_plain", DATA / "timm_vit_giant"
READING = ViTReading(heads=2, pooling="token", activation="gelu", epsilon=1e-6, told_by="config.json")


def two_patches() -> torch.Tensor:
    """uint8 2 x 224 x 224 x 3, as timm saw them."""
    y, x, c = np.indices((224, 224, 3))
    return torch.from_numpy(
        np.stack([(x * (3 + c) + y * y // 37) % 256, (x * y // (11 + c) + 7 * y + 50 * c) % 256]).astype(np.uint8)
    )


def features(path: Path) -> np.ndarray:
    """Of the two patches, as a model has them."""
    known = describe_checkpoint(path)
    network = Encoded(EncoderConfig(1, 16, path.name, "", known.mean, known.std, vit=known.reading))
    network.encoder = open_encoder(path, 224, known.reading)
    with torch.inference_mode():
        return network.features(two_patches()).numpy()


def timms(name: str) -> np.ndarray:
    with np.load(DATA / "timm_vit_io.npz") as file:
        return file[name]


def changed(folder: Path, source: Path = PLAIN, config: dict | None = None, **tensors: torch.Tensor | None) -> Path:
    """A copy of a golden file with other tensors (None: without them; "__" stands for ".") and another config."""
    folder.mkdir(exist_ok=True)
    state = load_file(source / "model.safetensors") | {name.replace("__", "."): x for name, x in tensors.items()}
    save_file({name: x for name, x in state.items() if x is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | (config or {})))
    return folder / "model.safetensors"


@pytest.mark.parametrize("golden", [PLAIN, GIANT], ids=lambda path: path.name)
def test_it_computes_what_timm_did(golden: Path):
    """A plain one with a classifier, and one with registers, a gate, LayerScale, and positions of another grid."""
    np.testing.assert_allclose(features(golden / "model.safetensors"), timms(golden.name), atol=1e-5)


def test_the_mean_of_the_patch_is_timms_too(tmp_path: Path):
    state = load_file(PLAIN / "model.safetensors")
    moved = {f"fc_{name}": state[name] for name in ("norm.weight", "norm.bias")}
    pooled = {"model_args": {"num_heads": 2, "global_pool": "avg"}}
    path = changed(tmp_path, config=pooled, norm__weight=None, norm__bias=None, **moved)
    np.testing.assert_allclose(features(path), timms("timm_vit_plain_avg"), atol=1e-5)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read_too(tmp_path: Path, zipped: bool):
    shutil.copy(GIANT / "config.json", tmp_path)
    path, state = tmp_path / "pytorch_model.bin", load_file(GIANT / "model.safetensors")
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    np.testing.assert_allclose(features(path), timms(GIANT.name), atol=1e-5)


def test_what_config_json_says_is_taken(tmp_path: Path):
    known = describe_checkpoint(GIANT / "model.safetensors")
    assert known.reading == ViTReading(4, "token", "silu", 1e-6, "config.json")
    assert (known.mean, known.std) == ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
    assert known.licence == "apache-2.0"
    older = {"pretrained_cfg": None, "mean": [0.5, 0.5, 0.5], "global_pool": "", "model_args": {"num_heads": 8}}
    known = describe_checkpoint(changed(tmp_path, config=older))
    assert (known.mean, known.std, known.licence) == ((0.5, 0.5, 0.5), None, None)
    assert known.reading == ViTReading(8, "token", "gelu", 1e-6, "config.json")


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (1280, 16)])
def test_without_config_json_heads_are_as_wide_as_usual(tmp_path: Path, width: int, heads: int):
    tensors = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, 112, 112), "norm.weight": (width,)}
    tensors |= {"blocks.0.mlp.fc1.weight": (8, width), "blocks.0.mlp.fc2.weight": (width, 8)}
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "model.safetensors")
    known = describe_checkpoint(tmp_path / "model.safetensors")
    assert known.reading == ViTReading(heads, "token", "gelu", 1e-6, "assumed")
    assert known.mean is None


def test_a_width_that_does_not_tell_the_heads_is_refused(tmp_path: Path):
    path = Path(shutil.copy(PLAIN / "model.safetensors", tmp_path))
    with pytest.raises(ModelFileError, match=r"width of 16 does not tell .* num_heads in config\.json"):
        describe_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"dist_token": torch.zeros(1, 1, 16)}, "Unexpected key.*dist_token"),
        ({"blocks__0__attn__rope": torch.zeros(4), "blocks__1__attn__rope": torch.zeros(4)}, "Unexpected key"),
        ({"blocks__1__norm2__weight": None}, "blocks differ, or some are missing"),
        ({"blocks__0__norm1__bias": None, "blocks__1__norm1__bias": None}, "Missing key"),
        ({"blocks__0__attn__qkv__weight": None, "blocks__1__attn__qkv__weight": None}, "no tensor 'blocks.0.attn.qkv"),
        ({"cls_token": None}, "no class token to read"),
        ({"pos_embed": torch.zeros(1, 200, 16)}, "200 positions"),
        ({"patch_embed__proj__weight": torch.zeros(16, 3, 15, 15)}, "3 x 15 x 15 do not fill RGB of 224 px"),
        ({"patch_embed__proj__weight": torch.zeros(16, 3)}, "export it instead"),
        ({"norm__weight": torch.full((16,), torch.nan)}, "not finite"),
    ],
)
def test_other_networks_are_refused_in_a_sentence(tmp_path: Path, tensors: dict, said: str):
    path = changed(tmp_path, **tensors)
    with pytest.raises(ModelFileError, match=said) as refused:
        open_encoder(path)
    assert str(refused.value).startswith("model.safetensors: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "quickgelu_224 computes otherwise"),
        ({"num_features": 384}, "is of a network that is 384 wide, and it is 16"),
        ({"model_args": {"num_heads": 3}}, "does not divide into 3 heads"),
        ({"model_args": {"num_heads": 2, "act_layer": "relu"}}, "asks for act_layer relu"),
        ({"model_args": {"num_heads": 2, "mlp_layer": "GluMlp"}}, "asks for mlp_layer GluMlp"),
        ({"model_args": {"num_heads": 2, "pool_include_prefix": True}}, "asks for pool_include_prefix"),
        ({"model_args": {"num_heads": 2, "global_pool": "map"}}, "asks for global_pool map"),
        (
            {"model_args": {"num_heads": 2}, "pretrained_cfg": {"mean": [127, 127, 127]}},
            "not three numbers from 0 to 1",
        ),
        ({"architecture": None}, "names no architecture"),
    ],
)
def test_what_config_json_asks_for_and_is_not_here_is_refused(tmp_path: Path, config: dict, said: str):
    with pytest.raises(ModelFileError, match=said):
        describe_checkpoint(changed(tmp_path, config=config))


def test_networks_without_a_vision_transformer_or_a_readable_config_are_refused(tmp_path: Path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match=r"resnet\.pth: .*no tensor patch_embed\.proj\.weight.*export it instead"):
        describe_checkpoint(path)
    weights = changed(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json: cannot be read"):
        describe_checkpoint(weights)
    pooled = changed(tmp_path / "map", attn_pool__latent=torch.zeros(1, 1, 16))
    with pytest.raises(ModelFileError, match="pools by attention"):
        describe_checkpoint(pooled)


def test_patches_that_its_tokens_do_not_divide_are_refused():
    encoder = open_encoder(PLAIN / "model.safetensors", 192, READING)
    assert count_features(encoder, 192, "model.safetensors") == 16
    with pytest.raises(ModelFileError, match="do not fill RGB of 200 px"):
        open_encoder(PLAIN / "model.safetensors", 200, READING)


def test_a_card_brings_the_reading_back_and_is_not_believed_blindly():
    config = EncoderConfig(2, 16, "model.safetensors", "", (0.5,) * 3, (0.5,) * 3, vit=READING)
    stored = json.loads(json.dumps(network_parameters(config)))
    assert build_network(stored).config.vit == READING
    for wrong in ({"heads": 0}, {"heads": "two"}, {"activation": "eval"}, {"pooling": "all"}, {"more": 1}):
        with pytest.raises(ModelFileError, match="does not describe a network"):
            build_network(stored | {"vit": stored["vit"] | wrong})
