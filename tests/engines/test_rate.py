from __future__ import annotations

import numpy as np

from stpredict.engines.engine import EngineRequest
from stpredict.engines.opening import open_engine
from stpredict.engines.rate import spots_per_second


def test_rate_counts_spots_of_whole_batches(tiny_model, patches):
    seen = []
    engine = open_engine(tiny_model, EngineRequest("eager", batch_size=3), patches, print)
    counting = type(engine)(
        **{**engine.__dict__, "infer": lambda batches: (seen.append(b) or np.zeros((3, 8)) for b in batches)}
    )
    assert spots_per_second(counting, patches[:2], seconds=0.01) > 100
    assert {batch.shape for batch in seen} == {(3, 224, 224, 3)}
