from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from PIL import Image

from stpredict.errors import EngineError
from stpredict.machine import instruction_sets
from stpredict.model.file import REFERENCE_FEATURES, Model, load_model, save_model
from stpredict.networks import Config, build_network, network_parameters
from stpredict.networks.m2ort import M2ORTConfig
from stpredict.networks.m2ost import VIEWS, M2OSTConfig
from stpredict.statistics.colour_texture import colour_texture_features

DATA = Path(__file__).parent / "data"
SLIDE = DATA / "CMU-1-Small-Region.svs"
GENES = ["GNAS", "DDX5", "ERBB2", "CD74", "COL1A1", "A/../B", "<&>", "KRT19"]
#: OpenVINO is made for AVX2 and, of x86-64 without it, not sure to compile a network.
NO_AVX2 = not instruction_sets().get("AVX2", True) or os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip tests of OpenVINO where it may not be able to compile, and is not."""
    try:
        return (yield)
    except EngineError as error:
        if NO_AVX2 and "openvino: cannot compile" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled models of tests stay out of the user's cache, and are shared between tests."""
    monkeypatch.setenv("STPREDICT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of compiled networks that no other test has written to."""
    monkeypatch.setenv("STPREDICT_CACHE", str(tmp_path))
    return tmp_path / "engines"


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def region() -> np.ndarray:
    """RGB pixels of the example slide, 2,967 x 2,220 x 3."""
    with openslide.OpenSlide(SLIDE) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def make_model(
    path: Path, seed: int = 0, names: list[str] = GENES, config: Config | None = None, **card: object
) -> Path:
    """A model file of a network, by default a tiny M2ORT, with random weights that spread over a few units."""
    torch.manual_seed(seed)
    parameters = network_parameters(
        config or M2ORTConfig(n_genes=len(names), channels=12, depth=2, heads=1, head_dim=12, link="softplus")
    )
    network = build_network(parameters)
    with torch.no_grad():
        network.head.weight.mul_(5)
        network.head.bias.fill_(5)
    count = len(names)
    content = {
        "name": path.stem,
        "architecture": "m2ort-tiny",
        "parameters": parameters,
        "panel": names,
        "patch_px": 224,
        "mpp": 0.69,
        "spot_diameter_um": 100.0,
        "pitch_um": 200.0,
        "objective": "residuals",
        "expression_unit": "ln(1 + CPM) of the expected share",
        "genes": {
            "training_mean": [5.0] * count,
            "training_spread": [1.0] * count,
            "display_range": [[4.0] * count, [6.0] * count],
        },
        "training": {},
        "held_out": [{"kind": "patient", "per_gene": {"correlation": [0.3, 0.01, *([0.2] * (count - 2))]}}],
        "intended_use": "Tests.",
        **card,
    }
    save_model(path, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, content)
    return path


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_m2ost_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = M2OSTConfig(n_genes=len(GENES), views=VIEWS, channels=12, depth=1, heads=1, head_dim=12, link="softplus")
    return make_model(tmp_path_factory.mktemp("models") / "m2ost.safetensors", config=config, architecture="m2ost")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path)


def write_section(folder: Path, name: str, image: np.ndarray, seed: int, mpp: float = 0.5, depth: float = 1.0) -> None:
    """One section in the HER2ST layout whose counts follow the brightness of the image under each spot."""
    rng = np.random.default_rng(seed)
    Image.fromarray(image).save(folder / f"{name}.jpg", quality=85)
    step = 200 / mpp
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    counts = ["\t" + "\t".join([*GENES, f"ONLY_{name}"])]
    for y in range(1, int(image.shape[0] / step)):
        for x in range(1, int(image.shape[1] / step)):
            new_x, new_y = x + rng.normal(0, 0.05), y + rng.normal(0, 0.05)
            px, py = new_x * step, new_y * step
            lines.append(f"{x}\t{y}\t{new_x:.3f}\t{new_y:.3f}\t{px:.2f}\t{py:.2f}\t1")
            dark = 1 - image[int(py) - 50 : int(py) + 50, int(px) - 50 : int(px) + 50].mean() / 255
            rate = depth * rng.uniform(5, 20) * (1 + np.linspace(-0.9, 0.9, len(GENES) + 1) * dark)
            counts.append(f"{x}x{y}\t" + "\t".join(map(str, rng.poisson(rate))))
    lines.append("99\t99\t99\t99\t1\t1\t0")  # not selected
    counts.append("98x98\t" + "\t".join(["1"] * (len(GENES) + 1)))  # not in the selection
    (folder / f"{name}_selection.tsv").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / f"{name}.tsv.gz", "wt") as file:
        file.write("\n".join(counts) + "\n")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, region: np.ndarray) -> Path:
    """Three sections of two patients, made from the example slide."""
    folder = tmp_path_factory.mktemp("her2st")
    for seed, (name, image) in enumerate({"A1": region, "A2": region[:, ::-1], "B1": region[::-1]}.items()):
        write_section(folder, name, np.ascontiguousarray(image), seed)
    return folder


@pytest.fixture(scope="session")
def model_with_reference_path(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory, region: np.ndarray) -> Path:
    """The tiny model, with patches of the example slide's tissue for its training patches."""
    corners = [(x, y) for y in range(200, 2700, 200) for x in range(800, 1500, 100)]
    features = colour_texture_features(region[y : y + 224, x : x + 224] for x, y in corners)
    path = tmp_path_factory.mktemp("models") / "referenced.safetensors"
    tensors = {**tiny_model.tensors, REFERENCE_FEATURES: features.astype(np.float32)}
    save_model(path, tensors, {**tiny_model.card, "name": "referenced"})
    return path
