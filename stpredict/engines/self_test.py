"""Does an engine give the same output for the fixed image as the model gave when it was made?"""

from __future__ import annotations

import numpy as np

from stpredict.engines.engine import Engine
from stpredict.model.file import Model
from stpredict.model.self_test import deviation, images_of, self_test_of

#: How far an engine's output may lie from the stored one, relative to the difference between tissue and glass. This
#: reveals another computation, such as a forgotten normalisation. `check` compares rounding, far more narrowly.
MAX_DEVIATION = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.1, "int8": 0.1}


def failed_self_test(engine: Engine, model: Model) -> str | None:
    """What is wrong, as the end of a sentence; None if nothing is wrong, or the model stores no output."""
    stored = self_test_of(model)
    if stored is None:
        return None
    images = images_of(model)
    n_batches = -(-len(images) // engine.batch_size)
    batches = np.split(np.resize(images, (n_batches * engine.batch_size, *images.shape[1:])), n_batches)
    found = np.concatenate(list(engine.infer(iter(batches))))[: len(images), : len(model.panel)]
    far, allowed = deviation(found, stored), MAX_DEVIATION[engine.precision]
    if far <= allowed:
        return None
    return (
        f"gives other values of a fixed image than {model.name} gave when it was made (they differ by {far:.2g} of "
        f"what tissue and glass differ by; allowed {allowed:g}): its encoder, its normalisation of patches, or torch "
        "is another"
    )
