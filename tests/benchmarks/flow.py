"""The flow of patches from the slide to shards, with an engine that takes no time: what a fast engine waits for.

python tests/benchmarks/flow.py SLIDE.tif

Prints spots per second of processor time, of one round, as JSON: on a machine that others use, too, the time by the
clock says nothing. The same file runs with older versions of stpredict in its path.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stpredict.engines.check import Verdict
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.machine import usable_cores
from stpredict.model.file import Model, find_model, load_model
from stpredict.prediction.pipeline import predict_shards
from stpredict.prediction.quality import MEASURES
from stpredict.prediction.shards import open_shards, pin_engine
from stpredict.slides.lattice import Spots, lattice
from stpredict.slides.raster import Raster, block_order, make_raster, read_patches
from stpredict.slides.slide import Mpp, open_slide

BATCH = 256
ROUNDS = 5
#: Pitches in patches, and spots: so many that the memory of the first batches, which is new, hardly counts.
PITCHES = {"a patch": (1.0, 3072), "half a patch": (0.5, 8192)}


def engine_at_once(model: Model, batch: int = BATCH, device: str = "cuda", seen: list[int] | None = None) -> Engine:
    """An engine that answers at once; as a GPU it answers with the measures, too. Batches' addresses go to `seen`."""

    def infer(batches: Iterator[np.ndarray], around: Any = None) -> Iterator[np.ndarray]:
        answer = np.zeros((batch, len(model.panel) + (len(MEASURES) if around else 0)), np.float32)
        for patches in batches:
            if seen is not None:
                seen.append(patches.ctypes.data)
            yield answer

    return Engine("none", "fp32", device, batch, {}, Verdict(True, True, 0, 0, 0, 0, None, 1, 0), infer)


def spots_of(raster: Raster, model: Model, pitch: float, count: int) -> tuple[Spots, np.ndarray]:
    """Spots at a pitch in patches, in a square about the slide's middle, and the order in which they are read."""
    side = model.card["patch_px"]
    found = lattice(raster.slide.bounds, Mpp(1, 1), pitch * side * raster.scale[0] * raster.downsample[0])
    away = np.abs(found.centres - found.centres.mean(axis=0)).max(axis=1)
    nearest = np.sort(np.argsort(away, kind="stable")[:count])
    some = {name: value[nearest] if isinstance(value, np.ndarray) else value for name, value in vars(found).items()}
    spots = Spots(**some)
    return spots, block_order(raster, raster.origins(spots.centres, side))


def reading_alone(raster: Raster, spots: Spots, order: np.ndarray, model: Model, threads: int) -> float:
    """Spots per second of processor time, of patches that nobody looks at or copies."""
    began = time.process_time()
    blocks = read_patches(raster, spots.centres[order], model.card["patch_px"], threads, model.views)
    count = sum(len(patches) for _, patches in blocks)
    return count / (time.process_time() - began)


def whole_flow(
    raster: Raster, spots: Spots, order: np.ndarray, model: Model, engine: Engine, threads: int, tta: bool = False
) -> tuple[float, dict[str, float]]:
    """Spots per second of processor time from the slide to shards on disk, and what was waited for."""
    columns = np.arange(len(model.panel))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"tta": 8} if tta else {}
        shards = open_shards(Path(folder) / "x.parts", order, spots.centres, len(columns), settings)
        pin_engine(shards, *engine.pin)
        began = time.process_time()
        _, waits = predict_shards(
            shards.claimed(), shards, raster, spots, model, columns, engine, threads, lambda *_: None
        )
        return len(spots) / (time.process_time() - began), waits.by_cause()


def one_round(path: Path, model: Model, threads: int) -> dict[str, float]:
    """Spots per second of processor time, each way, at each pitch; the slide is opened anew: no tile is kept."""
    engine, mpp = engine_at_once(model), model.card["mpp"]
    rates = {}
    for pitch, (patches, count) in {"": (1.0, BATCH), **PITCHES}.items():  # the first imports what is needed
        for what in ("reading alone", "flow"):
            with open_slide(path) as slide:
                raster = make_raster(slide, Mpp(mpp, mpp), mpp)  # the level as it is stored
                of = raster, *spots_of(raster, model, patches, count), model
                rates[f"{what}, {pitch}"] = (
                    whole_flow(*of, engine, threads)[0] if what == "flow" else reading_alone(*of, threads)
                )
    return {what: rate for what, rate in rates.items() if not what.endswith(", ")}


def turns_against_plain(path: Path, threads: int, count: int = 256) -> float:
    """Spots per second of the dictionary in all turns, against an eighth of those without, in processor time."""
    model = load_model(find_model("dictionary-her2st"))
    mpp = model.card["mpp"]
    with open_slide(path) as slide:
        raster = make_raster(slide, Mpp(mpp, mpp), mpp)
        spots, order = spots_of(raster, model, 1.0, count)
        sample = next(read_patches(raster, spots.centres[order], 224))[1][:64]
        engine = open_engine(model, EngineRequest(threads=threads), np.stack(sample), lambda _: None)
        plain, turned = (whole_flow(raster, spots, order, model, engine, threads, tta)[0] for tta in (False, True))
    return 8 * turned / plain


def flow(model: Model, scratch: Path) -> Iterator[str]:
    """The flow with an engine that answers at once against reading alone, and `--tta` against plain."""
    from large_slides import write_slide  # needs the shared data

    path, threads = scratch / "flow.tif", usable_cores()
    if not path.exists():
        write_slide(path, (18_432, 18_432), model.card["mpp"], levels=(1, 4))
    rounds = [one_round(path, model, threads) for _ in range(ROUNDS)]
    yield from ("| flow, processor time | ratio | aim |", "|---|---|---|")
    for name in PITCHES:
        ratio = statistics.median(each[f"flow, {name}"] / each[f"reading alone, {name}"] for each in rounds)
        yield f"| with an engine that answers at once against reading alone, pitch of {name} | {ratio:.2f} | 0.8 |"
    ratio = statistics.median(turns_against_plain(path, threads) for _ in range(ROUNDS))
    yield f"| `--tta`, dictionary, eight times its spots per second against plain | {ratio:.2f} | 0.95 |"


if __name__ == "__main__":
    print(json.dumps(one_round(Path(sys.argv[1]), load_model(find_model("m2ort-small-her2st")), usable_cores())))
