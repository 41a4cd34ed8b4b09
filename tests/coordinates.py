"""Where patches lie among a model's training patches, as an engine says it behind the genes."""

from __future__ import annotations

import numpy as np
import torch

from stpredict.arrays import Float, UInt8
from stpredict.engines.eager import load_network, run_reference
from stpredict.model.file import REFERENCE_BIAS, REFERENCE_WEIGHT, Model


def assert_coordinates(found: Float, referenced: Model, plain: Model, patches: UInt8) -> None:
    """`found` is what an engine makes of patches with a model that is `plain` but for its reference."""
    weight, bias = (referenced.tensors[name] for name in (REFERENCE_WEIGHT, REFERENCE_BIAS))
    read = load_network(plain).features(torch.from_numpy(patches)).detach().numpy()
    n_genes = len(plain.panel)
    np.testing.assert_allclose(found[:, n_genes:], read @ weight.T + bias, atol=1e-3)
    np.testing.assert_allclose(found[:, :n_genes], run_reference(plain, patches), atol=1e-3)
