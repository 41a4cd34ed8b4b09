"""Do p-values and intervals keep what they promise? Writes significance.md beside this script.

    python tests/benchmarks/significance.py

Nothing is measured here: maps and patients are drawn at random, so that the truth is known. Compared are, for a gene's
correlation, the usual t-test, surrogate maps (Moran spectral randomisation of Wagner and Dray 2015, Methods in Ecology
and Evolution 6:1169) and the modified t-test that `stpredict evaluate` has; for a mean over patients, the percentile
bootstrap and the Student interval that it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from stpredict.arrays import Float
from stpredict.statistics.metrics import depth_controlled_correlation, pearson_residuals
from stpredict.statistics.spatial import correlation_variance, modified_t_test, spot_graph

REPORT = Path(__file__).with_suffix(".md")
N_GENES, N_SURROGATES, N_COHORTS, N_BOOTSTRAPS = 2000, 999, 2000, 1000
GRID = np.argwhere(np.ones((22, 22))).astype(float)
TISSUES = {
    "a disc": GRID[((GRID - 10.5) ** 2).sum(axis=1) < 10.5**2],
    "a strip": np.argwhere(np.ones((60, 6))).astype(float),
    "two fragments": GRID[abs(GRID[:, 0] - 10) > 2],
}
#: Distances, in spots, over which the prediction and the gene are alike; and the share of noise in each, by variance.
MAPS = [(0, 0, 0.0), (5, 0, 0.0), (5, 5, 0.5), (5, 5, 0.0), (15, 2, 0.5), (15, 15, 0.7), (15, 15, 0.0)]
COHORTS = {"normal": stats.norm(0.15, 0.05), "skewed": stats.gamma(1.5, scale=0.1)}
PATIENTS = (6, 8, 12, 20)


def smooth_maps(centres: Float, length: float, noise: float, rng: np.random.Generator) -> Float:
    """Gaussian maps, spots x genes, whose correlation falls off as exp(-distance / length)."""
    white = rng.standard_normal((len(centres), N_GENES))
    if not length:
        return white
    distance = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    cholesky = np.linalg.cholesky(np.exp(-distance / length) + 1e-8 * np.eye(len(centres)))
    return np.sqrt(1 - noise) * cholesky @ white + np.sqrt(noise) * rng.standard_normal(white.shape)


def surrogate_p(predicted: Float, observed: Float, centres: Float, rng: np.random.Generator) -> Float:
    """One-sided p-value per gene among maps with the prediction's Moran spectrum and eigenvectors of random sign."""
    n = len(centres)
    centring = np.eye(n) - 1 / n
    modes = np.linalg.eigh(centring @ spot_graph(centres).toarray() @ centring)[1]
    terms = (modes.T @ stats.zscore(predicted)) * (modes.T @ stats.zscore(observed)) / n
    signs = rng.choice((-1.0, 1.0), (N_SURROGATES, n))
    return (1 + (signs @ terms >= terms.sum(axis=0) - 1e-12).sum(axis=0)) / (N_SURROGATES + 1)


def false_positives(centres: Float, maps: tuple[float, float, float], rng: np.random.Generator) -> Iterator[Float]:
    """p-values per gene of unrelated predictions and residuals, by each test."""
    of_prediction, of_gene, noise = maps
    predicted = smooth_maps(centres, of_prediction, noise, rng)
    depth = np.full(len(centres), 1e6)  # counts so deep that residuals are the map
    counts = np.round(1000 * np.exp(0.1 * smooth_maps(centres, of_gene, noise, rng)))
    section = np.full(len(centres), "A")
    observed = pearson_residuals(counts, depth)
    yield stats.pearsonr(predicted, observed, axis=0, alternative="greater").pvalue
    yield surrogate_p(predicted, observed, centres, rng)
    r = depth_controlled_correlation(predicted, counts, depth, section)
    yield modified_t_test(r, correlation_variance(predicted, counts, depth, section, centres))


def coverage(cohort: stats.rv_continuous, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often the 95 % interval of the mean over `n` patients holds the true mean: bootstrap, Student."""
    drawn = cohort.rvs((N_COHORTS, n), random_state=rng)
    weights = rng.multinomial(n, np.full(n, 1 / n), N_BOOTSTRAPS) / n
    low, high = np.percentile(drawn @ weights.T, (2.5, 97.5), axis=1)
    half = stats.t.ppf(0.975, n - 1) * drawn.std(axis=1, ddof=1) / np.sqrt(n)
    truth = cohort.mean()
    by_bootstrap = (low <= truth) & (truth <= high)
    return float(by_bootstrap.mean()), float((abs(drawn.mean(axis=1) - truth) <= half).mean())


def main() -> None:
    rng = np.random.default_rng(0)
    lines = [
        "# Significance and intervals", "",
        "Written by `python tests/benchmarks/significance.py`, from maps and patients drawn at random.", "",
        f"Of {N_GENES:,} unrelated pairs of a prediction and a gene, the share with p of 0.05 (0.01) or less, which",
        "should be 0.05 (0.01); more means agreement is seen where there is none.", "",
        "| tissue | spots | prediction alike over | gene over | noise | t-test | surrogate maps | modified t-test |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for tissue, centres in TISSUES.items():
        for maps in MAPS:
            found = false_positives(centres, maps, rng)
            tests = [f"{(p <= 0.05).mean():.3f} ({(p <= 0.01).mean():.3f})" for p in found]
            a, b, noise = maps
            lines.append(f"| {tissue} | {len(centres)} | {a} spots | {b} spots | {noise:.0%} | {' | '.join(tests)} |")
            print(lines[-1], flush=True)
    lines += [
        "", f"How often a 95 % interval over patients holds the true mean, in {N_COHORTS:,} cohorts:", "",
        "| patients' scores | patients | percentile bootstrap | Student |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, cohort in COHORTS.items():
        for n in PATIENTS:
            bootstrap, student = coverage(cohort, n, rng)
            lines.append(f"| {name} | {n} | {bootstrap:.1%} | {student:.1%} |")
    REPORT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
