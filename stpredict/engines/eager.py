"""The network as it is, in torch, on a CPU or a GPU. Every other engine is measured against it in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from stpredict.arrays import Float32, UInt8
from stpredict.engines import Engine, EngineRequest
from stpredict.engines.check import Verdict, check_patches, compare
from stpredict.engines.running import (
    BATCH_SIZES,
    DTYPES,
    choose_device,
    demand_precision,
    infer_batches,
    with_precision,
)
from stpredict.errors import ModelFileError
from stpredict.networks import build_network
from stpredict.networks.m2ort import M2ORT
from stpredict.weights import Model


def load_network(model: Model) -> M2ORT:
    """The model's network in fp32, ready to predict. Raises ModelFileError if its tensors do not fit its card."""
    network = build_network(model.card["parameters"])
    tensors = {name: torch.from_numpy(tensor).float() for name, tensor in model.network_tensors().items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{model.path.name}: its weights do not fit its card ({error}).") from error
    if network.config.n_genes != len(model.panel):
        raise ModelFileError(
            f"{model.path.name}: predicts {network.config.n_genes} genes but names {len(model.panel)}."
        )
    return network.eval()


def cast_network(network: M2ORT, precision: str) -> M2ORT:
    """Cast all that the tokens go through. Levels, the pixels' normalisation and the head stay in fp32."""
    dtype = DTYPES[precision]
    for embedding in network.patch_embeddings:
        for name in ("expand", "project", "norm_out"):
            getattr(embedding, name).to(dtype)
    network.encoders.to(dtype)
    network.norm.to(dtype)
    for parameter in (network.cls_token, network.position_embedding):
        parameter.data = parameter.data.to(dtype)
    return network


def run_reference(model: Model, patches: UInt8) -> Float32:
    """fp32 eager on the CPU: patches n x P x P x 3 to expression n x genes."""
    return _run(load_network(model), patches, "cpu")


def judge(
    infer: Callable[[Iterable[UInt8]], Iterator[Float32]],
    model: Model,
    sample: UInt8,
    precision: str,
    batch_size: int,
    device: str = "cpu",
) -> Verdict:
    """Compare an engine on patches of the `sample`, the last batch padded, with fp32 and equally precise eager."""
    patches = check_patches(sample)
    n_batches = -(-len(patches) // batch_size)
    padded = np.resize(patches, (n_batches * batch_size, *patches.shape[1:]))
    output = np.concatenate(list(infer(np.split(padded, n_batches))))[: len(patches)]
    eager = None
    if precision in DTYPES and precision != "fp32":
        eager = _run(cast_network(load_network(model), precision).to(device), patches, device)
    return compare(output, run_reference(model, patches), precision, eager)


def _run(network: M2ORT, patches: UInt8, device: str) -> Float32:
    with torch.inference_mode():
        expression: Float32 = network(torch.from_numpy(patches).to(device)).cpu().numpy()
    return expression


def open_eager(model: Model, precision: str, request: EngineRequest, sample: UInt8) -> Engine:
    """Raises EngineError if the device that was asked for is not there, PrecisionError if it lacks the precision."""
    device = choose_device(request)
    demand_precision(precision, device)
    batch_size = request.batch_size or BATCH_SIZES[device.type]
    infer = partial(infer_batches, with_precision(load_network(model).to(device), precision, device), device)
    return Engine(
        name="eager",
        precision=precision,
        device=str(device),
        batch_size=batch_size,
        versions={"torch": torch.__version__},
        verdict=judge(infer, model, sample, precision, batch_size, str(device)),
        infer=infer,
    )
