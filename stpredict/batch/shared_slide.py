"""Help with another process's slide: that process predicts from the first shard on, the helper from the last back."""

from __future__ import annotations

from collections.abc import Callable

from stpredict.batch.slides import Warm
from stpredict.console import report
from stpredict.model.narrowing import narrow
from stpredict.prediction.job import Job
from stpredict.prediction.one_slide import open_pinned_engine
from stpredict.prediction.pipeline import predict_shards
from stpredict.prediction.preparation import prepare_slide
from stpredict.prediction.request import Request
from stpredict.prediction.shards import pinned_engine


def help_slide(job: Job, warm: Warm, request: Request, progress: Callable[[int, int], None]) -> None:
    """Predict shards of a slide that no other process has claimed, until none is left or the slide is done.

    Does nothing for networks that first look at the whole slide. Raises the same errors as predicting the slide.
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
        running, columns = narrow(model, prepared.settings["genes"])
        kept = (engine for engine in (warm.engine, warm.pinned) if engine and engine.pin == pinned)
        warm.pinned = next(kept, None) or open_pinned_engine(running, request.engine, pinned, prepared.sample, report)
        try:
            predict_shards(
                shards.claimed(backwards=True), shards, prepared.raster, prepared.spots, running, columns, warm.pinned,
                threads, progress,
            )  # fmt: skip
        except OSError:
            if shards.under_way():
                raise
