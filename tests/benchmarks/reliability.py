"""Everything that is promised of strangers' files, kills, full disks and long runs; writes reliability.md beside it.

Usage: python tests/benchmarks/reliability.py [--quick] [--parts files+kills+...] [--count 2000] [--figures FILE]
           [--cases FOLDER]

Damages files of each kind from seeds, in four ways, and reads each in a child process as the program reads it
(`files`; `strangers_files.mutate` makes the same file again); kills predictions at random (`kills`); lets them run with
little memory (`memory`) and on a full disk (`disk`); predicts 200 slides in one process, also under `ulimit -v`
(`soak`); runs the cases of a folder, each a CASE/run.sh (`strangers`), and the tests that keep each promise (`tests`).
All of it takes hours: with `--figures` what was found by runs of some parts, or of some kinds of files, is kept, and
the report is of all of them. `--quick` does a little of each in minutes, fails if anything went wrong, and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in ("rendering", "slides", "training"))]
REPORT = Path(__file__).with_suffix(".md")
BY_HAND = "## What the words mean, and what was mended"
PARTS = ("files", "kills", "memory", "disk", "soak", "strangers", "tests")
#: Damaged files of each kind and way, kills, limits of memory, full disks and slides: at length, and in minutes.
AT_LENGTH, QUICK = (2000, 40, 20, 20, 200), (4, 3, 3, 2, 20)
#: The ways of which `--count` files are tried; a quarter as many of the others.
CHIEF_WAYS = ("truncated", "bytes flipped")
MAX_GROWTH = 0.05
SHORT = ("--pitch", "50", "--min-tissue", "0", "--genes", "GNAS")

Figures = dict[str, Any]


def damaged_files(kinds: Sequence[str], count: int, scratch: Path) -> Figures:
    """{"found": {kind: {way: {outcome: n}}}, "defects": lines}."""
    from damage import say, try_files
    from strangers_files import MUTATIONS

    found, defects = {}, []
    counts = {way: count if way in CHIEF_WAYS else -(-count // 4) for way in MUTATIONS}
    for kind, tally, lines in try_files(kinds, counts, scratch, say):
        found[kind] = tally
        defects += lines
    return {"found": found, "defects": defects}


def long_run(slides: Sequence[Path], options: Sequence[object], scratch: Path) -> Figures:
    """Many slides, then as many with hardly more address space than they took."""
    from soak import early_and_late, soak

    free = soak(slides, options, scratch / "free")
    limited = soak(slides, options, scratch / "limited", address_bytes=int(1.05 * free.address_bytes))
    return {
        name: {
            "slides": len(slides), "exit_code": each.exit_code, "growth": each.growth,
            "handles": early_and_late(each.handles), "threads": early_and_late(each.threads),
        }
        for name, each in (("free", free), ("under `ulimit -v`", limited))
    }  # fmt: skip


def hardships(parts: Sequence[str], sizes: Sequence[int], scratch: Path) -> Figures:
    """What kills, little memory, full disks and many slides did."""
    from conftest import SLIDE, make_model, make_quick_model
    from endurance import CannotTryError, cut_slides, fill_disk, kill_at_random, starve

    os.environ["STPREDICT_CACHE"] = str(scratch / "cache")
    _, kills, limits, rounds, n_slides = sizes
    model = make_model(scratch / "tiny.safetensors")
    slides = cut_slides(scratch / "slides", max(n_slides, 2))
    in_eager = (*SHORT, "--engine", "eager", "--threads", "1")
    eager = ["predict", *slides[:2], "-m", model, *in_eager]
    # More spots than one part holds, of a model that does several times as many a second if that is to be quick.
    quick = sizes == QUICK
    of_many = make_quick_model(scratch / "quick.safetensors") if quick else model
    in_parts = ["predict", SLIDE, "-m", of_many, *in_eager, "--pitch", "12" if quick else "20"]
    todo: dict[str, Callable[[Path], Any]] = {
        "kills": lambda folder: kill_at_random(folder, [*in_parts, "--render"], kills),
        "memory": lambda folder: starve(folder, eager, limits),
        "disk": lambda folder: fill_disk(folder, [*eager, "--render"], rounds),
        "soak": lambda folder: long_run(slides, ["-m", model, *SHORT], folder),
    }
    found: Figures = {}
    for part in (part for part in todo if part in parts):
        folder = scratch / part
        folder.mkdir()
        try:
            trial = todo[part](folder)
        except CannotTryError as error:
            print(f"{part}: not tried: {error}", file=sys.stderr)
            continue
        found[part] = trial if part == "soak" else vars(trial)
        print(f"{part}: {found[part]}", file=sys.stderr, flush=True)
    return found


def strangers(cases: Path | None, scratch: Path) -> Figures:
    """What each case of a folder printed, and what of it is not right; nothing without a folder."""
    from conftest import SLIDE
    from strangers import try_cases

    if cases is None:
        print("strangers: skipped, as no --cases name a folder", file=sys.stderr)
        return {}
    found = {}
    for case, figures in try_cases(cases, SLIDE, scratch):
        found[case] = figures
        print(f"strangers: {case}: {'; '.join(figures['wrong']) or figures['lines']}", file=sys.stderr, flush=True)
    return found


def tests_of_promises() -> Figures:
    """Run the tests of all promises."""
    from promises import PROMISES

    tests = sorted({test for promise in PROMISES for test in promise.tests})
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *tests]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:], file=sys.stderr)
    return {"asked": len(tests), "exit_code": done.returncode, "said": done.stdout.strip().splitlines()[-1].strip("= ")}


def check_tests_exist() -> None:
    """Raise SystemExit if a promise names a test that is not there."""
    from promises import PROMISES

    for promise in PROMISES:
        for test in promise.tests:
            path, _, name = test.partition("::")
            if f"\ndef {name}(" not in (TESTS.parent / path).read_text():
                sys.exit(f"{test} is not there, which promises: {promise.words}")


def wrong(figures: Figures) -> list[str]:
    """What broke a promise."""
    lines = list(figures.get("files", {}).get("defects", ()))
    trials = [part for part in PARTS if part not in ("soak", "strangers")]
    lines += [f"{part}: {line}" for part in trials for line in figures.get(part, {}).get("wrong", ())]
    for name, each in figures.get("soak", {}).items():
        left_open = any(each[what][1] > each[what][0] + 2 for what in ("handles", "threads"))
        if each["exit_code"] or left_open or (each["slides"] >= AT_LENGTH[-1] and each["growth"] > MAX_GROWTH):
            lines.append(f"soak, {name}: {each}")
    for case, found in figures.get("strangers", {}).items():
        lines += [f"strangers, {case}: {line}" for line in found["wrong"]]
    if figures.get("tests", {}).get("exit_code"):
        lines.append(f"tests: {figures['tests']['said']}")
    return lines


def write_report(figures: Figures) -> None:
    """The tables and what went wrong, before what was written by hand in the report that stands there."""
    from damage import OUTCOMES
    from promises import PROMISES
    from strangers import report_of

    tests = figures.get("tests", {"said": "not run"})
    lines = [
        "# Reliability",
        "",
        f"Written by `python tests/benchmarks/reliability.py` on {platform.machine()}, {os.cpu_count()} cores.",
        f"The {len({test for promise in PROMISES for test in promise.tests})} tests below: {tests['said']}.",
        "",
        "| promise | kept by | numbers |",
        "|---|---|---|",
    ]
    for promise in PROMISES:
        kept_by = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in promise.tests)
        lines.append(f"| {promise.words} | {kept_by} | {promise.numbers(figures)} |")
    lines += [
        "",
        "## Damaged files",
        "",
        "Each read in a child process as the program reads it, with 30 s for each.",
        "",
        f"| file | damage | tried | {' | '.join(OUTCOMES)} |",
        f"|---|---|{'---|' * (len(OUTCOMES) + 1)}",
    ]
    for kind, ways in figures.get("files", {}).get("found", {}).items():
        for way, outcomes in ways.items():
            cells = (f"{outcomes[outcome]:,}" if outcomes.get(outcome) else "" for outcome in OUTCOMES)
            lines.append(f"| {kind} | {way} | {sum(outcomes.values()):,} | {' | '.join(cells)} |")
    lines += ["", *report_of(figures.get("strangers", {}))]
    broken = wrong(figures)
    lines += ["", f"What broke a promise: {'' if broken else 'nothing.'}", "", *(f"- {line}" for line in broken), ""]
    by_hand = REPORT.read_text().partition(BY_HAND)[2] if REPORT.exists() else "\n"
    REPORT.write_text("\n".join(lines) + f"\n{BY_HAND}{by_hand}")


def joined(earlier: Figures, found: Figures) -> Figures:
    """What earlier runs found, and this one in its place."""
    both = {**earlier, **found}
    if "files" in found and "files" in earlier:
        again = tuple(f"{kind}, " for kind in found["files"]["found"])
        defects = [line for line in earlier["files"]["defects"] if not line.startswith(again)]
        both["files"] = {
            "found": {**earlier["files"]["found"], **found["files"]["found"]},
            "defects": defects + found["files"]["defects"],
        }
    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a little of each but the tests, in minutes")
    parser.add_argument("--parts", type=lambda text: text.split("+"), default=PARTS, help=f"of {'+'.join(PARTS)}")
    parser.add_argument("--kinds", type=lambda text: text.split("+"), default=[], help="of files, joined by +")
    parser.add_argument(
        "--count",
        type=int,
        default=AT_LENGTH[0],
        help="truncated files of each kind, and files with flipped bytes; a quarter as many in the other ways",
    )
    parser.add_argument("--figures", type=Path, help="JSON of earlier runs, to be added to")
    parser.add_argument("--cases", type=Path, help="a folder of cases, CASE/run.sh, for `strangers`")
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    check_tests_exist()
    sizes = QUICK if arguments.quick else (arguments.count, *AT_LENGTH[1:])
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        found = hardships(arguments.parts, sizes, Path(scratch))
        if "files" in arguments.parts:
            found["files"] = damaged_files(arguments.kinds, sizes[0], Path(scratch))
        if "strangers" in arguments.parts and (cases := strangers(arguments.cases, Path(scratch))):
            found["strangers"] = cases
    if "tests" in arguments.parts and not arguments.quick:
        found["tests"] = tests_of_promises()
    broken = wrong(found)
    if not arguments.quick:
        if arguments.figures:
            earlier = json.loads(arguments.figures.read_text()) if arguments.figures.exists() else {}
            found = joined(earlier, found)
            arguments.figures.write_text(json.dumps(found))
        write_report(found)
    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
