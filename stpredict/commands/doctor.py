"""What this machine can do, and why it cannot do the rest."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import stpredict
from stpredict import DEFAULT_MODEL
from stpredict.arrays import UInt8
from stpredict.commands.as_json import print_json
from stpredict.console import report
from stpredict.engines.cache import engine_folder
from stpredict.engines.engine import ENGINES, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import StpredictError, counted, first_line
from stpredict.machine import instruction_sets, multiplies_bf16, processor_name, usable_cores
from stpredict.model.file import find_model, list_models, load_model, models_folders

#: For how long each engine runs.
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
MISSING = "missing"
TRAINING = ("anndata", "pandas", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Finding:
    """One finding: its value for programs, under a key or a nested key, and its line for people, if it has one."""

    key: tuple[str, ...]
    value: Any
    line: str | None = None


def doctor_command(as_json: bool) -> None:
    """Print the report line by line as it is found, or all of it as JSON."""
    if not as_json:
        for line in examine():
            print(line, flush=True)
        return
    told: dict[str, Any] = {}
    for finding in findings():
        inner = told
        for key in finding.key[:-1]:
            inner = inner.setdefault(key, {})
        inner[finding.key[-1]] = finding.value
    print_json(told)


def examine() -> Iterator[str]:
    """Lines of the report."""
    return (finding.line for finding in findings() if finding.line)


def findings() -> Iterator[Finding]:
    """What this machine has and can do, yielded one by one because the engines take seconds."""
    version, python, system = stpredict.__version__, platform.python_version(), platform.platform()
    yield Finding(("stpredict",), version, f"stpredict {version}, Python {python}, {system}")
    yield Finding(("python",), python)
    yield Finding(("platform",), system)
    yield Finding(("cores",), usable_cores(), f"cores: {usable_cores()}")
    processor = {"name": processor_name(), "instruction_sets": instruction_sets()}
    yield Finding(("processor",), processor, f"processor: {_instruction_sets()}")
    yield Finding(("gpus",), _gpus(), f"GPU: {_gpu()}")
    precisions = _precisions()
    yield Finding(("precisions",), precisions, f"precisions on the processor: {precisions}")
    for name in ENGINES:
        engine = _engine(name)
        yield Finding(("engines", name), asdict(engine), f"engine {name}: {engine.told()}")
    int8 = _int8()
    available = int8.startswith("available")
    yield Finding(("int8",), {"available": available, "told": int8}, f"--precision int8: {int8}")
    yield Finding(("cache",), _cache_folder(), f"compiled models are kept in: {_cache()}")
    models, folders = list(list_models()), models_folders()
    told = f"models: {', '.join(models) or 'none'} (looked up in {', '.join(map(str, folders))})"
    yield Finding(("models",), {"installed": models, "folders": folders}, told)
    libraries = {name: _version(name) for name in LIBRARIES}
    told = "libraries: " + ", ".join(f"{name} {version or MISSING}" for name, version in libraries.items())
    yield Finding(("libraries",), libraries, told)
    missing = [name for name in TRAINING if _version(name) is None]
    told = f"needs {', '.join(missing)}; install stpredict with its extra [train]" if missing else "available"
    yield Finding(("training",), {"available": not missing, "missing": missing}, f"training: {told}")


@dataclass(frozen=True)
class EngineFound:
    """Whether an engine runs here: how fast it runs a shipped model, or why it cannot."""

    available: bool
    reason: str | None = None
    spots_per_second: float | None = None
    model: str | None = None
    precision: str | None = None
    device: str | None = None

    def told(self) -> str:
        if not self.available:
            return f"not available: {self.reason}"
        return (
            f"available, {self.spots_per_second:.0f} spots per second of {self.model} in {self.precision} "
            f"on {self.device}"
        )


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch

    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )


def _gpu() -> str:
    import torch

    if gpus := _gpus():
        return ", ".join(gpus)
    if torch.version.cuda is None:
        return f"none that torch {torch.__version__} could use: it was built for the CPU"
    return f"none: torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no GPU or driver"


def _instruction_sets() -> str:
    sets = instruction_sets()
    has, lacks = (", ".join(name for name in sets if sets[name] is held) or "none" for held in (True, False))
    return f"{processor_name()}; of what speeds up networks it has {has}; lacks {lacks}"


def _precisions() -> str:
    """The precisions that each engine runs with this processor's instruction sets; never raises."""
    import torch

    bf16 = "faster than fp32" if multiplies_bf16() else "imitated, slower than fp32"
    in_torch = f"eager and compile run {torch.backends.cpu.get_cpu_capability()} kernels, in which bf16 is {bf16}"
    try:
        from stpredict.engines.int8 import sums_overflow
        from stpredict.engines.openvino import open_core

        _, found = open_core()
        precisions = "bf16 where a model allows it" if "BF16" in found else "fp32 for want of bf16"
        slower = sums_overflow() and "WINOGRAD" not in found  # "WINOGRAD" is how OpenVINO reports AVX-512
        int8 = "likely slower than fp32, without VNNI and AVX-512" if slower else "likely faster"
        return f"openvino runs {precisions}, int8 is {int8}; {in_torch}"
    except Exception as error:  # noqa: BLE001 (as in _engine)
        return f"openvino runs in none ({type(error).__name__}: {first_line(error)}); {in_torch}"


def _engine(name: str) -> EngineFound:
    """Whether an engine runs here, and how fast it runs a shipped model; never raises."""
    try:
        if name == "tensorrt":
            from stpredict.engines import tensorrt

            if reason := tensorrt.unavailable():
                return EngineFound(False, reason)
        if name == "compile":
            import torch

            from stpredict.engines import compile as compiling

            if reason := compiling.unavailable("cuda" if torch.cuda.is_available() else "cpu"):
                return EngineFound(False, reason)
        return _rate(name)
    except StpredictError as error:
        return EngineFound(False, str(error))
    except Exception as error:  # noqa: BLE001 (the report tells whatever is wrong with this machine)
        return EngineFound(False, f"{type(error).__name__}: {error}")


def _rate(name: str) -> EngineFound:
    model = load_model(find_model(DEFAULT_MODEL))
    patches = _tissue(model.card["patch_px"])
    # Networks compiled here were not checked on a slide, so they are not kept for one.
    request = EngineRequest(name, threads=usable_cores())
    engine = open_engine(model, request, patches, report, keep=False)
    rate = spots_per_second(engine, patches, SECONDS)
    return EngineFound(True, None, round(rate, 1), model.name, engine.precision, _processor(engine.device))


def _tissue(size: int) -> UInt8:
    """32 patches of size x size x 3 in colours like those of tissue: blots of haematoxylin on eosin."""
    rng = np.random.default_rng(0)
    blots = rng.random((32, -(-size // 8), -(-size // 8), 1)).repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    eosin, haematoxylin = np.array([225, 160, 200]), np.array([110, 80, 150])
    pixels: UInt8 = (eosin + (blots > rng.random((32, 1, 1, 1))) * (haematoxylin - eosin)).astype(np.uint8)
    return pixels


def _processor(device: str) -> str:
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{counted(usable_cores(), 'core')} of {processor_name()}"


def _int8() -> str:
    try:
        from stpredict.engines.int8 import NARROW, nncf_version, sums_overflow

        version = nncf_version()
        return f"available in the openvino engine (nncf {version})" + (f"; {NARROW}" if sums_overflow() else "")
    except (StpredictError, ImportError, RuntimeError) as error:
        return f"not available: {str(error).removeprefix('--precision int8: ')}"


def _cache_folder() -> Path | None:
    try:
        return engine_folder()
    except OSError:
        return None


def _cache() -> str:
    try:
        return f"{engine_folder()} (remove it to be rid of them; $STPREDICT_CACHE moves it)"
    except OSError as error:
        return f"nowhere: {error}; set $STPREDICT_CACHE to a folder that can be written"
