"""What this machine can do, and why not what it can't."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata, util

import stpredict
from stpredict.machine import cache_folder, usable_cores
from stpredict.weights import list_models, models_folders

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
TRAINING = ("pandas", "scikit-learn", "matplotlib")


def examine() -> Iterator[str]:
    """Lines of the report."""
    yield f"stpredict {stpredict.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield f"cores: {usable_cores()}"
    yield f"GPU: {_gpu()}"
    yield f"engine eager: {_eager()}"
    yield f"engine openvino: {_openvino()}"
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


def _eager() -> str:
    import torch

    return f"available on {'the GPU' if torch.cuda.is_available() else 'the CPU'} (torch {torch.__version__})"


def _openvino() -> str:
    if util.find_spec("openvino") is None:
        return "not available: openvino is not installed; pip install openvino"
    import openvino

    core = openvino.Core()
    if "CPU" not in core.available_devices:
        return "not available: OpenVINO does not support this processor"
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = "bf16 and fp32" if "BF16" in has else "fp32 (this processor has no bf16)"
    return f"available on {core.get_property('CPU', 'FULL_DEVICE_NAME')} in {precision}"


def _cache() -> str:
    try:
        return f"{cache_folder()} ($STPREDICT_CACHE moves it)"
    except OSError as error:
        return f"nowhere: {error}; set $STPREDICT_CACHE to a folder that can be written"
