"""What scores are made of: each row's scores per gene in each section, and per spot.

Rows are scored side by side in one section after the other, so that what is measured is made ready once for all of
them, and their predictions of all spots need never be in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stpredict.arrays import Bool, Float, Int, Real
from stpredict.statistics.blocks import blocks
from stpredict.statistics.metrics import (
    SpotScores,
    correlation_per_gene,
    join_spots,
    log_cpm,
    mean_of_known,
    pcc_over_sections,
    pearson_residuals,
    score_spots,
)


@dataclass(frozen=True)
class Piece:
    """Scores of one row in the spots of one section that it predicts; in all of them, if it predicts none."""

    section: str
    spots: int  # that it predicts
    measured: Bool  # genes
    known: Bool  # genes that are measured, and predicted
    of_spots: SpotScores
    controlled: Float  # per gene: the depth-controlled correlation
    log_cpm: Float  # per gene: that with ln(1 + CPM)
    ranks: Float  # per gene: Spearman's with ln(1 + CPM); NaN if it was not asked for


@dataclass(frozen=True)
class Row:
    """Scores of one row in all sections of which it predicts spots; in all sections, if there are none."""

    pieces: Sequence[Piece]

    @property
    def controlled(self) -> Float:
        """The depth-controlled correlation in each section, sections x genes."""
        return np.array([piece.controlled for piece in self.pieces])

    @property
    def log_cpm(self) -> Float:
        """The correlation with ln(1 + CPM) in each section, sections x genes."""
        return np.array([piece.log_cpm for piece in self.pieces])

    @property
    def ranks(self) -> Float:
        """Spearman's correlation with ln(1 + CPM) per gene, mean over sections."""
        return mean_of_known(np.array([piece.ranks for piece in self.pieces]))

    @property
    def known(self) -> Bool:
        """Which genes are measured and predicted in some section."""
        known: Bool = np.any([piece.known for piece in self.pieces], axis=0)
        return known

    def pcc(self) -> tuple[float, float]:
        """TRIPLEX's PCC(M) and PCC(H)."""
        spots, measured = (np.array([getattr(piece, name) for piece in self.pieces]) for name in ("spots", "measured"))
        return pcc_over_sections(self.log_cpm, spots, measured)

    def of_spots(self) -> tuple[float, float, float, float]:
        """Correlation across genes and RMSE, as means over spots; MSE and MAE."""
        return join_spots([piece.of_spots for piece in self.pieces]).means()

    def of(self, sections: Collection[str]) -> Row:
        """The row in some sections alone."""
        return Row([piece for piece in self.pieces if piece.section in sections])


def join_pieces(pieces: Sequence[Piece]) -> Row:
    """The row of all sections' pieces."""
    there = [piece for piece in pieces if piece.spots] or pieces
    return Row(sorted(there, key=lambda piece: piece.section))


def score_section(
    section: str, rows: Mapping[str, Real], counts: Real, depth: Float, per: float, ranked: bool = False
) -> dict[str, Piece]:  # fmt: skip
    """The pieces of one section: of each of the `rows`, predictions of its spots x genes.

    A row may be NaN in spots that it says nothing of, and is scored in the others. Spearman's correlation costs most:
    say if rows are to be `ranked`.
    """
    pieces = {}
    for spots, names in _by_spots(rows):
        alike, measured = {name: rows[name] for name in names}, ~np.isnan(counts[0])
        correlations = _correlate(alike, counts, depth, spots, per, ranked)
        for name, of_spots in _score_spots(alike, counts, depth, spots, per).items():
            predicted = np.isfinite(rows[name][spots[0]])
            n_predicted = len(spots) if predicted.any() else 0
            known = measured & predicted
            pieces[name] = Piece(section, n_predicted, measured, known, of_spots, *correlations[name])
    return pieces


def _by_spots(rows: Mapping[str, Real]) -> Iterator[tuple[Int, list[str]]]:
    """The spots that some rows predict, with these rows' names; all spots if they predict none."""
    named: dict[bytes, list[str]] = {}
    for name, values in rows.items():
        there = np.isfinite(values).any(axis=1)
        named.setdefault((there if there.any() else ~there).tobytes(), []).append(name)
    for pattern, names in named.items():
        yield np.flatnonzero(np.frombuffer(pattern, dtype=np.bool_)), names


def _correlate(
    rows: Mapping[str, Real], counts: Real, depth: Float, spots: Int, per: float, ranked: bool
) -> dict[str, Float]:  # fmt: skip
    """Per gene of one section, each row's correlations with residuals and with ln(1 + CPM), and that of ranks."""
    from scipy.stats import rankdata  # slow to import

    found = {name: np.full((3, counts.shape[1]), np.nan) for name in rows}
    for genes in blocks(counts.shape[1], len(spots)):
        own = counts[spots, genes].astype(float)
        residuals, expression = pearson_residuals(own, depth[spots]), log_cpm(own, depth[spots], per)
        order = rankdata(expression, axis=0) if ranked else None
        for name, values in rows.items():
            predicted = values[spots, genes]
            found[name][0, genes] = correlation_per_gene(predicted, residuals)
            found[name][1, genes] = correlation_per_gene(predicted, expression)
            if order is not None:
                found[name][2, genes] = correlation_per_gene(rankdata(predicted, axis=0), order)
    return found


def _score_spots(
    rows: Mapping[str, Real], counts: Real, depth: Float, spots: Int, per: float
) -> dict[str, SpotScores]:  # fmt: skip
    """The scores of each row in each of the spots."""
    parts: dict[str, list[SpotScores]] = {name: [] for name in rows}
    for some in blocks(len(spots), counts.shape[1]):
        own = spots[some]
        observed = log_cpm(counts[own], depth[own], per)
        for name, values in rows.items():
            parts[name].append(score_spots(values[own].astype(float), observed))
    return {name: join_spots(found) for name, found in parts.items()}
