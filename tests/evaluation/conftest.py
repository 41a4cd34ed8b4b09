from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_quick_model

from stpredict.model.file import Model, load_model


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Here it also has small patches, of which baselines have colour and texture in no time."""
    return make_quick_model(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path)
