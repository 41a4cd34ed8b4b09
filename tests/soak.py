"""Many slides in one call, whose memory, handles and threads are watched, in all processes that it starts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from endurance import family, status

#: Which parts of the slides are compared: by the first, engines and libraries have made what they keep.
EARLY, LATE = (0.2, 0.4), (0.8, 1.0)


@dataclass(frozen=True)
class Soaked:
    """The exit code, the most address space, and what was in use at the highest while each slide was predicted."""

    exit_code: int
    address_bytes: int
    memory_bytes: list[int]
    handles: list[int]
    threads: list[int]

    @property
    def growth(self) -> float:
        """By how much the slides' median memory grew between EARLY and LATE, as a part of it."""
        early, late = early_and_late(self.memory_bytes)
        return late / early - 1


def early_and_late(values: Sequence[int]) -> tuple[float, float]:
    """Medians."""
    early, late = (median(values[int(len(values) * first) : int(len(values) * last)]) for first, last in (EARLY, LATE))
    return early, late


def soak(slides: Sequence[Path], options: Sequence[object], out: Path, address_bytes: int | None = None) -> Soaked:
    """Predict the slides in one call, whose processes have no more than `address_bytes` of address space each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    call = ["predict", *map(str, slides), *map(str, options), "-o", str(out)]
    process = context.Process(target=_soak_here, args=(theirs, call, len(slides), out, address_bytes))
    process.start()
    theirs.close()
    try:
        found: Soaked = ours.recv()
    finally:
        process.join()
    return found


def _soak_here(connection: Connection, call: Sequence[str], n_slides: int, out: Path, limit: int | None) -> None:
    from stpredict.cli import app

    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    out.mkdir()
    with _watched(out, n_slides) as highest:
        try:
            app(call)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    memory, handles, threads, address = ([highest[what][i] for i in range(n_slides)] for what in WHAT)
    connection.send(Soaked(code, max(address), memory, handles, threads))


WHAT = ("memory", "handles", "threads", "address")


@contextmanager
def _watched(out: Path, n_slides: int) -> Iterator[dict[str, dict[int, int]]]:
    """What was in use at the highest, of WHAT, by the number of results that were there."""
    highest: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            done = min(sum(1 for _ in out.glob("[!.]*.h5ad")), n_slides - 1)
            pids = family(os.getpid())
            now = (
                sum(status(pid, "VmRSS") for pid in pids), sum(_count(pid, "fd") for pid in pids),
                sum(_count(pid, "task") for pid in pids), max(status(pid, "VmPeak") for pid in pids),
            )  # fmt: skip
            for what, value in zip(WHAT, now, strict=True):
                highest[what][done] = max(highest[what][done], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        end.set()
        watcher.join()


def _count(pid: int, what: str) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir())
    except OSError:
        return 0
