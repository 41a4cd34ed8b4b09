"""What a whole transcriptome costs: predict one slide, then draw and tabulate one gene of the result.

The encoder is a tiny Vision Transformer and the head a linear one, both of random weights, so that what is measured is
what stpredict does with many genes: shards, the result, and reading one gene of it. The slide is the example slide's
tissue, laid out again and again. Each call is a process of its own; peak memory and processor time are those of it and
of the processes that it started. Needs about twice the result's size on disk.

python tests/benchmarks/transcriptome.py [--spots 80000] [--genes 20000] [--scratch FOLDER] [--engine eager]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile
import torch
from safetensors.torch import save_file

from stpredict.machine import processor_name, usable_cores
from stpredict.networks.trunks.vit import random_vit

EXAMPLE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
WIDTH, PATCH_PX, TILE_UM, TILE_PX = 64, 32, 112.0, 256
MPP = TILE_UM / PATCH_PX
#: Where tissue fills the example slide, left, top and side in pixels; its mirror images make it seamless.
TISSUE = (800, 300, 640)


@dataclass(frozen=True)
class Cost:
    """Of one call: seconds by the clock, of processors, and the peak of memory in GiB."""

    wall_s: float
    processor_s: float
    memory_gib: float


def write_slide(path: Path, side_px: int) -> None:
    """A tiled TIFF, `side_px` wide and high, all of tissue."""
    left, top, size = TISSUE
    with openslide.OpenSlide(EXAMPLE) as slide:
        corner = np.asarray(slide.read_region((left, top), 0, (size, size)).convert("RGB"))
    half = np.concatenate([corner, corner[:, ::-1]], axis=1)
    square = np.concatenate([half, half[::-1]])
    across = len(square) // TILE_PX
    encoded = [
        simplejpeg.encode_jpeg(np.ascontiguousarray(square[y : y + TILE_PX, x : x + TILE_PX]), 85, "RGB", "420")
        for y in range(0, len(square), TILE_PX)
        for x in range(0, len(square), TILE_PX)
    ]

    def tiles() -> Iterator[bytes]:
        for row in range(side_px // TILE_PX):
            for column in range(side_px // TILE_PX):
                yield encoded[row % across * across + column % across]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            tiles(), shape=(side_px, side_px, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX), compression="jpeg",
            photometric="ycbcr", subsampling=(2, 2), metadata=None, resolution=(1e4 / MPP,) * 2,
            resolutionunit="CENTIMETER",
        )  # fmt: skip


def write_model(folder: Path, n_genes: int) -> Path:
    """Bring a linear head of so many genes in."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    save_file(random_vit(WIDTH, (1,), PATCH_PX).state_dict(), folder / "encoder.safetensors")
    np.savez(folder / "head.npz", coef_=rng.normal(size=(n_genes, WIDTH)), intercept_=rng.uniform(1, 5, n_genes))
    (folder / "genes.txt").write_text("\n".join(f"GENE{i}" for i in range(n_genes)))
    model = folder / "whole.safetensors"
    call(
        "models", "import", "--encoder", folder / "encoder.safetensors", "--head", folder / "head.npz", "--genes",
        folder / "genes.txt", "--unit", "of nothing", "--mpp", MPP, "--tile-um", TILE_UM, "--encoder-mean",
        "0.5,0.5,0.5", "--encoder-std", "0.5,0.5,0.5", "-o", model,
    )  # fmt: skip
    return model


def call(*arguments: object) -> Cost:
    """What `stpredict` costs, called so. Ends the benchmark if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "stpredict", *map(str, arguments)])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"stpredict {arguments[0]} failed")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=80_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--engine", default="eager")
    asked = parser.parse_args()
    if asked.scratch:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
        folder = Path(name)
        side_px = math.ceil(math.sqrt(asked.spots) * PATCH_PX / TILE_PX) * TILE_PX
        write_slide(folder / "slide.tif", side_px)
        model = write_model(folder, asked.genes)
        pitch = side_px * MPP / math.sqrt(asked.spots)
        few = f"GENE{asked.genes // 2}"
        predict = (
            "predict", folder / "slide.tif", "-m", model, "--pitch", f"{pitch:.4f}", "--min-tissue", 0, "--engine",
            asked.engine,
        )  # fmt: skip
        result = folder / "all" / "slide.h5ad"
        costs = {
            "`predict --genes all`": call(*predict, "--genes", "all", "-o", folder / "all"),
            "`predict` of one gene": call(*predict, "--genes", few, "-o", folder / "one"),
            "`render` of one gene, a heatmap": call(
                "render", result, "--genes", few, "--style", "heatmap", "--scale", "slide", "--downsample", 8, "-o",
                folder / "drawn",
            ),
            "`summary` of one gene": call("summary", result, "--genes", few, "-o", folder / "summary.csv"),
        }  # fmt: skip
        size_gb = result.stat().st_size / 1e9
    print(f"{processor_name()}, {usable_cores()} cores; {asked.spots:,} spots, {asked.genes:,} genes, {asked.engine}")
    print(f"the result: {size_gb:.2f} GB of {asked.spots * asked.genes * 4 / 1e9:.2f} GB of numbers")
    print("| call | by the clock, s | of processors, s | peak memory, GiB |\n|---|---|---|---|")
    for what, cost in costs.items():
        print(f"| {what} | {cost.wall_s:.0f} | {cost.processor_s:.0f} | {cost.memory_gib:.2f} |")


if __name__ == "__main__":
    main()
