from __future__ import annotations

import numpy as np
import pytest
from conftest import GENES, make_model

from stpredict.model.file import REFERENCE_BIAS, REFERENCE_WEIGHT, load_model, save_model
from stpredict.networks.m2ost import VIEWS, M2OSTConfig
from stpredict.slides.views import cut_views

PATCH_PX = 64


@pytest.fixture(scope="package")
def patches(region):
    """40 patches of the example slide."""
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, 2700, 40), rng.integers(0, 1900, 40), strict=True)
    return np.stack([region[y : y + 224, x : x + 224] for y, x in corners])


@pytest.fixture(scope="package")
def small_patches(patches):
    """Their middles, for the quick model: what it takes to compile does not depend on what is computed."""
    return np.ascontiguousarray(patches[:, 96:128, 96:128])


@pytest.fixture(scope="package")
def referenced(quick_model, tmp_path_factory):
    """The quick model, which also says where a patch lies among its training patches, in 7 coordinates."""
    rng, width = np.random.default_rng(0), quick_model.tensors["head.weight"].shape[1]
    weight, bias = rng.normal(size=(7, width)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    path = tmp_path_factory.mktemp("models") / "referenced.safetensors"
    save_model(path, {**quick_model.tensors, REFERENCE_WEIGHT: weight, REFERENCE_BIAS: bias}, quick_model.card)
    return load_model(path)


@pytest.fixture(scope="package")
def stacks(region):
    """40 stacks of small views of the example slide."""
    rng = np.random.default_rng(0)
    corners = [(int(x), int(y)) for x, y in zip(rng.integers(336, 1600, 40), rng.integers(336, 2400, 40), strict=True)]
    return np.stack(cut_views(region, corners, PATCH_PX, VIEWS))


@pytest.fixture(scope="package")
def tiny_m2ost(tmp_path_factory):
    config = M2OSTConfig(
        n_genes=len(GENES), views=VIEWS, channels=12, depth=1, heads=1, head_dim=12, patch_px=PATCH_PX, link="softplus"
    )
    path = tmp_path_factory.mktemp("models") / "m2ost.safetensors"
    return load_model(make_model(path, config=config, patch_px=PATCH_PX))
