"""Strangers' files: damages slides, results, models and tables from seeds; writes reliability.md beside this script.

Usage: python tests/benchmarks/reliability.py [--count 2000] [--kinds SVS+JPEG --counts FILE] [--scratch DIR]

Each of the ways of damaging is tried `--count` times on a file of each kind. The files are read in a child process as
the program reads them; a child that dies or takes more than 30 s is replaced. What went wrong is listed on stderr with
its seed, and `strangers_files.mutate` makes the same file again from that. All kinds take hours: with `--counts` the
numbers of several runs of some kinds each are kept in a file, and the report is of all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "rendering"), str(TESTS / "slides")]
LIMIT_S = 30.0
#: Address space of a child: far more than any of the whole files needs.
LIMIT_BYTES = 12 << 30
REPORT = Path(__file__).with_suffix(".md")
BY_HAND = "## What the words mean, and what was mended"
OUTCOMES = ("as it was", "other content", "refused", "invented", "unexpected error", "hang", "crash")
DEFECTS = ("invented", "unexpected error", "hang", "crash")
#: Kinds whose every damaged byte is noticed, so that other content must not come back.
CHECKED = ("model",)
#: Kinds that must miss whatever part of their pixels is gone.
PIXELS = ("SVS", "TIFF, JPEG tiles", "DICOM", "JPEG", "PNG")


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
        self.process.kill()
        self.process.join()
        self.start()
        return outcome


def judge(kind: str, mutation: str, original: str, used: str) -> str:
    """The outcome of a file that was read without complaint, from the digests of what was read."""
    if used == original:
        return "as it was"
    if used == "grey" or kind in CHECKED:
        return "invented"
    return "invented" if mutation == "truncated" and kind in PIXELS else "other content"


def measure(kinds: Sequence[str], count: int, scratch: Path) -> tuple[dict[str, dict[str, Counter[str]]], list[str]]:
    """Outcomes by kind and mutation, and one line for each defect."""
    from strangers_files import MUTATIONS, make_originals, mutate

    originals = make_originals(scratch)
    child, defects = Child(), []
    found: dict[str, dict[str, Counter[str]]] = {}
    for kind in kinds or originals:
        content, suffix = originals[kind].read_bytes(), originals[kind].suffix
        donor = originals["PNG" if kind == "JPEG" else "JPEG"].read_bytes()
        folder = scratch / "damaged"  # of its own: OpenSlide looks for other files of a DICOM series beside a file
        folder.mkdir(exist_ok=True)
        path = folder / f"damaged{suffix}"
        path.write_bytes(content)
        state, original = child.use(kind, path)
        assert state == "used", f"{kind}: {original}"
        found[kind] = {mutation: Counter() for mutation in MUTATIONS}
        start = time.monotonic()
        for mutation in MUTATIONS:
            for seed in range(count):
                path.write_bytes(mutate(content, donor, mutation, seed))
                outcome, detail = child.use(kind, path)
                if outcome == "used":
                    outcome = judge(kind, mutation, original, detail)
                if outcome == "refused" and len(detail.strip().splitlines()) != 1:
                    outcome, detail = "unexpected error", f"a message of several lines: {detail}"
                found[kind][mutation][outcome] += 1
                if outcome in DEFECTS:
                    defects.append(f"{kind}, {mutation}, seed {seed}: {outcome} ({detail[:300]})")
                    print(defects[-1], file=sys.stderr, flush=True)
        path.unlink()
        print(f"{kind}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    child.process.kill()
    return found, defects


def write_report(found: dict[str, dict[str, dict[str, int]]], defects: Sequence[str]) -> None:
    """The table and the defects, before what was written by hand in the report that stands there."""
    tried = sum(sum(outcomes.values()) for mutations in found.values() for outcomes in mutations.values())
    lines = [
        "# Reliability",
        "",
        f"Written by `python tests/benchmarks/reliability.py` on {platform.machine()}: {tried:,} damaged files,",
        "each read in a child process as the program reads it, with 30 s for each.",
        "",
        f"| file | damage | tried | {' | '.join(OUTCOMES)} |",
        f"|---|---|{'---|' * (len(OUTCOMES) + 1)}",
    ]
    for kind, mutations in found.items():
        for mutation, outcomes in mutations.items():
            cells = (f"{outcomes[outcome]:,}" if outcomes.get(outcome) else "" for outcome in OUTCOMES)
            lines.append(f"| {kind} | {mutation} | {sum(outcomes.values()):,} | {' | '.join(cells)} |")
    lines += ["", f"{len(defects)} defects{':' if defects else '.'}", *(f"- {line}" for line in defects), ""]
    by_hand = REPORT.read_text().partition(BY_HAND)[2] if REPORT.exists() else "\n"
    REPORT.write_text("\n".join(lines) + f"\n{BY_HAND}{by_hand}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind and damage")
    parser.add_argument("--kinds", type=lambda text: text.split("+"), default=[], help="joined by +")
    parser.add_argument("--counts", type=Path, help="JSON of earlier runs, to be added to")
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        found, defects = measure(arguments.kinds, arguments.count, Path(scratch))
    left = bool(defects)
    if arguments.counts:
        earlier = (
            json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {"found": {}, "defects": []}
        )
        again = tuple(f"{kind}, " for kind in found)
        defects = [line for line in earlier["defects"] if not line.startswith(again)] + defects
        found = {**earlier["found"], **found}
        arguments.counts.write_text(json.dumps({"found": found, "defects": defects}))
    write_report(found, defects)
    sys.exit(left)


if __name__ == "__main__":
    main()
