"""Predictions under hardship, each in processes of their own: kills, little memory, a full disk; many slides in one.

What was seen is returned with a line for each thing that went wrong. `benchmarks/reliability.py` does it for long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openslide
import tifffile
from calls import PROGRAM
from conftest import SLIDE
from dicom_slide import write_dicom_slide
from PIL import Image
from same_results import assert_same
from slides_to_try import tiff_pyramid

SIDE_PX = 512
LIMIT_S = 600.0
FREE_BYTES, DISK_BYTES = 1 << 20, 32 << 20


class CannotTryError(Exception):
    """This machine does not let it be tried."""


@dataclass
class Trial:
    """How often something was tried, what came of it, and what went wrong."""

    tried: int = 0
    came: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def cut_slides(folder: Path, count: int) -> list[Path]:
    """Small slides, each another part of the example slide, stored in four ways in turn."""
    rng = np.random.default_rng(0)
    with openslide.OpenSlide(SLIDE) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    paths = []
    for i in range(count):
        x, y = rng.integers((700, 200), (1000, 2100)).tolist()
        pixels = np.ascontiguousarray(whole[y : y + SIDE_PX, x : x + SIDE_PX])
        path = folder / f"{i:03}" / f"s{i:03}"  # DICOM files of one folder are taken for one slide
        path.parent.mkdir(parents=True)
        if i % 4 == 0:
            path = path.with_suffix(".svs")
            about = "Aperio Image Library v1\r\nsome |AppMag = 20|MPP = 0.5"
            layout = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
            tifffile.imwrite(path, pixels, description=about, **layout)
        elif i % 4 == 1:
            path = path.with_suffix(".tif")
            tiff_pyramid(path, pixels, (0.5, 0.5))
        elif i % 4 == 2:
            path = path.with_suffix(".dcm")
            write_dicom_slide(path, pixels, (0.5, 0.5))
        else:
            path = path.with_suffix(".jpg")
            Image.fromarray(pixels).save(path, quality=85, dpi=(50_800, 50_800))
        paths.append(path)
    return paths


def kill_at_random(folder: Path, call: Sequence[object], kills: int, seed: int = 0) -> Trial:
    """Kill a call at `kills` random moments, go on after each until it is done, and compare with one undisturbed.

    `call` is what follows `stpredict`; its output goes to `-o`, which is added.
    """
    trial, rng = Trial(), np.random.default_rng(seed)
    reference = folder / "reference"
    assert _run([*call, "-o", reference]).returncode == 0
    start = time.monotonic()  # of a second call, as the first one fills caches
    assert _run([*call, "-o", folder / "again"]).returncode == 0
    undisturbed_s = time.monotonic() - start
    while trial.tried < kills:
        out = folder / f"killed{trial.came['done']}"
        while True:
            command = [*PROGRAM, *map(str, call), "-o", str(out)]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            try:
                _, stderr = process.communicate(timeout=rng.uniform(0, undisturbed_s))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                trial.tried += 1
                trial.came["parts were there"] += any(out.glob("*.parts/0*.npy"))
                trial.came["result was there"] += any(out.glob("*.h5ad"))
                trial.wrong += _compare(reference, out, complete=False)
                continue
            if process.returncode:
                trial.wrong.append(f"after kill {trial.tried}: {stderr.decode()}")
            break
        for path in out.rglob(".*.tmp*"):
            os.utime(path, (0, 0))  # as if hours had passed
        if (cleaned := _run(["clean", out, "--remove"])).returncode:
            trial.wrong.append(f"clean after kill {trial.tried}: {cleaned.stderr}")
        trial.wrong += _compare(reference, out, complete=True)
        trial.came["done"] += 1
    return trial


def starve(folder: Path, call: Sequence[object], limits: int) -> Trial:
    """Run a call under ever larger `ulimit -v`, then once more without; compare with one undisturbed."""
    trial = Trial()
    reference, out = folder / "reference", folder / "starved"
    most = _address_space([*PROGRAM, *map(str, call), "-o", str(reference)])
    for limit in np.linspace(most / 4, most, limits):  # with less, numpy itself cannot be loaded
        done = _run([*call, "-o", out], before=f"ulimit -v {int(limit / 1024)}")
        what = _judge(done)
        if what == "done":
            trial.wrong += _compare(reference, out, complete=True)
            break
        trial.tried += 1
        trial.came[what] += 1
        if what == "no clear error":  # GLib ends a process without memory, whatever we do
            trial.wrong.append(f"ulimit -v {int(limit / 1024)}: {what}: {done.stderr[-400:]}")
        trial.wrong += _compare(reference, out, complete=False)
    if (again := _run([*call, "-o", out])).returncode:
        trial.wrong.append(f"with memory again: {again.stderr}")
    return Trial(trial.tried, trial.came, [*trial.wrong, *_compare(reference, out, complete=True)])


def fill_disk(folder: Path, call: Sequence[object], rounds: int, seed: int = 0) -> Trial:
    """Run a call on a disk with at most 1 MB left, again and again, then with room; compare with one undisturbed.

    Raises CannotTryError where no small disk can be had.
    """
    trial, rng = Trial(), np.random.default_rng(seed)
    reference = folder / "reference"
    assert _run([*call, "-o", reference]).returncode == 0
    with small_disk(folder / "disk") as disk:
        out, ballast = disk / "out", disk / "ballast"
        for left in (FREE_BYTES, *rng.integers(0, FREE_BYTES, rounds - 1).tolist()):
            ballast.unlink(missing_ok=True)
            state = os.statvfs(disk)
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_bsize - left))
            done = _run([*call, "-o", out])
            what = _judge(done)
            trial.tried += 1
            trial.came[what] += 1
            trial.came["slides that failed"] += done.stderr.count("stpredict: ")
            if what not in ("one sentence", "done"):
                trial.wrong.append(f"{left} bytes left: {what}: {done.stderr[-400:]}")
            trial.wrong += _compare(reference, out, complete=False)
        ballast.unlink()
        if (again := _run([*call, "-o", out])).returncode:
            trial.wrong.append(f"with room again: {again.stderr}")
        trial.wrong += _compare(reference, out, complete=True)
    return trial


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of DISK_BYTES. Raises CannotTryError where it cannot be had."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotTryError("a small disk can be mounted by root alone") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _run(call: Sequence[object], before: str = "true") -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'{before}; exec "$@"', "bash", *PROGRAM, *map(str, call)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def _judge(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return "done"
    if done.returncode < 0 or done.returncode > 128:
        return f"ended by signal {abs(done.returncode) % 128}"
    return "one sentence" if "stpredict: " in done.stderr and "Traceback" not in done.stderr else "no clear error"


def _compare(reference: Path, out: Path, complete: bool) -> Iterator[str]:
    """What is wrong with the files under their final names; with `complete`, also what is missing or left over."""
    wanted, found = _all(reference), _all(out)
    if complete and found.keys() != wanted.keys():
        yield f"{out.name}: {sorted(found.keys() ^ wanted.keys())} missing or left over"
    for name in sorted(found.keys() & wanted.keys()):
        try:
            if name.endswith(".h5ad"):
                assert_same(wanted[name], found[name])
            elif wanted[name].read_bytes() != found[name].read_bytes():
                yield f"{name} is another"
        except Exception as error:  # noqa: BLE001 (whatever makes it unreadable)
            yield f"{name} is damaged or another ({error})"


def _all(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*")}


def _address_space(command: Sequence[str]) -> int:
    """The most address space, in bytes, that a process of a command ever had."""
    most = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max((most, *(status(pid, "VmPeak") for pid in family(process.pid))))
            time.sleep(0.01)
    assert process.returncode == 0
    return most


def family(pid: int) -> list[int]:
    """A process and those that it started, and so on, as far as they live."""
    try:
        children = [
            child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in family(int(child)))]


def status(pid: int, field_name: str) -> int:
    """A number of /proc/PID/status, in bytes; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field_name}:")), 0)
