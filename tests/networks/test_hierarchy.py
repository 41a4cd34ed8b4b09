"""HIPT's two networks and iStar's reading of them against what the released code computes of random weights
(mahmoodlab/HIPT 780fafae, daviddaiweizhang/istar 3cb0e53)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from stpredict.errors import ModelFileError
from stpredict.networks import build_network, network_parameters
from stpredict.networks.hierarchy import (
    ACROSS,
    IN_TILE,
    SIDE,
    Hierarchy,
    HierarchySizes,
    box_means,
    in_disk,
    resample_positions,
)
from stpredict.networks.hierarchy_files import read_hierarchy
from stpredict.networks.hipt import Hipt, HiptConfig
from stpredict.networks.istar import IStar, IStarConfig
from stpredict.statistics.objectives import make_objective
from stpredict.training.hierarchy import superpixel_step

DATA = Path(__file__).parents[1] / "data"
GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "systems"
TINY = HierarchySizes(24, 2, 2, 12, 2, 2)
SIZES = {"tile_width": 12, "tile_depth": 1, "tile_heads": 2, "region_width": 6, "region_depth": 1, "region_heads": 2}


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def tensors(name: str) -> dict[str, Tensor]:
    return {k: tensor.float() for k, tensor in safetensors.torch.load_file(DATA / f"{name}.safetensors").items()}


@pytest.fixture(scope="module")
def released() -> Hierarchy:
    network = Hierarchy(TINY, 16)
    network.tile_vit.load_state_dict(tensors("hipt_vit256_released_tiny"))
    network.region_vit.load_state_dict(tensors("hipt_vit4k_released_tiny"))
    return network.eval()


@pytest.fixture(scope="module")
def six_tiles() -> Tensor:
    low = np.random.default_rng(13).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return torch.from_numpy(low.repeat(16, axis=1).repeat(16, axis=2))


def test_parameter_counts_are_the_released_codes():
    def count(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    network = IStar(IStarConfig(n_genes=250))
    assert count(network.frozen.tile_vit) == 21_665_664
    assert count(network.frozen.region_vit) == 2_781_504
    assert count(network.layers, network.head) == 410_106
    assert network.frozen.n_superpixel == 579
    assert Hipt(HiptConfig(n_genes=250)).head.in_features == 384 + 384 + 192


def test_positions_are_resampled_as_released():
    for name, (rows, columns) in (("vit256", (16, 16)), ("vit4k", (3, 2))):
        found = resample_positions(tensors(f"hipt_{name}_released_tiny")["pos_embed"], rows, columns)
        np.testing.assert_allclose(found, arrays(f"hipt_{name}_released_tiny")["position"], atol=1e-6)


def test_tiles_and_their_region_are_described_as_released(released, six_tiles):
    of_tiles, of_region = arrays("hipt_vit256_released_tiny"), arrays("hipt_vit4k_released_tiny")
    with torch.inference_mode():
        described = released.describe(six_tiles)
        superpixels = described[:, 24:].reshape(6, IN_TILE, 27)
        np.testing.assert_allclose(described[:, :24], of_tiles["cls"], atol=2e-6)
        np.testing.assert_allclose(superpixels[:, :, :24], of_tiles["tokens"][:, 1:].float(), atol=2e-3)
        np.testing.assert_allclose(released.region_vit(of_region["grid"]), of_region["tokens"], atol=2e-6)
        cells = torch.tensor([[17 + row, 40 + column] for row in range(3) for column in range(2)])
        order = torch.tensor([4, 1, 0, 5, 2, 3])
        tokens = released.tile_tokens(described[order, :24], cells[order])
    np.testing.assert_allclose(tokens, of_region["tokens"][0, 1:][order], atol=2e-6)
    colours = six_tiles.float().reshape(6, 16, 16, 16, 16, 3).mean(dim=(2, 4)) / 255
    np.testing.assert_allclose(superpixels[:, :, 24:], colours.flatten(1, 2), atol=1e-5)


def test_regions_are_each_by_itself_and_whole(released):
    torch.manual_seed(0)
    said = torch.randn(8, 24)
    cells = torch.tensor([[row, column] for row in (15, 16) for column in range(14, 18)])
    with torch.inference_mode():
        together = released.tile_tokens(said, cells)
        for own in ([0, 1], [2, 3], [4, 5], [6, 7]):  # a region's corner each
            np.testing.assert_allclose(together[own], released.tile_tokens(said[own], cells[own]), atol=1e-5)
        with pytest.raises(ValueError, match="missing"):
            released.tile_tokens(said[:3], torch.tensor([[0, 0], [0, 1], [1, 0]]))
        whole = Hierarchy(TINY, None)
        whole.load_state_dict(released.state_dict())
        assert not np.allclose(whole.tile_tokens(said, cells), together, atol=1e-3)


def test_box_means_are_those_of_the_released_code():
    data = arrays("istar_released_boxes")
    for width in (16, 4):
        padded = np.pad(data["x"], [(width // 2, width // 2 - 1)] * 2, mode="symmetric")
        found = box_means(torch.from_numpy(padded)[None, ..., None], width)[0, ..., 0]
        np.testing.assert_allclose(found, data[f"box_{width}"], atol=1e-6)


def test_disks_by_hand():
    assert in_disk(0.5).tolist() == [[True]]
    assert in_disk(2.0).int().tolist() == [
        [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]
    ]  # fmt: skip
    assert in_disk(3.4375).int().tolist()[0] == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="what iStar's released layers compute is not at hand")
def test_istars_layers_are_the_released_ones():
    with np.load(GOLDEN / "istar_tiny.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files}
    released = {key: t.float() for key, t in safetensors.torch.load_file(GOLDEN / "istar_tiny.safetensors").items()}
    network = IStar(IStarConfig(6, 1, 2, 2, 1, 2, n_genes=5))  # 2 + 6 + 3 features
    for i, layer in enumerate(network.layers):
        layer.load_state_dict({key: released[f"net_lat.{i}.linear.{key}"] for key in ("weight", "bias")})
    network.head.load_state_dict({key: released[f"net_out.linear.{key}"] for key in ("weight", "bias")})
    with torch.inference_mode():
        latent = network.latent(data["x"])
        np.testing.assert_allclose(latent, data["latent"], atol=2e-6)
        expression = F.elu(network.head(latent), alpha=0.01) + 0.01  # its link, which is not one of ours
        np.testing.assert_allclose(expression, data["y"], atol=2e-6)
    for radius in ("3_4375", "2"):
        mask = data[f"disk_{radius}"]
        ours = in_disk(float(radius.replace("_", ".")))
        edge = (len(mask) - len(ours)) // 2
        assert torch.equal(F.pad(ours, [edge] * 4), mask)


def a_slide(n_rows: int, n_columns: int, channels: int) -> Tensor:
    """Values of each superpixel of a slide of so many tiles, rows x columns x channels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ACROSS * n_rows, ACROSS * n_columns, channels, generator=generator)


def about(slide: Tensor, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
    """The 3 x 3 tiles about a superpixel, 1 x 9 x superpixels x channels, which are absent, and where it lies."""
    tiles = torch.zeros(1, SIDE**2, IN_TILE, slide.shape[2])
    absent = torch.ones(1, SIDE**2, dtype=torch.bool)
    for i in range(SIDE**2):
        top, left = ACROSS * (row // ACROSS + i // SIDE - 1), ACROSS * (column // ACROSS + i % SIDE - 1)
        if 0 <= top < slide.shape[0] and 0 <= left < slide.shape[1]:
            tiles[0, i] = slide[top : top + ACROSS, left : left + ACROSS].flatten(0, 1)
            absent[0, i] = False
    return tiles, absent, torch.tensor([[row % ACROSS, column % ACROSS]])


def test_the_median_of_several_states_counts_and_each_learns():
    torch.manual_seed(0)
    several = IStar(IStarConfig(**SIZES, n_genes=3, hidden=4, layers=2, states=5))
    superpixels = torch.randn(6, 7, several.frozen.n_superpixel)
    one, said = IStar(IStarConfig(**SIZES, n_genes=3, hidden=4, layers=2)), []
    for state in range(5):
        for own, theirs in zip(one.layers, several.layers[2 * state : 2 * state + 2], strict=True):
            own.load_state_dict(theirs.state_dict())
        weight = several.head.weight[:, 4 * state : 4 * state + 4]
        one.head.load_state_dict({"weight": weight, "bias": several.head.bias})
        said.append(one.head(one.latent(superpixels).mean(dim=1)))
    found = several.head(several.latent(superpixels).mean(dim=1))
    np.testing.assert_allclose(found.detach(), torch.stack(said).median(dim=0).values.detach(), atol=1e-5)
    counts = np.random.default_rng(0).poisson(3, (6, 3)).astype(float)
    depth, section, fitted = counts.sum(axis=1), np.zeros(6, "<U1"), np.ones(6, bool)
    objective = make_objective("mse", counts, depth, section, fitted, None)
    superpixel_step(several, objective)(several, superpixels, np.arange(6)).backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0 for layer in several.layers)
    with torch.no_grad():
        objective.fold_into(several.head)
    scaled = several.head(several.latent(superpixels).mean(dim=1))
    slope, offset = (torch.as_tensor(x, dtype=torch.float32) for x in (objective.slope, objective.offset))
    np.testing.assert_allclose(scaled.detach(), (found * slope + offset).detach(), atol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(20, 40), (1, 2), (63, 0), (30, 62), (16, 15)])
def test_a_spots_superpixels_are_box_means_of_the_whole_slide_mirrored_at_its_border(row, column):
    network = IStar(IStarConfig(**SIZES, n_genes=2, radius=3.2))
    slide = a_slide(4, 4, 15)
    of_tiles = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(1))
    token_map = of_tiles.repeat_interleave(ACROSS, 0).repeat_interleave(ACROSS, 1)
    described, absent, inside = about(slide, row, column)
    tokens = about(token_map, row, column)[0][:, :, 0]
    leading = torch.zeros(1, SIDE**2, 12)
    with torch.inference_mode():
        found = network.spot(
            torch.cat([leading, described.flatten(2)], dim=2).half(), absent, tokens, inside, radius=3.2
        )  # fmt: skip

    def smoothed(values: Tensor, width: int) -> Tensor:
        padded = np.pad(values.half().float(), [(width // 2, width // 2 - 1)] * 2 + [(0, 0)], mode="symmetric")
        return box_means(torch.from_numpy(padded)[None], width)[0]

    expected = torch.cat([
        box_means(torch.from_numpy(np.pad(token_map, [(8, 7)] * 2 + [(0, 0)], mode="symmetric"))[None], 16)[0],
        smoothed(slide[..., :12], 4), slide[..., 12:].half().float(),
    ], dim=2)  # fmt: skip
    padded = np.pad(expected, [(3, 3)] * 2 + [(0, 0)], mode="symmetric")
    here = torch.from_numpy(padded[row : row + 7, column : column + 7])[in_disk(3.2)]
    # Beyond the border a box mean is that of the mirrored values, not the mirror image of one: only within it alike.
    within = torch.tensor([[0 <= row + i < 64 and 0 <= column + j < 64 for j in range(-3, 4)] for i in range(-3, 4)])
    kept = within[in_disk(3.2)]
    np.testing.assert_allclose(found[0][kept], here[kept], atol=1e-5)


def test_of_several_layouts_the_mean_is_taken_and_each_is_a_slide_by_itself():
    network = IStar(IStarConfig(**SIZES, n_genes=2, radius=3.2, shifts=2)).eval()
    leading = torch.zeros(1, SIDE**2, 12)
    given, said = [], []
    for row, column in ((20, 40), (28, 40)):  # of the same superpixel, where tiles begin half a tile before
        slide = a_slide(4, 4, 15) + row
        described, absent, inside = about(slide, row, column)
        tokens = torch.randn(1, SIDE**2, 6)
        given.append((torch.cat([leading, described.flatten(2)], dim=2), absent, tokens, inside))
        said.append(network.spot(*given[-1], radius=3.2))
    both = network.spot(*(torch.cat(parts, dim=1) for parts in zip(*given, strict=True)), radius=3.2)
    np.testing.assert_allclose(both, (said[0] + said[1]) / 2, atol=1e-5)
    of_tiles = torch.randn(8, 12)
    cells = torch.tensor([[layout, row, column] for layout in (0, 1) for row in (0, 1) for column in (3, 4)])
    with torch.inference_mode():
        tokens = network.frozen.tile_tokens(of_tiles, cells)
        for own in (slice(4), slice(4, 8)):
            np.testing.assert_allclose(
                tokens[own], network.frozen.tile_tokens(of_tiles[own], cells[own, 1:]), atol=1e-5
            )  # fmt: skip
    with pytest.raises(ValueError, match="shifts are 1, 2, 4, 8 or 16"):
        IStar(IStarConfig(**SIZES, shifts=3))


def test_a_hipt_reads_tile_spot_and_region():
    network = Hipt(HiptConfig(**SIZES, n_genes=2, radius=2.0)).eval()
    slide = a_slide(3, 3, 15)
    described, absent, inside = about(slide, 21, 25)
    leading, tokens = torch.randn(1, SIDE**2, 12), torch.randn(1, SIDE**2, 6)
    with torch.inference_mode():
        found = network.features_of(
            torch.cat([leading, described.flatten(2)], dim=2), absent, tokens, inside, radius=2.0
        )  # fmt: skip
    disk = slide[19:24, 23:28, :12][in_disk(2.0)].mean(dim=0)
    np.testing.assert_allclose(found[0], torch.cat([leading[0, 4], disk, tokens[0, 4]]), atol=1e-5)


@pytest.mark.parametrize("network", [Hipt(HiptConfig(**SIZES, n_genes=2)), IStar(IStarConfig(**SIZES, n_genes=2))])
def test_a_patch_by_itself_is_a_slide_of_one_tile(network):
    patches = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network.eval()
    with torch.inference_mode():
        found = network(patches)
        tile = torch.full((1, 256, 256, 3), 255, dtype=torch.uint8)
        tile[0, 16:240, 16:240] = patches[1]
        described = network.frozen.describe(tile)
        around = torch.zeros(1, SIDE**2, described.shape[1])
        around[:, 4] = described
        tokens = torch.zeros(1, SIDE**2, 6)
        tokens[:, 4] = network.frozen.tile_tokens(described[:, :12], torch.zeros(1, 2, dtype=torch.int64))
        absent = torch.arange(SIDE**2)[None] != 4
        alone = network.read_tiles(around, absent, tokens, torch.tensor([[8, 8]]), radius=6.25)
    np.testing.assert_allclose(found[1], alone[0], atol=1e-5)
    assert not any(p.requires_grad for p in network.frozen.parameters())
    assert isinstance(build_network(network_parameters(network.config)), type(network))


def test_files_of_the_two_networks_are_read_and_others_refused(tmp_path: Path):
    tile, region = tensors("hipt_vit256_released_tiny"), tensors("hipt_vit4k_released_tiny")
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in tile.items()}
    torch.save({"teacher": wrapped | {"head.mlp.0.weight": torch.zeros(3)}}, tmp_path / "vit256.pth")
    safetensors.torch.save_file(region, tmp_path / "vit4k.safetensors")
    sizes, read = read_hierarchy(tmp_path / "vit256.pth", tmp_path / "vit4k.safetensors")
    assert sizes == HierarchySizes(24, 2, 6, 12, 2, 6)
    for name, tensor in tile.items():
        assert torch.equal(read[f"tile_vit.{name}"], tensor)
    with pytest.raises(ModelFileError, match="holds no network of HIPT"):
        read_hierarchy(tmp_path / "vit4k.safetensors", tmp_path / "vit256.pth")
    safetensors.torch.save_file({k: v for k, v in region.items() if "norm2" not in k}, tmp_path / "less.safetensors")
    with pytest.raises(ModelFileError, match="not the networks of HIPT"):
        read_hierarchy(tmp_path / "vit256.pth", tmp_path / "less.safetensors")
    torch.save({"teacher": wrapped, "args": Path("x")}, tmp_path / "pickled.pth")
    with pytest.raises(ModelFileError, match="not a file of plain tensors"):
        read_hierarchy(tmp_path / "pickled.pth", tmp_path / "vit4k.safetensors")


def test_sizes_that_are_none_are_refused():
    for config in (HiptConfig(**SIZES), IStarConfig(**SIZES)):
        with pytest.raises(ModelFileError, match="does not describe a network"):
            build_network({**network_parameters(config), "tile_heads": 5})
    with pytest.raises(ModelFileError, match="reaches beyond the tiles"):
        build_network({**network_parameters(IStarConfig(**SIZES)), "radius": 9.0})
