"""Tiles: an HDF5 file with the counts and positions of a data set and the names of the files that hold its patches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.sparse import csr_array

from stpredict.arrays import Bool, Float, Int, Labels, UInt8
from stpredict.data.counts import Counts, stored_counts
from stpredict.data.coverage import widest
from stpredict.data.gene_mask import GeneMask, differ, measured_genes
from stpredict.data.genes import ids_of, one_table
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.panel import Look
from stpredict.data.patch_formats import PatchSource
from stpredict.data.patches_elsewhere import PatchFile, check_files, files_elsewhere, patches_of
from stpredict.data.section import Section
from stpredict.data.twins import Twins, find_twins, tied_patients, twins_of_spots
from stpredict.errors import DatasetError
from stpredict.slides.raster import SAME_MPP
from stpredict.slides.views import ONE_VIEW, Views, patch_shape

#: Version 2 has several views of each spot, version 3 has sections that measured different genes, version 4 has no
#: patches, but names the files that hold them.
FORMAT_VERSION = 4


@dataclass(frozen=True)
class Counted:
    """Spots with their counts (spots x genes), one label per spot."""

    section: Labels
    patient: Labels
    counts: Counts

    @property
    def depth(self) -> Float:
        return self.counts.per_spot


@dataclass(frozen=True)
class Measured:
    """The spots of sections with images, as the data set's tables list them, before any patch is cut."""

    section: Labels
    patient: Labels
    depth: Float
    counted_genes: list[str]
    gene_ids: list[str]  # as in Tiles
    twins: tuple[Twins, ...] = ()  # as in Tiles
    most_genes: int = 0  # as in Tiles
    measured: GeneMask | None = None  # as in Tiles, for the counted genes
    differs: bool = False  # as in Tiles
    tissue: dict[str, str] = field(default_factory=dict)  # as in Tiles

    @cached_property
    def kin(self) -> Labels:
        """The patients' labels, one for those who share a section under two names."""
        return tied_patients(self.section, self.patient, self.twins)


@dataclass(frozen=True)
class Tiles:
    """A tiles file, opened. Counts stay on disk, and patches, in other files. All else is in memory, by spot."""

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
    counts: Counts
    unlabelled_section: Labels
    counts_only: Counted | None = None  # sections without images, over the same genes
    views: Views = ONE_VIEW
    gene_ids: list[str] = field(default_factory=list)  # the genes' Ensembl ids, "" if not known
    twins: tuple[Twins, ...] = ()  # sections that are there twice, sections without images included
    section_mpp: dict[str, float] = field(default_factory=dict)  # by section, of its image; older files may lack it
    patches_from: PatchSource | None = None  # the source of the patches, if the file names none
    most_genes: int = 0  # the most that a section measured; older files then left out genes that others lack
    measured: GeneMask | None = None  # which of the genes each section measured; None if all measured all
    technology: dict[str, str] = field(default_factory=dict)  # by section, if sections differ in genes
    tissue: dict[str, str] = field(default_factory=dict)  # the patient of each slide without counts
    jpeg_quality: int | None = None  # of the patches that were cut; None if they are stored as pixels
    #: What a panel's rule needs of each section, by section and rule, once it was computed.
    looks: dict[tuple[str, str, bytes | None], Look] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _last: dict[tuple[str, ...], Float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def kin(self) -> Labels:
        """The patients' labels, one for those who share a section under two names."""
        return tied_patients(self.section, self.patient, self.twins)

    @property
    def depth(self) -> Float:
        return self.counts.per_spot

    @property
    def counted_genes(self) -> list[str]:
        """The genes counted in sections with images. Others cannot be predicted."""
        if self.counts_only is None:
            return self.genes
        counted = self.counts.per_gene > 0
        return [gene for gene, there in zip(self.genes, counted, strict=True) if there]

    def coarse(self, sections: Iterable[str]) -> dict[str, Any]:
        """For a card: which of the sections have images coarser than the patches, and the mpp of the coarsest."""
        known = {name: self.section_mpp.get(name, 0.0) for name in sections}
        found = sorted(name for name, mpp in known.items() if mpp > (1 + SAME_MPP) * self.mpp)
        return {"coarse_sections": found, "coarse_mpp": round(max(known.values()), 3)} if found else {}

    def counts_of(self, sections: Iterable[str]) -> Iterator[csr_array]:
        """The counts of one of the sections after the other, spots x all genes."""
        return (self.counts.rows(np.flatnonzero(self.section == name)) for name in sections)

    @cached_property
    def differs(self) -> bool:
        """Whether a section with an image measured so few of the counted genes that the panel must allow for it."""
        return differ(self.measured, sorted(set(self.section)), self.counts.per_gene > 0)

    def measured_by(self, sections: Sequence[str], panel: Sequence[str]) -> Bool:
        """Which of a panel's genes each of the sections measured, sections x genes."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        known = [i for i, gene in enumerate(panel) if gene in place]
        measured = np.zeros((len(sections), len(panel)), dtype=bool)
        of_known = [place[panel[i]] for i in known]
        measured[:, known] = True if self.measured is None else self.measured.of(sections)[:, of_known]
        return measured

    def panel_counts(self, panel: Sequence[str], index: Int | None = None) -> Float:
        """Counts of the panel's genes, spots x genes; NaN if the spot's section did not measure the gene.

        Those of all spots are kept until another panel is asked for. Do not write to them. Those of an `index` are
        not kept.
        """
        if index is not None:
            return self._read_panel(panel, index)
        if (asked := tuple(panel)) not in self._last:
            self._last.clear()
            self._last[asked] = self._read_panel(panel)
        return self._last[asked]

    def _read_panel(self, panel: Sequence[str], index: Int | None = None) -> Float:
        if index is not None and (np.diff(index) <= 0).any():  # counts are read in order
            rising, place = np.unique(index, return_inverse=True)
            return self._read_panel(panel, rising)[place]
        counts = columns(self.counts, self.genes, panel, index)
        section = self.section if index is None else self.section[index]
        names: list[str] = sorted(set(section.tolist())) if self.measured else []
        for name, measured in zip(names, self.measured_by(names, panel), strict=True):
            if not measured.all():
                counts[np.ix_(section == name, ~measured)] = np.nan
        return counts

    def read_patches(self, index: Int | Sequence[int], unlabelled: bool = False) -> UInt8:
        """Patches n x P x P x 3, or stacks of views n x V x P x P x 3, of spots or of `unlabelled` places."""
        return (self._unlabelled_patches if unlabelled else self._patches).read(index)

    def read_patch(self, i: int, unlabelled: bool = False) -> UInt8:
        """The patch P x P x 3 of one spot or unlabelled place, in the narrowest view."""
        patch: UInt8 = self.read_patches([i], unlabelled)[0]
        return patch if self.views == ONE_VIEW else patch[0]

    @cached_property
    def _patches(self) -> PatchSource:
        return self.patches_from or patches_of(self.path, patch_shape(self.patch_px, self.views))

    @cached_property
    def _unlabelled_patches(self) -> PatchSource:
        return patches_of(self.path, patch_shape(self.patch_px, self.views), unlabelled=True)


def measured_in(sections: Sequence[Section], counts_only: Sequence[Section]) -> Measured:
    """The spots and genes that `Tiles` of these sections will have. Raises DatasetError as `measured_genes` does."""
    n_spots = [len(section.spot_names) for section in sections]
    genes, measured = measured_genes([*sections, *counts_only])
    counted = np.zeros(len(genes), dtype=bool)
    for section in sections:
        counted[np.searchsorted(genes, np.array(section.genes)[section.counts.per_gene > 0])] = True
    known = np.flatnonzero(counted) if counts_only else np.arange(len(genes))
    counted_genes = [genes[i] for i in known]
    return Measured(
        np.repeat(np.array([section.name for section in sections], dtype=object), n_spots),
        np.repeat(np.array([section.patient for section in sections], dtype=object), n_spots),
        np.concatenate([section.counts.per_spot for section in sections]),
        counted_genes,
        ids_of(counted_genes, one_table(section.symbols for section in (*sections, *counts_only))),
        find_twins([*sections, *counts_only]),
        widest(sections),
        measured and measured.of_genes(known),
        differ(measured, [section.name for section in sections], counted),
    )


def shared_genes(found: Tiles | Measured) -> list[str]:
    """The genes that all sections with images measured."""
    genes = found.counted_genes
    if found.measured is None:
        return genes
    everywhere: Bool = np.all(found.measured.of(sorted(set(found.section))), axis=0)
    there = dict(zip(genes if isinstance(found, Measured) else found.genes, everywhere.tolist(), strict=True))
    return [gene for gene in genes if there[gene]]


def read_tiles(path: Path) -> Tiles:
    """Open a tiles file. Raises DatasetError if it is not one, or its patches are in other files that have changed."""
    with opened_hdf5(path) as file:
        _check_kind(file, path)
        check_files(path, files_elsewhere(file))
        genes = [str(gene) for gene in file["genes"].asstr()[:]]
        gene_ids = [str(gene) for gene in file["gene_ids"].asstr()[:]] if "gene_ids" in file else ids_of(genes, {})
        if len(gene_ids) != len(genes):
            raise ValueError(f"{len(gene_ids)} ids of {len(genes)} genes")
        pictured = _read_counts(path, file, "", len(genes))
        more = _read_counts(path, file, "counts_only/", len(genes)) if "counts_only" in file else None
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
            section_mpp=json.loads(file["section_mpp"].asstr()[()]) if "section_mpp" in file else {},
            most_genes=int(file.attrs.get("most_genes", len(genes))),
            measured=_read_mask(file, len(genes)),
            technology=json.loads(file["technology"].asstr()[()]) if "technology" in file else {},
            tissue=json.loads(file["tissue"].asstr()[()]) if "tissue" in file else {},
            jpeg_quality=int(file.attrs["jpeg_quality"]) if "jpeg_quality" in file.attrs else None,
        )


@dataclass(frozen=True)
class Outline:
    """The description that a tiles file holds of itself, without its counts."""

    patch_px: int
    mpp: float
    section: Labels
    patient: Labels
    elsewhere: tuple[PatchFile, ...] = ()  # other files with its patches


def read_outline(path: Path) -> Outline:
    """Raises DatasetError as `read_tiles` does, but not for damaged counts."""
    with opened_hdf5(path) as file:
        _check_kind(file, path)
        section, patient = (file[key].asstr()[:] for key in ("section", "patient"))
        elsewhere = tuple(files_elsewhere(file))
        return Outline(int(file.attrs["patch_px"]), float(file.attrs["mpp"]), section, patient, elsewhere)


def _check_kind(file: h5py.File, path: Path) -> None:
    if file.attrs.get("format") != "stpredict-tiles" or file.attrs["format_version"] > FORMAT_VERSION:
        raise DatasetError(f"{path}: not a tiles file that this version reads.")


def check_views(tiles: Tiles, views: Views) -> None:
    """Raises DatasetError if a tiles file does not hold the `views` of each spot that a network looks at."""
    if tiles.views != views:
        fields = [" and ".join(map(str, each)) for each in (tiles.views, views)]
        raise DatasetError(
            f"{tiles.path}: holds patches of {fields[0]} times the field, the network looks at {fields[1]} times; "
            "name the folder they were cut from."
        )


def _read_counts(path: Path, file: h5py.File, group: str, n_genes: int) -> Counted:
    section, patient = (_labels(file[f"{group}{key}"]) for key in ("section", "patient"))
    return Counted(section, patient, stored_counts(path, file, f"{group}counts", (len(section), n_genes)))


def _labels(stored: h5py.Dataset) -> Labels:
    """Labels of spots, of which equal ones share their text: a section's is kept once, not once for each spot."""
    known: dict[str, str] = {}
    return np.array([known.setdefault(label, label) for label in stored.asstr()[:]], dtype=object)


def _read_mask(file: h5py.File, n_genes: int) -> GeneMask | None:
    if "measured" not in file:
        return None
    sections, table = [str(name) for name in file["measured_sections"].asstr()[:]], file["measured"][:].astype(bool)
    if table.shape != (len(sections), n_genes):
        raise ValueError(f"what {len(sections)} sections measured of {n_genes} genes is {table.shape}")
    return GeneMask(sections, table)


def _read_twins(file: h5py.File, counted: Sequence[Counted]) -> tuple[Twins, ...]:
    """The sections that are there twice; in older files, as far as their counts tell."""
    if "twins" in file:
        return tuple(Twins(*map(str, pair)) for pair in json.loads(file["twins"].asstr()[()]))
    return twins_of_spots([(one.section, one.counts) for one in counted])


def columns(counts: Counts, genes: Sequence[str], panel: Sequence[str], index: Int | None = None) -> Float:
    """Counts of the panel's genes in all spots, or in those of a rising index, spots x genes.

    They are NaN for genes that are not among `genes`.
    """
    column = {gene: i for i, gene in enumerate(genes)}
    known = [i for i, gene in enumerate(panel) if gene in column]
    wanted = [column[panel[i]] for i in known]
    out = np.full((counts.shape[0] if index is None else len(index), len(panel)), np.nan)
    for place, block in counts.blocks(index):
        out[place, known] = block[:, wanted].toarray()
    return out


def aligned(section: Section, genes: Sequence[str]) -> Iterator[csr_array]:
    """The section's counts over `genes`, by blocks of spots.

    They are zero for genes that its table does not name, and without genes beyond `genes`.
    """
    column = {gene: i for i, gene in enumerate(genes)}
    column_of = np.array([column.get(gene, -1) for gene in section.genes], dtype=np.int32)
    for _, counts in section.counts.blocks():
        target = column_of[counts.indices]
        known = target >= 0
        starts = np.concatenate([[0], np.cumsum(known)])[counts.indptr]
        own = csr_array((counts.data[known], target[known], starts), (counts.shape[0], len(genes)))
        own.sum_duplicates()
        yield own
