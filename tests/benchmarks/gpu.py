"""What a GPU does with stpredict: every engine checked and timed, the feed, whole slides. The most telling first.

python tests/benchmarks/gpu.py --out FOLDER [--sections env,ceilings,correct,resident,feed,slide] [--device cuda]

Each fact is a line of JSON, also in FOLDER/facts.jsonl as soon as it is known, so that a run that is cut short still
tells what it had. It takes about ten minutes on a large GPU, and needs nothing but the repository. With `--device cpu
--quick` it goes through all that needs no GPU in under a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import large_slides
import numpy as np
import openslide
import torch
from flow import engine_at_once, reading_alone, spots_of, whole_flow
from PIL import Image

from stpredict.engines.eager import load_network
from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.engines.running import with_precision
from stpredict.machine import usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.networks import ARCHITECTURES, architecture_config
from stpredict.slides.lattice import lattice
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"
SMALL, DICTIONARY = "m2ort-small-her2st", "dictionary-her2st"
#: GFLOP per spot, multiplications and additions, the last block for the class token alone.
GFLOP = {SMALL: 2.553, "m2ort-base": 5.729, "m2ort-large": 18.359}
#: Model, engine and precisions. Compiling comes last: it takes minutes.
PLAN = (
    (SMALL, "eager", "fp32 bf16 fp16"), (DICTIONARY, "eager", "fp32"), (SMALL, "tensorrt", "bf16 fp16"),
    ("m2ort-base", "eager", "bf16"), ("m2ort-large", "eager", "bf16"), ("m2ost", "eager", "bf16"),
    (SMALL, "compile", "bf16"),
)  # fmt: skip
PITCH_UM = 56.0


@dataclass(frozen=True)
class Kit:
    """Where the facts go, and what they are of."""

    out: Path
    device: str
    quick: bool
    began: float

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def tell(self, section: str, **facts: object) -> None:
        line = json.dumps({"at": round(time.perf_counter() - self.began, 1), "section": section, **facts})
        print(line, flush=True)
        with (self.out / "facts.jsonl").open("a") as file:
            file.write(f"{line}\n")

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], object], least: int = 5) -> float:
        """Median seconds of single runs, the device waited for, over about half a second after two to warm up."""
        for _ in range(2):
            function()
        self.wait()
        times: list[float] = []
        until = time.perf_counter() + (0.05 if self.quick else 0.5)
        while len(times) < least or (time.perf_counter() < until and len(times) < 400):
            started = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def env(kit: Kit) -> None:
    """The machine and what is installed."""
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit",
        "--format=csv,noheader",
    ]
    try:
        kit.tell("env", nvidia_smi=subprocess.run(query, capture_output=True, text=True).stdout.strip())
    except FileNotFoundError:
        kit.tell("env", nvidia_smi=None)
    kit.tell(
        "env", torch=torch.__version__, cuda=torch.version.cuda, python=sys.version.split()[0], cores=usable_cores(),
        gpus=torch.cuda.device_count(), capability=torch.cuda.get_device_capability(kit.device) if kit.cuda else None,
    )  # fmt: skip


def ceilings(kit: Kit) -> None:
    """Matrix products, memory, and the upload of a batch: what nothing built on them can exceed."""
    n = 512 if kit.quick else 8192
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if kit.cuda else (torch.float32,):
        a, b = (torch.randn(n, n, device=kit.device, dtype=dtype) for _ in "ab")
        took = kit.seconds(partial(torch.matmul, a, b))
        kit.tell("ceilings", product=str(dtype), n=n, tflops=round(2 * n**3 / took / 1e12, 2))
    x = torch.empty(2**24 if kit.quick else 2**30, dtype=torch.uint8, device=kit.device)
    y = torch.empty_like(x)
    kit.tell("ceilings", copy_gb_per_s=round(2 * x.numel() / kit.seconds(lambda: y.copy_(x)) / 1e9, 1))
    batch = torch.randint(0, 256, (32 if kit.quick else 256, 224, 224, 3), dtype=torch.uint8)
    kit.tell("ceilings", batch_mb=batch.numel() / 1e6, host_copy_ms=round(1e3 * kit.seconds(batch.clone), 2))
    if kit.cuda:
        there, pinned = batch.to(kit.device), batch.pin_memory()
        for name, source in (("pinned", pinned), ("pageable", batch)):
            took = kit.seconds(partial(there.copy_, source, non_blocking=True))
            kit.tell("ceilings", upload=name, ms=round(1e3 * took, 2))


def named_model(kit: Kit, name: str) -> Model:
    """An installed model, or one of an architecture with random weights."""
    if name not in ARCHITECTURES:
        return load_model(find_model(name))
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_model

    config = architecture_config(name, n_genes=889, link="softplus")
    names = [f"GENE{i}" for i in range(889)]
    return load_model(make_model(kit.out / f"{name}.safetensors", names=names, config=config))


def tissue(model: Model, count: int) -> np.ndarray:
    """Patches of the example slide."""
    with open_slide(EXAMPLE) as slide:
        mpp = slide.native_mpp or Mpp(0.5, 0.5)
        centres = lattice(slide.bounds, mpp, 100.0).centres[:count]
        blocks = read_patches(make_raster(slide, mpp, model.card["mpp"]), centres, 224, views=model.views)
        return np.stack([patch for _, block in blocks for patch in block])


def correct(kit: Kit) -> None:
    """Every engine against fp32 eager on real tissue, and its rate with the upload."""
    plan = ((SMALL, "eager", "fp32"), (DICTIONARY, "eager", "fp32")) if kit.quick else PLAN
    for name, engine, precisions in plan:
        model = named_model(kit, name)
        patches = tissue(model, 8 if kit.quick else 256)
        for precision in precisions.split():
            asked = EngineRequest(engine, precision, kit.device, 4 if kit.quick else 0, usable_cores())
            what = {"model": name, "engine": engine, "precision": precision}
            try:
                started = time.perf_counter()
                opened = open_engine(model, asked, patches, lambda line: print("  ", line, flush=True))
                took = time.perf_counter() - started
                rates = [
                    spots_per_second(opened, patches, 0.2 if kit.quick else 1.5) for _ in range(1 if kit.quick else 3)
                ]
                verdict = {key: value for key, value in opened.verdict.as_dict().items() if key != "patches"}
                kit.tell(
                    "correct", **what, batch=opened.batch_size, open_s=round(took, 1),
                    spots_per_s=round(statistics.median(rates)), spread=round(max(rates) / min(rates), 2), **verdict,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 (the others are still of interest)
                kit.tell("correct", **what, failed=f"{type(error).__name__}: {str(error)[:600]}")


def resident(kit: Kit) -> None:
    """What the device does with a batch that lies there: in each way to run the network, time to launch and to run."""
    for name in (SMALL,) if kit.quick else GFLOP:
        model = named_model(kit, name)
        device = torch.device(kit.device)
        auto = with_precision(load_network(model).to(device), "bf16", device)
        cast = with_precision(load_network(model).cast(torch.bfloat16).to(device), "fp32", device)
        for size in (1,) if kit.quick else (256, 1024):
            patches = torch.randint(0, 256, (size, 224, 224, 3), dtype=torch.uint8, device=device)
            ways: dict[str, Callable[[], object]]
            ways = {"autocast bf16": partial(auto, patches), "cast bf16": partial(cast, patches)}
            if kit.cuda:
                ways["CUDA graph of cast bf16"] = captured(kit, cast, patches)
            for way, run in ways.items():
                took = kit.seconds(run, 3)
                started = time.perf_counter()
                run()
                launch = time.perf_counter() - started
                kit.wait()
                kit.tell(
                    "resident", model=name, way=way, batch=size, spots_per_s=round(size / took),
                    tflops=round(size * GFLOP[name] / took / 1e3, 2), launch_ms=round(1e3 * launch, 2),
                    run_ms=round(1e3 * took, 2),
                )  # fmt: skip


def captured(kit: Kit, run: Callable[[torch.Tensor], torch.Tensor], patches: torch.Tensor) -> Callable[[], object]:
    """The replay of a CUDA graph; whether it gives the bits that it was captured of is told."""
    expected, graph = run(patches), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(patches)
    graph.replay()
    kit.wait()
    kit.tell("resident", batch=len(patches), graph_equals_eager=torch.equal(output, expected))
    return graph.replay


def slide_to_read(kit: Kit, across: int, mpp: float) -> Path:
    """A slide, all tissue, with room for so many spots along each side: the example's tissue again and again."""
    if kit.quick:
        return EXAMPLE
    if not large_slides.SECTION.exists():
        with openslide.OpenSlide(EXAMPLE) as slide:
            image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        image = np.concatenate([image, image[:, ::-1]], axis=1)
        image = np.tile(np.concatenate([image, image[::-1]]), (2, 2, 1))
        large_slides.SECTION = kit.out / "section.png"
        Image.fromarray(image[:4608, :4608]).save(large_slides.SECTION)
    side = round(across * PITCH_UM / mpp)
    path = kit.out / f"slide-{side}-{mpp:g}.tif"
    if not path.exists():
        large_slides.write_slide(path, (side, side), mpp)
    return path


def feed(kit: Kit) -> None:
    """What the host delivers: reading alone, and the whole flow with an engine that answers at once."""
    model = named_model(kit, SMALL)
    mpp = model.card["mpp"]
    path, count = slide_to_read(kit, 150, mpp), 256 if kit.quick else 16_384
    for threads in sorted({1, usable_cores()}):
        with open_slide(path) as slide:
            raster = make_raster(slide, Mpp(mpp, mpp), mpp)
            spots, order = spots_of(raster, model, 0.36, count)  # the pitch of 56 um in patches
            of = raster, spots, order, model
            engine = engine_at_once(model, 64 if kit.quick else 256)
            for what, run in (
                ("reading alone", partial(reading_alone, *of, threads)),
                ("whole flow", partial(whole_flow, *of, engine, threads)),
            ):
                started = time.perf_counter()
                found = run()
                rate = round(count / (time.perf_counter() - started))
                waits = found[1] if isinstance(found, tuple) else None
                kit.tell("feed", what=what, threads=threads, spots=count, spots_per_s=rate, waits=waits)


def slide(kit: Kit) -> None:
    """The command line, from file to result."""
    jobs = [(SMALL, 0.5), (SMALL, 0.25), (DICTIONARY, 0.5)]
    pitch = 300.0 if kit.quick else PITCH_UM
    for name, mpp in jobs[-1:] if kit.quick else jobs:
        path, out = slide_to_read(kit, 160, mpp), kit.out / f"result-{name}-{mpp:g}"
        arguments = ["predict", path, "-m", name, "--pitch", pitch, "-o", out, "--overwrite", "--device", kit.device]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "stpredict", *map(str, arguments), "--engine", "eager"],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        wall = time.perf_counter() - started
        if done.returncode:
            kit.tell("slide", model=name, mpp=mpp, failed=done.stderr[-500:])
            continue
        with h5py.File(done.stdout.strip()) as file:
            timings, spots = json.loads(file["uns/stpredict_timings"][()]), len(file["obsm/spatial"])
        rate = round(spots / max(timings["reading_and_inference"], 1e-3))
        kit.tell(
            "slide", model=name, mpp=mpp, spots=spots, wall_s=round(wall, 1), flow_spots_per_s=rate, timings=timings
        )


SECTIONS = {each.__name__: each for each in (env, ceilings, correct, feed, slide, resident)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the facts, and for large files")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    kit = Kit(arguments.out.resolve(), arguments.device, arguments.quick, time.perf_counter())
    kit.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(usable_cores())
    failed = False
    for name in arguments.sections.split(","):
        started = time.perf_counter()
        try:
            SECTIONS[name](kit)
        except Exception as error:  # noqa: BLE001 (the other sections are still of interest)
            failed = True
            traceback.print_exc()
            kit.tell(name, failed=f"{type(error).__name__}: {error}"[:500])
        kit.tell("done", of=name, seconds=round(time.perf_counter() - started, 1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
