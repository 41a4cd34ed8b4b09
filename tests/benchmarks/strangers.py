"""Files of strangers that once failed: a folder of cases, each with a `run.sh` that calls the program.

What is right is written in each `run.sh`, after `# RIGHT:`. Where that can be told from what it prints, it is checked;
the other lines are recorded, for somebody to read.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What no call may ever print.
NEVER = (r"Traceback \(most recent call last\)", r"unexpected \w+(Error|Exception)", r"object is not subscriptable")
LONGEST_S = 1800
#: So much of what a case prints is kept.
MOST_LINES = 40


@dataclass(frozen=True)
class Right:
    """What a case has to print, so many times, and what it must not."""

    must: dict[str, int]
    must_not: tuple[str, ...] = ()


CHECKS = {
    "btf-strips": Right({r"^exit 0$": 2}),
    "compression-called-damaged": Right({r"^exit \d$": 5}, ("damaged",)),
    "cwd-modules-run": Right({r"^one slide: exit 0$": 1, r"^two slides: exit 0$": 1}, ("WAS RUN",)),
    "geojson-cells-old-qupath": Right({"24 spots": 2}, ("unnamed", "Lymphocyte")),
    "ome-xml-mpp": Right({r"^exit 0$": 3}, ("does not say its micrometres",)),
    "same-stem-label": Right({r"case1\.h5ad$": 2, r"case2\.h5ad$": 2}, (r"^exit 2$", "would both be written")),
    "stderr-closed": Right({r"^exit 0$": 1, r"^CMU-1-Small-Region\.h5ad$": 1}),
    "u16-low-range": Right({r"== u16_full\.tif": 1}, (r"thumbnail mean 0\.0$",)),
    "unit-none-mpp": Right({"does not say its micrometres": 3}, (r"mpp \[0\.1, 0\.1\]",)),
    "unreadable-subfolder": Right({r"ok\.h5ad$": 1, "cannot be read": 1}, ("not a slide, or a damaged one",)),
    "visium-hd-unlabelled": Right({r"hd2: exit 0": 1, r"hd8: exit 0": 1}, ("--pitch",)),
    "visium-mtx-folder": Right({r"^exit": 2}, ("damaged",)),
}  # fmt: skip


def try_cases(folder: Path, slide: Path, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run each case of a folder: its exit code, lines, what is right in words, and what of that is not so."""
    program = scratch / "stpredict"
    called = shlex.join((sys.executable, "-P", "-m", "stpredict"))
    program.write_text(f'#!/bin/bash\nexec {called} "$@"\n')
    program.chmod(0o755)
    python = str(Path(sys.executable).parent)
    environment = os.environ | {
        "STPREDICT": str(program), "SLIDE": str(slide), "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "STPREDICT_CACHE": str(scratch / "cache"),
    }  # fmt: skip
    for script in sorted(folder.glob("*/run.sh")):
        case = script.parent.name
        try:
            done = subprocess.run(
                ["bash", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env=environment, cwd=scratch, timeout=LONGEST_S, check=False,
            )  # fmt: skip
            code, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as late:
            code, text = -1, f"{late.stdout or ''}\nnot finished after {LONGEST_S} s"
        right = [line.partition("RIGHT:")[2].strip() for line in script.read_text().splitlines() if "# RIGHT:" in line]
        lines = [line.replace(str(scratch), "SCRATCH") for line in text.splitlines()]
        checked = case in CHECKS
        yield case, {
            "exit_code": code, "lines": lines[-MOST_LINES:], "right": right, "checked": checked,
            "wrong": list(_wrong(lines, CHECKS.get(case, Right({})))) + ([] if code >= 0 else ["it did not end"]),
        }  # fmt: skip


def _wrong(lines: list[str], right: Right) -> Iterator[str]:
    for pattern in (*NEVER, *right.must_not):
        if found := [line for line in lines if re.search(pattern, line)]:
            yield f"printed {found[0]!r}"
    for pattern, count in right.must.items():
        times = sum(1 for line in lines if re.search(pattern, line))
        if times < count:
            yield f"printed {pattern!r} {times} times, not {count}"


def report_of(cases: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of the report: a table of the cases."""
    yield "## Files of strangers"
    yield ""
    if not cases:
        yield "Not run: `--cases FOLDER` names a folder of cases."
        return
    yield "| case | what is right | found |"
    yield "|---|---|---|"
    for case, found in cases.items():
        told = "; ".join(found["wrong"]) or ("as it should be" if found["checked"] else "to be read, see the figures")
        yield f"| {case} | {_cell(' '.join(found['right']))} | {_cell(told)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
