"""Help with a slide that another process is at: it goes on from the first shard, who helps from the last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stpredict.batch.slides import Warm
from stpredict.console import report
from stpredict.data.panel import match_genes
from stpredict.prediction.job import Job
from stpredict.prediction.one_slide import open_pinned_engine
from stpredict.prediction.pipeline import predict_shards
from stpredict.prediction.preparation import prepare_slide
from stpredict.prediction.request import Request
from stpredict.prediction.shards import pinned_engine


def help_slide(job: Job, warm: Warm, request: Request, progress: Callable[[int, int], None]) -> None:
    """Predict shards of a slide that nobody is at, until none is left or the slide is done.

    Nothing is done for networks that first look at all of a slide. Raises what predicting the slide may raise.
    """
    model, threads = warm.model, request.engine.threads
    if model.reads_slide:
        return
    prepared = prepare_slide(job, model, request, helping=True)
    if isinstance(prepared, str):
        return
    with prepared.held:
        shards = prepared.shards
        if (pinned := pinned_engine(shards)) is None:
            return
        kept = (engine for engine in (warm.engine, warm.pinned) if engine and engine.pin == pinned)
        warm.pinned = next(kept, None) or open_pinned_engine(model, request.engine, pinned, prepared.sample, report)
        columns = np.array(match_genes(prepared.settings["genes"], model.panel))
        try:
            predict_shards(
                shards.claimed(backwards=True), shards, prepared.raster, prepared.spots, model, columns, warm.pinned,
                threads, progress,
            )  # fmt: skip
        except OSError:
            if shards.under_way():
                raise
