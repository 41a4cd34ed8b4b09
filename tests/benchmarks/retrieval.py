"""What looking spots up in a bank costs: processor time per spot with a bank of 100,000 spots against one of 1,000.

Banks and weights are random. Engines take turns; the figures are medians of the rounds. Processor time is that of all
threads of this process, so that other processes on the machine count little.

python tests/benchmarks/retrieval.py [ARCHITECTURE,...] [ROUNDS] [ENGINE-PRECISION ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from conftest import make_model

from stpredict.arrays import UInt8
from stpredict.engines.engine import Engine, EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.errors import EngineError
from stpredict.machine import processor_name, usable_cores
from stpredict.model.file import Model, load_model, save_model
from stpredict.networks import architecture_config

GENES = 250
FEW, MANY = 1_000, 100_000
BATCHES = 2


def model_with_bank(architecture: str, n_spots: int, folder: Path) -> Model:
    """A model of random weights with a bank of random spots."""
    rng = np.random.default_rng(0)
    genes = [f"GENE{number}" for number in range(GENES)]
    config = architecture_config(architecture, n_genes=GENES, bank=n_spots)
    path = folder / f"{architecture.partition(':')[0]}-{n_spots}.safetensors"
    model = load_model(make_model(path, names=genes, config=config))
    tensors = dict(model.tensors)
    for name, tensor in model.tensors.items():
        if name.endswith("bank.keys"):
            keys = rng.normal(size=tensor.shape)
            if architecture.startswith("bleep"):
                keys /= np.linalg.norm(keys, axis=1, keepdims=True)
            tensors[name] = keys.astype(np.float16)
        elif name.endswith("bank.expression"):
            tensors[name] = rng.uniform(0, 8, tensor.shape).astype(np.float16)
    save_model(path, tensors, model.card)
    return load_model(path)


def seconds_per_spot(engine: Engine, patches: UInt8) -> float:
    """Processor time, in seconds, of one spot among some batches."""
    batches = [patches[: engine.batch_size]] * BATCHES
    started = time.process_time()
    for _ in engine.infer(batches):
        pass
    return (time.process_time() - started) / (BATCHES * engine.batch_size)


def main(names: str = "bleep,egn", rounds: str = "5", *wanted: str) -> None:
    patches = np.random.default_rng(1).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
    print(f"{processor_name()}, {usable_cores()} cores, median of {rounds} rounds, processor time per spot")
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in names.split(","):
            few, many = (model_with_bank(architecture, n_spots, Path(scratch)) for n_spots in (FEW, MANY))
            for name, precision in (which.split("-") for which in wanted or ("eager-fp32", "openvino-fp32")):
                request = EngineRequest(name, precision, threads=1, batch_size=16)
                try:
                    engines = [open_engine(model, request, patches, print, keep=False) for model in (few, many)]
                except EngineError as error:
                    print(f"{architecture} {name} {precision}: {error}")
                    continue
                for engine in engines:
                    seconds_per_spot(engine, patches)
                measured = [[seconds_per_spot(engine, patches) for engine in engines] for _ in range(int(rounds))]
                short, long = (statistics.median(column) for column in zip(*measured, strict=True))
                told = (f"{n:>8,} spots {1e3 * seconds:7.1f} ms" for n, seconds in ((FEW, short), (MANY, long)))
                print(f"{architecture:8}{name + ' ' + precision:16}{', '.join(told)}: {long / short - 1:+.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
