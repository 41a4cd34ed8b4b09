"""What TRIPLEX's tables 1, 3, 4 and 5 leave out or exchange, as options behind its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stpredict.errors import UsageError
from stpredict.networks import (
    architecture_config,
    build_network,
    check_architecture,
    make_network,
    network_parameters,
    reads_slides,
)
from stpredict.networks.triplex import N_NEIGHBOURS, Triplex, fusion_loss

SMALL = {
    "n_genes": 3, "channels": 8, "fusion_heads": 2, "fusion_mlp": 2, "global_depth": 2, "global_heads": 2,
    "global_mlp": 2, "neighbour_depth": 2, "neighbour_heads": 2, "patch_px": 64, "trunk_width": 2,
}  # fmt: skip
ROWS = {
    "reads=target": 1, "reads=neighbour": 1, "reads=global": 1, "reads=neighbour+global": 3, "reads=target+global": 3,
    "reads=target+neighbour": 3, "position=none": 4, "position=peg": 4, "fusion=sum": 4, "fusion=concat": 4,
    "fusion=attention": 4, "fusion_loss=no": 1, "reads=target+global:fusion=concat:fusion_loss=no": 1,
}  # fmt: skip


def small(options: str) -> Triplex:
    torch.manual_seed(0)
    network = make_network(architecture_config(f"triplex:{options}", **SMALL))
    assert isinstance(network, Triplex)
    return network.eval()


def some_spots(n: int = 4):
    """Patches, neighbours, which are absent, and global tokens of n spots."""
    torch.manual_seed(1)
    patches = torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8)
    absent = torch.zeros(n, N_NEIGHBOURS, dtype=torch.bool)
    absent[0, :5] = True
    return [patches, torch.randn(n, N_NEIGHBOURS, 16).half(), absent, torch.randn(n, 8)]


@pytest.mark.parametrize("options", ROWS)
def test_each_row_has_the_parts_it_needs_and_comes_back_from_its_card(options):
    network, spots = small(options), some_spots()
    outputs = network.all_outputs(*spots)
    assert len(outputs) == ROWS[options]
    assert torch.equal(outputs[0], network.read_spots(*spots))
    features = torch.randn(6, 16).half()
    tokens = network.global_tokens(features, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]))
    total = fusion_loss(outputs, lambda z: F.mse_loss(z, torch.zeros(4, 3)), network.config.alpha) + tokens.sum()
    total.backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    again = build_network(network_parameters(network.config) | {"reads": list(network.config.reads)}).eval()
    again.load_state_dict(network.state_dict())
    patches = spots[0]
    with torch.inference_mode():
        np.testing.assert_allclose(again(patches), network(patches), atol=1e-6)


@pytest.mark.parametrize("options", ROWS)
def test_only_views_that_are_read_matter(options):
    network, spots = small(options), some_spots()
    with torch.inference_mode():
        before = network.read_spots(*spots)
        for view, place in (("target", 0), ("neighbour", 1), ("global", 3)):
            changed = list(spots)
            changed[place] = spots[place].flip(0)
            after = network.read_spots(*changed)
            assert torch.equal(before, after) == (view not in network.config.reads), view
        hidden = list(spots)
        hidden[1] = spots[1].clone()
        hidden[1][0, :5] += 3  # absent
        np.testing.assert_allclose(network.read_spots(*hidden), before, atol=1e-6)


def test_fusions_by_hand():
    views = {
        "target": torch.tensor([[[1.0] * 4 + [3.0] * 4, [3.0] * 4 + [1.0] * 4]]),
        "global": torch.ones(1, 1, 8) * 5,
    }
    absent = torch.zeros(1, N_NEIGHBOURS, dtype=torch.bool)
    for options, expected in (("fusion=sum", [7.0] * 8), ("fusion=concat", [2.0] * 8 + [5.0] * 8)):
        network = small(f"reads=target+global:{options}")
        network.fusion_norm = torch.nn.Identity()
        np.testing.assert_allclose(network.fuse(views, absent)[0], expected)
    network = small("reads=target+global:fusion=attention")
    network.fusion_norm = torch.nn.Identity()
    with torch.no_grad():
        network.attention_pooling[0].weight.zero_()
        network.attention_pooling[0].weight[0, 0] = 1
        network.attention_pooling[0].bias.zero_()
        network.attention_pooling[2].weight.fill_(0)
        network.attention_pooling[2].weight[0, 0] = 10
    weights = np.exp(10 * np.tanh([2.0, 5.0]))
    np.testing.assert_allclose(
        network.fuse(views, absent).detach()[0], [(weights @ [2, 5]) / weights.sum()] * 8, rtol=1e-5
    )


def test_the_usual_position_encoding_lays_tokens_into_a_square_in_their_order():
    network = small("position=peg")
    features, cells = torch.randn(5, 16).half(), torch.zeros(5, 2, dtype=torch.int64)
    square = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    atypical = small("position=apeg")
    with torch.inference_mode():
        assert torch.equal(network.global_tokens(features, cells), atypical.global_tokens(features, square))
        without = small("position=none")
        assert torch.equal(without.global_tokens(features, cells), without.global_tokens(features, square))


def test_without_the_fusion_loss_or_with_an_alpha_of_0():
    outputs = [torch.full((2, 3), float(i)) for i in range(4)]
    assert float(fusion_loss(outputs[:1], lambda z: z.mean() + 1)) == 1
    assert float(fusion_loss(outputs, lambda z: z.mean(), alpha=0)) == 0 + 1 + 2 + 3


def test_the_target_alone_is_a_network_of_one_patch():
    assert not reads_slides("triplex:reads=target")
    assert reads_slides("triplex-bc2:reads=target+global")
    assert not any(name.startswith("frozen") for name in small("reads=target").state_dict())
    assert [small(f"reads={reads}").side for reads in ("global", "target+global", "neighbour")] == [1, 1, 5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("reads=global+target", "in this order"), ("alpha=2", "from 0 to 1"),
        ("reads=stain", r"target\|neighbour\|global"),
        ("fusion=layers", r"layer\|sum"), ("global_depth=0", "positive"), ("fusion_dropout=1", "below 1"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_in_words(options, said):
    with pytest.raises(UsageError, match=said):
        check_architecture(f"triplex:{options}")
