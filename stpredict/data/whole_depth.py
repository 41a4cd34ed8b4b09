"""Depths of spots whose sections measured different genes: one denominator for all shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stpredict.arrays import Bool, Float
from stpredict.data.tiles import Tiles
from stpredict.statistics.blocks import blocks
from stpredict.statistics.normalisation import Normalisation


def whole_depth(tiles: Tiles, sections: Sequence[str] = ()) -> Float:
    """Each spot's depth over the part of all counts that its section's genes have, so that shares are of one whole.

    The whole is the genes of a reference group. `sections` (all, if none are named) are grouped by the genes that they
    measured; the reference measured most genes or, among equals, has most spots. Genes that the reference lacks count
    in proportion to genes that both groups measured. This assumes that a gene's mean share is the same in every section
    and by every technology. If it is not, one number per group is off. That moves the group's expression, ln(1 + CPM),
    but no correlation within a section. A group keeps its depth if it has no counts in common with the reference, and
    all do if all measured all genes.
    """
    if tiles.measured is None:
        return tiles.depth
    unique, of_spot = np.unique(tiles.section, return_inverse=True)
    names = [str(name) for name in unique]
    table = tiles.measured.of(names)
    kinds, group = np.unique(table, axis=0, return_inverse=True)
    known = np.isin(names, list(sections)) if len(sections) else np.ones(len(names), dtype=bool)
    n_spots = np.bincount(group[of_spot], weights=known[of_spot], minlength=len(kinds))
    reference = max(np.flatnonzero(n_spots), key=lambda kind: (kinds[kind].sum(), n_spots[kind]))
    sums = [
        _sums(tiles, names, own & known if (own & known).any() else own)
        for own in (group == number for number in range(len(kinds)))
    ]
    parts = np.array([
        _part(sums[reference], kinds[reference] & kind, own) for kind, own in zip(kinds, sums, strict=True)
    ])  # fmt: skip
    depth: Float = tiles.depth / parts[group[of_spot]]
    return depth


def depth_of_shares(
    tiles: Tiles, panel: Sequence[str], normalisation: Normalisation, sections: Sequence[str] = ()
) -> Float:  # fmt: skip
    """Each spot's denominator of shares: its `whole_depth`, or the sum of the panel's counts, as the unit says."""
    depth, every = whole_depth(tiles, sections), np.arange(len(tiles.spot))
    if not normalisation.of_panel:
        return depth
    parts = (every[some] for some in blocks(len(every), len(panel)))
    return np.concatenate([normalisation.depth(tiles.panel_counts(panel, own), depth[own]) for own in parts])


def _sums(tiles: Tiles, names: Sequence[str], chosen: Bool) -> Float:
    """Per gene, the sum of counts in the named sections."""
    sums = np.zeros(len(tiles.genes))
    for counts in tiles.counts_of([name for name, there in zip(names, chosen, strict=True) if there]):
        sums += np.bincount(counts.indices, counts.data, minlength=len(sums))
    return sums


def _part(whole: Float, shared: Bool, own: Float) -> float:
    """The part of the whole's counts that sections with counts `own` have, estimated from genes that both measured."""
    common = float(own[shared].sum())
    part = float(whole[shared].sum()) / float(whole.sum()) if whole.sum() else 0.0
    return part * float(own.sum()) / common if part and common else 1.0
