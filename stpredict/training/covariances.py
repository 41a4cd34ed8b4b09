"""How genes vary together, learnt from counts alone.

If counts are thinned into halves, both have the same signal, and independent noise, so that the covariance between them
is that of the signal. Its mean over all ways to thin the counts has a closed form. That needs counts alone, so sections
without an image help, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from stpredict.arrays import Bool, Float, Int
from stpredict.data.tiles import Counted, Tiles, columns
from stpredict.data.twins import with_twins
from stpredict.statistics.metrics import THETA
from stpredict.statistics.moments import BLOCK
from stpredict.statistics.normalisation import NORMALISATIONS, Normalisation

#: Shallower spots show too little of how genes vary together. They are used only if there are no others.
MIN_DEPTH = 500
#: A section's counts (spots x genes) and depths, some spots at a time; asked for twice.
Blocks = Callable[[], Iterator[tuple[Float, Float]]]


@dataclass(frozen=True)
class KeptCovariances:
    """The sum of the signal covariances of some sections, by their names, over `genes`: parts of a run share them.

    The `parts` are the sections that each trains on. As many sums are kept as `most` bytes hold.
    """

    genes: Sequence[str]
    most: int
    parts: Sequence[frozenset[str]] = ()
    _kept: dict[tuple[str, ...], Float] = field(default_factory=dict, repr=False)

    @classmethod
    def of_parts(
        cls, tiles: Tiles, genes: Sequence[str], parts: Sequence[frozenset[str]], most: int
    ) -> KeptCovariances:
        """For parts of a run. If `most` bytes do not hold all sums, a patient's sections are summed together."""
        found = cls(genes, most, parts)
        more = tiles.counts_only
        known = {
            *zip(tiles.section, tiles.kin, strict=True),
            *(zip(more.section, more.patient, strict=True) if more else ()),
        }
        n_sums = len({(patient, found.trained_by(name)) for name, patient in known})
        return found if n_sums * 8 * len(genes) ** 2 <= most else cls(genes, most)

    def trained_by(self, section: str) -> tuple[bool, ...]:
        """Which parts train on a section. A patient's sections that the same parts train on are summed together."""
        return tuple(section in part for part in self.parts)

    def of(self, sections: tuple[str, ...], make: Callable[[], Float]) -> Float:
        """The sum of some sections, which `make` makes if it is not kept. Do not write to it."""
        if sections in self._kept:
            return self._kept[sections]
        made = make()
        if (len(self._kept) + 1) * made.nbytes <= self.most:
            self._kept[sections] = made
        return made


def gene_covariance(
    tiles: Tiles, panel: Sequence[str], sections: Sequence[str], normalisation: Normalisation = NORMALISATIONS["total"],
    kept: KeptCovariances | None = None,
) -> tuple[Float, list[str]]:  # fmt: skip
    """Genes x genes: mean over patients of their sections' signal covariance; and the sections that it comes from.

    For two genes, it comes from sections that measured both; it is 0 if none did. The sections are the training
    `sections` and sections without images, as `sections_used` says. If all measured the panel and all genes of `kept`,
    sums of sections are taken from there and put there; counts must then be shares of all of a spot's.
    """
    used = sections_used(tiles, panel, sections)
    if not used:
        return np.eye(len(panel)), []

    def read(genes: Sequence[str], measured: Bool | slice, one: OfSection) -> Blocks:
        def blocks(rows: Int) -> Iterator[tuple[Float, Float]]:
            for start in range(0, len(rows), BLOCK):
                some = rows[start : start + BLOCK]
                counts = columns(one.of.counts, tiles.genes, genes, some)
                yield counts[:, measured], normalisation.depth(counts, one.of.depth[some])

        together = list(blocks(one.rows)) if len(one.rows) <= BLOCK else None
        return lambda: iter(together) if together else blocks(one.rows)

    names = [one.name for one in used]
    if not all(one.measured.all() for one in used):
        return covariance_where_measured(used, lambda one: read(panel, one.measured, one)), names
    if kept and not tiles.measured_by(names, kept.genes).all():
        kept = None
    n_sections = Counter(one.patient for one in used)
    together: dict[tuple[str, tuple[bool, ...]], list[OfSection]] = defaultdict(list)
    for one in used:
        together[one.patient, kept.trained_by(one.name) if kept else ()].append(one)
    genes = kept.genes if kept else panel
    total = np.zeros((len(genes), len(genes)))
    for (patient, _), own in together.items():
        make = partial(summed_covariance, (read(genes, slice(None), one) for one in own), [1] * len(own))
        total += (kept.of(tuple(one.name for one in own), make) if kept else make()) / n_sections[patient]
    total /= len(n_sections)
    place = {gene: i for i, gene in enumerate(genes)}
    chosen = [place[gene] for gene in panel]
    return total[np.ix_(chosen, chosen)] if kept else total, names


def sections_used(tiles: Tiles, panel: Sequence[str], sections: Sequence[str]) -> list[OfSection]:
    """The spots that show how genes vary together: of the training `sections`, and of sections without images.

    To keep the test unseen, the latter are left out if their patient has images and is not in training, or if they are
    twins of a section with an image that is not in training.
    """
    counted = [Counted(tiles.section, tiles.kin, tiles.counts)]
    known = set(tiles.patient[np.isin(tiles.section, sections)])
    kept = set(sections)
    if tiles.counts_only is not None:
        more = tiles.counts_only
        counted.append(more)
        allowed = np.isin(more.patient, list(known)) | ~np.isin(more.patient, tiles.patient)
        held_out = set(tiles.section.tolist()) - set(sections)
        kept |= set(more.section[allowed]) - set(with_twins(held_out, tiles.twins))
    return deep_spots([
        OfSection(str(name), one, np.flatnonzero(one.section == name), tiles.measured_by([name], panel)[0])
        for one in counted
        for name in sorted(kept & set(one.section))
    ])  # fmt: skip


@dataclass(frozen=True)
class OfSection:
    """Spots of one section among others, and which genes of the panel it measured."""

    name: str
    of: Counted
    rows: Int
    measured: Bool

    @property
    def kind(self) -> bytes:
        """Sections of one kind measured the same genes."""
        return self.measured.tobytes()

    @property
    def patient(self) -> str:
        return str(self.of.patient[self.rows[0]])

    def of_depth(self, least: int) -> OfSection:
        """The spots with at least this many counts."""
        return replace(self, rows=self.rows[self.of.depth[self.rows] >= least])


def deep_spots(sections: Sequence[OfSection]) -> list[OfSection]:
    """The sections with their deep spots alone, if two or more are left.

    If this leaves none of the sections that measured the same genes, these keep their shallow spots.
    """
    deep = [one.of_depth(MIN_DEPTH) for one in sections]
    enough = {one.kind for one in deep if len(one.rows) > 1}
    chosen = (one if one.kind in enough else every.of_depth(1) for every, one in zip(sections, deep, strict=True))
    return [one for one in chosen if len(one.rows) > 1]


def covariance_where_measured(used: Sequence[OfSection], blocks_of: Callable[[OfSection], Blocks]) -> Float:
    """The mean over patients of their sections' mean signal covariance, genes x genes.

    For two genes, only sections that measured both count. `blocks_of` gives counts of a section's spots, of the genes
    that it measured, and depths. Genes that no section measured have the others' mean variance, and no covariance.
    """
    by_patient: dict[str, list[OfSection]] = defaultdict(list)
    for one in used:
        by_patient[one.patient].append(one)
    # Pairs of genes are many more than spots of a section: sections of the same weight are summed in one product.
    alike: dict[tuple[bytes, str], list[OfSection]] = defaultdict(list)
    for patient, sections in by_patient.items():
        differ = len({one.kind for one in sections}) > 1
        for one in sections:
            alike[one.kind, patient if differ else ""].append(one)
    n_genes = len(used[0].measured)
    total, n_patients = np.zeros((n_genes, n_genes)), np.zeros((n_genes, n_genes))
    for (_, patient), sections in alike.items():
        there = np.ix_(sections[0].measured, sections[0].measured)
        weights = [1 if patient else len(by_patient[one.patient]) for one in sections]
        own = summed_covariance(map(blocks_of, sections), weights)
        total[there] += own / _together([one.measured for one in by_patient[patient]])[there] if patient else own
    measured_by = Counter(frozenset(one.kind for one in sections) for sections in by_patient.values())
    mask_of = {one.kind: one.measured for one in used}
    for kinds, n in measured_by.items():
        n_patients += n * (_together([mask_of[kind] for kind in kinds]) > 0)
    total /= np.maximum(n_patients, 1)
    unknown = ~np.any(list(mask_of.values()), axis=0)
    if unknown.any():
        total[unknown, unknown] = 1.0 if unknown.all() else total.diagonal()[~unknown].mean()
    return total


def _together(masks: Sequence[Bool]) -> Float:
    """How many of some sections' `masks` hold both genes of each pair."""
    each: Float = np.array(masks, dtype=float)
    return each.T @ each


def summed_covariance(sections: Iterable[Blocks], weights: Sequence[float]) -> Float:
    """The sum of the signal covariances of sections that measured the same genes, each over its weight.

    A section's is the covariance of its genes' Pearson residuals without the counts' noise: the expected one between
    two halves of the counts, over all ways to thin them. As an estimate of a difference, it may have negative
    eigenvalues. Small sections share a product, as pairs of genes are many more than their spots.
    """
    total: Float | float = 0.0
    noise: Float | float = 0.0
    parts: list[Float] = []
    means: list[Float] = []
    for blocks, weight in zip(sections, weights, strict=True):
        sums = [(len(depth), counts.sum(axis=0), depth.sum()) for counts, depth in blocks()]
        n, share = sum(one[0] for one in sums), sum(one[1] for one in sums) / sum(one[2] for one in sums)
        scale = 2 / (n * weight)  # the covariance of halves is half of that of all counts
        of_section = np.zeros(len(share))
        for counts, depth in blocks():
            common, of_block = _halves(counts, depth, share, n)
            of_section += common.sum(axis=0)
            noise = noise + scale * (1 - 1 / n) * of_block
            parts.append(common * np.sqrt(scale))
            if sum(map(len, parts)) > BLOCK:
                total, parts = total + _squared(parts), []
        means.append(of_section * np.sqrt(scale / n))
    found: Float = total - _squared(means) + (_squared(parts) if parts else 0.0)
    found[np.diag_indices_from(found)] -= noise
    return found


def _halves(counts: Float, depth: Float, share: Float, n: int) -> tuple[Float, Float]:
    """What residuals of both halves of counts have in common, spots x genes; and the sum of each gene's noise.

    These are some of a section's `n` spots, and `share` is that of each gene in the section. Given its count x, the
    halves of a gene are h and x - h, each x / 2 on average, and the mean of h (x - h) is x (x - 1) / 4. So the product
    of their expected residuals exceeds the expected product by x over four variances. Residuals are clipped as in
    `pearson_residuals`, and then have no noise.
    """
    expected = depth[:, None] * (share / 2)
    variance = expected + expected**2 / THETA
    common = counts / 2 - expected
    common = np.divide(common, np.sqrt(variance), out=np.zeros_like(expected), where=variance > 0)
    noisy = (variance > 0) & (np.abs(common) <= np.sqrt(n))
    noise = np.divide(counts / 4, variance, out=np.zeros_like(expected), where=noisy).sum(axis=0)
    return np.clip(common, -np.sqrt(n), np.sqrt(n)), noise


def _squared(rows: Sequence[Float]) -> Float:
    """The products of the columns of some rows."""
    stacked = np.vstack(rows)
    product: Float = stacked.T @ stacked
    return product
