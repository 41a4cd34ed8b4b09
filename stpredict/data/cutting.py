"""Cut the patches of measured sections, and write tiles for `train` to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Float, Int
from stpredict.data.coverage import widest
from stpredict.data.gene_mask import about_genes, measured_genes
from stpredict.data.genes import ids_of, one_table
from stpredict.data.patch_formats import QUALITY, PatchFormat
from stpredict.data.patches_elsewhere import name_patches, named_patches, patches_folder
from stpredict.data.section import WHERE_TO_PUT_SLIDES, Section, demand_slides
from stpredict.data.section_files import Cut, cut_files
from stpredict.data.section_log import section_log, tell_together
from stpredict.data.tiles import FORMAT_VERSION, aligned
from stpredict.data.twins import find_twins
from stpredict.errors import DatasetError, counted, some
from stpredict.slides.raster import MAX_UPSAMPLING, SAME_MPP
from stpredict.slides.slide import Mpp
from stpredict.slides.views import ONE_VIEW, Views
from stpredict.storage.new_hdf5 import new_hdf5

PATCH_PX = 224
#: Values of sparse counts that are compressed together.
COUNTS_CHUNK = 1 << 16


def write_tiles(
    sections: Sequence[Section],
    path: Path,
    *,
    counts_only: Sequence[Section] = (),
    tissue: Sequence[Section] = (),
    patch_px: int = PATCH_PX,
    views: Views = ONE_VIEW,
    mpp: float | None = None,
    unlabelled: int = 0,
    seed: int = 0,
    threads: int = 2,
    keep_table: bool = True,
    with_patches: bool = True,
    patch_format: PatchFormat = "raw",
    report: Callable[[str], None],
) -> None:
    """Cut the `views` of all spots, and of `unlabelled` more places of the tissue, drawn at random, and write them.

    The sections `counts_only` need no image; only their counts are written. Slides of `tissue` have no spots, and give
    some of the unlabelled places. If there are many sections, a table beside
    the tiles says more, unless `keep_table` is false. Without `with_patches` the file holds everything but patches.
    The patches of sections without slides were cut before, and stay in their own files, which the tiles name. Others
    are stored in the `patch_format`, those of each section in a file in the folder NAME.patches beside the tiles. If
    that file is already there, the section is not cut again.
    Raises SlideError if an image cannot be read, and DatasetError as `settle_cut` does, and if two sections have one
    name.
    """
    names = [section.name for section in (*sections, *tissue, *counts_only)]
    if len(set(names)) < len(names):
        raise DatasetError(f"two sections have the name {max(names, key=names.count)}.")
    mpp = settle_cut(sections, patch_px, views, mpp)
    genes, measured = measured_genes([*sections, *counts_only])
    if measured:
        report(about_genes(measured))
    share = places_by_section(sections, unlabelled, tissue)
    if unlabelled and any(section.patches for section in sections):
        report(f"no unlabelled patches of {some(s.name for s in sections if s.patches)}, as the slides are not there")
    spot_diameter_um, pitch_um = usual_size(sections, report)
    tell, folder, how = section_log(sections, report), patches_folder(path), Cut(patch_px, views, mpp, threads)
    before = named_patches(path)
    files: dict[str, Path] = {}
    with closing(cut_files([*sections, *tissue], share, seed, how, patch_format, folder, report)) as cut:
        for section in sections:
            if with_patches and not section.patches:
                files[section.name] = next(cut)
            tell(section)
        for slide in tissue if with_patches else ():
            files[slide.name] = next(cut)
    if tissue:
        n_places = counted(sum(share[len(sections) :]), "unlabelled place")
        report(f"{n_places} on {counted(len(tissue), 'slide')} without counts")
    text = h5py.string_dtype()
    with new_hdf5(path) as file:
        file.attrs.update(
            format="stpredict-tiles", format_version=FORMAT_VERSION, patch_px=patch_px, views=views, mpp=mpp,
            spot_diameter_um=spot_diameter_um, pitch_um=pitch_um, seed=seed, most_genes=widest(sections),
            **({"jpeg_quality": QUALITY} if patch_format == "jpeg" else {}),
        )  # fmt: skip
        if with_patches:
            name_patches([*sections, *tissue], share, files, path, file)
        file["spot"] = np.array([spot for s in sections for spot in s.spot_names], dtype=object).astype(text)
        file["unlabelled/section"] = np.repeat(np.array(names[: len(share)], dtype=object), share).astype(text)
        file["centres"] = np.concatenate([section.centres for section in sections])
        file["genes"] = np.array(genes, dtype=object).astype(text)
        gene_ids = ids_of(genes, one_table(section.symbols for section in (*sections, *counts_only)))
        file["gene_ids"] = np.array(gene_ids, dtype=object).astype(text)
        file["section_mpp"] = json.dumps({s.name: s.patches.mpp if s.patches else max(s.mpp) for s in sections})
        twins = find_twins([*sections, *counts_only])
        file["twins"] = json.dumps([[pair.first, pair.second, pair.why] for pair in twins])
        if tissue:
            file["tissue"] = json.dumps({slide.name: slide.patient for slide in tissue})
        if measured:
            file["measured_sections"] = np.array(measured.sections, dtype=object).astype(text)
            file.create_dataset("measured", data=measured.table, compression="gzip", compression_opts=1)
            file["technology"] = json.dumps({s.name: s.technology for s in (*sections, *counts_only) if s.technology})
        _store_counts(sections, genes, file)
        if counts_only:
            _store_counts(counts_only, genes, file.create_group("counts_only"))
            report(f"counts of {len(counts_only)} more sections, without images")
    for left in before - {one.resolve() for one in files.values()}:
        with suppress(OSError):  # another process reads it, on Windows
            left.unlink()
    tell_together(sections, path.with_suffix(".csv") if keep_table else None, report)


def places_by_section(sections: Sequence[Section], unlabelled: int, tissue: Sequence[Section] = ()) -> list[int]:
    """How many of the `unlabelled` places each section gives, and then each slide of `tissue`.

    A section without a slide gives none. All slides count alike; sections share theirs by their number of spots.
    """
    n_on_slides = sum(len(section.spot_names) for section in sections if not section.patches)
    n_slides = len(tissue) + sum(not section.patches for section in sections)
    of_each = unlabelled // max(n_slides, 1)
    left = unlabelled - of_each * len(tissue)
    of_sections = [0 if s.patches else left * len(s.spot_names) // max(n_on_slides, 1) for s in sections]
    return [*of_sections, *[of_each] * len(tissue)]


def usual_size(sections: Sequence[Section], report: Callable[[str], None]) -> tuple[float, float]:
    """The diameter and pitch, um, of most spots; reports it if sections differ."""
    spots: Counter[tuple[float, float]] = Counter()
    for section in sections:
        spots[section.spot_diameter_um, section.pitch_um] += len(section.spot_names)
    usual = spots.most_common(1)[0][0]
    if len(spots) > 1:
        sizes = ", ".join(f"{diameter:g}/{pitch:g}" for diameter, pitch in spots)
        kept = f"{usual[0]:g}/{usual[1]:g}"
        report(f"sections differ in spot diameter and pitch ({sizes} um); that of the most spots is written, {kept}")
    return usual


def settle_cut(sections: Sequence[Section], patch_px: int, views: Views, mpp: float | None) -> float:
    """The mpp of the sections' patches: the requested one, if patches can be had at it.

    If a section has no slide, only patches that were cut before, the default is their mpp. Else it is the coarsest of
    the sections', rounded up to 0.01 um, so that none is upsampled. Raises DatasetError if a slide is too coarse for
    it, and for patches that were cut at another.
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
        raise too_coarse(coarsest.image, coarsest.mpp, mpp)
    return mpp


def too_coarse(image: Path, own: Mpp, mpp: float) -> DatasetError:
    """The error for an image, of its `own` mpp, that has too little detail for patches of `mpp`."""
    return DatasetError(
        f"{image.name}: {max(own):.3g} um per pixel is too coarse for patches of {mpp:.3g}; take an image of more "
        "detail, or a coarser --mpp."
    )


def _store_counts(sections: Sequence[Section], genes: Sequence[str], group: h5py.Group) -> None:
    """Write the sections' counts over all `genes`, and each spot's section and patient."""
    text, n_spots = h5py.string_dtype(), [len(section.spot_names) for section in sections]
    for key in ("section", "patient"):
        labels = [section.name if key == "section" else section.patient for section in sections]
        group[key] = np.repeat(np.array(labels, dtype=object), n_spots).astype(text)
    stored = {
        part: group.create_dataset(
            f"counts/{part}", (0,), dtype, maxshape=(None,), chunks=(COUNTS_CHUNK,), compression="gzip",
            compression_opts=1, shuffle=True,
        )
        for part, dtype in (
            ("data", np.result_type(*(section.counts.dtype for section in sections))), ("indices", np.int32),
            ("indptr", np.int64),
        )
    }  # fmt: skip
    _append(stored["indptr"], np.zeros(1, np.int64))
    for own in (block for section in sections for block in aligned(section, genes)):
        before = len(stored["data"])
        _append(stored["data"], own.data)
        _append(stored["indices"], own.indices)
        _append(stored["indptr"], before + own.indptr[1:].astype(np.int64))


def _append(dataset: h5py.Dataset, values: Int | Float) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values
