"""Tiles: the patches, counts and positions of a data set in one HDF5 file, which training reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import h5py
import numpy as np
from scipy.sparse import csr_array, vstack

from stpredict.arrays import Float, Int, Labels, UInt8
from stpredict.data.genes import ids_of, one_table, why_not_shared
from stpredict.data.hdf5 import opened_hdf5
from stpredict.data.places import tissue_places
from stpredict.data.section import WHERE_TO_PUT_SLIDES, Section, demand_slides
from stpredict.data.twins import Twins, find_twins, tied_patients, twins_of_spots
from stpredict.errors import DatasetError, some
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.raster import MAX_UPSAMPLING, SAME_MPP, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide
from stpredict.slides.views import ONE_VIEW, Views, patch_shape
from stpredict.storage.new_hdf5 import new_hdf5

PATCH_PX = 224
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
        np.concatenate([np.asarray(_aligned(section, genes).sum(axis=1), dtype=float).ravel() for section in sections]),
        counted_genes,
        ids_of(counted_genes, one_table(section.symbols for section in (*sections, *counts_only))),
        find_twins([*sections, *counts_only]),
    )


def write_tiles(
    sections: Sequence[Section],
    path: Path,
    *,
    counts_only: Sequence[Section] = (),
    patch_px: int = PATCH_PX,
    views: Views = ONE_VIEW,
    mpp: float | None = None,
    unlabelled: int = 0,
    seed: int = 0,
    threads: int = 2,
    report: Callable[[str], None],
) -> None:
    """Cut the `views` of all spots, and of `unlabelled` more places of the tissue, drawn at random, and write them.

    Of the sections `counts_only`, of which there need be no image, only the counts are written.
    Sections without slides have the patches that were cut before, and no other places.
    Raises SlideError if an image cannot be read, and DatasetError as `settle_cut` does, and if two sections have one
    name.
    """
    names = [section.name for section in (*sections, *counts_only)]
    if len(set(names)) < len(names):
        raise DatasetError(f"two sections have the name {max(names, key=names.count)}.")
    mpp = settle_cut(sections, patch_px, views, mpp)
    genes, unmeasured = measured_genes([*sections, *counts_only])
    if unmeasured:
        report(f"{len(unmeasured)} genes were not measured in every section and are left out: {some(unmeasured)}")
    n_spots = sum(len(section.spot_names) for section in sections)
    n_on_slides = sum(len(section.spot_names) for section in sections if not section.patches)
    share = [0 if s.patches else unlabelled * len(s.spot_names) // max(n_on_slides, 1) for s in sections]
    if unlabelled and n_on_slides < n_spots:
        report(f"no unlabelled patches of {some(s.name for s in sections if s.patches)}, as the slides are not there")
    rng = np.random.default_rng(seed)
    sizes = {f"{s.spot_diameter_um:g}/{s.pitch_um:g}": s for s in sections}
    if len(sizes) > 1:
        report(f"sections differ in spot diameter and pitch ({', '.join(sizes)} um); those of {names[0]} are written")
    text = h5py.string_dtype()
    with new_hdf5(path) as file:
        file.attrs.update(
            format="stpredict-tiles", format_version=1 if views == ONE_VIEW else FORMAT_VERSION, patch_px=patch_px,
            views=views, mpp=mpp, spot_diameter_um=sections[0].spot_diameter_um, pitch_um=sections[0].pitch_um,
            seed=seed,
        )  # fmt: skip
        shape = patch_shape(patch_px, views)
        patches = file.create_dataset("patches", (n_spots, *shape), np.uint8)
        extra = file.create_dataset("unlabelled/patches", (sum(share), *shape), np.uint8)
        start = extra_start = 0
        for section, n_extra in zip(sections, share, strict=True):
            if section.patches:
                _store(section.patches.read(), patches, start)
            else:
                with open_slide(section.image) as slide:
                    wanted = [(section.centres, patches, start)]
                    if n_extra:
                        wanted.append((tissue_places(slide, section, n_extra, rng), extra, extra_start))
                    cut = partial(_cut, slide, section.mpp, mpp, patch_px, threads, views, wanted)
                    on_readable_levels(slide, cut)
                    for note in slide.notes:
                        report(f"{section.name}: {note}")
            lacked = "counts, position or patch" if section.patches else "counts or position"
            report(f"{section.name}: {len(section.spot_names)} spots, {section.lost_spots} without {lacked}, "
                   f"mpp {section.mpp.x:.4f} x {section.mpp.y:.4f}")  # fmt: skip
            for note in section.notes:
                report(f"{section.name}: {note}")
            start, extra_start = start + len(section.spot_names), extra_start + n_extra
        file["spot"] = np.array([spot for s in sections for spot in s.spot_names], dtype=object).astype(text)
        file["unlabelled/section"] = np.repeat(np.array(names[: len(sections)], dtype=object), share).astype(text)
        file["centres"] = np.concatenate([section.centres for section in sections])
        file["genes"] = np.array(genes, dtype=object).astype(text)
        gene_ids = ids_of(genes, one_table(section.symbols for section in (*sections, *counts_only)))
        file["gene_ids"] = np.array(gene_ids, dtype=object).astype(text)
        twins = find_twins([*sections, *counts_only])
        file["twins"] = json.dumps([[pair.first, pair.second, pair.why] for pair in twins])
        _store_counts(sections, genes, file)
        if counts_only:
            _store_counts(counts_only, genes, file.create_group("counts_only"))
            report(f"counts of {len(counts_only)} more sections, without images")


def settle_cut(sections: Sequence[Section], patch_px: int, views: Views, mpp: float | None) -> float:
    """The mpp of the patches of some sections: the one that is asked for, if they can be had at that.

    The default is that of patches that were cut before, if a section has but these; else the coarsest of the sections',
    rounded up to 0.01 um, so that none is upsampled. Raises DatasetError for a slide that is too coarse for it, and for
    patches that were cut otherwise.
    """
    cut_at = [section.patches.mpp for section in sections if section.patches]
    coarsest = max(sections, key=lambda section: 0 if section.patches else max(section.mpp))
    mpp = mpp or (cut_at[0] if cut_at else round(float(np.ceil(max(coarsest.mpp) * 100 - 0.5) / 100), 2))
    if views != ONE_VIEW:
        demand_slides(sections, f"a network that looks at {' and '.join(map(str, views))} times the field")
    for section in sections:
        stored = section.patches
        if stored and (stored.patch_px != patch_px or abs(stored.mpp / mpp - 1) > SAME_MPP):
            raise DatasetError(
                f"{stored.path.name}: holds patches of {stored.patch_px} px at {stored.mpp:g} um/px, and those of "
                f"{patch_px} px at {mpp:g} um/px need the slide of section {section.name}; {WHERE_TO_PUT_SLIDES}."
            )
    if not coarsest.patches and max(coarsest.mpp) > MAX_UPSAMPLING * mpp:
        raise DatasetError(
            f"{coarsest.image.name}: {max(coarsest.mpp):.3g} um per pixel is too coarse for patches of {mpp:.3g}."
        )
    return mpp


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


def _cut(
    slide: Slide, slide_mpp: Mpp, mpp: float, patch_px: int, threads: int, views: Views,
    wanted: Sequence[tuple[Float, h5py.Dataset, int]],
) -> None:  # fmt: skip
    """Cut patches around some centres into the rows of data sets that begin at some row."""
    raster = make_raster(slide, slide_mpp, mpp)
    for centres, dataset, start in wanted:
        _store(read_patches(raster, centres, patch_px, threads, views), dataset, start)


def _store(blocks: Generator[tuple[Int, list[UInt8]], None, None], dataset: h5py.Dataset, start: int) -> None:
    """Write patches to the rows of a data set that begin at `start`."""
    with closing(blocks):
        for index, block in blocks:
            for i, patch in zip(index, block, strict=True):
                dataset[start + i] = patch


def _store_counts(sections: Sequence[Section], genes: Sequence[str], group: h5py.Group) -> None:
    """Write the sections' counts over all `genes`, and section and patient of each spot."""
    text, n_spots = h5py.string_dtype(), [len(section.spot_names) for section in sections]
    for key in ("section", "patient"):
        labels = [section.name if key == "section" else section.patient for section in sections]
        group[key] = np.repeat(np.array(labels, dtype=object), n_spots).astype(text)
    counts = vstack([_aligned(section, genes) for section in sections], format="csr")
    for part in ("data", "indices", "indptr"):
        group.create_dataset(f"counts/{part}", data=getattr(counts, part), compression="gzip", shuffle=True)


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


def _aligned(section: Section, genes: Sequence[str]) -> csr_array:
    """The section's counts over `genes`; those that its table does not name are zero, others of its are left out."""
    column = {gene: i for i, gene in enumerate(genes)}
    kept = [i for i, gene in enumerate(section.genes) if gene in column]
    own = section.counts[:, kept].tocoo()
    target = np.array([column[section.genes[i]] for i in kept], dtype=int)
    return csr_array((own.data, (own.row, target[own.col])), (own.shape[0], len(genes)))
