"""From slide to result: the reader, the engines and whole predictions, each against what it is measured by.

python tests/benchmarks/speed.py --scratch FOLDER

Writes speed.md beside itself, part by part; the whole takes about 50 minutes on two cores and 6 GB in the folder, and
needs a machine that does nothing else. Ratios are of runs that took turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import openslide
import simplejpeg
import torch
from flow import flow
from large_slides import write_slide
from PIL import Image

from stpredict.engines.eager import load_network
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import EngineError
from stpredict.machine import usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.slides.lattice import lattice
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide, resolve_mpp

HERE = Path(__file__).parent
MODEL = "m2ort-small-her2st"
ROUNDS = 5
PITCH_UM = 56.0
ENGINES = (
    ("eager", "fp32"), ("eager", "bf16"), ("compile", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"),
    ("openvino", "int8"), ("tensorrt", "bf16"),
)  # fmt: skip
PEAK = """
import atexit, sys
from pathlib import Path
peak = lambda: Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
atexit.register(lambda: print("peak KiB", peak(), file=sys.stderr))
from stpredict.cli import app
app(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for large files")
    parser.add_argument("parts", nargs="*", help="some of the parts; default all")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    model = load_model(find_model(MODEL))
    parts: dict[str, Callable[[Model, Path], Iterator[str]]] = {
        "engines": engines, "reader": reader, "start": start, "flow": flow, "predict": predict, "memory": memory,
        "scaling": scaling,
    }  # fmt: skip
    report = HERE / "speed.md"
    lines = [
        "# Speed",
        "",
        f"Written by `python tests/benchmarks/speed.py` on {processor()}, {usable_cores()} cores, no GPU; torch "
        f"{torch.__version__}. Network: {model.name}, per-level mixing. "
        "Engines and reader: medians of rounds that take turns.",
    ]
    for name in arguments.parts or parts:
        for line in ("", *parts[name](model, arguments.scratch)):
            lines.append(line)
            print(line, flush=True)
            report.write_text("\n".join(lines) + "\n")


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def slide_of(scratch: Path, spots_across: int, mpp: float, levels: tuple[int, ...] = (1, 4, 16)) -> Path:
    """A slide, all tissue, with room for so many spots along each side."""
    side = round(spots_across * PITCH_UM / mpp)
    path = scratch / f"slide-{side}-{mpp:g}-{'-'.join(map(str, levels))}.tif"
    if not path.exists():
        write_slide(path, (side, side), mpp, levels=levels)
    return path


def cut_patches(model: Model, path: Path, count: int) -> np.ndarray:
    with open_slide(path) as slide:
        mpp = resolve_mpp(slide)
        centres = lattice(slide.bounds, mpp, PITCH_UM).centres[:count]
        blocks = read_patches(make_raster(slide, mpp, model.card["mpp"]), centres, model.card["patch_px"])
        return np.stack([patch for _, block in blocks for patch in block])


def engines(model: Model, scratch: Path) -> Iterator[str]:
    """Spots per second of each engine that runs here, and what they lie below."""
    patches = cut_patches(model, slide_of(scratch, 32, model.card["mpp"]), 512)
    opened: list[Engine] = []
    not_run: list[str] = []
    for name, precision in ENGINES:
        try:
            opened.append(open_engine(model, EngineRequest(name, precision, threads=usable_cores()), patches, quiet))
        except EngineError as error:
            not_run.append(f"{name} {precision}: {error}")
    if not torch.cuda.is_available():
        not_run.append(
            "on a GPU: eager, compile and TensorRT with Small, Base and Large, and a whole slide from file to result: "
            "there is none."
        )
    rates: list[list[float]] = [[] for _ in opened]
    for _ in range(ROUNDS):
        for engine, measured in zip(opened, rates, strict=True):
            measured.append(spots_per_second(engine, patches, 3.0))
    gemm = statistics.median(gemm_rate() for _ in range(ROUNDS))
    flops = 2.55  # GFLOP per spot of Small, multiplications and additions, with one query in the last block
    yield from (
        "| engine | spots/s | relative to eager fp32 | share of the fp32 GEMM rate | deviation | correlation |",
        "|---|---|---|---|---|---|",
    )
    for engine, measured in zip(opened, rates, strict=True):
        ratio = statistics.median(a / b for a, b in zip(measured, rates[0], strict=True))
        rate = statistics.median(measured)
        share = f"{rate * flops / gemm:.0%}" if engine.precision == "fp32" else ""
        verdict = engine.verdict
        yield (
            f"| {engine.name} {engine.precision} | {rate:.0f} | {ratio:.2f} | {share} | "
            f"{verdict.relative_deviation:.1e} | {verdict.correlation:.5f} |"
        )
    yield from (
        "",
        f"Deviation and correlation are of the median gene. fp32 GEMM rate: {gemm:.0f} GFLOP/s. Not run:",
        "",
    )
    yield from (f"- {line}" for line in not_run)


def gemm_rate(n: int = 2048) -> float:
    """GFLOP/s of a large matrix product in fp32."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    torch.set_num_threads(usable_cores())
    torch.mm(a, b)
    began = time.perf_counter()
    for _ in range(8):
        torch.mm(a, b)
    return 8 * 2 * n**3 / (time.perf_counter() - began) / 1e9


def reader(model: Model, scratch: Path) -> Iterator[str]:
    """Patches copied into batches per second, against OpenSlide's region per patch and the bare decoder."""
    path, mpp, side = slide_of(scratch, 230, model.card["mpp"]), model.card["mpp"], 224
    with open_slide(path) as slide, openslide.OpenSlide(path) as by_region:
        raster = make_raster(slide, Mpp(mpp, mpp), mpp)
        batch = np.empty((16, side, side, 3), np.uint8)

        def ours(centres: np.ndarray, threads: int) -> None:
            patches = (patch for _, block in read_patches(raster, centres, side, threads) for patch in block)
            for i, patch in enumerate(patches):
                batch[i % 16] = patch

        def theirs(centres: np.ndarray) -> None:
            for i, (x, y) in enumerate(raster.origins(centres, side).tolist()):
                batch[i % 16] = np.asarray(by_region.read_region((x, y), 0, (side, side)).convert("RGB"))

        yield from (
            "| pitch | against OpenSlide per patch | two threads against one | of the bare decoder |",
            "|---|---|---|---|",
        )
        for name, pitch_px, count in (("a patch", side, 6000), ("half a patch", side // 2, 20_000)):
            centres = lattice(slide.bounds, Mpp(1, 1), pitch_px).centres[:count]
            rounds = []
            for _ in range(ROUNDS):
                one, two = (count / wall(ours, centres, threads) for threads in (1, 2))
                region = 500 / wall(theirs, centres[:: count // 500][:500])
                tiles = count * pitch_px**2 / 256**2
                bare = bare_decoder(path) / (tiles / count)
                rounds.append((one / region, two / one, one / bare))
            speedup, threaded, share = (statistics.median(ratios) for ratios in zip(*rounds, strict=True))
            yield f"| {name} | {speedup:.1f} | {threaded:.2f} | {share:.0%} |"


def bare_decoder(path: Path) -> float:
    """Tiles per second of the JPEG decoder alone, in one thread."""
    with open_slide(path) as slide:
        level = slide._tiles.levels[0]
        content = path.read_bytes()[: int(level.offsets[2000])]
    streams = [
        level.head + content[at + 2 : at + size]
        for at, size in zip(level.offsets[:1500].tolist(), level.sizes[:1500].tolist(), strict=True)
    ]
    buffer = np.empty(256 * 256 * 3, np.uint8)
    began = time.perf_counter()
    for stream in streams:
        simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer, strict=True)
    return len(streams) / (time.perf_counter() - began)


def start(_: Model, scratch: Path) -> Iterator[str]:
    """What a shell loop pays besides reading and inference, and how long help takes."""
    slide = HERE.parents[0] / "data" / "CMU-1-Small-Region.svs"
    run(["predict", slide, "-m", MODEL, "-o", scratch / "start", "--overwrite"])
    outside = []
    for _ in range(ROUNDS):
        seconds, _, timings = run(["predict", slide, "-m", MODEL, "-o", scratch / "start", "--overwrite"])
        outside.append(seconds - timings["reading_and_inference"])
    helps = {name: [] for name in ("", "predict", "render", "tile", "train", "evaluate", "models", "doctor")}
    for _ in range(ROUNDS):
        for name, times in helps.items():
            times.append(run([*([name] if name else []), "--help"])[0])
    slowest = max(statistics.median(times) for times in helps.values())
    yield from (
        "| start | seconds | at most |",
        "|---|---|---|",
        "| second `predict` of the example slide, outside reading and inference | "
        f"{statistics.median(outside):.1f} | 3 |",
        f"| `--help`, slowest of the commands | {slowest:.2f} | 0.3 |",
    )


def predict(model: Model, scratch: Path) -> Iterator[str]:
    """Whole predictions against inference alone, and against the way that the papers' code works."""
    stored = slide_of(scratch, 120, model.card["mpp"])
    finer = slide_of(scratch, 120, model.card["mpp"] / 2)
    patches = cut_patches(model, stored, 512)
    engine = open_engine(model, EngineRequest(threads=usable_cores()), patches, quiet)

    def inference(spots: int) -> float:
        return spots / spots_per_second(engine, patches, spots / 80)

    before = inference(5000)
    whole, _, timings = run(
        ["predict", stored, "-m", MODEL, "--pitch", PITCH_UM, "-o", scratch / "whole", "--overwrite"]
    )
    between = inference(5000)
    from_finer, _, _ = run(["predict", finer, "-m", MODEL, "--pitch", PITCH_UM, "-o", scratch / "whole", "--overwrite"])
    after = inference(5000)
    papers = papers_way(model, stored, 200)
    spots = timings["spots"]
    yield from (
        f"| whole `predict`, {spots:,} spots, {engine.name} {engine.precision} | ratio | aim |",
        "|---|---|---|",
        "| wall time against inference alone, the model's mpp stored | "
        f"{whole / ((before + between) * spots / 1e4):.3f} | 1.08 |",
        f"| the same, from a level twice as fine | {from_finer / ((between + after) * spots / 1e4):.3f} | 1.15 |",
        "| spots per second against cropping, resizing and eager inference spot by spot | "
        f"{spots / whole / papers:.1f} | 10 |",
    )


def papers_way(model: Model, path: Path, count: int) -> float:
    """Spots per second with a region per patch, three resizes, and one spot at a time through the eager network."""
    network, side = load_network(model), model.card["patch_px"]
    torch.set_num_threads(usable_cores())
    with openslide.OpenSlide(path) as slide, torch.inference_mode():
        began = time.perf_counter()
        for i in range(count):
            image = slide.read_region((1000 + 81 * i, 1000), 0, (side, side)).convert("RGB")
            levels = (image.resize((side // k, side // k), Image.Resampling.BILINEAR) for k in (1, 2, 4))
            network.forward_levels(
                *(torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].float() for x in levels)
            ).numpy()
        return count / (time.perf_counter() - began)


def scaling(_: Model, scratch: Path) -> Iterator[str]:
    """Spots per second of small and large slides at 0.25 um per pixel, start-up excluded, and the peak memory."""
    large = scratch / "slide-100000x80000.tif"
    if not large.exists():
        write_slide(large, (100_000, 80_000), 0.25, tissue=0.5)
    yield from (
        "| spots | spots/s | relative to the smallest | peak memory, GiB | waiting for patches |",
        "|---|---|---|---|---|",
    )
    first = 0.0
    for path, rounds in ((slide_of(scratch, 32, 0.25), ROUNDS), (slide_of(scratch, 120, 0.25), ROUNDS), (large, 1)):
        command = ["predict", path, "-m", MODEL, "--pitch", PITCH_UM, "-o", scratch / "scaling", "--overwrite"]
        runs = [run(command) for _ in range(rounds)]
        rate = statistics.median(t["spots"] / t["reading_and_inference"] for _, _, t in runs)
        waiting = statistics.median(t["waiting_for_patches"] / t["reading_and_inference"] for _, _, t in runs)
        first = first or rate
        peak = max(peak for _, peak, _ in runs) / 2**20
        yield f"| {runs[0][2]['spots']:,} | {rate:.1f} | {rate / first:.3f} | {peak:.2f} | {waiting:.1%} |"


def memory(_: Model, scratch: Path) -> Iterator[str]:
    """Peak memory of a slide and of one of twice the area, with a tiny network so that it takes minutes."""
    sys.path.insert(0, str(HERE.parent))
    from conftest import make_model

    tiny = make_model(scratch / "tiny.safetensors")
    yield from ("| slide, px | spots | peak memory, GiB, with a tiny network |", "|---|---|---|")
    for width, height in ((100_000, 80_000), (141_421, 113_137)):
        path = scratch / f"slide-{width}x{height}.tif"
        if not path.exists():
            write_slide(path, (width, height), 0.25, tissue=0.5)
        _, peak, timings = run(
            ["predict", path, "-m", tiny, "--pitch", PITCH_UM, "-o", scratch / "memory", "--overwrite"]
        )
        yield f"| {width:,} x {height:,} | {timings['spots']:,} | {peak / 2**20:.2f} |"


def run(arguments: list[object]) -> tuple[float, int, dict[str, float]]:
    """Seconds, peak KiB and the result's timings of one call of the program in a process of its own."""
    call = [sys.executable, "-c", PEAK, *map(str, arguments)]
    began = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    seconds = time.perf_counter() - began
    peak = int(done.stderr.split("peak KiB")[1].split()[0])
    timings = {}
    if arguments[0] == "predict" and "--help" not in arguments:
        with h5py.File(done.stdout.strip()) as file:
            timings = json.loads(file["uns/stpredict_timings"][()])
            timings["spots"] = len(file["obsm/spatial"])
    return seconds, peak, timings


def wall(function: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
