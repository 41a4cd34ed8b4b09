"""Cut the patches of each section into a file of its own, whole or absent, and never twice, in several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from stpredict.arrays import Float
from stpredict.data.hdf5 import HDF5_ERRORS
from stpredict.data.patch_formats import NewJpegs, NewPatches, PatchFormat, stored_patches
from stpredict.data.patches_elsewhere import UNLABELLED
from stpredict.data.places import tissue_places
from stpredict.data.section import Section, without_counts
from stpredict.data.stored_patches import IMAGES
from stpredict.errors import DatasetError, StpredictError
from stpredict.slides.levels import on_readable_levels
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, Slide, open_slide
from stpredict.slides.views import Views, patch_shape
from stpredict.storage.new_hdf5 import new_hdf5

#: Part of the name of a section's file. Raise it if the same section would be cut to other pixels than before.
VERSION = 1
#: Fewer patches than this are cut sooner than further processes begin.
WORTH_PROCESSES = 2000
#: Threads of one process. On two cores, two threads of one process are a fifth faster than two processes.
THREADS = 4
#: Centres of patches to cut, and where the patches go.
Wanted = tuple[Float, NewPatches]


@dataclass(frozen=True)
class Cut:
    """How patches are cut."""

    patch_px: int
    views: Views
    mpp: float
    threads: int


@dataclass(frozen=True)
class SectionFile:
    """A file to be: the patches of a section's spots, and of further `places` (n x 2, level-0 pixels)."""

    path: Path
    section: Section
    places: Float
    how: Cut
    patch_format: PatchFormat

    @property
    def wanted(self) -> dict[str, Float]:
        """The centres of patches by the name of their data set."""
        both = {IMAGES: self.section.centres, UNLABELLED: self.places}
        return {name: centres for name, centres in both.items() if len(centres)}


def section_files(
    sections: Sequence[Section], share: Sequence[int], seed: int, how: Cut, patch_format: PatchFormat, folder: Path
) -> Iterator[SectionFile]:
    """The files of sections that have slides, in `folder`; `share` is how many further places each gives.

    A file's name tells its slide, its places and how it is cut. Raises SlideError if a slide cannot be opened, and
    DatasetError if it shows no tissue.
    """
    rng = np.random.default_rng(seed)
    for section, n in zip(sections, share, strict=True):
        if section.patches:
            continue
        with open_slide(section.image) as slide:
            places = tissue_places(slide, section, n, rng) if n else np.empty((0, 2))
            asked = (VERSION, slide.fingerprint(), section.mpp, asdict(replace(how, threads=1)), patch_format)
        digest = hashlib.sha256(json.dumps(asked).encode())
        for centres in (section.centres, places):
            digest.update(np.ascontiguousarray(centres, dtype=float).tobytes())
        readable = re.sub(r"[^\w-]+", "_", section.name)[:40]
        path = folder / f"{readable}-{digest.hexdigest()[:12]}.h5"
        yield SectionFile(path, without_counts(section), places, how, patch_format)


def cut_files(files: Sequence[SectionFile], report: Callable[[str], None]) -> Generator[SectionFile, None, None]:
    """Cut the files that are not there; yields each file once it is, in their order.

    Raises SlideError if a slide cannot be read, and StpredictError if a process was lost. What was cut stays.
    """
    missing = [file for file in files if not _is_whole(file)]
    n_patches = sum(len(file.section.centres) + len(file.places) for file in missing)
    threads = files[0].how.threads if files else 1
    n = min(max(1, threads // THREADS), len(missing)) if n_patches >= WORTH_PROCESSES else 1
    with _several(n) as each:
        notes, to_cut = each(partial(_cut_file, threads=threads // n), missing), {file.path for file in missing}
        for file in files:
            if file.path in to_cut:
                for note in next(notes):
                    report(f"{file.section.name}: {note}")
            yield file


def _is_whole(file: SectionFile) -> bool:
    """Whether the file is there and is not cut short."""
    try:
        return file.path.exists() and all(
            stored_patches(file.path, name, patch_shape(file.how.patch_px, file.how.views)).n == len(centres)
            for name, centres in file.wanted.items()
        )
    except (*HDF5_ERRORS, DatasetError):
        return False


def remove_others(files: Sequence[SectionFile], folder: Path) -> None:
    """Remove from `folder` the files of sections that were cut otherwise, or are no longer wanted."""
    kept = {file.path for file in files}
    for path in folder.glob("*.h5"):
        if path not in kept:
            path.unlink()
    with suppress(OSError):  # it is not there, or not empty
        folder.rmdir()


def _cut_file(file: SectionFile, threads: int) -> list[str]:
    """Cut a section's file; returns what its reader noted on the slide."""
    notes: list[str] = []
    how = replace(file.how, threads=threads)
    file.path.parent.mkdir(exist_ok=True)
    with new_hdf5(file.path) as hdf5:
        wanted = [(centres, _new_patches(hdf5, name, len(centres), file)) for name, centres in file.wanted.items()]
        cut_section(file.section, how, wanted, notes.append)
        for _, patches in wanted:
            if isinstance(patches, NewJpegs):
                patches.finish()
    return notes


def cut_section(section: Section, how: Cut, wanted: Sequence[Wanted], note: Callable[[str], None]) -> None:
    """Write the `wanted` patches of a section's slide. Its reader's notes on the slide go to `note`.

    Raises SlideError if the image cannot be read.
    """
    with open_slide(section.image) as slide:
        on_readable_levels(slide, partial(_cut, slide, section.mpp, how, wanted))
        for line in slide.notes:
            note(line)


def _cut(slide: Slide, slide_mpp: Mpp, how: Cut, wanted: Sequence[Wanted]) -> None:
    """Cut the `wanted` patches of a slide, and write them where they go."""
    raster = make_raster(slide, slide_mpp, how.mpp)
    for centres, patches in wanted:
        with closing(read_patches(raster, centres, how.patch_px, how.threads, how.views)) as blocks:
            for index, block in blocks:
                for i, patch in zip(index, block, strict=True):
                    patches[i] = patch


def _new_patches(hdf5: h5py.File, name: str, n: int, file: SectionFile) -> NewPatches:
    if file.patch_format == "jpeg":
        return NewJpegs(hdf5, name, n)
    dataset: NewPatches = hdf5.create_dataset(name, (n, *patch_shape(file.how.patch_px, file.how.views)), np.uint8)
    return dataset


Each = Callable[[Callable[[SectionFile], list[str]], Sequence[SectionFile]], Iterator[list[str]]]


@contextmanager
def _several(n: int) -> Iterator[Each]:
    """A `map` by `n` processes, which end with the context; by this one if `n` is 1, or it may have no children."""
    if n == 1 or multiprocessing.current_process().daemon:
        yield map
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))
    try:
        yield pool.map
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise StpredictError(
                "a process that cut patches was ended, perhaps for want of memory; the same command goes on where it "
                "stopped."
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
