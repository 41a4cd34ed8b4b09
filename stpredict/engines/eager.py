"""The network as it is, in torch, on a CPU or a GPU. Every other engine is measured against it in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from stpredict.arrays import Float32, UInt8
from stpredict.engines import Engine, EngineRequest
from stpredict.engines.check import check_patches, compare
from stpredict.errors import EngineError, ModelFileError
from stpredict.networks import build_network
from stpredict.networks.m2ort import M2ORT
from stpredict.weights import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 16, "cuda": 256}


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


def run_reference(model: Model, patches: UInt8) -> Float32:
    """fp32 eager on the CPU: patches n x P x P x 3 to expression n x genes."""
    network = load_network(model)
    with torch.inference_mode():
        expression: Float32 = network(torch.from_numpy(patches)).numpy()
    return expression


def open_eager(model: Model, precision: str, request: EngineRequest, sample: UInt8) -> Engine:
    """Raises EngineError if the device that was asked for is not there."""
    device = torch.device(
        request.device if request.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"--device {request.device}: torch {torch.__version__} sees no GPU; `stpredict doctor` says more."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {request.device}: there are {torch.cuda.device_count()} GPUs.")
    if device.type == "cpu":
        torch.set_num_threads(request.threads)
    network = load_network(model).to(device)

    def infer(batches: Iterable[UInt8]) -> Iterator[Float32]:
        # Autocast rather than cast weights: what layers add to stays in fp32, and with it the level of each gene.
        lower = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
        for batch in batches:
            with torch.inference_mode(), lower:
                yield network(torch.from_numpy(batch).to(device)).cpu().numpy()

    patches = check_patches(sample)
    (output,) = infer([patches])
    return Engine(
        name="eager",
        precision=precision,
        device=str(device),
        batch_size=request.batch_size or BATCH_SIZES[device.type],
        versions={"torch": torch.__version__},
        verdict=compare(output, run_reference(model, patches).astype(np.float32), precision),
        infer=infer,
    )
