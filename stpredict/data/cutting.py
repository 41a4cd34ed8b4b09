"""Cut the patches of measured sections, and write them with counts and positions: what `train` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy.sparse import vstack

from stpredict.arrays import Float, Int, UInt8
from stpredict.data.genes import ids_of, one_table
from stpredict.data.places import tissue_places
from stpredict.data.section import WHERE_TO_PUT_SLIDES, Section, demand_slides
from stpredict.data.tiles import FORMAT_VERSION, aligned, measured_genes
from stpredict.data.twins import find_twins
from stpredict.errors import DatasetError, some
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.raster import MAX_UPSAMPLING, SAME_MPP, make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide
from stpredict.slides.views import ONE_VIEW, Views, patch_shape
from stpredict.storage.new_hdf5 import new_hdf5

PATCH_PX = 224


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
    counts = vstack([aligned(section, genes) for section in sections], format="csr")
    for part in ("data", "indices", "indptr"):
        group.create_dataset(f"counts/{part}", data=getattr(counts, part), compression="gzip", shuffle=True)
