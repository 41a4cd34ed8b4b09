"""Many slides in one process, whose memory, handles and threads are watched."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from endurance import family, status

#: Slides that are predicted before anything is counted: engines and libraries make what they keep.
WARMING = 8
#: Which parts of the slides the first and the last memory are taken of.
EARLY, LATE = (0.2, 0.4), (0.8, 1.0)


@dataclass(frozen=True)
class Soaked:
    """The exit code, memory at its highest while each slide was predicted, and what was open before and after."""

    exit_code: int
    peak_bytes: list[int]
    address_bytes: int
    handles: tuple[int, int]
    threads: tuple[int, int]

    @property
    def growth(self) -> float:
        """By how much the slides' median grew between EARLY and LATE, as a part of it."""
        n = len(self.peak_bytes)
        early, late = (median(self.peak_bytes[int(n * first) : int(n * last)]) for first, last in (EARLY, LATE))
        return late / early - 1


def soak(slides: Sequence[Path], options: Sequence[object], out: Path, address_bytes: int | None = None) -> Soaked:
    """Predict the slides in one new process, with no more than `address_bytes` of address space."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    call = [str(part) for part in options]
    process = context.Process(target=_soak_here, args=(theirs, list(slides), call, out, address_bytes))
    process.start()
    theirs.close()
    try:
        found: Soaked = ours.recv()
    finally:
        process.join()
    return found


def _soak_here(
    connection: Connection, slides: Sequence[Path], options: Sequence[str], out: Path, address_bytes: int | None
) -> None:
    if address_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _predict(slides[:WARMING], options, out / "warming")
    handles, threads = _open_handles(), _threads()
    target = out / "soaked"
    target.mkdir(parents=True)
    with _watched(target, len(slides)) as peaks:
        code = _predict(slides, options, target)
    gc.collect()
    peak_bytes = [peaks[i] for i in range(len(slides))]
    address = max(status(pid, "VmPeak") for pid in family(os.getpid()))
    connection.send(Soaked(code, peak_bytes, address, (handles, _open_handles()), (threads, _threads())))


def _predict(slides: Sequence[Path], options: Sequence[str], out: Path) -> int:
    from stpredict.cli import app

    try:
        app(["predict", *map(str, slides), *options, "-o", str(out)])
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the program did not end")


@contextmanager
def _watched(out: Path, n_slides: int) -> Iterator[Counter[int]]:
    """Memory at its highest, of the process and those that it starts, by the number of results that were there."""
    peaks: Counter[int] = Counter()
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.01):
            done = sum(1 for _ in out.glob("[!.]*.h5ad"))
            used = sum(status(pid, "VmRSS") for pid in family(os.getpid()))
            peaks[min(done, n_slides - 1)] = max(peaks[min(done, n_slides - 1)], used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        end.set()
        watcher.join()


def _open_handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _threads() -> int:
    """Once those that are about to end have ended."""
    time.sleep(1)
    return sum(1 for _ in Path("/proc/self/task").iterdir())
