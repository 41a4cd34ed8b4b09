"""What this machine can do, and why not what it can't."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import numpy as np

import stpredict
from stpredict import DEFAULT_MODEL
from stpredict.arrays import UInt8
from stpredict.console import report
from stpredict.engines.cache import engine_folder
from stpredict.engines.engine import ENGINES, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import StpredictError, first_line
from stpredict.machine import instruction_sets, multiplies_bf16, processor_name, usable_cores
from stpredict.model.file import find_model, list_models, load_model, models_folders

#: How long each engine is run.
SECONDS = 1.0
LIBRARIES = (
    "torch",
    "openvino",
    "openslide-python",
    "openslide-bin",
    "pyvips",
    "pyvips-binary",
    "numpy",
    "h5py",
    "scikit-image",
)
TRAINING = ("anndata", "pandas", "scikit-learn", "matplotlib")


def examine() -> Iterator[str]:
    """Lines of the report."""
    yield f"stpredict {stpredict.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield f"cores: {usable_cores()}"
    yield f"processor: {_instruction_sets()}"
    yield f"GPU: {_gpu()}"
    yield f"precisions on the processor: {_precisions()}"
    for name in ENGINES:
        yield f"engine {name}: {_engine(name)}"
    yield f"--precision int8: {_int8()}"
    yield f"compiled models are kept in: {_cache()}"
    yield f"models: {', '.join(list_models()) or 'none'} (looked up in {', '.join(map(str, models_folders()))})"
    yield "libraries: " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    missing = [name for name in TRAINING if _version(name) == "missing"]
    yield "training: " + (
        f"needs {', '.join(missing)}; install stpredict with its extra [train]" if missing else "available"
    )


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.version.cuda is None:
        return f"none that torch {torch.__version__} could use: it was built for the CPU"
    return f"none: torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no GPU or driver"


def _instruction_sets() -> str:
    sets = instruction_sets()
    has, lacks = (", ".join(name for name in sets if sets[name] is held) or "none" for held in (True, False))
    return f"{processor_name()}; of what speeds up networks it has {has}; lacks {lacks}"


def _precisions() -> str:
    """What each engine makes of the instruction sets; never raises."""
    import torch

    bf16 = "faster than fp32" if multiplies_bf16() else "imitated, slower than fp32"
    in_torch = f"eager and compile run {torch.backends.cpu.get_cpu_capability()} kernels, in which bf16 is {bf16}"
    try:
        from stpredict.engines.int8 import sums_overflow
        from stpredict.engines.openvino import open_core

        _, found = open_core()
        precisions = "bf16 where a model allows it" if "BF16" in found else "fp32 for want of bf16"
        int8 = "likely slower than fp32, without VNNI" if sums_overflow() else "likely faster"
        return f"openvino runs {precisions}, int8 is {int8}; {in_torch}"
    except Exception as error:  # noqa: BLE001 (as in _engine)
        return f"openvino runs in none ({type(error).__name__}: {first_line(error)}); {in_torch}"


def _engine(name: str) -> str:
    """Whether an engine runs here, and how fast a shipped model is in it; never raises."""
    try:
        if name == "tensorrt":
            from stpredict.engines import tensorrt

            if reason := tensorrt.unavailable():
                return f"not available: {reason}"
        if name == "compile":
            import torch

            from stpredict.engines import compile as compiling

            if reason := compiling.unavailable("cuda" if torch.cuda.is_available() else "cpu"):
                return f"not available: {reason}"
        return f"available, {_rate(name)}"
    except StpredictError as error:
        return f"not available: {error}"
    except Exception as error:  # noqa: BLE001 (whatever is wrong with this machine is what is asked)
        return f"not available: {type(error).__name__}: {error}"


def _rate(name: str) -> str:
    model = load_model(find_model(DEFAULT_MODEL))
    patches = _tissue(model.card["patch_px"])
    # What is compiled here has not been checked on a slide, so it is not kept for one.
    request = EngineRequest(name, threads=usable_cores())
    engine = open_engine(model, request, patches, report, keep=False)
    rate = spots_per_second(engine, patches, SECONDS)
    return f"{rate:.0f} spots per second of {model.name} in {engine.precision} on {_processor(engine.device)}"


def _tissue(size: int) -> UInt8:
    """32 patches of size x size x 3 that are coloured about as tissue is: blots of haematoxylin on eosin."""
    rng = np.random.default_rng(0)
    blots = rng.random((32, -(-size // 8), -(-size // 8), 1)).repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    eosin, haematoxylin = np.array([225, 160, 200]), np.array([110, 80, 150])
    pixels: UInt8 = (eosin + (blots > rng.random((32, 1, 1, 1))) * (haematoxylin - eosin)).astype(np.uint8)
    return pixels


def _processor(device: str) -> str:
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{usable_cores()} cores of {processor_name()}"


def _int8() -> str:
    try:
        from stpredict.engines.int8 import NARROW, nncf_version, sums_overflow

        version = nncf_version()
        return f"available in the openvino engine (nncf {version})" + (f"; {NARROW}" if sums_overflow() else "")
    except (StpredictError, ImportError, RuntimeError) as error:
        return f"not available: {str(error).removeprefix('--precision int8: ')}"


def _cache() -> str:
    try:
        return f"{engine_folder()} (remove it to be rid of them; $STPREDICT_CACHE moves it)"
    except OSError as error:
        return f"nowhere: {error}; set $STPREDICT_CACHE to a folder that can be written"
