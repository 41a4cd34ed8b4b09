"""What M2ORT's tables 2, 3, 6 and 7 leave out or exchange, as options behind an architecture's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from stpredict.errors import ModelFileError, UsageError
from stpredict.model.published import read_checkpoint
from stpredict.networks import architecture_config, build_network, check_architecture, make_network, network_parameters
from stpredict.networks.m2ort import M2ORT, M2ORTConfig, average_tokens

DATA = Path(__file__).parents[1] / "data"
SMALL = {"n_genes": 3, "channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "patch_px": 32}
#: Options, and parameters of small, base and large, 250 genes.
COUNTS = {
    "mixing=dense": (11_602_186, 26_575_130, 87_336_250),
    "mixing=dense:mlp_dim=3072": (30_197_770, 58_052_890, 151_064_890),
    "mlp_dim=0": (3_626_890, 7_678_234, 23_584_570),
    "mixing=none:pool=mean": (3_629_194, 7_682_330, 23_593_786),
    "levels=0": (11_677_306, 26_736_890, 87_763_450),
    "levels=0+1": (7_226_650, 17_226_746, 55_692_730),
}


def some_patches(n: int = 3, px: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", COUNTS)
def test_parameters_are_those_of_the_papers_tables(options):
    for variant, count in zip(("small", "base", "large"), COUNTS[options], strict=True):
        with torch.device("meta"):
            network = make_network(architecture_config(f"m2ort-{variant}:{options}", n_genes=250))
        assert sum(p.numel() for p in network.parameters()) == count, variant


def test_dense_mixing_is_that_of_the_released_code_with_its_own_line_restored(tmp_path):
    tensors = safetensors.torch.load_file(DATA / "m2ort_dense_tiny.safetensors")
    torch.save(tensors, tmp_path / "dense.pth")
    network = read_checkpoint(tmp_path / "dense.pth", head_dim=8)
    with np.load(DATA / "m2ort_dense_tiny.npz") as golden, torch.inference_mode():
        found = network.forward_levels(*(torch.from_numpy(golden[f"level_{i}"]) for i in range(3)))
        np.testing.assert_allclose(found, golden["y"], atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        "levels=0", "levels=2", "levels=0+2", "mixing=dense", "mlp_dim=0", "mixing=none:pool=mean", "pool=mean",
        "embedding=shared", "embedding=scales", "levels=0:sample_levels=yes", "embedding=scales:sample_levels=yes",
    ],
)  # fmt: skip
def test_each_row_sees_the_image_learns_and_comes_back_from_its_card(options):
    torch.manual_seed(0)
    config = architecture_config(f"m2ort-small:{options}", **SMALL)
    network = make_network(config)
    patches = some_patches()
    network.train()(patches).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    expression = network.eval()(patches)
    assert (expression.std(dim=0) > 0).all()  # patches are told apart
    again = build_network(network_parameters(config) | {"levels": list(config.levels)}).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(patches), expression)


def test_fewer_levels_look_at_those_alone():
    torch.manual_seed(0)
    fine, coarse = (M2ORT(M2ORTConfig(**SMALL, levels=levels)).eval() for levels in ((0,), (2,)))
    patches = some_patches()
    same = patches.clone()
    same[:, 0::4, 0::4], same[:, 0::4, 1::4] = patches[:, 0::4, 1::4], patches[:, 0::4, 0::4]
    assert not torch.allclose(fine(same), fine(patches), atol=1e-3)
    assert [image.shape[-1] for image in coarse.levels(patches)] == [8]
    # Within a token of level 2 only its mean colour counts, as far as four grey levels are rounded to one.
    assert (coarse(same) - coarse(patches)).abs().max() < (fine(same) - fine(patches)).abs().max()


def test_levels_that_share_an_embedding_have_one_size():
    network = M2ORT(M2ORTConfig(**SMALL, embedding="shared")).eval()
    images = network.levels(some_patches())
    assert {image.shape for image in images} == {(3, 3, 32, 32)}
    assert len(network.patch_embeddings) == 1
    assert not torch.equal(images[0], images[2])
    same = network.embed((images[0],) * 3).chunk(3, dim=-1)
    assert torch.equal(same[0], same[2])


def test_finer_tokens_are_averaged_to_the_coarser_grid():
    grid = torch.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(average_tokens(grid.reshape(1, 16, 1), 2)[0, :, 0], [2.5, 4.5, 10.5, 12.5])
    network = M2ORT(M2ORTConfig(**SMALL, embedding="scales"))
    assert [embedding.token_px for embedding in network.patch_embeddings] == [16, 8, 4]
    images = network.levels(some_patches())
    assert torch.equal(images[0], images[2])
    assert network.embed(images).shape == (3, 4, 36)


def test_sampled_levels_are_of_training_alone_and_of_every_level():
    torch.manual_seed(0)
    network = M2ORT(M2ORTConfig(**SMALL, levels=(0,), sample_levels=True))
    patch = some_patches(1).expand(60, -1, -1, -1)
    drawn = network.train().levels(patch)[0]
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 3
    (seen,) = network.eval().levels(patch)
    assert torch.equal(seen, patch.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("m2ort-small:mixing=none", "a constant; add pool=mean"),
        ("m2ort-small-cross:levels=0", "all three"),
        ("m2ort-small:levels=1+0", "in this order"),
        ("m2ort-small:levels=3", "some of 0, 1 and 2"),
        ("m2ort-small:levels=", r"levels=N\+N"),
        ("m2ort-small:sample_levels=yes", "embedding=scales"),
        ("m2ort-small:sample_levels=maybe", "yes|no"),
        ("m2ort-small:pool=max", r"cls\|mean"),
        ("m2ort-small:pool=mean:pool=cls", "twice"),
        ("m2ort-small:wings=2", "mask_probability=0.1"),
        ("m2ort-small:depth=0", "sizes are positive"),
        ("m2ort-small:token_px=6", "its tokens of 6 px do not fill patches of 224 px"),
        ("m2ort-small:mask_probability=1", "below 1"),
        ("stnet:pool=mean", "has no options"),
        ("m3ort:pool=mean", "choose one of"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(architecture, said):
    with pytest.raises(UsageError, match=said):
        check_architecture(architecture)


def test_a_card_without_token_mixing_must_not_read_the_cls_token():
    with pytest.raises(ModelFileError, match="constant"):
        build_network({"n_genes": 3, "mixing": "none"})
