"""Spots per second of each engine and precision that runs here, and the ratios to eager in fp32.

The engines take turns; the figures are medians of the rounds. compile takes minutes to begin.

python tests/benchmarks/engines.py [MODEL] [ROUNDS] [ENGINE-PRECISION ...]
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np

from stpredict import DEFAULT_MODEL
from stpredict.engines import ENGINES, SUPPORTED, EngineRequest, open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import EngineError
from stpredict.machine import usable_cores
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import open_slide, resolve_mpp
from stpredict.weights import find_model, load_model

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
EVERYTHING = [f"{engine}-{precision}" for engine in reversed(ENGINES) for precision in SUPPORTED[engine]]
SPOTS = 256
SECONDS = 2.0


def main(model_name: str = DEFAULT_MODEL, rounds: str = "5", *wanted: str) -> None:
    model = load_model(find_model(model_name))
    with open_slide(SLIDE) as slide:
        mpp = resolve_mpp(slide)
        _, spots, _ = choose_spots(slide, mpp, GridRequest(model.card["spot_diameter_um"], 50.0), 2)
        raster = make_raster(slide, mpp, model.card["mpp"])
        blocks = [block for _, block in read_patches(raster, spots.centres, model.card["patch_px"])]
    patches = np.concatenate(blocks)[:SPOTS]
    engines = []
    for name, precision in (which.split("-") for which in wanted or EVERYTHING):
        try:
            engines.append(open_engine(model, EngineRequest(name, precision, threads=usable_cores()), patches, print))
        except EngineError as error:
            print(f"{name} {precision}: {error}")
    rates: list[list[float]] = [[] for _ in engines]
    for _ in range(int(rounds)):
        for engine, measured in zip(engines, rates, strict=True):
            measured.append(spots_per_second(engine, patches, SECONDS))
    medians = [statistics.median(measured) for measured in rates]
    print(f"{model.name}, {usable_cores()} cores, median of {rounds} rounds of {SECONDS:g} s")
    print(f"{'engine':18}{'spots/s':>10}{'ratio':>8}{'deviation':>12}{'correlation':>13}")
    for engine, rate in zip(engines, medians, strict=True):
        verdict = engine.verdict
        print(
            f"{engine.name + ' ' + engine.precision:18}{rate:10.1f}{rate / medians[0]:8.2f}"
            f"{verdict.relative_deviation:12.1e}{verdict.correlation:13.5f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
