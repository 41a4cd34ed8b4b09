from __future__ import annotations

import contextlib
import ctypes
import gc
import gzip
import importlib
import os
import sys
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
from stpredict.networks.head import Head
from stpredict.networks.m2ort import M2ORTConfig
from stpredict.networks.m2ost import VIEWS, M2OSTConfig
from stpredict.statistics.colour_texture import colour_texture_features

DATA = Path(__file__).parent / "data"
SLIDE = DATA / "CMU-1-Small-Region.svs"
GENES = ["GNAS", "DDX5", "ERBB2", "CD74", "COL1A1", "A/../B", "<&>", "KRT19"]
#: Workers, which this process starts, run many threads; without this each thread would keep what it freed.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers and what they start share the cores: one thread each, of those that do not ask for more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else it starts processes that import torch
    # A third of the time to compile: no test that the compiler knows each instruction set, no optimised frame of calls.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
    torch.set_num_threads(1)
    with contextlib.suppress(ModuleNotFoundError):  # it comes with scikit-learn
        importlib.import_module("threadpoolctl").threadpool_limits(1)  # of what numpy loaded before this
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
    """Compiled models of tests stay out of the user's cache, and are shared between all tests of a run."""
    base = tmp_path_factory.getbasetemp()
    of_the_run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("STPREDICT_CACHE", str(of_the_run / "cache"))


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back() -> Iterator[None]:
    """Networks and compiled models of a module's tests are freed, which else add up to gigabytes in each worker."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


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
        if isinstance(network.head, Head):  # a bank of measured spots is no linear head
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


def make_quick_model(path: Path, names: list[str] = GENES, **card: object) -> Path:
    """A model of small patches, which does ten times as many spots a second as the tiny one: for many shards."""
    config = M2ORTConfig(n_genes=len(names), channels=12, depth=1, heads=1, head_dim=12, patch_px=32, link="softplus")
    return make_model(path, names=names, config=config, patch_px=32, **card)


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture(scope="session")
def quick_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_quick_model(tmp_path_factory.mktemp("models") / "quick.safetensors")


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
    step, near = 200 / mpp, round(25 / mpp)
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    counts = ["\t" + "\t".join([*GENES, f"ONLY_{name}"])]
    for y in range(1, int(image.shape[0] / step)):
        for x in range(1, int(image.shape[1] / step)):
            new_x, new_y = x + rng.normal(0, 0.05), y + rng.normal(0, 0.05)
            px, py = new_x * step, new_y * step
            lines.append(f"{x}\t{y}\t{new_x:.3f}\t{new_y:.3f}\t{px:.2f}\t{py:.2f}\t1")
            dark = 1 - image[int(py) - near : int(py) + near, int(px) - near : int(px) + near].mean() / 255
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
    return write_sections(tmp_path_factory.mktemp("her2st"), region, 0.5)


@pytest.fixture(scope="session")
def coarse_region(region: np.ndarray) -> np.ndarray:
    """The example slide at 1 um per pixel."""
    return np.asarray(Image.fromarray(region).reduce(2))


@pytest.fixture(scope="session")
def coarse_dataset(tmp_path_factory: pytest.TempPathFactory, coarse_region: np.ndarray) -> Path:
    """The same sections at 1 um per pixel, of which small patches show more."""
    return write_sections(tmp_path_factory.mktemp("coarse"), coarse_region, 1)


def write_sections(folder: Path, region: np.ndarray, mpp: float) -> Path:
    for seed, (name, image) in enumerate({"A1": region, "A2": region[:, ::-1], "B1": region[::-1]}.items()):
        write_section(folder, name, np.ascontiguousarray(image), seed, mpp)
    return folder


@pytest.fixture(scope="module")
def few_windows() -> Iterator[None]:
    """Dictionaries are made of a tenth of the windows."""
    from stpredict.training import dictionary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dictionary, "N_WINDOWS", dictionary.N_WINDOWS // 10)
        yield


@pytest.fixture(scope="session")
def quick_model(quick_model_path: Path) -> Model:
    return load_model(quick_model_path)


@pytest.fixture(scope="session")
def model_with_reference_path(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory, region: np.ndarray) -> Path:
    """The tiny model, with patches of the example slide's tissue for its training patches."""
    corners = [(x, y) for y in range(200, 2700, 200) for x in range(800, 1500, 100)]
    features = colour_texture_features(region[y : y + 224, x : x + 224] for x, y in corners)
    path = tmp_path_factory.mktemp("models") / "referenced.safetensors"
    tensors = {**tiny_model.tensors, REFERENCE_FEATURES: features.astype(np.float32)}
    save_model(path, tensors, {**tiny_model.card, "name": "referenced"})
    return path
