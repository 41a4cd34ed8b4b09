"""Does an engine compute the same as the network? Compare it with fp32 eager on real patches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stpredict.arrays import Float32, UInt8

N_PATCHES = 32
#: Largest root-mean-square deviation from fp32 eager that any engine may have, relative to a gene's spread over the
#: patches (median gene). Seen on the shipped weights: fp32 1e-4, fp16 0.001, bf16 0.004 to 0.011, int8 0.015.
MAX_RELATIVE_DEVIATION = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.1, "int8": 0.1}
#: An engine may deviate this many times as far as eager in the same precision. It may always deviate by a fiftieth of
#: the spread.
TIMES_EAGER = 2.0
ALWAYS_CLOSE = 0.02
#: The worst gene may deviate this many times as far as the median gene, but at most by half its own spread.
TIMES_WORST = 10.0
MAX_WORST_DEVIATION = 0.5
#: A gene with a smaller spread over the patches counts as constant.
FLAT = 1e-5
#: Smallest correlation of the median gene with fp32 eager over the patches.
MIN_CORRELATION = {"fp32": 0.99999, "fp16": 0.995, "bf16": 0.99, "int8": 0.99}


@dataclass(frozen=True)
class Verdict:
    """How far an engine lies from fp32 eager. Deviations are relative to each gene's spread over the patches."""

    passed: bool
    finite: bool
    patches: int
    relative_deviation: float  # root mean square, median gene
    worst_relative_deviation: float  # root mean square, worst gene
    tolerance: float  # largest relative_deviation that passes
    eager_deviation: float | None  # relative_deviation of eager in this precision; None if eager lacks it
    correlation: float  # median gene
    max_deviation: float  # in the unit of expression

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        return (
            f"deviation {self.relative_deviation:.2g} of a gene's spread (median gene; worst "
            f"{self.worst_relative_deviation:.2g}; allowed {self.tolerance:.2g}), "
            f"correlation {self.correlation:.5f}, at most {self.max_deviation:.2g} in expression"
        )


def check_index(n: int) -> Any:
    """Which N_PATCHES of a sample of n patches are compared: spread evenly, repeated if there are too few."""
    return np.linspace(0, n - 1, N_PATCHES).round().astype(int)


def check_patches(sample: UInt8) -> UInt8:
    """Exactly N_PATCHES patches of a sample: taken evenly, or turned and repeated if there are too few."""
    turns = np.arange(N_PATCHES) % 4 if len(sample) < N_PATCHES else np.zeros(N_PATCHES, int)
    chosen = zip(check_index(len(sample)), turns, strict=True)
    return np.stack([np.rot90(sample[i], int(turn), axes=(-3, -2)) for i, turn in chosen])


def compare(output: Float32, reference: Float32, precision: str, eager: Float32 | None = None) -> Verdict:
    """Judge an engine's output (patches x genes) by fp32 eager's, and by `eager`, eager's in the engine's precision."""
    finite = bool(np.isfinite(output).all())
    output = np.where(np.isfinite(output), output, 0)
    relative = relative_deviation(output, reference)
    median, worst = float(np.median(relative)), float(relative.max())
    eager_deviation = None if eager is None else float(np.median(relative_deviation(eager, reference)))
    tolerance = MAX_RELATIVE_DEVIATION[precision]
    if eager_deviation is not None:
        tolerance = min(tolerance, max(TIMES_EAGER * eager_deviation, ALWAYS_CLOSE))
    varies = reference.std(axis=0) >= FLAT
    correlation = float(np.median(correlations(output[:, varies], reference[:, varies]))) if varies.any() else 0.0
    max_deviation = float(np.abs(output - reference).max())
    close = (
        median <= tolerance
        and worst <= min(TIMES_WORST * tolerance, MAX_WORST_DEVIATION)
        and correlation >= MIN_CORRELATION[precision]
    )
    # Identical patches have no spread; then only the absolute deviation says anything.
    return Verdict(
        passed=finite and (close if varies.any() else max_deviation <= MAX_RELATIVE_DEVIATION[precision]),
        finite=finite,
        patches=len(output),
        relative_deviation=median,
        worst_relative_deviation=worst,
        tolerance=tolerance,
        eager_deviation=eager_deviation,
        correlation=correlation,
        max_deviation=max_deviation,
    )


def relative_deviation(output: Float32, reference: Float32) -> Any:
    """Root-mean-square deviation of each gene over its spread, or over a tenth of the median spread if that is more."""
    spread = reference.std(axis=0, dtype=np.float64)
    deviation = np.sqrt(((output.astype(np.float64) - reference) ** 2).mean(axis=0))
    return deviation / np.maximum(spread, max(0.1 * float(np.median(spread)), 1e-6))


def correlations(output: Float32, reference: Float32) -> Any:
    """Pearson correlation of each gene over the patches, 0 where one of them does not vary."""
    a = reference - reference.mean(axis=0, dtype=np.float64)
    b = output - output.mean(axis=0, dtype=np.float64)
    norm = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.divide((a * b).sum(axis=0), norm, out=np.zeros(norm.shape), where=norm > 0)
