"""Does an engine compute what the network does? Compare it with fp32 eager on real patches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stpredict.arrays import Float32, UInt8

N_PATCHES = 32
#: Largest root-mean-square deviation from fp32 eager, relative to a gene's spread over the patches (median gene).
#: bf16 was seen at 0.01 to 0.03 and fp32 below 0.0001.
MAX_RELATIVE_DEVIATION = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
#: Smallest correlation of the median gene with fp32 eager over the patches.
MIN_CORRELATION = {"fp32": 0.99999, "bf16": 0.99, "fp16": 0.995}


@dataclass(frozen=True)
class Verdict:
    """How far an engine lies from fp32 eager. Deviations are relative to each gene's spread over the patches."""

    passed: bool
    finite: bool
    patches: int
    relative_deviation: float  # root mean square, median gene
    worst_relative_deviation: float  # root mean square, worst gene
    correlation: float  # median gene
    max_deviation: float  # ln(1 + CPM)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        return (
            f"deviation {self.relative_deviation:.2g} of a gene's spread (median gene), "
            f"correlation {self.correlation:.5f}, at most {self.max_deviation:.2g} ln(1 + CPM)"
        )


def check_patches(sample: UInt8) -> UInt8:
    """Exactly N_PATCHES patches of a sample: taken evenly, or turned and repeated if there are too few."""
    index = np.linspace(0, len(sample) - 1, N_PATCHES).round().astype(int)
    turns = np.arange(N_PATCHES) % 4 if len(sample) < N_PATCHES else np.zeros(N_PATCHES, int)
    return np.stack([np.rot90(sample[i], int(turn)) for i, turn in zip(index, turns, strict=True)])


def compare(output: Float32, reference: Float32, precision: str) -> Verdict:
    """Judge an engine's output (patches x genes) against fp32 eager's."""
    finite = bool(np.isfinite(output).all())
    deviation = np.where(np.isfinite(output), output, 0).astype(np.float64) - reference
    spread = np.maximum(reference.std(axis=0, dtype=np.float64), 1e-6)
    relative = np.sqrt((deviation**2).mean(axis=0)) / spread
    centred, other = reference - reference.mean(axis=0), output - output.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0) * np.linalg.norm(other, axis=0)
    correlation = np.divide((centred * other).sum(axis=0), norm, out=np.zeros(norm.shape), where=norm > 0)
    median_deviation, median_correlation = float(np.median(relative)), float(np.median(correlation))
    # Identical patches have no spread; then only the absolute deviation says anything.
    flat = bool((reference.std(axis=0) < 1e-5).all())
    close = (flat and float(np.abs(deviation).max()) <= MAX_RELATIVE_DEVIATION[precision]) or (
        median_deviation <= MAX_RELATIVE_DEVIATION[precision] and median_correlation >= MIN_CORRELATION[precision]
    )
    return Verdict(
        passed=finite and close,
        finite=finite,
        patches=len(output),
        relative_deviation=median_deviation,
        worst_relative_deviation=float(relative.max()),
        correlation=median_correlation,
        max_deviation=float(np.abs(deviation).max()),
    )
