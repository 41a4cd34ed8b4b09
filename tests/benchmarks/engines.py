"""Spots per second of each engine and precision that runs here, and the ratios to the first of them.

The engines of all models take turns; the figures are medians of the rounds. compile takes minutes to begin.
Multiplications are those of one spot, in matrix products, convolutions and attention. The name of an architecture
stands for a model of random weights, whose deviations say nothing of trained ones. TRIPLEX is timed as if each spot
were the only one of its slide: one patch, its own, is described for it.

python tests/benchmarks/engines.py [MODEL|ARCHITECTURE,...] [ROUNDS] [ENGINE-PRECISION ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1]))
from conftest import make_model

from stpredict import DEFAULT_MODEL
from stpredict.arrays import UInt8
from stpredict.engines.eager import load_network
from stpredict.engines.engine import ENGINES, SUPPORTED, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import EngineError
from stpredict.machine import processor_name, usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.networks import ARCHITECTURES, architecture_config
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import open_slide, resolve_mpp

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
EVERYTHING = [f"{engine}-{precision}" for engine in reversed(ENGINES) for precision in SUPPORTED[engine]]
SPOTS = 256
GENES = 889
SECONDS = 2.0


def read_tissue(model: Model) -> UInt8:
    """What the model looks at, of some spots of the example slide."""
    with open_slide(SLIDE) as slide:
        mpp = resolve_mpp(slide)
        _, spots, _ = choose_spots(slide, mpp, GridRequest(model.card["spot_diameter_um"], 50.0), 2)
        raster = make_raster(slide, mpp, model.card["mpp"])
        blocks = read_patches(raster, spots.centres[:SPOTS], model.card["patch_px"], views=model.views)
        return np.concatenate([np.stack(block) for _, block in blocks])


def describe_size(model: Model) -> str:
    """Parameters, and multiplications of one spot."""
    network = load_network(model)
    # Of the attentions that torch has, the counter knows this one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        network(torch.zeros((1, *model.patch_shape), dtype=torch.uint8))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return f"{parameters / 1e6:.2f} million parameters, {counter.get_total_flops() / 2e9:.2f} G multiplications a spot"


def open_model(name: str, scratch: Path) -> Model:
    """A model by name or path, or one of random weights by the name of an architecture."""
    if name not in ARCHITECTURES:
        return load_model(find_model(name))
    genes = [f"GENE{number}" for number in range(GENES)]
    config = architecture_config(name, n_genes=GENES, link="softplus")
    return load_model(make_model(scratch / f"{name}.safetensors", names=genes, config=config))


def main(names: str = DEFAULT_MODEL, rounds: str = "5", *wanted: str) -> None:
    scratch = tempfile.TemporaryDirectory()
    models = [open_model(name, Path(scratch.name)) for name in names.split(",")]
    engines = []
    for model in models:
        patches = read_tissue(model)
        for name, precision in (which.split("-") for which in wanted or EVERYTHING):
            request = EngineRequest(name, precision, threads=usable_cores())
            try:
                engines.append((model, open_engine(model, request, patches, print), patches))
            except EngineError as error:
                print(f"{name} {precision}: {error}")
    rates: list[list[float]] = [[] for _ in engines]
    for _ in range(int(rounds)):
        for (_, engine, patches), measured in zip(engines, rates, strict=True):
            measured.append(spots_per_second(engine, patches, SECONDS))
    medians = [statistics.median(measured) for measured in rates]
    print(f"{processor_name()}, {usable_cores()} cores, median of {rounds} rounds of {SECONDS:g} s")
    for model in models:
        print(f"{model.name}: {describe_size(model)}")
    print(f"{'model':24}{'engine':18}{'spots/s':>10}{'ratio':>8}{'deviation':>12}{'correlation':>13}")
    for (model, engine, _), rate in zip(engines, medians, strict=True):
        verdict = engine.verdict
        print(
            f"{model.name:24}{engine.name + ' ' + engine.precision:18}{rate:10.1f}{rate / medians[0]:8.2f}"
            f"{verdict.relative_deviation:12.1e}{verdict.correlation:13.5f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
