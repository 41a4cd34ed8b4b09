"""How well a model predicted each gene when it was tested, and which genes are reliable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.errors import ModelFileError
from stpredict.statistics.metrics import (
    FALSE_DISCOVERIES,
    PATIENTS_FOR_INTERVALS,
    mean_of_known,
)

#: Degrees of freedom at which the Student distribution is the normal one.
NORMAL_FREEDOM = 1e9
#: If a gene's held-out correlation is below this, the model did not predict the gene in its test.
PREDICTED_FROM = 0.1


def held_out_correlation(card: dict[str, Any]) -> Float:
    """Per gene of the panel, the mean depth-controlled correlation on patients that the model had not seen.

    If no patient was held out, on unseen sections of known patients; NaN if nothing was. Rounded to four decimals.
    """
    mean: Float = mean_of_known(_per_gene(card.get("held_out", []), "correlation", card["panel"])).round(4)
    return mean


@dataclass(frozen=True)
class Reliability:
    """Per gene of the panel: the held-out correlation, its 95 % interval, and ridge's correlation. NaN if not tested.

    `false_discovery_rate` belongs to the two-sided test of the interval, over all tested genes.
    """

    correlation: Float
    low: Float
    high: Float
    ridge: Float
    false_discovery_rate: Float
    how: str  # how the interval was computed

    @property
    def reliable(self) -> Bool:
        """Genes whose interval lies above 0, at a false discovery rate of 5 % over all of them, and that beat ridge."""
        return (self.low > 0) & (self.false_discovery_rate <= FALSE_DISCOVERIES) & (self.correlation > self.ridge)


def describe_reliability(folds: Sequence[dict[str, Any]], panel: Sequence[str]) -> dict[str, Any] | None:
    """A card's entry on each gene's reliability, from held-out parts; None if nothing was held out.

    With six held-out parts or more, the interval is a Student interval over them. With fewer, it is a normal interval
    that combines the parts' errors, from their effective numbers of spots. It does not cover how patients differ.
    """
    from scipy.special import stdtrit  # slow to import

    correlation = _per_gene(folds, "correlation", panel)
    if not len(correlation):
        return None
    n = np.maximum(np.isfinite(correlation).sum(axis=0), 1)
    mean, freedom = mean_of_known(correlation), _degrees_of_freedom(correlation)
    if len(correlation) >= PATIENTS_FOR_INTERVALS:
        spread = np.sqrt(np.nansum((correlation - mean) ** 2, axis=0) / np.maximum(n - 1, 1))
        error = np.where(n > 1, spread / np.sqrt(n), np.nan)
        how = f"95 % Student interval over {len(correlation)} held-out parts"
    else:
        errors = np.where(np.isfinite(correlation), _per_gene(folds, "standard_error", panel), 0.0)
        error = np.sqrt((errors**2).sum(axis=0)) / n
        how = "95 % interval from the effective number of spots; does not cover how patients differ"
    half = stdtrit(freedom, 0.975) * error
    if not any(fold["kind"] == "patient" and not fold.get("leak") for fold in folds):
        how += "; not of patients that the model knew nothing of"
    values = {"low": mean - half, "high": mean + half, "ridge": mean_of_known(_per_gene(folds, "ridge", panel))}
    return {"how": how} | {
        key: [round(float(x), 4) if np.isfinite(x) else None for x in each] for key, each in values.items()
    }


def _degrees_of_freedom(correlation: Float) -> Float:
    """Per gene, the degrees of freedom of its interval, from correlations (parts x genes), or `NORMAL_FREEDOM`."""
    if len(correlation) < PATIENTS_FOR_INTERVALS:
        return np.full(correlation.shape[1], NORMAL_FREEDOM)
    freedom: Float = np.maximum(np.isfinite(correlation).sum(axis=0) - 1.0, 1.0)
    return freedom


def read_reliability(card: dict[str, Any]) -> Reliability | None:
    """The reliability of a card's genes; None if the card does not state it, as cards of older models.

    Raises ModelFileError if the card's values do not fit its panel.
    """
    said = card.get("reliability")
    if said is None:
        return None
    from scipy.special import stdtr, stdtrit  # slow to import, and the cards of most models do not need it

    from stpredict.statistics.spatial import false_discovery_rate

    try:
        low, high, ridge = (np.array(said[key], dtype=float) for key in ("low", "high", "ridge"))
        how = str(said["how"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{card['name']}: its card's reliability cannot be read ({error}).") from error
    if not low.shape == high.shape == ridge.shape == (len(card["panel"]),) or bool((low > high).any()):
        raise ModelFileError(f"{card['name']}: its card's reliability does not fit its panel.")
    freedom = _degrees_of_freedom(_per_gene(card.get("held_out", []), "correlation", card["panel"]))
    half = np.where(high > low, (high - low) / 2, np.nan)
    p = 2 * stdtr(freedom, -np.abs((low + high) / 2) / half * stdtrit(freedom, 0.975))
    low, high = np.maximum(low, -1), np.minimum(high, 1)
    return Reliability(held_out_correlation(card), low, high, ridge, false_discovery_rate(p), how)


def reliable_genes(card: dict[str, Any]) -> list[str] | None:
    """Genes that the model predicted in its test, and better than ridge did; None if the card does not say.

    Raises ModelFileError as `read_reliability` does.
    """
    found = read_reliability(card)
    if found is None:
        return None
    return [gene for gene, reliable in zip(card["panel"], found.reliable, strict=True) if reliable]


def _per_gene(folds: Sequence[dict[str, Any]], key: str, panel: Sequence[str]) -> Float:
    """A score per gene, parts x genes, of the held-out parts that tell most about new patients; NaN if unknown."""
    known = [fold for fold in folds if not fold.get("leak")] or folds
    chosen = [fold for fold in known if fold["kind"] == "patient"] or known
    values = [fold["per_gene"].get(key, [None] * len(panel)) for fold in chosen]
    return np.array(values, dtype=float).reshape(-1, len(panel))
