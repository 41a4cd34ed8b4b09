from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stpredict.errors import ModelFileError
from stpredict.networks import architecture_config, build_network, make_network, mixing, network_parameters
from stpredict.networks.mixing import Attention, Block
from stpredict.networks.triplex import (
    N_NEIGHBOURS,
    TARGET,
    PositionEncoding,
    Triplex,
    TriplexConfig,
    fusion_loss,
)

TINY = TriplexConfig(
    n_genes=3, channels=8, fusion_heads=2, fusion_mlp=2, global_depth=2, global_heads=2, global_mlp=2,
    neighbour_depth=2, neighbour_heads=2, patch_px=64, trunk_width=2,
)  # fmt: skip


@pytest.fixture
def network() -> Triplex:
    torch.manual_seed(0)
    return Triplex(TINY).eval()


def some_spots(n: int, px: int = 64):
    """Patches, neighbours, which are absent, and global tokens of n spots."""
    torch.manual_seed(1)
    patches = torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8)
    absent = torch.zeros(n, N_NEIGHBOURS, dtype=torch.bool)
    return patches, torch.randn(n, N_NEIGHBOURS, 16).half(), absent, torch.randn(n, 8)


@pytest.mark.parametrize(
    ("architecture", "count"), [("triplex", 29_294_296), ("triplex-bc2", 40_320_840), ("triplex-scc", 27_722_344)]
)
def test_parameter_counts_are_the_released_codes(architecture, count):
    with torch.device("meta"):
        network = make_network(architecture_config(architecture, n_genes=250))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
    assert sum(p.numel() for p in network.frozen.parameters()) == 11_176_512  # torchvision's, less its classifier


def test_position_encoding_by_hand():
    encoding = PositionEncoding(1)
    with torch.no_grad():
        encoding.weight.copy_(torch.arange(1.0, 10).view(1, 3, 3))
        encoding.bias.fill_(0.5)
        # Spots in cells (7, 2), (7, 3), twice (8, 3), and (9, 9), which has no neighbour.
        cells = torch.tensor([[7, 2], [7, 3], [8, 3], [8, 3], [9, 9]])
        tokens = torch.tensor([[1.0], [10.0], [100.0], [300.0], [7.0]])
        # The kernel is 1 2 3 / 4 5 6 / 7 8 9; the shared cell holds 200.
        expected = [
            5 * 1 + 6 * 10 + 9 * 200 + 0.5,
            4 * 1 + 5 * 10 + 8 * 200 + 0.5,
            1 * 1 + 2 * 10 + 5 * 200 + 0.5,
            1 * 1 + 2 * 10 + 5 * 200 + 0.5,
            5 * 7 + 0.5,
        ]
        np.testing.assert_allclose(encoding(tokens, cells)[:, 0], expected)


def test_position_encoding_is_a_convolution_of_the_slides_grid():
    torch.manual_seed(0)
    encoding = PositionEncoding(6)
    cells = torch.stack([torch.randint(-3, 8, (40,)), torch.randint(5, 12, (40,))], dim=1)
    tokens = torch.randn(40, 6)
    row, column = (cells - torch.tensor([-3, 5])).T
    grid, count = torch.zeros(6, 11, 7), torch.zeros(11, 7)
    for i in range(40):
        grid[:, row[i], column[i]] += tokens[i]
        count[row[i], column[i]] += 1
    with torch.inference_mode():
        dense = F.conv2d((grid / count.clamp(min=1))[None], encoding.weight[:, None], encoding.bias,
                         padding=1, groups=6)[0]  # fmt: skip
        np.testing.assert_allclose(encoding(tokens, cells), dense[:, row, column].T, atol=1e-5)


def test_cells_far_apart_take_no_memory_between_them():
    with torch.inference_mode():
        out = PositionEncoding(4)(torch.randn(2, 4), torch.tensor([[0, 0], [10**8, 10**8]]))
    assert torch.isfinite(out).all()


def test_relative_positions_count_rows_and_columns_apart(network):
    # Places 0, 1, 5, 24 of the 5 x 5 are (0, 0), (0, 1), (1, 0), (4, 4); a class is 5 x rows + columns apart.
    distance = network.distance
    assert distance[[0, 0, 0, 1, 24], [0, 1, 5, 5, 0]].tolist() == [0, 1, 5, 6, 24]
    assert torch.equal(distance, distance.T)
    assert sorted(set(distance.flatten().tolist())) == list(range(25))


def identity_attention(attention: Attention) -> None:
    """Make all weights equal but for the bias, and what is read what the tokens are."""
    with torch.no_grad():
        attention.query.weight.zero_()
        for linear in (attention.value, attention.out):
            linear.weight.copy_(torch.eye(len(linear.weight)))
        attention.out.bias.zero_()


def no_mlp(block: Block) -> None:
    with torch.no_grad():
        block.mlp[-2].weight.zero_()
        block.mlp[-2].bias.zero_()


def tiny_of_two_channels(**sizes) -> Triplex:
    """A TRIPLEX of two channels, whose normalised tokens are (1, -1) or (-1, 1)."""
    one_head = {f"{part}_{size}": 1 for part in ("fusion", "global", "neighbour") for size in ("depth", "heads", "mlp")}
    network = Triplex(TriplexConfig(n_genes=1, channels=2, trunk_width=1, **{**one_head, **sizes})).eval()
    for block in (*network.fusion_blocks, *network.neighbour_blocks, *network.global_blocks):
        identity_attention(block.attention)
        no_mlp(block)
    return network


def test_relative_bias_by_hand():
    network = tiny_of_two_channels()
    absent = torch.ones(1, N_NEIGHBOURS, dtype=torch.bool)
    absent[0, [0, 1, 5]] = False
    tokens = torch.zeros(1, N_NEIGHBOURS, 2)
    tokens[0, [0, 1, 5]] = torch.tensor([[5.0, 1.0], [0.0, 3.0], [9.0, 2.0]])  # normalised (1, -1), (-1, 1), (1, -1)
    network.embed_features = torch.nn.Identity()
    with torch.no_grad():
        network.position_bias[0, 0, 0] = np.log(2)  # the token itself
        network.position_bias[0, 0, 1] = np.log(5)  # a column apart
        network.position_bias[0, 0, 6] = np.log(3)  # a row and a column apart
        network.neighbour_norm = torch.nn.Identity()
        found = network.neighbour_tokens(tokens, absent)[0]
    # Place 0 weighs itself 2, place 1 (a column) 5, place 5 (a row) 1: (2 - 5 + 1) / 8; the others likewise.
    np.testing.assert_allclose(found[0], [5 - 2 / 8, 1 + 2 / 8], atol=1e-4)
    np.testing.assert_allclose(found[1], [0 + (5 - 2 + 3) / 10, 3 - 6 / 10], atol=1e-4)
    np.testing.assert_allclose(found[5], [9 + (1 - 3 + 2) / 6, 2], atol=1e-4)


def test_fusion_by_hand():
    network = tiny_of_two_channels(fusion_depth=2)
    network.fusion_norm = torch.nn.Identity()
    target = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])  # normalised mean (1 / 2, -1 / 2)
    neighbours = torch.zeros(1, N_NEIGHBOURS, 2)
    neighbours[0, :5] = torch.tensor([0.0, 7.0])
    absent = torch.arange(N_NEIGHBOURS)[None] >= 5
    neighbours[0, 5:] = torch.tensor([9.0, 0.0])  # which nothing may come of
    with torch.no_grad():
        found = network.fuse(
            {"target": target, "neighbour": neighbours, "global": torch.tensor([[[10.0, 20.0]]])}, absent
        )[0]
    # Twice the mean of the target's and of the neighbours' (-1, 1) is added to the global token, each on its own.
    np.testing.assert_allclose(found, [10 + 2 * 0.5 + 10 - 2 * 1, 20 - 2 * 0.5 + 20 + 2 * 1], atol=1e-4)


def test_each_head_reads_its_own_view(network):
    spots = some_spots(2)
    with torch.inference_mode():
        fused, target, neighbour, of_global = network.all_outputs(*spots)
        assert torch.equal(fused, network.read_spots(*spots))
        tokens = network.target_tokens(spots[0]).mean(dim=1)
        np.testing.assert_allclose(target, network.target_head(tokens), atol=1e-6)
        np.testing.assert_allclose(of_global, network.global_head(spots[3]), atol=1e-6)
        np.testing.assert_allclose(
            neighbour, network.neighbour_head(network.neighbour_tokens(spots[1], spots[2]).mean(dim=1)), atol=1e-5
        )


def test_what_lies_off_the_slide_does_not_matter(network):
    patches, neighbours, absent, tokens = some_spots(2)
    absent[0, :5] = True
    changed = neighbours.clone()
    changed[0, :5] += 3
    with torch.inference_mode():
        for one, other in zip(network.all_outputs(patches, neighbours, absent, tokens),
                              network.all_outputs(patches, changed, absent, tokens), strict=True):  # fmt: skip
            np.testing.assert_allclose(one, other, atol=1e-6)
        changed[0, 6] += 3
        seen = (network.read_spots(patches, shown, absent, tokens) for shown in (neighbours, changed))
        assert not torch.allclose(*seen)


def test_fusion_loss_by_hand():
    measured = torch.tensor([[1.0, 2.0]])
    outputs = [torch.tensor([[x, 2.0]], requires_grad=True) for x in (3.0, 5.0, 1.0, 0.0)]

    def loss(z):
        return F.mse_loss(z, measured)

    # The fused misses 2, 0: mean square 2. The others miss 4, 0 and 1 of what was measured, 2, 2 and 3 of the fused.
    expected = 2 + (0.7 * 8 + 0.3 * 2) + (0.7 * 0 + 0.3 * 2) + (0.7 * 0.5 + 0.3 * 4.5)
    for detach, fused_slope in ((True, 2.0), (False, 2 + 0.3 * (-2 + 2 + 3))):
        for output in outputs:
            output.grad = None
        total = fusion_loss(outputs, loss, detach=detach)
        assert total.item() == pytest.approx(expected)
        total.backward()
        assert outputs[0].grad[0, 0].item() == pytest.approx(fused_slope)
        assert outputs[1].grad[0, 0].item() == pytest.approx(0.7 * 4 + 0.3 * 2)


def test_only_the_frozen_trunk_is_not_trained(network):
    patches, neighbours, absent, _ = some_spots(3)
    network.train()
    cells = torch.tensor([[0, 0], [0, 1], [5, 5]])
    features = network.describe(patches)
    assert features.dtype == torch.float16
    before = {name: tensor.clone() for name, tensor in network.frozen.state_dict().items()}
    outputs = network.all_outputs(patches, neighbours, absent, network.global_tokens(features, cells))
    fusion_loss(outputs, lambda z: (z**2).mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == [name for name, _ in network.named_parameters() if name.startswith("frozen.")]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.frozen.state_dict().items())
    assert not torch.equal(network.trunk.bn1.running_mean, torch.zeros(2))


def test_features_in_half_precision_change_little(network):
    patches, _, absent, _ = some_spots(4)
    with torch.inference_mode():
        features = network.frozen(network.pixels(patches))
        neighbours = features[:, None].expand(-1, N_NEIGHBOURS, -1)
        cells = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        full, half = (
            network.read_spots(patches, n, absent, network.global_tokens(n[:, TARGET], cells))
            for n in (neighbours, neighbours.half())
        )
    assert 0 < (full - half).abs().max() < 2e-3 * full.std()


def test_a_lone_spot_is_a_slide_of_one(network):
    patches = some_spots(3)[0]
    absent = torch.ones(1, N_NEIGHBOURS, dtype=torch.bool)
    absent[0, TARGET] = False
    with torch.inference_mode():
        for patch, alone in zip(patches[:, None], network(patches), strict=True):
            features = network.describe(patch)
            tokens = network.global_tokens(features, torch.tensor([[4, 9]]))
            neighbours = features[:, None].expand(-1, N_NEIGHBOURS, -1)
            np.testing.assert_allclose(network.read_spots(patch, neighbours, absent, tokens)[0], alone, atol=1e-5)


def test_global_tokens_come_in_the_order_of_the_spots(network):
    features, cells = torch.randn(30, 16).half(), torch.stack([torch.arange(30) // 6, torch.arange(30) % 6], dim=1)
    shuffled = torch.randperm(30)
    with torch.inference_mode():
        tokens = network.global_tokens(features, cells)
        np.testing.assert_allclose(
            network.global_tokens(features[shuffled], cells[shuffled]), tokens[shuffled], atol=1e-5
        )
        moved = network.global_tokens(features, cells + torch.tensor([100, -20]))
        np.testing.assert_allclose(moved, tokens, atol=1e-6)  # wherever the slide's grid begins


def test_attention_in_parts_is_attention(network, monkeypatch):
    features, cells = torch.randn(50, 16).half(), torch.stack([torch.arange(50) // 8, torch.arange(50) % 8], dim=1)
    with torch.inference_mode():
        whole = network.global_tokens(features, cells)
        monkeypatch.setattr(mixing, "MAX_WEIGHTS", 7 * 2 * 50)
        monkeypatch.setattr(mixing, "ROWS", 9)
        np.testing.assert_allclose(network.global_tokens(features, cells), whole, atol=1e-6)


MEMORY = """
import resource, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from stpredict.networks import mixing, triplex
torch.set_num_threads(1)
mixing.MAX_WEIGHTS = 1 << 22
one = {f"{part}_{size}": 1 for part in ("fusion", "global", "neighbour") for size in ("depth", "heads", "mlp")}
network = triplex.Triplex(triplex.TriplexConfig(n_genes=2, channels=8, trunk_width=1, **one)).eval()
def run(n):
    i = torch.arange(n)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        network.global_tokens(torch.randn(n, 8).half(), torch.stack([i // 200, i % 200], dim=1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
few = run(1000)
print(run(12000) - few)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count so")
def test_attention_over_all_spots_does_not_take_memory_by_their_square():
    """All weights of 12,000 spots at once are 550 MB, twice over in torch's plainest attention."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300


def test_parameters_that_describe_no_network_are_refused():
    with pytest.raises(ModelFileError, match="8 channels do not divide into 3 heads"):
        build_network({**network_parameters(TINY), "global_heads": 3})
    assert isinstance(build_network(network_parameters(TINY)), Triplex)
