"""Find a model's genes in data that may name them differently: one by symbols, the other by Ensembl ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stpredict.data.genes import are_ensembl, pair_by_id, why_not_shared
from stpredict.data.tiles import Measured, Tiles
from stpredict.errors import DatasetError, counted, some


def demand_shared_genes(name: str, predicted: Sequence[str], panel: Sequence[str], found: Tiles | Measured) -> None:
    """Raises DatasetError if none of the panel's genes that `name` predicts was measured, under any name."""
    genes = found.counted_genes if isinstance(found, Measured) else found.genes
    if set(predicted) & {*genes, *pair_by_id(panel, genes, found.gene_ids)[0]}:
        return
    ours, theirs = (kind_of_names(names) for names in (panel, genes))
    reason = why_not_shared(panel, genes)
    why = f": {reason}" if reason else ""
    if ours != theirs:
        why = (
            f", or they are called otherwise: the panel names genes by {ours}, the data by {theirs}, and no table "
            "there has both, as the columns gene_ids or gene_symbols of an .h5ad's var do"
        )
    raise DatasetError(f"{name}: none of its genes was measured there{why}.")


def in_the_panels_names(panel: Sequence[str], tiles: Tiles) -> tuple[Tiles, list[str]]:
    """The tiles, with the panel's genes under the panel's names, and notes on genes that had other names."""
    pairs, ambiguous = pair_by_id(panel, tiles.genes, tiles.gene_ids)
    notes = []
    if pairs:
        named = [f"{name} as {gene}" for name, gene in pairs.items()]
        notes.append(f"{counted(len(pairs), 'gene')} of other names there, paired by Ensembl id: {some(named)}")
    if ambiguous:
        left_out = counted(len(ambiguous), "gene")
        notes.append(f"{left_out} left out because a name or id could mean several there: {some(ambiguous)}")
    lacking = set(panel) - set(tiles.genes) - set(pairs) - set(ambiguous)
    ours, theirs = (kind_of_names(names) for names in (panel, tiles.genes))
    if lacking and ours != theirs:
        notes.append(f"genes are named by {theirs} there, by {ours} in the panel; a gene that has no pair has no score")
    of_gene = {gene: name for name, gene in pairs.items()}
    return replace(tiles, genes=[of_gene.get(gene, gene) for gene in tiles.genes]), notes


def kind_of_names(names: Sequence[str]) -> str:
    return "Ensembl ids" if are_ensembl(names) else "symbols"
