"""A whole slide of 100,000 x 80,000 px by several models, and as the papers' code works, in one run.

    python tests/benchmarks/whole_slide.py --scratch FOLDER [MODEL...]

Prints a table. The slide, 0.25 um per pixel and half of it tissue, is written on the first call (5 GB) and kept. The
papers' way is timed on some spots, and its time for all of them is computed. Needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import openslide
import torch
from large_slides import write_slide
from PIL import Image
from speed import processor, run

from stpredict import DEFAULT_MODEL
from stpredict.engines.eager import load_network
from stpredict.machine import usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SIZE, MPP, TISSUE = (100_000, 80_000), 0.25, 0.5
QUICK, PAPERS = "m2ort-quick-her2st", "m2ort-small-her2st"
PAPERS_SPOTS = 200
GIB = 2**20  # of KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for large files")
    parser.add_argument("--pitch", type=float, default=100.0, help="distance between spots, um")
    parser.add_argument("models", nargs="*", default=list(dict.fromkeys([QUICK, DEFAULT_MODEL, PAPERS])))
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    slide = arguments.scratch / f"slide-{SIZE[0]}x{SIZE[1]}.tif"
    if not slide.exists():
        write_slide(slide, SIZE, MPP, tissue=TISSUE)
    print(f"{processor()}, {usable_cores()} cores; {SIZE[0]:,} x {SIZE[1]:,} px at {MPP:g} um per pixel\n")
    print("| way | patch | spots | seconds, all | reading and inference | spots/s, all | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    spots = 0
    for name in arguments.models:
        card = load_model(find_model(name)).card
        out = arguments.scratch / "whole-slide"
        # Twice: the first call may compile the network, as only a machine's first does.
        for _ in range(2):
            shutil.rmtree(out, ignore_errors=True)
            call = ["predict", slide, "-m", name, "--pitch", arguments.pitch, "-o", out, "--overwrite"]
            seconds, peak, timings = run(call)
        spots = int(timings["spots"])
        print(
            f"| `predict -m {name}` | {card['patch_px']} px of {card['mpp']:g} um | {spots:,} | {seconds:.1f} | "
            f"{timings['reading_and_inference']:.1f} | {spots / seconds:.0f} | {peak / GIB:.2f} |",
            flush=True,
        )
    model = load_model(find_model(PAPERS))
    rate = papers_way(model, slide, arguments.pitch, PAPERS_SPOTS)
    print(f"| the papers' way, {PAPERS} | {model.card['patch_px']} px of {model.card['mpp']:g} um | {spots:,} | "
          f"{spots / rate:.0f}, computed | | {rate:.1f} | |")  # fmt: skip


def papers_way(model: Model, path: Path, pitch_um: float, count: int) -> float:
    """Spots per second with a region per spot, three resizes, and one spot at a time through the eager network."""
    network, side = load_network(model).eval(), model.card["patch_px"]
    width = round(side * model.card["mpp"] / MPP)
    torch.set_num_threads(usable_cores())
    with openslide.OpenSlide(path) as slide, torch.inference_mode():
        middle = np.array(slide.dimensions) / 2
        found = lattice(Bounds(0, 0, *slide.dimensions), Mpp(MPP, MPP), pitch_um).centres
        found = found[np.argsort(np.abs(found - middle).max(axis=1), kind="stable")[:count]]
        began = time.perf_counter()
        for x, y in (found - width / 2).astype(int).tolist():
            image = slide.read_region((x, y), 0, (width, width)).convert("RGB")
            levels = (image.resize((side // k, side // k), Image.Resampling.BILINEAR) for k in (1, 2, 4))
            network.forward_levels(*(torch.from_numpy(np.array(one)).permute(2, 0, 1)[None].float() for one in levels))
        return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
