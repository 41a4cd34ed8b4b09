"""For each batch, ask the engine for expression, in one or all turns, and measure the quality of the patches.

A GPU computes all of it from the batch that it already holds. On a CPU, threads measure while the engine infers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from stpredict.arrays import Float32, Int, UInt8
from stpredict.engines.engine import Engine
from stpredict.model.file import Model
from stpredict.model.reference import length, reference_of
from stpredict.prediction.quality import MEASURES, measure_patches
from stpredict.prediction.ring import Ring
from stpredict.slides.symmetry import SYMMETRIES, all_turns
from stpredict.slides.views import first_views


@dataclass(frozen=True)
class Answer:
    """For one batch: expression, with coordinates after the genes; its spread over all turns; measures (B x 5)."""

    expression: Float32
    spread: Float32 | None
    measures: Float32
    n_genes: int


def arrange(answer: Answer, columns: Int, out: Float32) -> None:
    """Write the genes in `columns`, their spread if there is one, and the measures to rows of a shard, without padding.

    If patches have coordinates among the training patches, their distance from these raises their first measure.
    """
    n, width = len(out), len(columns)
    parts = (answer.expression,) if answer.spread is None else (answer.expression, answer.spread)
    for i, values in enumerate(parts):
        np.take(values[:n], columns, axis=1, out=out[:, i * width : (i + 1) * width])
    measures = out[:, len(parts) * width :]
    measures[:] = answer.measures[:n]
    if answer.expression.shape[1] > answer.n_genes:
        measures[:, 0] = np.fmax(measures[:, 0], length(answer.expression[:n, answer.n_genes :]))


def ask_on_cpu(
    engine: Engine, batches: Iterator[UInt8], ring: Ring, model: Model, tta: bool, threads: int
) -> Generator[Answer, None, None]:
    """Take batches and yield answers in their order. Batches go back to the ring once nothing reads them."""
    reference = reference_of(model)
    turns = SYMMETRIES if tta else 1
    lent: deque[UInt8] = deque()  # the batches that the engine got, in order
    measuring: deque[Future[Float32]] = deque()
    with ThreadPoolExecutor(threads) as measurer:

        def given() -> Iterator[UInt8]:
            for batch in batches:
                measuring.append(measurer.submit(measure_patches, first_views(batch), reference))
                for turned in all_turns(batch, ring.lend) if tta else (batch,):
                    lent.append(turned)
                    yield turned

        outputs = engine.infer(given())
        while each := list(islice(outputs, turns)):
            expression, spread = (np.mean(each, axis=0), np.std(each, axis=0)) if tta else (each[0], None)
            measures = measuring.popleft().result()
            for _ in each:
                ring.give_back(lent.popleft())
            yield Answer(expression, spread, measures, len(model.panel))


def ask_on_gpu(
    engine: Engine, batches: Iterator[UInt8], ring: Ring, model: Model, tta: bool, _threads: int
) -> Generator[Answer, None, None]:
    """The same on a GPU, which computes measures and turns together with the expression."""
    from stpredict.prediction.on_device import answer_beside  # imports torch

    lent: deque[UInt8] = deque()

    def given() -> Iterator[UInt8]:
        for batch in batches:
            lent.append(batch)
            yield batch

    for output in engine.infer(given(), partial(answer_beside, reference=reference_of(model), tta=tta)):
        ring.give_back(lent.popleft())
        values, measures = np.split(output, [output.shape[1] - len(MEASURES)], axis=1)
        expression, *spread = np.split(values, 2, axis=1) if tta else [values]
        yield Answer(expression, spread[0] if spread else None, measures, len(model.panel))
