"""Damaged files, each read in a child process as the program reads it; a child that dies or hangs is replaced."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT_S = 30.0
#: Address space of a child: far more than any of the whole files needs.
LIMIT_BYTES = 12 << 30
OUTCOMES = ("as it was", "other content", "refused", "invented", "unexpected error", "hang", "crash")
DEFECTS = ("invented", "unexpected error", "hang", "crash")
#: Kinds whose every damaged byte is noticed, so that other content must not come back.
CHECKED = ("model", "shard", "counts TSV.gz")
#: Kinds that must miss whatever part of their pixels is gone.
PIXELS = ("SVS", "TIFF, JPEG tiles", "DICOM", "JPEG", "PNG", "mask image")

Tally = dict[str, Counter[str]]


def serve(connection: Connection) -> None:
    """In the child: use the files that are named, one by one, and answer with (outcome, detail)."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of each file
    from strangers_files import USES

    from stpredict.errors import StpredictError

    connection.send("ready")
    while True:
        kind, path = connection.recv()
        try:
            connection.send(("used", USES[kind](path)))
        except StpredictError as error:
            connection.send(("refused", str(error)))
        except Exception as error:  # noqa: BLE001 (this is what is looked for)
            connection.send(("unexpected error", f"{type(error).__name__}: {error}"))


class Child:
    """A process that reads files, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def use(self, kind: str, path: Path) -> tuple[str, str]:
        """("used", a digest), or the outcome of what went wrong and more about it."""
        self.connection.send((kind, path))
        try:
            if self.connection.poll(LIMIT_S):
                answer: tuple[str, str] = self.connection.recv()
                return answer
            outcome = ("hang", f"over {LIMIT_S:g} s")
        except (EOFError, ConnectionResetError):
            self.process.join()
            outcome = ("crash", f"signal {-(self.process.exitcode or 0)}")
        self.stop()
        self.start()
        return outcome

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def child() -> Iterator[Child]:
    one = Child()
    try:
        yield one
    finally:
        one.stop()


def judge(kind: str, mutation: str, original: str, used: str) -> str:
    """The outcome of a file that was read without complaint, from the digests of what was read."""
    if used == original:
        return "as it was"
    if used == "grey" or kind in CHECKED:
        return "invented"
    return "invented" if mutation == "truncated" and kind in PIXELS else "other content"


def try_kind(
    one: Child, kind: str, originals: dict[str, Path], counts: dict[str, int], scratch: Path,
    tell: Callable[[str], None],
) -> tuple[Tally, list[str]]:  # fmt: skip
    """Outcomes of a kind's files by way of damaging, `counts` of each, and a line for each defect."""
    from strangers_files import mutate

    from stpredict.data.patches_elsewhere import patches_folder

    content = originals[kind].read_bytes()
    donor = originals["PNG" if kind == "JPEG" else "JPEG"].read_bytes()
    folder = scratch / "damaged"  # of its own: OpenSlide looks for other files of a DICOM series beside a file
    folder.mkdir(exist_ok=True)
    path = folder / originals[kind].name
    path.write_bytes(content)
    if (patches := patches_folder(originals[kind])).exists():
        shutil.copytree(patches, folder / patches.name, dirs_exist_ok=True)
    state, original = one.use(kind, path)
    assert state == "used", f"{kind}: {original}"
    found: Tally = {mutation: Counter() for mutation in counts}
    defects: list[str] = []
    start = time.monotonic()
    for mutation, count in counts.items():
        for seed in range(count):
            path.write_bytes(mutate(content, donor, mutation, seed))
            outcome, detail = one.use(kind, path)
            if outcome == "hang":  # or the machine was at something else
                outcome, detail = one.use(kind, path)
            if outcome == "used":
                outcome = judge(kind, mutation, original, detail)
            if outcome == "refused" and len(detail.strip().splitlines()) != 1:
                outcome, detail = "unexpected error", f"a message of several lines: {detail}"
            found[mutation][outcome] += 1
            if outcome in DEFECTS:
                defects.append(f"{kind}, {mutation}, seed {seed}: {outcome} ({' '.join(detail[:300].split())})")
                tell(defects[-1])
    path.unlink()
    tell(f"{kind}: {time.monotonic() - start:.0f} s")
    return found, defects


def try_files(
    kinds: Sequence[str], counts: dict[str, int], scratch: Path, tell: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, Tally, list[str]]]:
    """Damage and read files of each kind, all if none is named."""
    from strangers_files import make_originals

    originals = make_originals(scratch)
    with child() as one:
        for kind in kinds or originals:
            yield kind, *try_kind(one, kind, originals, counts, scratch, tell)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
