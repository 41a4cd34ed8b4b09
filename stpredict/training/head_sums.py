"""Fit a linear head from sums over spots, so that none of them stays in memory.

Where features are the same for all parts of a cross-validation, sections that the same parts train on are summed once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.statistics.blocks import Table
from stpredict.statistics.eigenvectors import widest
from stpredict.statistics.masks import Alike, patterns_of
from stpredict.statistics.moments import BLOCK, Moments, Scatter, moments_of
from stpredict.statistics.regression import NEGLIGIBLE, LinearMap, directions_of, join_maps
from stpredict.training.programmes import fit_programmes, shrinkages, to_genes

#: With so many spots or fewer, each is predicted from the others to choose a penalty, and all are in memory.
FEW_SPOTS = BLOCK
#: With as many spots as this a feature or more, the mean leverage stands for that of each spot.
SPOTS_PER_FEATURE = 4
#: Spots whose mean features stand for all, as a middle from which rounding does not matter.
A_FEW = 64
#: The features of some spots, spots x features.
Describe = Callable[[Int], Float]


def are_many(n_spots: int) -> bool:
    """Whether spots are so many that their counts are read when they are needed, and heads fitted from sums."""
    return n_spots > FEW_SPOTS


@dataclass(frozen=True)
class Observations:
    """What a head is fitted to: rows of a `table` of spots x a panel's genes, and what gives the spots' features.

    Values of a table are NaN if the spot's section did not measure the gene. They are residuals, or other targets.
    """

    table: Table
    tiles: Tiles
    panel: Sequence[str]
    rows: Int
    describe: Describe

    @cached_property
    def by_section(self) -> dict[str, Int]:
        """The rows of each section."""
        own = self.tiles.section[self.rows]
        return {str(name): self.rows[own == name] for name in np.unique(own)}

    def of_gene(self, gene: Int) -> tuple[Float, Float]:
        """Features, and values of all genes, of the spots that measured one of the panel's genes."""
        names = list(self.by_section)
        measured = self.tiles.measured_by(names, [self.panel[int(gene)]])[:, 0]
        rows = np.concatenate([self.by_section[name] for name, there in zip(names, measured, strict=True) if there])
        return self.describe(rows), self.table[rows]


@dataclass(frozen=True)
class Sums:
    """Moments of spots whose sections measured the same `genes` (indices into a panel).

    They are of the spots' features, less a `middle`, and of their values, side by side.
    """

    genes: Int
    middle: Float
    moments: Moments

    def __add__(self, other: Sums) -> Sums:
        return replace(self, moments=self.moments + other.moments)

    def of(self, genes: Int) -> Sums:
        """The sums of some genes of the panel, by their place in `genes`."""
        known = np.flatnonzero(np.isin(genes, self.genes))
        width = len(self.middle)
        kept = np.concatenate([np.arange(width), width + np.searchsorted(self.genes, genes[known])])
        return Sums(known, self.middle, self.moments.of(kept))

    @property
    def values(self) -> tuple[Float, Float]:
        """The sum of each gene's values, and of their squares."""
        width = len(self.middle)
        return self.moments.total[width:], np.diag(self.moments.products)[width:]


def sum_up(observed: Observations, middle: Float) -> list[Sums]:
    """Sums over the rows, for each set of genes that sections measured."""
    found, names = dict[bytes, Sums](), list(observed.by_section)
    waiting: dict[bytes, list[Float]] = defaultdict(list)  # small sections share a product

    def add_waiting() -> None:
        for measured, rows in waiting.items():
            own = Sums(np.flatnonzero(np.frombuffer(measured, bool)), middle, moments_of(np.concatenate(rows)))
            found[measured] = found[measured] + own if measured in found else own
        waiting.clear()

    for name, measured in zip(names, observed.tiles.measured_by(names, observed.panel), strict=True):
        rows = observed.by_section[name]
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            beside = observed.table[block][:, measured]
            waiting[measured.tobytes()].append(np.hstack([observed.describe(block) - middle, beside]))
            if sum(len(part) for parts in waiting.values() for part in parts) >= BLOCK:
                add_waiting()
    add_waiting()
    return [sums for sums in found.values() if len(sums.genes)]


def spread_of(kinds: Sequence[Sums], n_genes: int) -> Float:
    """The standard deviation of each gene's residuals over the spots that measured it; 1 if they do not differ."""
    n, total, squares = np.zeros((3, n_genes))
    for sums in kinds:
        n[sums.genes] += sums.moments.n
        for each, own in zip((total, squares), sums.values, strict=True):
            each[sums.genes] += own
    n = np.maximum(n, 1)
    spread: Float = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
    return np.where(spread > 0, spread, 1.0)


def fit_sums(kinds: Sequence[Sums], covariance: Float, n: int, observed: Observations) -> LinearMap:
    """As `fit_programmes_where_measured`, from sums: features to values, along `n` programmes of a `covariance`.

    Generalised cross-validation chooses the penalty (Golub, Heath and Wahba 1979, Technometrics 21:215). It predicts
    each spot from the others, but with the mean leverage of all spots, so that it needs no spot. If few spots measured
    a gene, each is left out in turn: they are among those `observed`.
    """
    member = np.zeros((len(kinds), len(covariance)), dtype=bool)
    for row, sums in zip(member, kinds, strict=True):
        row[sums.genes] = True
    parts = []
    for columns, there in patterns_of(member):
        if not there.any():
            continue
        genes = np.flatnonzero(member[there].all(axis=0))
        own, wanted = covariance[np.ix_(genes, genes)], np.searchsorted(genes, columns)
        chosen = [sums for sums, one in zip(kinds, there, strict=True) if one]
        joined = reduce(Sums.__add__, (sums.of(genes) for sums in chosen))
        if joined.moments.n >= SPOTS_PER_FEATURE * len(joined.middle):
            found = _fit_joined(joined, own, n, wanted)
        else:
            features, values = observed.of_gene(columns[0])
            found = fit_programmes(features, values[:, genes], own, n)
            found = replace(found, weight=found.weight[:, wanted], bias=found.bias[wanted])
        parts.append((Alike(columns, np.arange(joined.moments.n)), found))
    joined_map = join_maps(parts, len(covariance))
    return replace(joined_map, bias=np.nan_to_num(joined_map.bias))


def _fit_joined(sums: Sums, covariance: Float, n: int, wanted: Int) -> LinearMap:
    """The map to the `wanted` ones of the genes of a `covariance`."""
    moments, width = sums.moments, len(sums.middle)
    deviations = moments.deviations
    known = directions_of(Scatter(moments.n, moments.mean[:width] + sums.middle, deviations[:width, :width]))
    variance, vectors = widest(covariance, n)
    real = variance > NEGLIGIBLE * variance[0]
    variance, vectors = variance[real], vectors[:, real]
    projected = known.turning.T @ (deviations[:width, width:] @ vectors)
    squares = (deviations[width:, width:] @ vectors * vectors).sum(axis=0)
    kept = shrinkages(known, variance**2 / variance[:1])
    errors = [
        ((squares - (own * (2 - own) * projected**2).sum(axis=0)) / (1 - (1 + own.sum(axis=0)) / moments.n) ** 2).sum()
        for own in kept
    ]
    best = kept[int(np.argmin(errors))]
    return to_genes(known, best * projected, moments.mean[width:] @ vectors, vectors[wanted])
