"""Quantise an OpenVINO graph to 8-bit integers after training, calibrated on real patches."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from importlib import metadata
from typing import Any

import numpy as np

from stpredict.arrays import UInt8
from stpredict.engines.check import check_index
from stpredict.errors import EngineError

#: Left as they are. On the shipped weights quantised patch embeddings deviate thrice as far for 15 % more speed, and
#: the head, which costs nothing, twice as far.
NOT_QUANTISED = (r".*patch_embeddings.*", r".*level_[12].*", r".*module\.head[./].*")
MIN_CALIBRATION = 16


def nncf_version() -> str:
    """Raises EngineError where nncf, which quantises, is not installed."""
    try:
        return metadata.version("nncf")
    except metadata.PackageNotFoundError as error:
        raise EngineError('--precision int8: needs nncf; pip install ".[int8]" or nncf.') from error


def quantise(graph: Any, sample: UInt8, batch_size: int) -> Any:
    """The graph with int8 products between its encoders' norms, calibrated on patches of the `sample`."""
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress bars where results are printed
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
            ignored_scope=nncf.IgnoredScope(patterns=list(NOT_QUANTISED)),
            # Smoothing costs 4 % of the speed and was not seen to help.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1.0, convolution=-1.0)
            ),
        )


def calibration_digest(sample: UInt8) -> str:
    """Tells which patches a network was calibrated on."""
    return hashlib.sha256(np.ascontiguousarray(calibration_patches(sample)).tobytes()).hexdigest()


def calibration_patches(sample: UInt8) -> UInt8:
    """Patches that the check does not look at, if there are enough of them; else the whole sample."""
    others = np.delete(sample, check_index(len(sample)), axis=0)
    return others if len(others) >= MIN_CALIBRATION else sample
