"""Builds the TensorRT engine of every architecture without a GPU, and says what it is made of.

TensorRT proper builds only where there is a GPU. **TensorRT-RTX** does not need one: another product, with the same
interface and rules of types, behind the same Torch-TensorRT. What is run is the engine's own `build`; nothing is run of
what it builds, as that does need a GPU. Only what asks for a GPU is put aside: questions about it, Torch-TensorRT's
runtime, and the loading of what was built.

An engine is refused unless it is one for the whole network, takes fp16 and gives fp32, and has every product,
convolution, norm and softmax of the exported program in the precision that it has there. Prints a table in Markdown.

pip install "torch-tensorrt-rtx>=2.13,<2.14"      (100 MB, beside a torch 2.13 of any kind)
python tests/benchmarks/tensorrt_build.py [ARCHITECTURE-PRECISION ...]
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import time
import types
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stpredict.engines import tensorrt
from stpredict.engines.eager import load_network
from stpredict.engines.engine import SUPPORTED
from stpredict.model.file import find_model, load_model
from stpredict.networks import (
    ARCHITECTURES,
    ENCODER,
    Network,
    architecture_config,
    architecture_views,
    has_bank,
    make_network,
    reads_slides,
)
from stpredict.networks.encoder import EncoderConfig
from stpredict.networks.timm_vit import ViTReading, build_vit
from stpredict.slides.views import patch_shape

DATA = Path(__file__).parents[1] / "data"
DICTIONARY, M2ORT, QUICK = SHIPPED = "dictionary-her2st", "m2ort-small-her2st", "m2ort-quick-her2st"
VIT, VIT_PX = DATA / "timm_vit_plain" / "model.safetensors", 224
VIT_WIDTH = 192
GENES, BATCH = 889, 8
#: For another GPU than this machine's: Ada, of those that TensorRT-RTX knows.
TARGET = "SM89"
#: Kinds of TensorRT's layers, and the operators of an exported program that become one each.
KINDS = {
    "MATRIX_MULTIPLY": ("linear", "matmul", "mm", "bmm"),
    "CONVOLUTION": ("conv2d",),
    "NORMALIZATION": ("layer_norm",),
    "SOFTMAX": (),
}
TYPES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}

Layers = Counter[tuple[str, str]]


@dataclass
class Built:
    """What a build came to."""

    layers: Layers = field(default_factory=Counter)
    n_layers: int = 0
    given: str = ""
    result: str = ""
    size: int = 0
    engines: int = 0


class Serialized:
    """An engine that was built and cannot be loaded here."""

    def __init__(self, content: Any) -> None:
        self.serialize = lambda: content


def import_torch_tensorrt() -> Any:
    """Torch-TensorRT for TensorRT-RTX, on a machine without a GPU."""
    properties = types.SimpleNamespace(name="none", major=8, minor=9, total_memory=1 << 36, multi_processor_count=128)
    for name, answer in (
        ("get_device_capability", (8, 9)), ("get_device_properties", properties), ("current_device", 0),
        ("mem_get_info", (1 << 36, 1 << 36)), ("get_device_name", "none"), ("empty_cache", None), ("synchronize", None),
    ):  # fmt: skip
        setattr(torch.cuda, name, lambda *_args, answer=answer, **_more: answer)
    if not hasattr(torch._C, "_CudaDeviceProperties"):  # a torch for the CPU, which has no such type
        torch._C._CudaDeviceProperties = object  # type: ignore[attr-defined]
    absent = types.ModuleType("tensorrt_rtx_bindings.plugin")  # asked for, and in no package
    absent.__all__ = []  # type: ignore[attr-defined]
    sys.modules[absent.__name__] = absent
    is_file = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and is_file(path)  # its runtime, which needs CUDA
    try:
        import torch_tensorrt
    finally:
        os.path.isfile = is_file
    for log in ("torch_tensorrt", "py.warnings"):
        logging.getLogger(log).setLevel(logging.ERROR)
    if torch_tensorrt.logging._LOGGER.name != tensorrt.LOG:
        raise RuntimeError(f"TensorRT speaks through {torch_tensorrt.logging._LOGGER.name}, not through {tensorrt.LOG}")
    return torch_tensorrt


def watch(torch_tensorrt: Any, built: list[Built]) -> None:
    """Note of each network what TensorRT is given and makes of it, and load nothing."""
    import tensorrt as library
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter

    class Runtime:
        def __init__(self, _log: Any) -> None:
            pass

        def deserialize_cuda_engine(self, content: Any) -> Serialized:
            built[-1].size = len(memoryview(content))
            built[-1].engines += 1
            return Serialized(content)

    configure = interpreter.TRTInterpreter._populate_trt_builder_config

    def configured(self: Any, *args: Any) -> Any:
        config = configure(self, *args)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, TARGET), 0)
        note(self.ctx.net, built[-1])
        return config

    interpreter.TRTInterpreter._populate_trt_builder_config = configured
    interpreter.trt = types.SimpleNamespace(**{**vars(library), **vars(library._target_module), "Runtime": Runtime})
    module = torch_tensorrt.dynamo.runtime.TorchTensorRTModule
    module.setup_engine = module.set_output_tensors_as_unowned = lambda *_args: None


def note(network: Any, built: Built) -> None:
    """What a network that TensorRT was given consists of."""
    built.n_layers = network.num_layers
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type.name in KINDS:
            built.layers[layer.type.name, layer.get_output(0).dtype.name] += 1
    built.given, built.result = network.get_input(0).dtype.name, network.get_output(0).dtype.name


def planned(program: torch.export.ExportedProgram) -> Layers:
    """The layers that an exported program asks for, and their types."""
    layers: Layers = Counter()
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        operator, type_ = node.target.__name__.split(".")[0], TYPES.get(node.meta["val"].dtype, "")
        if operator == "scaled_dot_product_attention":  # which is taken apart
            layers["MATRIX_MULTIPLY", type_] += 2
            layers["SOFTMAX", type_] += 1
        for kind, operators in KINDS.items():
            layers[kind, type_] += operator in operators
    return +layers


def widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Random values for a tensor of the test's Vision Transformer, 16 wide, as if it were as wide as ViT-Tiny.

    TensorRT-RTX 1.5 cannot build it as it is: with heads of 8 its compiler ends with an internal error.
    """
    kept = {"patch_embed.proj.weight": range(1, 4), "pos_embed": (1,)}.get(name, ())
    grows = [n % 16 == 0 and n <= 64 and axis not in kept for axis, n in enumerate(tensor.shape)]
    sizes = [VIT_WIDTH * n // 16 if grown else n for n, grown in zip(tensor.shape, grows, strict=True)]
    return torch.randn(sizes) * 0.02


def open_network(name: str) -> tuple[Network, tuple[int, ...]]:
    """A shipped model's network, or an architecture's with random weights, and the shape of what it looks at."""
    if name in SHIPPED:
        model = load_model(find_model(name))
        return load_network(model), model.patch_shape
    torch.manual_seed(0)
    if name == ENCODER:
        network = make_network(EncoderConfig(GENES, VIT_WIDTH, "", "", (0.5,) * 3, (0.5,) * 3, VIT_PX)).eval()
        reading = ViTReading(VIT_WIDTH // 64, "token", "gelu", 1e-6, "assumed")
        tensors = {name: widen(name, tensor) for name, tensor in load_file(VIT).items()}
        network.encoder = build_vit(tensors, reading, VIT_PX).eval()
        return network, (VIT_PX, VIT_PX, 3)
    config = architecture_config(name, n_genes=GENES, link="softplus")
    return make_network(config).eval(), patch_shape(224, architecture_views(name))


def describe(layers: Layers, kind: str) -> str:
    return ", ".join(f"{n} {type_}" for (of, type_), n in sorted(layers.items()) if of == kind) or "none"


def try_build(name: str, precision: str, built: list[Built]) -> list[str]:
    """A row of the table; what is wrong in its last cell."""
    network, shape = open_network(name)
    patches = torch.zeros((BATCH, *shape), dtype=torch.uint8)
    plan = planned(tensorrt.export_network(network, precision, patches))
    built.append(Built())
    began = time.perf_counter()
    try:
        tensorrt.build(network, precision, patches)
        outcome = "one engine"
    except Exception as error:  # noqa: BLE001 (of many kinds, and none documented)
        outcome = f"refused: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    seconds, made = time.perf_counter() - began, built[-1]
    if outcome == "one engine" and made.engines != 1:
        outcome = f"refused: {made.engines} engines"
    elif outcome == "one engine" and (made.given, made.result) != ("HALF", "FLOAT"):
        outcome = f"refused: takes {made.given}, gives {made.result}"
    elif outcome == "one engine" and made.layers != plan:
        outcome = f"refused: planned {dict(plan - made.layers)}, built {dict(made.layers - plan)}"
    return [
        name, precision, f"{seconds:.0f}", f"{made.size / 1e6:.1f}", str(made.n_layers),
        *(describe(made.layers, kind) for kind in KINDS), f"{made.given}, {made.result}", outcome,
    ]  # fmt: skip


def main(*wanted: str) -> None:
    if importlib.util.find_spec("torch_tensorrt") is None or importlib.util.find_spec("tensorrt_rtx") is None:
        sys.exit('TensorRT-RTX is not installed; pip install "torch-tensorrt-rtx>=2.13,<2.14".')
    os.environ["STPREDICT_CACHE"] = tempfile.mkdtemp()
    torch_tensorrt = import_torch_tensorrt()
    built: list[Built] = []
    watch(torch_tensorrt, built)
    skipped = {name for name in ARCHITECTURES if reads_slides(name) or has_bank(name)}
    others = (*sorted(set(ARCHITECTURES) - skipped), ENCODER)
    everything = [f"{DICTIONARY}-fp32", *(f"{M2ORT}-{precision}" for precision in SUPPORTED["tensorrt"])]
    everything += [f"{name}-bf16" for name in (QUICK, *others)]
    packages = ("torch", "torch-tensorrt-rtx", "tensorrt-rtx")
    print(
        ", ".join(f"{package} {metadata.version(package)}" for package in packages), f"for {TARGET}, batches of {BATCH}"
    )
    headings = ["network", "precision", "seconds", "MB", "layers", "products", "convolutions", "norms", "softmax"]
    headings += ["takes, gives", "outcome"]
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    refused = 0
    for name, _, precision in (one.rpartition("-") for one in wanted or everything):
        row = try_build(name, precision, built)
        refused += row[-1] != "one engine"
        print(f"| {' | '.join(row)} |", flush=True)
    if refused:
        sys.exit(f"{refused} were refused.")


if __name__ == "__main__":
    main(*sys.argv[1:])
