from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="package")
def patches(region):
    """40 patches of the example slide."""
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, 2700, 40), rng.integers(0, 1900, 40), strict=True)
    return np.stack([region[y : y + 224, x : x + 224] for y, x in corners])


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A cache that no other test has written to."""
    monkeypatch.setenv("STPREDICT_CACHE", str(tmp_path))
    return tmp_path / "engines"
