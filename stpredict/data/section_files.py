"""Cut the patches of each section into a file of its own, whole or absent, and never twice, in several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor
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
    """A file to be: the patches of a section's spots and, once they are drawn, of further `places`."""

    path: Path
    section: Section
    how: Cut
    patch_format: PatchFormat
    places: Float  # n x 2, level-0 pixels
    drawn: str = ""  # the state of the random numbers after the places were drawn

    @property
    def wanted(self) -> dict[str, Float]:
        """The centres of patches by the name of their data set."""
        both = {IMAGES: self.section.centres, UNLABELLED: self.places}
        return {name: centres for name, centres in both.items() if len(centres)}


def cut_files(
    sections: Sequence[Section], share: Sequence[int], seed: int, how: Cut, patch_format: PatchFormat, folder: Path,
    report: Callable[[str], None],
) -> Generator[SectionFile, None, None]:  # fmt: skip
    """Cut the sections that have slides into files in `folder`, and `share` further places of each.

    Yields each section's file once it is there, in their order. A file that is there already is not cut again: its name
    tells its slide, its places and how it was cut. Raises SlideError if a slide cannot be read, DatasetError if it
    shows no tissue, and StpredictError if a process was lost; files that are whole stay.
    """
    due = [(section, n) for section, n in zip(sections, share, strict=True) if not section.patches]
    n_patches = sum(len(section.centres) + n for section, n in due)
    n_processes = min(how.threads // THREADS, len(due)) if n_patches >= WORTH_PROCESSES else 1
    rng = np.random.default_rng(seed)
    with _processes(n_processes) as pool:

        def begin(section: Section, n: int) -> tuple[SectionFile, list[str] | Future[list[str]]]:
            with open_slide(section.image) as slide:
                file = _file_of(slide, section, n, rng, how, patch_format, folder)
                if _is_whole(file, n, rng):
                    return file, []
                places = tissue_places(slide, section, n, rng) if n else file.places
                file = replace(file, places=places, drawn=json.dumps(rng.bit_generator.state))
                return file, pool.submit(_cut_file, file, how.threads // n_processes) if pool else _write(file, slide)

        begun = (begin(section, n) for section, n in due)
        for file, notes in [*begun] if pool else begun:
            for note in notes.result() if isinstance(notes, Future) else notes:
                report(f"{file.section.name}: {note}")
            yield file


def _file_of(
    slide: Slide, section: Section, n: int, rng: np.random.Generator, how: Cut, patch_format: PatchFormat, folder: Path
) -> SectionFile:  # fmt: skip
    """The file of a section, whose places are not drawn yet."""
    drawn_from = (n, rng.bit_generator.state) if n else ()
    asked = (VERSION, slide.fingerprint(), section.mpp, asdict(replace(how, threads=1)), patch_format, drawn_from)
    digest = hashlib.sha256(json.dumps(asked).encode())
    digest.update(np.ascontiguousarray(section.centres, dtype=float).tobytes())
    readable = re.sub(r"[^\w-]+", "_", section.name)[:40]
    path = folder / f"{readable}-{digest.hexdigest()[:12]}.h5"
    return SectionFile(path, without_counts(section), how, patch_format, np.empty((0, 2)))


def _is_whole(file: SectionFile, n: int, rng: np.random.Generator) -> bool:
    """Whether the file is there, with `n` further places, and is not cut short.

    If so, `rng` goes on as if the places had just been drawn.
    """
    shape, expected = patch_shape(file.how.patch_px, file.how.views), {IMAGES: len(file.section.centres), UNLABELLED: n}
    try:
        for name, n_patches in expected.items():
            if n_patches and stored_patches(file.path, name, shape).n != n_patches:
                return False
        with h5py.File(file.path) as hdf5:
            rng.bit_generator.state = json.loads(hdf5.attrs["drawn"])
    except (*HDF5_ERRORS, DatasetError):
        return False
    return True


def remove_others(files: Set[Path], folder: Path) -> None:
    """Remove from `folder` all files but these: those of sections that were cut otherwise, or are no longer wanted."""
    for path in folder.glob("*.h5"):
        if path not in files:
            path.unlink()
    with suppress(OSError):  # it is not there, or not empty
        folder.rmdir()


def _cut_file(file: SectionFile, threads: int) -> list[str]:
    with open_slide(file.section.image) as slide:
        return _write(replace(file, how=replace(file.how, threads=threads)), slide)


def _write(file: SectionFile, slide: Slide) -> list[str]:
    """Cut a section's file from its slide; returns what the slide's reader noted."""
    file.path.parent.mkdir(exist_ok=True)
    with new_hdf5(file.path) as hdf5:
        hdf5.attrs["drawn"] = file.drawn
        wanted = [(centres, _new_patches(hdf5, name, len(centres), file)) for name, centres in file.wanted.items()]
        cut_patches(slide, file.section, file.how, wanted)
        for _, patches in wanted:
            if isinstance(patches, NewJpegs):
                patches.finish()
    return [*slide.notes]


def cut_patches(slide: Slide, section: Section, how: Cut, wanted: Sequence[Wanted]) -> None:
    """Write the `wanted` patches of a section's open slide. Raises SlideError if the slide cannot be read."""
    on_readable_levels(slide, partial(_cut, slide, section.mpp, how, wanted))


def _cut(slide: Slide, slide_mpp: Mpp, how: Cut, wanted: Sequence[Wanted]) -> None:
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


@contextmanager
def _processes(n: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that end with the context. None if fewer than two are wanted, or this process may have no children."""
    if n < 2 or multiprocessing.current_process().daemon:
        yield None
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise StpredictError(
            "a process that cut patches was ended, perhaps for want of memory; the same command goes on where it "
            "stopped."
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)
