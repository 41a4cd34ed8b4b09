"""Tiles: the patches, counts and positions of a data set in one HDF5 file, which training reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Float, Int, Labels, UInt8
from stpredict.data.genes import ids_of, one_table, why_not_shared
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.section import Section
from stpredict.data.twins import Twins, find_twins, tied_patients, twins_of_spots
from stpredict.errors import DatasetError
from stpredict.slides.views import ONE_VIEW, Views

#: Version 2 has several views of each spot; files of one view are still of version 1.
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Counted:
    """Spots with their counts (spots x genes), one label per spot."""

    section: Labels
    patient: Labels
    counts: csr_array

    @cached_property
    def depth(self) -> Float:
        return np.asarray(self.counts.sum(axis=1), dtype=float).ravel()


@dataclass(frozen=True)
class Measured:
    """What the tables of a data set say of the spots of sections with images, before any patch is cut."""

    section: Labels
    patient: Labels
    depth: Float
    counted_genes: list[str]
    gene_ids: list[str]  # of these genes, as in Tiles
    twins: tuple[Twins, ...] = ()  # as in Tiles

    @cached_property
    def kin(self) -> Labels:
        """The patients' labels, one for those who share a section under two names."""
        return tied_patients(self.section, self.patient, self.twins)


@dataclass(frozen=True)
class Tiles:
    """A tiles file, opened. Patches stay on disk; everything else is in memory, one entry per spot."""

    path: Path
    patch_px: int
    mpp: float
    spot_diameter_um: float
    pitch_um: float
    spot: Labels
    section: Labels
    patient: Labels
    centres: Float
    genes: list[str]
    counts: csr_array
    unlabelled_section: Labels
    counts_only: Counted | None = None  # of sections without images, over the same genes
    views: Views = ONE_VIEW
    gene_ids: list[str] = field(default_factory=list)  # the genes' Ensembl ids, "" where they are not known
    twins: tuple[Twins, ...] = ()  # sections that are there twice, those of counts alone among them

    @cached_property
    def kin(self) -> Labels:
        """The patients' labels, one for those who share a section under two names."""
        return tied_patients(self.section, self.patient, self.twins)

    @cached_property
    def depth(self) -> Float:
        return np.asarray(self.counts.sum(axis=1), dtype=float).ravel()

    @property
    def counted_genes(self) -> list[str]:
        """The genes of sections with images; one that is counted nowhere there cannot be predicted."""
        if self.counts_only is None:
            return self.genes
        counted = np.asarray(self.counts.sum(axis=0)).ravel() > 0
        return [gene for gene, there in zip(self.genes, counted, strict=True) if there]

    def panel_counts(self, panel: Sequence[str]) -> Float:
        """Counts of the panel's genes, spots x genes; a gene that was not measured is zero."""
        return columns(self.counts, self.genes, panel)

    def read_patches(self, index: Int | Sequence[int], unlabelled: bool = False) -> UInt8:
        """Patches n x P x P x 3, or stacks of views n x V x P x P x 3, of some spots or some unlabelled places."""
        with h5py.File(self.path) as file:
            dataset = file["unlabelled/patches" if unlabelled else "patches"]
            return (
                np.stack([dataset[int(i)] for i in index])
                if len(index)
                else np.empty((0, *dataset.shape[1:]), np.uint8)
            )

    def read_patch(self, i: int, unlabelled: bool = False) -> UInt8:
        """The patch P x P x 3 of one spot or unlabelled place, in the narrowest view."""
        with h5py.File(self.path) as file:
            dataset = file["unlabelled/patches" if unlabelled else "patches"]
            patch: UInt8 = dataset[i] if self.views == ONE_VIEW else dataset[i, 0]
            return patch


def measured_genes(sections: Sequence[Section]) -> tuple[list[str], list[str]]:
    """The genes of some sections taken together, and those left out, as a section that names all its genes lacks them.

    Raises DatasetError if nothing is left.
    """
    everything: set[str] = set().union(*(section.genes for section in sections))
    everywhere = everything.intersection(*(section.genes for section in sections if section.names_all_genes))
    if not everywhere:
        first = set(sections[0].genes)
        other = next((section for section in sections[1:] if first.isdisjoint(section.genes)), sections[-1])
        reason = why_not_shared(sections[0].genes, other.genes) or "do some name symbols, and others Ensembl ids?"
        raise DatasetError(f"no gene was measured in all sections; {reason}")
    return sorted(everywhere), sorted(everything - everywhere)


def measured_in(sections: Sequence[Section], counts_only: Sequence[Section]) -> Measured:
    """What `Tiles` of these sections will say of spots and genes."""
    n_spots = [len(section.spot_names) for section in sections]
    counted: set[str] = set()
    for section in sections:
        positive = np.asarray(section.counts.sum(axis=0)).ravel() > 0
        counted.update(gene for gene, there in zip(section.genes, positive, strict=True) if there or not counts_only)
    genes, _ = measured_genes([*sections, *counts_only])
    counted_genes = [gene for gene in genes if gene in counted]
    return Measured(
        np.repeat(np.array([section.name for section in sections], dtype=object), n_spots),
        np.repeat(np.array([section.patient for section in sections], dtype=object), n_spots),
        np.concatenate([np.asarray(aligned(section, genes).sum(axis=1), dtype=float).ravel() for section in sections]),
        counted_genes,
        ids_of(counted_genes, one_table(section.symbols for section in (*sections, *counts_only))),
        find_twins([*sections, *counts_only]),
    )


def read_tiles(path: Path) -> Tiles:
    """Open a tiles file. Raises DatasetError if it is not one."""
    with opened_hdf5(path) as file:
        if file.attrs.get("format") != "stpredict-tiles" or file.attrs["format_version"] > FORMAT_VERSION:
            raise DatasetError(f"{path}: not a tiles file that this version reads.")
        genes = [str(gene) for gene in file["genes"].asstr()]
        gene_ids = [str(gene) for gene in file["gene_ids"].asstr()] if "gene_ids" in file else ids_of(genes, {})
        if len(gene_ids) != len(genes):
            raise ValueError(f"{len(gene_ids)} ids of {len(genes)} genes")
        pictured = _read_counts(file, len(genes))
        more = _read_counts(file["counts_only"], len(genes)) if "counts_only" in file else None
        return Tiles(
            path=path,
            patch_px=int(file.attrs["patch_px"]),
            views=tuple(int(factor) for factor in file.attrs.get("views", ONE_VIEW)),
            mpp=float(file.attrs["mpp"]),
            spot_diameter_um=float(file.attrs["spot_diameter_um"]),
            pitch_um=float(file.attrs["pitch_um"]),
            spot=file["spot"].asstr()[:],
            section=pictured.section,
            patient=pictured.patient,
            centres=file["centres"][:],
            genes=genes,
            gene_ids=gene_ids,
            counts=pictured.counts,
            unlabelled_section=file["unlabelled/section"].asstr()[:],
            counts_only=more,
            twins=_read_twins(file, [pictured, more] if more else [pictured]),
        )


def check_views(tiles: Tiles, views: Views) -> None:
    """Raises DatasetError if a tiles file does not hold the `views` of each spot that a network looks at."""
    if tiles.views != views:
        fields = [" and ".join(map(str, each)) for each in (tiles.views, views)]
        raise DatasetError(
            f"{tiles.path}: holds patches of {fields[0]} times the field, the network looks at {fields[1]} times; "
            "name the folder they were cut from."
        )


def _read_counts(group: h5py.Group, n_genes: int) -> Counted:
    section, patient = (group[key].asstr()[:] for key in ("section", "patient"))
    parts = tuple(group[f"counts/{part}"][:] for part in ("data", "indices", "indptr"))
    counts = csr_array(parts, (len(section), n_genes))
    counts.check_format(full_check=True)  # what works on it trusts its indices
    return Counted(section, patient, counts)


def _read_twins(file: h5py.File, counted: Sequence[Counted]) -> tuple[Twins, ...]:
    """The sections that are there twice; of older files, as far as their counts tell."""
    if "twins" in file:
        return tuple(Twins(*map(str, pair)) for pair in json.loads(file["twins"].asstr()[()]))
    return twins_of_spots([(one.section, one.counts) for one in counted])


def columns(counts: csr_array, genes: Sequence[str], panel: Sequence[str]) -> Float:
    """Counts of the panel's genes, spots x genes; a gene that was not measured is zero."""
    column = {gene: i for i, gene in enumerate(genes)}
    out = np.zeros((counts.shape[0], len(panel)))
    known = [i for i, gene in enumerate(panel) if gene in column]
    out[:, known] = counts[:, [column[panel[i]] for i in known]].toarray()
    return out


def aligned(section: Section, genes: Sequence[str]) -> csr_array:
    """The section's counts over `genes`; those that its table does not name are zero, others of its are left out."""
    column = {gene: i for i, gene in enumerate(genes)}
    kept = [i for i, gene in enumerate(section.genes) if gene in column]
    own = section.counts[:, kept].tocoo()
    target = np.array([column[section.genes[i]] for i in kept], dtype=int)
    return csr_array((own.data, (own.row, target[own.col])), (own.shape[0], len(genes)))
