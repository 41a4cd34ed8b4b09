from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from stpredict.errors import ModelFileError, UsageError
from stpredict.networks import architecture_config, build_network
from stpredict.networks.attention import random_mask_attention
from stpredict.networks.m2ort import M2ORT, M2ORTConfig
from stpredict.networks.token_pixels import Downsample


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("m2ort-small", 6_293_770),
        ("m2ort-base", 13_992_218),
        ("m2ort-large", 44_868_922),
        ("m2ort-small-cross", 7_620_874),
        ("m2ort-base-cross", 17_137_946),
        ("m2ort-large-cross", 55_485_754),
    ],
)
def test_parameter_counts_are_the_papers(architecture, parameters):
    with torch.device("meta"):
        network = M2ORT(architecture_config(architecture, n_genes=250))
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("factor", [2, 4])
def test_levels_are_the_antialiased_reductions_of_image_libraries(region, factor):
    patch = region[500:724, 900:1124]
    ours = Downsample(factor, 224)(torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].float())
    theirs = np.asarray(Image.fromarray(patch).resize((224 // factor,) * 2, Image.Resampling.BILINEAR))
    deviation = abs(ours[0].permute(1, 2, 0).numpy() - theirs)
    assert deviation.max() <= 1  # image libraries round after each direction
    assert deviation.mean() < 0.25


@pytest.mark.parametrize("mixing", ["per_level", "cross_level"])
def test_the_last_encoder_may_compute_the_cls_token_alone(mixing):
    torch.manual_seed(0)
    config = M2ORTConfig(n_genes=5, channels=12, depth=3, heads=2, head_dim=6, patch_px=64, mixing=mixing)
    network = M2ORT(config).eval()
    patches = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        short = network(patches)
        last, network.encoders = network.encoders[-1], network.encoders[:-1]
        network.encoders.append(_AllTokens(last))
        np.testing.assert_allclose(short, network(patches), atol=1e-5)


class _AllTokens(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, queries):  # noqa: ARG002 (queries: what is being left out)
        return self.encoder(x, x.shape[1])


@pytest.mark.parametrize("mixing", ["per_level", "cross_level"])
def test_masks_are_random_in_training_only(mixing):
    torch.manual_seed(0)
    network = M2ORT(M2ORTConfig(n_genes=5, channels=12, depth=1, heads=2, head_dim=6, patch_px=64, mixing=mixing))
    patches = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert not torch.equal(network.train()(patches), network(patches))
    assert torch.equal(network.eval()(patches), network(patches))


def test_random_mask_drops_the_fraction_it_says_and_keeps_the_mean():
    torch.manual_seed(0)
    q = k = torch.zeros(64, 2, 50, 4)
    v = torch.ones(64, 2, 50, 4)
    masked = random_mask_attention(q, k, v, 0.1)
    assert masked.mean() == pytest.approx(1, abs=0.01)
    assert masked.std() > 0.03
    assert torch.equal(masked[:, 0], masked[:, 1])  # the heads of a spot share its mask


def test_in_per_level_mixing_levels_do_not_see_one_another():
    torch.manual_seed(0)
    network = M2ORT(M2ORTConfig(n_genes=5, channels=8, depth=1, heads=1, head_dim=8, patch_px=64)).eval()
    mixing = network.encoders[0].token_mixing
    x = torch.randn(1, 17, 24)
    changed = x.clone()
    changed[..., 16:] += 1
    difference = (mixing(x, 17) - mixing(changed, 17)).abs().amax(dim=(0, 1))
    assert (difference[:16] == 0).all()
    assert (difference[16:] > 0).all()


def test_tokens_are_in_row_major_order_with_channels_last():
    network = M2ORT(M2ORTConfig(n_genes=1, channels=4, depth=1, heads=1, head_dim=4, patch_px=32))
    seen = {}
    network.patch_embeddings[0].norm.register_forward_hook(lambda _m, inputs, _o: seen.update(tokens=inputs[0]))
    patch = np.arange(32 * 32 * 3).reshape(32, 32, 3) % 251
    network(torch.from_numpy(patch.astype(np.uint8))[None])
    expected = patch[:16, 16:32].reshape(-1) / 255 - 1  # the second token of the first row
    np.testing.assert_allclose(seen["tokens"][0, 1].detach(), expected, atol=1e-6)


def test_unknown_architectures_and_parameters_are_refused():
    with pytest.raises(UsageError, match="m2ort-small"):
        architecture_config("m3ort", n_genes=5)
    with pytest.raises(ModelFileError, match="does not describe"):
        build_network({"n_genes": 5, "wings": 2})
