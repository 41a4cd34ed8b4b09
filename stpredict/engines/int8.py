"""Quantise an OpenVINO graph to 8-bit integers after training, calibrated on real patches."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import openvino
from openvino import opset13

from stpredict.arrays import UInt8
from stpredict.engines.check import check_index
from stpredict.errors import EngineError

#: Layers that stay as they are. On the shipped weights, quantised patch embeddings make the output deviate thrice as
#: far for 15 % more speed; a quantised head makes it deviate twice as far for none.
NOT_QUANTISED = (r".*patch_embeddings.*", r".*level_[12].*", r".*module\.head[./].*")
ATTENTION = r".*scaled_dot_product_attention.*"
MIN_CALIBRATION = 16
#: Length of the sums that are tried. So many of the largest products add up exactly in float32; 16 bits hold no two.
TRIED = 64
NARROW = "this processor has no VNNI, so that weights have 7 bits; without AVX-512 fp32 is likely faster"


def nncf_version() -> str:
    """The version of nncf, which quantises. Raises EngineError if it is not installed."""
    try:
        return metadata.version("nncf")
    except metadata.PackageNotFoundError as error:
        raise EngineError('--precision int8: needs nncf; pip install ".[int8]" or nncf.') from error


@cache
def sums_overflow() -> bool:
    """Does this processor add two products of 8-bit integers in 16 bits, which saturate? On x86-64 VNNI avoids that.

    This is tried, not looked up: OpenVINO chooses its kernels by the processor, but also by $ONEDNN_MAX_CPU_ISA.
    """
    unsigned = opset13.parameter([TRIED, TRIED], openvino.Type.f32)
    signed = opset13.parameter([1, 1, TRIED, TRIED], openvino.Type.f32)
    weights = opset13.constant(np.full((TRIED, TRIED), 127, np.float32))
    products = [
        opset13.matmul(_rounded(unsigned, 0, 255), _rounded(weights, -127, 127), False, True),
        opset13.matmul(_rounded(signed, -128, 127), _rounded(signed, -128, 127), False, False),
    ]
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Model(products, [unsigned, signed]), "CPU", config)
    largest = [np.full((TRIED, TRIED), 255, np.float32), np.full((1, 1, TRIED, TRIED), 127, np.float32)]
    by_weights, by_signed = compiled(largest).values()
    return bool((by_weights != TRIED * 255 * 127).any() or (by_signed != TRIED * 127 * 127).any())


def _rounded(x: Any, low: float, high: float) -> Any:
    """The node's values, quantised so that OpenVINO multiplies them as integers."""
    bounds = [np.float32(bound) for bound in (low, high)]
    return opset13.fake_quantize(x, *bounds, *bounds, int(high - low) + 1)


def quantise(graph: Any, sample: UInt8, batch_size: int, narrow: bool) -> Any:
    """The graph with int8 products between its encoders' norms, calibrated on patches of the `sample`.

    With `narrow`, for processors whose sums overflow, weights have 7 bits, so that two products fit into 16 bits.
    Attention multiplies two activations, which cannot have 7 bits, so its products then stay as they are.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress bars on standard output
        import nncf

        nncf.set_log_level(logging.ERROR)
        patches = calibration_patches(sample)
        n_batches = -(-len(patches) // batch_size)
        padded = np.resize(patches, (n_batches * batch_size, *patches.shape[1:]))
        return nncf.quantize(
            graph,
            nncf.Dataset(np.split(padded, n_batches)),
            subset_size=n_batches,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(patterns=[*NOT_QUANTISED, *([ATTENTION] if narrow else [])]),
            # Smoothing costs 4 % of the speed and was not seen to help.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if narrow else nncf.OverflowFix.DISABLE,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1.0, convolution=-1.0),
            ),
        )


def calibration_digest(sample: UInt8, narrow: bool) -> str:
    """A digest of the patches that a network was calibrated on, and of whether its weights are narrow."""
    digest = hashlib.sha256(np.ascontiguousarray(calibration_patches(sample)).tobytes())
    digest.update(b"narrow" if narrow else b"")
    return digest.hexdigest()


def calibration_patches(sample: UInt8) -> UInt8:
    """Patches that the check does not use, if there are enough; else the whole sample."""
    others = np.delete(sample, check_index(len(sample)), axis=0)
    return others if len(others) >= MIN_CALIBRATION else sample
