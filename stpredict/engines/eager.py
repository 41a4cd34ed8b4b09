"""The network as it is, in torch, on a CPU or a GPU. Every other engine is measured against it in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from stpredict.arrays import Float32, UInt8
from stpredict.engines.check import Verdict, check_patches, compare
from stpredict.engines.engine import Engine, EngineRequest, TileReading, TwoPasses
from stpredict.engines.running import (
    BATCH_SIZES,
    DTYPES,
    choose_device,
    demand_precision,
    infer_batches,
    with_precision,
)
from stpredict.errors import ModelFileError
from stpredict.model.file import REFERENCE_BIAS, REFERENCE_WEIGHT, Model, models_folders
from stpredict.networks import Network, SlideNetwork, TileNetwork, build_network
from stpredict.networks.encoder import OnEncoder, Published
from stpredict.networks.encoder_files import find_encoder, open_encoder, open_program
from stpredict.networks.hierarchy import TILE_PX
from stpredict.networks.istar import IStar
from stpredict.networks.published_head import Program


def load_network(model: Model) -> Network:
    """The model's network in fp32, ready to predict. Raises ModelFileError if its tensors do not fit its card.

    After the genes, it gives a patch's coordinates among the training patches, if the model file defines them.
    The encoder's file lies beside the model or among the installed models.
    """
    # A published head may have several GB, so its tensors are used without a copy.
    with torch.device("meta" if model.is_published else "cpu"):
        network = build_network(model.card["parameters"])
    tensors = {name: torch.from_numpy(tensor).float() for name, tensor in model.network_tensors().items()}
    try:
        if isinstance(network, Published):
            network.hold(tensors)
        else:
            network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{model.path.name}: its weights do not fit its card ({error}).") from error
    if network.config.n_genes != len(model.panel):
        raise ModelFileError(
            f"{model.path.name}: predicts {network.config.n_genes} genes but names {len(model.panel)}."
        )
    weight, bias = model.tensors.get(REFERENCE_WEIGHT), model.tensors.get(REFERENCE_BIAS)
    if weight is not None and bias is not None:
        network.head.beside = beside = nn.Linear(weight.shape[1], len(weight))
        beside.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    network.eval()
    if isinstance(network, OnEncoder):
        known, folders = network.config, [model.path.parent, *models_folders()]
        network.encoder = open_encoder(find_encoder(known.file, known.sha256, folders), known.patch_px, known.vit)
        if isinstance(network.head, Program):
            found = find_encoder(network.head.config.file, network.head.config.sha256, folders)
            network.head.program = open_program(found, "a head")
    return network


def run_reference(model: Model, patches: UInt8) -> Float32:
    """fp32 eager on the CPU: patches, or stacks of views, of n spots to expression n x genes."""
    return _run(load_network(model), patches, "cpu")


def judge(
    infer: Callable[[Iterable[UInt8]], Iterator[Float32]],
    model: Model,
    sample: UInt8,
    precision: str,
    batch_size: int,
    device: str = "cpu",
) -> Verdict:
    """Compare an engine's genes on patches of the `sample` with eager's, in fp32 and in the engine's precision.

    The last batch is padded.
    """
    patches = check_patches(sample)
    n_batches = -(-len(patches) // batch_size)
    padded = np.resize(patches, (n_batches * batch_size, *patches.shape[1:]))
    genes = slice(len(model.panel))
    output = np.concatenate(list(infer(np.split(padded, n_batches))))[: len(patches), genes]
    eager = None
    if precision in DTYPES and precision != "fp32":
        eager = _run(load_network(model).cast(DTYPES[precision]).to(device), patches, device)[:, genes]
    return compare(output, run_reference(model, patches)[:, genes], precision, eager)


def _run(network: Network, patches: UInt8, device: str) -> Float32:
    with torch.inference_mode():
        expression: Float32 = network(torch.from_numpy(patches).to(device)).cpu().numpy()
    return expression


def open_eager(model: Model, precision: str, request: EngineRequest, sample: UInt8) -> Engine:
    """Raises EngineError if the device that was asked for is not there, PrecisionError if it lacks the precision."""
    device = choose_device(request)
    demand_precision(precision, device)
    batch_size = request.batch_size or BATCH_SIZES[device.type]
    network = load_network(model).to(device)
    if device.type == "cuda":
        # Cast once: autocast would cast all weights for each batch.
        network.cast(DTYPES[precision])
        # Encoders that others published may fetch values from the GPU in between, which no CUDA graph allows.
        graph = not (isinstance(network, OnEncoder) or model.reads_slide)
        infer = partial(infer_batches, with_precision(network, "fp32", device), device, capture=graph)
    else:
        infer = partial(infer_batches, with_precision(network, precision, device), device)
    return Engine(
        name="eager",
        precision=precision,
        device=str(device),
        batch_size=batch_size,
        versions={"torch": torch.__version__},
        verdict=judge(infer, model, sample, precision, batch_size, str(device)),
        infer=infer,
        two_passes=two_passes(network, device)
        if isinstance(network, SlideNetwork | Published) and model.reads_slide
        else None,
    )


def on_arrays(what: Callable[..., torch.Tensor], device: torch.device, *arrays: Any, **more: Any) -> Float32:
    """Call `what` on some arrays on a device; the result comes back as an array."""
    with torch.inference_mode():
        found: Float32 = what(*(torch.from_numpy(array).to(device) for array in arrays), **more).cpu().numpy()
    return found


def two_passes(network: SlideNetwork | Published, device: torch.device) -> TwoPasses:
    """The passes of a network that is on the device, ready to predict."""

    def run(what: Callable[..., torch.Tensor]) -> Callable[..., Float32]:
        return partial(on_arrays, what, device)

    if isinstance(network, TileNetwork):
        frozen = network.frozen
        return TwoPasses(
            width=frozen.n_described,
            side=frozen.side,
            describe=partial(infer_batches, with_precision(frozen.describe, "fp32", device), device),
            global_tokens=run(frozen.tile_tokens),
            read_spots=run(network.read_tiles),
            tiles=TileReading(
                tile_px=TILE_PX,
                region=frozen.region,
                n_leading=frozen.tile_width,
                radius=network.config.radius,
                divides=isinstance(network, IStar),
                shifts=network.config.shifts if isinstance(network, IStar) else 1,
            ),
        )
    if isinstance(network, Published):
        head = network.head
        sizes: dict[str, Any] = {
            "width": head.described, "side": head.side, "at_pitch": head.at_pitch, "reads_centres": True,
            "stored": np.float32,  # as its authors did
        }  # fmt: skip
    else:
        sizes = {"width": network.n_described, "side": network.side}
        sizes |= {"positions": network.positions, "learnt": network.learnt}
    return TwoPasses(
        **sizes,
        describe=partial(infer_batches, with_precision(network.describe, "fp32", device), device),
        global_tokens=run(network.global_tokens),
        read_spots=run(network.read_spots),
    )
