"""HisToGene and Hist2ST against what their released code computes of random weights (maxpmx/HisToGene 44ff75b,
biomed-AI/Hist2ST 7480e5d, all dropout off), and what they do where that fails."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from stpredict.errors import ModelFileError
from stpredict.networks import architecture_config, build_network, make_network, mixing, network_parameters
from stpredict.networks import hist2st as second
from stpredict.networks import histogene as first
from stpredict.networks.hist2st import Hist2ST, Hist2STConfig, distil, nearest_spots, turned, zinb_loss
from stpredict.networks.histogene import HisToGene, HisToGeneConfig, renamed

DATA = Path(__file__).parents[1] / "data"
HISTOGENE = HisToGeneConfig(5, channels=16, depth=2, mlp_dim=32, image_px=8, positions=12, patch_px=8)
HIST2ST = Hist2STConfig(
    5, image_px=28, channels=16, squares=2, mixers=1, depth=2, heads=2, graph_depth=2, positions=12, patch_px=28
)  # fmt: skip


def golden(name: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}_released_tiny.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def released(name: str, names) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(DATA / f"{name}_released_tiny.safetensors")
    return {key: tensor.float() for key, tensor in renamed(tensors, names).items()}


@pytest.fixture(scope="module")
def histogene() -> HisToGene:
    network = HisToGene(HISTOGENE).eval()
    network.load_state_dict(released("histogene", first.RELEASED))
    return network


@pytest.fixture(scope="module")
def hist2st() -> Hist2ST:
    network = Hist2ST(HIST2ST).eval()
    network.load_state_dict({
        key: tensor.long() if "num_batches" in key else tensor
        for key, tensor in released("hist2st", second.RELEASED).items()
    })  # fmt: skip
    return network


@pytest.mark.parametrize(
    ("architecture", "more", "count"),
    [
        ("histogene", {}, 106_099_962), ("histogene-4", {}, 72_512_762), ("histogene-224", {}, 188_118_266),
        ("histogene-224", {"depth": 8}, 221_705_466), ("hist2st", {}, 73_596_333), ("hist2st-224", {}, 759_917_997),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_released_codes(architecture, more, count):
    with torch.device("meta"):
        network = make_network(replace(architecture_config(architecture, n_genes=250), **more))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_histogene_says_what_the_released_code_says(histogene):
    data = golden("histogene")
    column, row = data["centers"][0].T
    with torch.inference_mode():
        tokens = histogene.patch_embedding(data["patches"][0])
        placed = tokens + histogene.places.column(column) + histogene.places.row(row)
        found = histogene.head(histogene.mix(placed[None])[0])
    np.testing.assert_allclose(found, data["y"][0], atol=2e-6)


def test_patches_are_flattened_column_by_column_unscaled_and_from_their_middle(histogene):
    patch = torch.zeros(1, 12, 12, 3, dtype=torch.uint8)
    patch[0, 2 + 5, 2 + 1, 2] = 200  # row 5, column 1 of the middle 8 x 8
    with torch.inference_mode():
        lit = histogene.describe(patch) - histogene.describe(torch.zeros_like(patch))
        expected = 200 * histogene.patch_embedding.weight[:, (1 * 8 + 5) * 3 + 2]
    np.testing.assert_allclose(lit[0], expected, rtol=1e-4, atol=1e-4)


def of_golden_graph(network: Hist2ST, data: dict[str, Tensor], patches: Tensor) -> Tensor:
    """States of the golden section's spots, who reads whom as it has it."""
    described = network.down(network.mixers(network.patch_embedding(patches))).flatten(1)
    nearest = torch.argsort(data["adj"], dim=1, descending=True, stable=True)[:, :4]
    weights = torch.gather(data["adj"], 1, nearest)
    mixed = network.mix(network.places(described, data["centers"][0].flip(1))[None])
    return network.gather(mixed, nearest, weights / weights.sum(dim=1, keepdim=True))


def test_hist2st_says_what_the_released_code_says(hist2st):
    data = golden("hist2st")
    with torch.inference_mode():
        states = of_golden_graph(hist2st, data, data["patches"][0])
        found = {
            "h": states, "y": hist2st.head(hist2st.norm(states)),
            **dict(zip(("zinb_mean", "zinb_disp", "zinb_pi"), hist2st.distribution(states), strict=True)),
        }  # fmt: skip
    for name, values in found.items():
        np.testing.assert_allclose(values, data[name], atol=2e-6, err_msg=name)
    distribution = (data[f"zinb_{name}"] for name in ("mean", "disp", "pi"))
    loss = zinb_loss(data["counts"].float(), data["size_factor"], *distribution)
    assert float(loss) == pytest.approx(float(data["zinb_loss"]), rel=1e-6)
    np.testing.assert_allclose(distil(data["view_y"], data["view_coef"]), data["distilled"], atol=1e-6)


def test_describing_is_what_the_released_code_makes_of_transposed_pixels(hist2st):
    patches = torch.randint(0, 256, (3, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        transposed = patches.permute(0, 3, 2, 1).float()
        expected = hist2st.down(hist2st.mixers(hist2st.patch_embedding(transposed))).flatten(1)
        np.testing.assert_allclose(hist2st.describe(patches), expected, atol=1e-5)


def test_batch_statistics_are_the_sections_in_training():
    data = golden("hist2st")
    network = Hist2ST(replace(HIST2ST, dropout=0.0))
    network.load_state_dict(released("hist2st", second.RELEASED), strict=False)
    with torch.no_grad():
        states = of_golden_graph(network.train(), data, data["patches"][0])
        found = network.head(network.norm(states))
    np.testing.assert_allclose(found, data["y_batch_statistics"], atol=2e-6)


def test_who_reads_whom_is_as_released_but_for_ties():
    data = golden("hist2st")
    nearest, weights = nearest_spots(data["loc"])
    for i, expected in enumerate(data["adj"]):
        theirs = np.flatnonzero(expected)
        ours = nearest[i][weights[i] > 0].numpy()
        assert len(set(ours.tolist())) == len(theirs)
        assert i not in ours
        away = (data["loc"] - data["loc"][i]).float().norm(dim=1)
        np.testing.assert_allclose(np.sort(away[ours]), np.sort(away[theirs]))
    np.testing.assert_allclose(weights.sum(dim=1), 1)


def test_spots_of_one_cell_read_one_another_and_a_lone_one_itself(hist2st):
    cells = torch.tensor([[0, 0], [0, 0], [0, 1], [9, 9]])
    nearest, weights = nearest_spots(cells)
    assert sorted(nearest[0][weights[0] > 0].tolist()) == [1, 2]
    assert nearest[3][weights[3] > 0].tolist() == [3]
    torch.manual_seed(0)
    with torch.inference_mode():
        with_a_lone_one = hist2st.global_tokens(torch.randn(4, 32), cells)
    assert torch.isfinite(with_a_lone_one).all()  # NaN of the whole section in the released code


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_a_spot_by_itself_is_a_slide_of_one(name, request):
    network = request.getfixturevalue(name)
    px = network.config.patch_px
    patches = torch.randint(0, 256, (3, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = network(patches)
        for patch, alone in zip(patches[:, None], together, strict=True):
            tokens = network.global_tokens(network.describe(patch), torch.tensor([[4, 7]]))
            np.testing.assert_allclose(network.read_spots(None, None, None, tokens)[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_tokens_come_in_the_order_of_the_spots_wherever_the_grid_begins(name, request):
    network = request.getfixturevalue(name)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(20, network.n_described, generator=generator)
    cells = torch.stack([torch.arange(20) // 4, 3 * (torch.arange(20) % 4)], dim=1)  # nearest without ties
    shuffled = torch.randperm(20, generator=generator)
    with torch.inference_mode():
        tokens = network.global_tokens(features, cells)
        np.testing.assert_allclose(
            network.global_tokens(features[shuffled], cells[shuffled] + torch.tensor([70, -9])), tokens[shuffled],
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_rows_at_a_time_are_all_at_once(name, request, monkeypatch):
    network = request.getfixturevalue(name)
    torch.manual_seed(0)
    features, cells = (
        torch.randn(50, network.n_described),
        torch.stack([torch.arange(50) // 8, torch.arange(50) % 8], 1),
    )
    with torch.inference_mode():
        whole = network.global_tokens(features, cells)
        monkeypatch.setattr(mixing, "MAX_WEIGHTS", 7 * 2 * 50)
        monkeypatch.setattr(mixing, "ROWS", 9)
        monkeypatch.setattr(second, "LSTM_ROWS", 7)
        monkeypatch.setattr(second, "GRAPH_ROWS", 11)
        np.testing.assert_allclose(network.global_tokens(features, cells), whole, atol=1e-5)


def test_the_graph_is_followed_no_farther_than_a_part_of_the_spots_reads(monkeypatch):
    network = Hist2ST(replace(HIST2ST, positions=20)).eval()
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    cells, seen = torch.stack([shuffled // 20, shuffled % 20], dim=1), []
    monkeypatch.setattr(second, "GRAPH_ROWS", 80)  # four of the twenty rows
    for layer in network.graph:
        layer.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.inference_mode():
        network.spot_states(torch.randn(400, 32), cells)
    assert len(seen) == 2 * 5
    assert max(seen) <= 120  # the four, and the row before and behind that the second layer reads


@pytest.mark.parametrize("name", ["histogene", "hist2st"])
def test_all_that_predicts_is_trained(name, request):
    network = make_network(request.getfixturevalue(name).config).train()
    px = network.config.patch_px
    patches = torch.randint(0, 256, (6, px, px, 3), dtype=torch.uint8)
    cells = torch.stack([torch.arange(6) // 3, torch.arange(6) % 3], dim=1)
    network.head(network.global_tokens(network.describe(patches), cells)).square().mean().backward()
    without = {key.split(".")[0] for key, parameter in network.named_parameters() if parameter.grad is None}
    assert without == ({"mean", "dispersion", "dropped", "belief"} if name == "hist2st" else set())


def test_a_turned_view_by_hand():
    image = torch.arange(27, dtype=torch.uint8).view(1, 3, 3, 3)
    assert torch.equal(turned(image, 0.0), image.float())
    quarter = turned(image, 90.0)
    assert any(torch.equal(quarter, torch.rot90(image, k, (1, 2)).float()) for k in (1, 3))
    assert (turned(torch.full((1, 8, 8, 3), 255, dtype=torch.uint8), 45.0)[0, 0, 0] == 0).all()


MEMORY = """
import resource, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from stpredict.networks import hist2st, mixing
torch.set_num_threads(1)
mixing.MAX_WEIGHTS, mixing.ROWS, hist2st.GRAPH_ROWS, hist2st.LSTM_ROWS = 1 << 21, 512, 512, 512
config = hist2st.Hist2STConfig(2, image_px=28, squares=1, depth=1, heads=2, head_dim=8, graph_depth=1, positions=200)
network = hist2st.Hist2ST(config).eval()
def run(n):
    i = torch.arange(n)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        network.global_tokens(torch.randn(n, 16).half(), torch.stack([i // 200, i % 200], dim=1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
few = run(1000)
print(run(6000) - few)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count so")
def test_memory_is_not_by_the_square_of_the_spots():
    """All weights of 6,000 spots at once are 290 MB, twice over in torch's plainest attention."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150


def test_parameters_that_describe_no_network_are_refused():
    for config, wrong in ((HISTOGENE, {"image_px": 9}), (HIST2ST, {"square_px": 5}), (HIST2ST, {"image_px": 35})):
        with pytest.raises(ModelFileError, match="does not describe a network"):
            build_network({**network_parameters(config), **wrong})
    assert isinstance(build_network(network_parameters(HISTOGENE)), HisToGene)
    assert isinstance(build_network(network_parameters(HIST2ST)), Hist2ST)
