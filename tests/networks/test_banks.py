"""BLEEP and EGN against what their released code computes of random weights, and their banks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from stpredict.errors import UsageError
from stpredict.model.released_banks import egn_tensors
from stpredict.networks import architecture_config, build_network, check_architecture, make_network, network_parameters
from stpredict.networks.bank import Bank
from stpredict.networks.bleep import Bleep, BleepConfig, NearestSpots, Projection, contrastive_loss
from stpredict.networks.egn import Egn, EgnConfig, correlation_loss
from stpredict.networks.trunks.pixels import ImageNetPixels

DATA = Path(__file__).parents[1] / "data"
SMALL_EGN = {
    "channels": 16, "heads": 2, "mlp_dim": 32, "bridge_heads": 2, "bridge_dim": 8, "trunk": "resnet18",
    "trunk_width": 1,
}  # fmt: skip
SMALL_BLEEP = {"n_genes": 7, "projection": 6, "trunk": "resnet18", "trunk_width": 2, "patch_px": 64}


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def tensors(name: str) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in safetensors.torch.load_file(DATA / f"{name}.safetensors").items()}


def blocks(n: int, px: int, seed: int) -> Tensor:
    """Squares of 16 px of random colours, which the golden files were made from."""
    low = np.random.default_rng(seed).integers(0, 256, (n, px // 16, px // 16, 3), dtype=np.uint8)
    return torch.from_numpy(low.repeat(16, axis=1).repeat(16, axis=2))


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "px", "seed", "output", "config"),
    [
        ("egn_released_tiny", 256, 11, "y", {"n_genes": 250, "exemplar_depth": 1, "depth": 4}),
        (
            "egn_port_tiny", 224, 12, "y_before_clamp",
            {"n_genes": 5, "exemplar_depth": 2, "depth": 2, "linear_projection": False, "bridge_norm": False},
        ),
    ],
)  # fmt: skip
def test_egn_is_the_released_codes(name, px, seed, output, config):
    network = Egn(EgnConfig(**SMALL_EGN, **config, patch_px=px)).eval()
    if "port" in name:
        network.token_pixels = ImageNetPixels()
    missing, unknown = network.load_state_dict(egn_tensors(tensors(name)), strict=False)
    assert not unknown
    assert all(key.startswith(("frozen.", "bank.")) for key in missing)
    golden = arrays(name)
    with torch.inference_mode():
        exemplars = (golden["op_feature"], golden["op_count"])
        read = network.read(blocks(2, px, seed), golden["p_feature"][:, 0], *exemplars)
        np.testing.assert_allclose(network.head(read), golden[output], atol=2e-6)


def test_egn_looks_its_exemplars_up_in_its_bank():
    torch.manual_seed(0)
    network = Egn(EgnConfig(n_genes=5, depth=2, exemplars=3, patch_px=64, **SMALL_EGN)).eval()
    keys, targets = torch.rand(20, 8), torch.randn(20, 5)
    network.fill(keys, targets)
    assert network.config.bank == 20
    patches = blocks(4, 64, 3)
    with torch.inference_mode():
        own = network.describe(patches)
        nearest = torch.cdist(own, network.bank.keys).argsort(dim=1)[:, :3]
        read = network.read(patches, own, network.bank.keys[nearest], network.bank.expression[nearest])
        np.testing.assert_allclose(network(patches), network.head(read), atol=1e-5)
    again = build_network(network_parameters(network.config)).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(patches), network(patches))


def test_egns_loss_is_the_released_codes():
    golden = arrays("egn_port_tiny")
    predicted, label = golden["loss_pred"], golden["loss_label"]
    loss = F.mse_loss(predicted, label) + 0.5 * correlation_loss(predicted, label)
    assert float(loss) == pytest.approx(float(golden["loss"]), rel=1e-6)
    assert float(correlation_loss(predicted, torch.ones_like(label))) == 1  # genes that do not vary count 0


def test_parameters_are_the_released_codes():
    """Without what is never read there: a linear map per bridge of EGN's first version, and the last position."""
    with torch.device("meta"):
        bleep = Bleep(BleepConfig(250))
        egn = Egn(EgnConfig(250, patch_px=256))
        port = Egn(EgnConfig(250, depth=16, mlp_dim=2048, bridge_heads=16, bridge_dim=128, bridge_norm=False,
                             trunk="resnet18", trunk_width=128))  # fmt: skip
    assert count(bleep) == 24_229_440
    assert count(bleep.spot_projection) == 130_560
    assert count(egn) + 4 * (8 * 64 + 1) * 1024 + 1024 == 133_356_794
    assert count(port) + 1024 == 227_931_514  # of features of 1,024


def test_bleeps_projections_and_loss_are_the_released_codes_with_targets_the_right_way_round():
    golden, known = arrays("bleep_released_tiny"), tensors("bleep_released_tiny")
    image, spot = Projection(12, 6, 0.1).eval(), Projection(7, 6, 0.1).eval()
    for projection, prefix in ((image, "image_projection."), (spot, "spot_projection.")):
        projection.load_state_dict({k.removeprefix(prefix): v for k, v in known.items() if k.startswith(prefix)})
    with torch.inference_mode():
        images, spots = image(golden["image_features"]), spot(golden["expression"])
        np.testing.assert_allclose(images, golden["image_embedding"], atol=2e-6)
        np.testing.assert_allclose(spots, golden["spot_embedding"], atol=2e-6)
        loss = float(contrastive_loss(spots, images))
        assert loss == pytest.approx(float(golden["loss_symmetric_targets"]), abs=2e-6)
        assert abs(loss - float(golden["loss_released"])) > 1e-3


@pytest.mark.parametrize(
    ("nearest", "weights", "output"),
    [(50, "equal", "average"), (1, "equal", "simple"), (50, "distance", "weighted_average")],
)
def test_bleeps_retrieval_is_its_notebooks(nearest, weights, output):
    golden = arrays("bleep_released_tiny")
    head = NearestSpots(BleepConfig(**{**SMALL_BLEEP, "nearest": nearest, "weights": weights}))
    # Unrounded, as there; a model file holds them in half precision.
    embeddings = golden["bank_embedding"]
    head.lengths, head.bank.keys = embeddings.norm(dim=1), F.normalize(embeddings, dim=1)
    head.bank.expression = golden["bank_expression"]
    head.bank.measure()
    np.testing.assert_array_equal(head.bank.most_similar(golden["image_embedding"], 50)[0], golden["top50"].long())
    np.testing.assert_allclose(head(golden["image_embedding"]), golden[output], atol=2e-6)


def test_bleep_says_the_mean_of_the_nearest_spots_and_comes_back_from_its_card():
    torch.manual_seed(0)
    network = make_network(architecture_config("bleep:nearest=3:dropout=0", **SMALL_BLEEP)).eval()
    targets, expression = torch.randn(30, 7), torch.rand(30, 7) * 5
    network.fill(targets, expression)
    patches = blocks(4, 64, 5)
    with torch.inference_mode():
        similarity = F.normalize(network.features(patches), dim=1) @ network.head.bank.keys.T
        nearest = similarity.argsort(dim=1, descending=True)[:, :3]
        np.testing.assert_allclose(network(patches), expression.half().float()[nearest].mean(dim=1), atol=1e-5)
    again = build_network(network_parameters(network.config)).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(patches), network(patches))


def test_a_bank_of_fewer_spots_than_are_asked_for_gives_all():
    bank = Bank(0, 4, 2)
    bank.fill(torch.eye(4)[:2], torch.ones(2, 2))
    assert bank.nearest(torch.rand(3, 4), 50).shape == (3, 2)
    assert bank.most_similar(torch.rand(3, 4), 50)[0].shape == (3, 2)


def test_the_contrastive_loss_is_least_where_pairs_find_one_another():
    apart = 5 * torch.eye(6)
    assert float(contrastive_loss(apart, apart)) < float(contrastive_loss(apart, apart.roll(1, dims=0)))


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("bleep:nearest=0", "positive"), ("bleep:temperature=0", "positive"), ("bleep:dropout=1", "below 1"),
        ("bleep:weights=none", r"equal\|distance"), ("egn:exemplars=0", "positive"),
        ("egn:trunk=vgg", r"resnet18\|resnet50"),
        ("bleep:bank=5", "is no option"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_in_words(architecture, said):
    with pytest.raises(UsageError, match=said):
        check_architecture(architecture)


def test_egn_takes_patches_that_its_tokens_fill():
    with pytest.raises(UsageError, match="a multiple of 32 px, not of 100"):
        architecture_config("egn", n_genes=2, patch_px=100)
