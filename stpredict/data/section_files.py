"""Cut the patches of each section into a file of its own, whole or absent, and never twice, in several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stpredict.arrays import Float
from stpredict.data.patch_formats import QUALITY, NewJpegs, NewPatches, PatchFormat
from stpredict.data.patches_elsewhere import UNLABELLED, fingerprint_of
from stpredict.data.places import tissue_places
from stpredict.data.section import Section, without_counts
from stpredict.data.stored_patches import IMAGES
from stpredict.errors import StpredictError
from stpredict.search_path import working_folder_left_out
from stpredict.slides.levels import leave_out, on_readable_levels
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
#: An attribute: the state of the random numbers after the section's places were drawn, and notes on its slide.
ABOUT = "about"
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
class Task:
    """Patches to cut: of a section's spots, and of further `places` (n x 2, level-0 pixels)."""

    folder: Path
    name: str  # of the file, but for its content
    section: Section
    places: Float
    how: Cut
    patch_format: PatchFormat
    drawn: Any  # the state of the random numbers after the places were drawn, None if there are none
    unreadable: frozenset[int]  # levels of the slide


def cut_files(
    sections: Sequence[Section], share: Sequence[int], seed: int, how: Cut, patch_format: PatchFormat, folder: Path,
    report: Callable[[str], None],
) -> Generator[Path, None, None]:  # fmt: skip
    """Cut the sections that have slides into files in `folder`, and `share` further places of each.

    Yields each section's file once it is there, in their order. A file that is there already is not cut again: its name
    tells its slide, its places, how it was cut, and its content. Raises SlideError if a slide cannot be read,
    DatasetError if it shows no tissue, and StpredictError if a process was lost; files that are whole stay.
    """
    due = [(section, n) for section, n in zip(sections, share, strict=True) if not section.patches]
    n_patches = sum(len(section.centres) + n for section, n in due)
    n_processes = min(how.threads // THREADS, len(due)) if n_patches >= WORTH_PROCESSES else 1
    rng = np.random.default_rng(seed)
    with _removed_if_empty(folder), _processes(n_processes) as pool:

        def begin(section: Section, n: int) -> tuple[Path, list[str]] | Future[tuple[Path, list[str]]]:
            with open_slide(section.image) as slide:
                name = _name(slide, section, n, rng, how, patch_format)
                if found := _whole_file(folder, name):
                    drawn, notes = _read_about(found)
                    rng.bit_generator.state = drawn or rng.bit_generator.state
                    return found, notes
                places = tissue_places(slide, section, n, rng) if n else np.empty((0, 2))
                drawn = rng.bit_generator.state if n else None
                task = Task(
                    folder, name, without_counts(section), places, how, patch_format, drawn, frozenset(slide.unreadable)
                )
                return pool.submit(_cut_anew, task, how.threads // n_processes) if pool else _write(task, slide)

        begun = (begin(section, n) for section, n in due)
        for (section, _), what in zip(due, [*begun] if pool else begun, strict=True):
            path, notes = what.result() if isinstance(what, Future) else what
            for note in notes:
                report(f"{section.name}: {note}")
            yield path


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):  # it is not there, or holds files
            folder.rmdir()


def _name(
    slide: Slide, section: Section, n: int, rng: np.random.Generator, how: Cut, patch_format: PatchFormat
) -> str:  # fmt: skip
    """The name of a section's file, but for its content: a hash of everything that the patches come from."""
    drawn_from = (n, rng.bit_generator.state, section.spot_diameter_um) if n else ()
    stored_as = (patch_format, QUALITY) if patch_format == "jpeg" else (patch_format,)
    of_slide = (slide.fingerprint(), fingerprint_of(section.image), section.mpp)
    asked = (VERSION, of_slide, asdict(replace(how, threads=1)), stored_as, drawn_from)
    digest = hashlib.sha256(json.dumps(asked).encode())
    digest.update(np.ascontiguousarray(section.centres, dtype=float).tobytes())
    readable = re.sub(r"[^\w-]+", "_", section.name)[:40]
    return f"{readable}-{digest.hexdigest()[:12]}"


def _whole_file(folder: Path, name: str) -> Path | None:
    """The file of this name whose content is what its name tells."""
    return next((path for path in folder.glob(f"{name}-*.h5") if path.stem == f"{name}-{_content(path)}"), None)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _read_about(path: Path) -> tuple[Any, list[str]]:
    with h5py.File(path) as hdf5:
        about = json.loads(hdf5.attrs[ABOUT])
    return about["drawn"], about["notes"]


def _cut_anew(task: Task, threads: int) -> tuple[Path, list[str]]:
    with open_slide(task.section.image) as slide:
        leave_out(slide, task.unreadable)
        return _write(replace(task, how=replace(task.how, threads=threads)), slide)


def _write(task: Task, slide: Slide) -> tuple[Path, list[str]]:
    """Cut a section's file from its slide; returns its path, and what the slide's reader noted."""
    task.folder.mkdir(exist_ok=True)
    path = task.folder / f"{task.name}.h5"
    with new_hdf5(path) as hdf5:
        named = {IMAGES: task.section.centres, UNLABELLED: task.places}
        wanted = [(at, _new_patches(hdf5, name, len(at), task)) for name, at in named.items() if len(at)]
        cut_patches(slide, task.section, task.how, wanted)
        for _, patches in wanted:
            if isinstance(patches, NewJpegs):
                patches.finish()
        # Text of fixed length, as the library keeps it with the attribute
        hdf5.attrs[ABOUT] = np.bytes_(json.dumps({"drawn": task.drawn, "notes": slide.notes}))
    return path.replace(path.with_stem(f"{task.name}-{_content(path)}")), [*slide.notes]


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


def _new_patches(hdf5: h5py.File, name: str, n: int, task: Task) -> NewPatches:
    if task.patch_format == "jpeg":
        return NewJpegs(hdf5, name, n)
    dataset: NewPatches = hdf5.create_dataset(name, (n, *patch_shape(task.how.patch_px, task.how.views)), np.uint8)
    return dataset


@contextmanager
def _processes(n: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that end with the context. None if fewer than two are wanted, or this process may have no children."""
    if n < 2 or multiprocessing.current_process().daemon:
        yield None
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        with working_folder_left_out():
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


def _end_with_parent() -> None:
    """Let this process end when its parent does, also if that is killed; it would wait for more work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
