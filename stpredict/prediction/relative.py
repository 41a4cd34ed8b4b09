"""Each gene's expression relative to its own distribution, and the genes that nobody measured.

Do not rank the genes of one spot by expression: genes of high mean expression come first in every spot, whatever the
tissue. Values relative to the gene's expression elsewhere can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stpredict.arrays import Bool, Float, Float32, Int
from stpredict.model.file import Model

#: A gene with a smaller spread is constant; its relative values are NaN.
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Standard:
    """Mean and spread of each gene over the model's training spots, as predicted, or over the slide's own spots."""

    mean: Float
    spread: Float
    of: Literal["training", "slide"]

    def relative(self, rows: Iterable[Float32]) -> Iterator[Float32]:
        """Blocks of spots x genes as distances from the mean, in spreads; NaN where a gene does not vary."""
        spread = np.where(self.spread > LEAST_SPREAD, self.spread, np.nan).astype(np.float32)
        mean = self.mean.astype(np.float32)
        for block in rows:
            yield (block - mean) / spread

    @property
    def meaning(self) -> str:
        """The meaning of the layer, in words."""
        of = "of the training spots, as the model predicts them" if self.of == "training" else "of this slide's spots"
        return f"(expression - mean) / standard deviation of each gene, both {of}"


def standard_of(model: Model, columns: Int, rows: Iterable[Float32]) -> Standard:
    """The standard on the model's card, for the genes in `columns`; if it has none, that of `rows`, all spots."""
    genes = model.card["genes"]
    if genes.get("training_mean") and genes.get("training_spread"):
        mean, spread = (np.array(genes[key], float)[columns] for key in ("training_mean", "training_spread"))
        return Standard(mean, spread, "training")
    return Standard(*moments(rows, len(columns)), "slide")


def moments(rows: Iterable[Float32], n_genes: int) -> tuple[Float, Float]:
    """Mean and standard deviation per gene of blocks of spots x genes, in one pass that ignores NaN."""
    count, mean, squares = (np.zeros(n_genes) for _ in range(3))
    for block in rows:
        known = np.isfinite(block)
        n = known.sum(axis=0)
        own = np.where(known, block, 0).sum(axis=0, dtype=np.float64) / np.maximum(n, 1)
        apart = np.where(known, block - own.astype(np.float32), 0)
        step = own - mean
        total = np.maximum(count + n, 1)
        squares += np.einsum("sg,sg->g", apart, apart, dtype=np.float64) + step**2 * count * n / total
        mean += step * n / total
        count += n
    return np.where(count > 0, mean, np.nan), np.where(count > 1, np.sqrt(squares / np.maximum(count, 1)), np.nan)


def measured_in_training(model: Model) -> Bool | None:
    """Which genes of the panel were measured in a training section; None if the card does not say."""
    said = model.card["genes"].get("measured_in_training")
    return None if said is None else np.array(said, bool)


def blank_unmeasured(rows: Iterable[Float32], measured: Bool | None) -> Iterator[Float32]:
    """Blocks of spots x genes, NaN for genes that no training section measured."""
    for block in rows:
        if measured is not None:
            block[:, ~measured] = np.nan
        yield block
