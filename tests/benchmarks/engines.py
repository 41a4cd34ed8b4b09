"""Spots per second of each engine and precision that runs here, and the ratios to the first of them.

The engines of all models take turns; the figures are medians of the rounds. compile takes minutes to begin.
Multiplications are those of one spot, in matrix products, convolutions and attention. The name of an architecture, with
options behind it or not, stands for a model of random weights, whose deviations say nothing of trained ones; `systems`
stands for all that papers compare with. A BLEEP or EGN looks spots up in a bank of 1,000; retrieval.py times larger
ones. What reads slides (TRIPLEX, HisToGene, Hist2ST, HIPT, iStar) is timed as if each spot were the only one of its
slide: one patch, or tile, is described for it.

`vit-s16` is a frozen encoder as small as DistillPath's and GigaPath-Flash's, in a file as `timm` saves it, with a
linear head. `path2space` is the head of Path2Space, for a few genes and for all, beside the matrix products that it
cannot do without. Both have random weights. Before the engines of these networks, and of every architecture, stands the
network as anyone calls it in torch.

python tests/benchmarks/engines.py [MODEL|ARCHITECTURE|systems,...] [ROUNDS] [ENGINE-PRECISION ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1]))
from conftest import make_model
from retrieval import model_with_bank

from stpredict import DEFAULT_MODEL
from stpredict.arrays import UInt8
from stpredict.engines.eager import load_network
from stpredict.engines.engine import ENGINES, SUPPORTED, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second
from stpredict.errors import EngineError
from stpredict.machine import processor_name, usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.networks import ARCHITECTURES, Config, architecture_config, has_bank
from stpredict.networks.encoder import EncoderConfig
from stpredict.networks.encoder_files import file_sha256
from stpredict.networks.ensemble_head import Ensemble, EnsembleConfig
from stpredict.networks.options import base_name
from stpredict.networks.timm_vit import ViTReading
from stpredict.networks.trunks.pixels import IMAGENET_MEAN, IMAGENET_STD
from stpredict.networks.trunks.vit import random_vit
from stpredict.slides.grid import GridRequest, choose_spots
from stpredict.slides.raster import make_raster, read_patches
from stpredict.slides.slide import open_slide, resolve_mpp

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"
EVERYTHING = [f"{engine}-{precision}" for engine in reversed(ENGINES) for precision in SUPPORTED[engine]]
SPOTS = 256
GENES = 889
BANK = 1_000
SECONDS = 2.0
SMALL_ENCODER, PATH2SPACE = "vit-s16", "path2space"
#: What papers compare with M2ORT, M2OST and TRIPLEX.
COMPARED = (
    "stnet", "resnet50", "vit-b16", "deepspace", "crossvit-small", "crossvit-base", "histogene", "hist2st", "bleep",
    "egn", "hipt", "istar",
)  # fmt: skip
SMALL_WIDTH, SMALL_DEPTH, SMALL_PX = 384, 12, 224
#: Spots that Path2Space's head reads at once, and how many genes the few are.
HEAD_SPOTS, FEW_GENES = 32, 50
PATH2SPACE_GENES, PATH2SPACE_WIDTH, PATH2SPACE_MEMBERS = 14_068, 768, 154


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
    if not is_random(name):
        return load_model(find_model(name))
    genes = [f"GENE{number}" for number in range(GENES)]
    if name != SMALL_ENCODER and has_bank(name):
        return model_with_bank(name, BANK, scratch)
    config: Config
    if name == SMALL_ENCODER:
        config = small_encoder(scratch / "encoder.safetensors")
    else:
        config = architecture_config(name, n_genes=GENES, link="softplus")
    return load_model(make_model(scratch / f"{name.replace(':', ',')}.safetensors", names=genes, config=config))


def is_random(name: str) -> bool:
    """Does a name stand for a model of random weights?"""
    return name == SMALL_ENCODER or base_name(name) in ARCHITECTURES


def small_encoder(path: Path) -> EncoderConfig:
    """The configuration of a ViT-S/16 whose weights are written, as `timm` names them."""
    save_file(random_vit(SMALL_WIDTH, (SMALL_DEPTH,), SMALL_PX).state_dict(), path)
    reading = ViTReading(SMALL_WIDTH // 64, "token", "gelu", 1e-6, "assumed")
    sha256 = file_sha256(path)
    return EncoderConfig(GENES, SMALL_WIDTH, path.name, sha256, IMAGENET_MEAN, IMAGENET_STD, SMALL_PX, vit=reading)


def plain_rate(model: Model, patches: UInt8, batch: int = 32) -> float:
    """Spots per second of the network as anyone calls it: fp32, a batch after the other, torch's own threads."""
    network, done, start = load_network(model), 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < SECONDS:
            network(torch.from_numpy(patches[done % 128 : done % 128 + batch]))
            done += batch
    return done / (time.perf_counter() - start)


def time_path2space(rounds: int) -> None:
    """Print what Path2Space's head costs beside its matrix products, for a few genes and for all."""
    print(f"{'Path2Space':24}{'ms a spot':>12}{'products alone':>16}{'ratio':>8}")
    for n_genes in (FEW_GENES, PATH2SPACE_GENES):
        whole, alone = time_head(n_genes, rounds)
        print(f"{f'{n_genes} genes':24}{whole:12.2f}{alone:16.2f}{whole / alone:8.2f}")


def time_head(n_genes: int, rounds: int) -> tuple[float, float]:
    """Milliseconds a spot of the head, and of its matrix products into memory that is there; medians of rounds."""
    torch.manual_seed(0)
    head = Ensemble(EnsembleConfig(PATH2SPACE_MEMBERS, PATH2SPACE_WIDTH), PATH2SPACE_WIDTH, n_genes).eval()
    features = torch.randn(HEAD_SPOTS, PATH2SPACE_WIDTH)
    hidden, out = torch.empty(HEAD_SPOTS, head.first.out_features), torch.empty(HEAD_SPOTS, n_genes)

    def products() -> None:
        torch.mm(features, head.first.weight.T, out=hidden)
        for member in range(PATH2SPACE_MEMBERS):
            mine = hidden[:, member * PATH2SPACE_WIDTH : (member + 1) * PATH2SPACE_WIDTH]
            torch.mm(mine, head.second_weight[member].T, out=out)

    measured: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first warms up
            for times, run in zip(measured, (lambda: head(features), products), strict=True):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3 / HEAD_SPOTS)
    whole, alone = (statistics.median(times[1:]) for times in measured)
    return whole, alone


def main(names: str = DEFAULT_MODEL, rounds: str = "5", *wanted: str) -> None:
    scratch = tempfile.TemporaryDirectory()
    if PATH2SPACE in (asked := names.split(",")):
        print(f"{processor_name()}, {usable_cores()} cores, median of {rounds} rounds")
        time_path2space(int(rounds))
        asked.remove(PATH2SPACE)
        if not asked:
            return
    asked = [one for name in asked for one in (COMPARED if name == "systems" else (name,))]
    models = [open_model(name, Path(scratch.name)) for name in asked]
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
    plain: dict[str, list[float]] = {
        model.name: [] for name, model in zip(asked, models, strict=True) if is_random(name)
    }
    timed = {model.name: (model, patches) for model, _, patches in engines}
    for _ in range(int(rounds)):
        for name in plain.keys() & timed.keys():
            plain[name].append(plain_rate(*timed[name]))
        for (_, engine, patches), measured in zip(engines, rates, strict=True):
            measured.append(spots_per_second(engine, patches, SECONDS))
    medians = [statistics.median(measured) for measured in rates]
    print(f"{processor_name()}, {usable_cores()} cores, median of {rounds} rounds of {SECONDS:g} s")
    for model in models:
        print(f"{model.name}: {describe_size(model)}")
    print(f"{'model':24}{'engine':18}{'spots/s':>10}{'ratio':>8}{'deviation':>12}{'correlation':>13}")
    for name, measured in plain.items():
        if measured:
            rate = statistics.median(measured)
            print(f"{name:24}{'torch as it is':18}{rate:10.1f}{rate / medians[0]:8.2f}")
    for (model, engine, _), rate in zip(engines, medians, strict=True):
        verdict = engine.verdict
        print(
            f"{model.name:24}{engine.name + ' ' + engine.precision:18}{rate:10.1f}{rate / medians[0]:8.2f}"
            f"{verdict.relative_deviation:12.1e}{verdict.correlation:13.5f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
