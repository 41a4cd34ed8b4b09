from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from encoders_to_try import Tiny, export
from patch_networks import PATCH_PX
from slides_without_counts import write_slides

from stpredict.networks import ARCHITECTURES
from stpredict.training import preparation


@pytest.fixture(scope="module")
def small_patches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Train cuts folders to patches of the module's PATCH_PX; dictionaries are made of a tenth of the windows."""
    request.getfixturevalue("few_windows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "PATCH_PX", getattr(request.module, "PATCH_PX", PATCH_PX))
        yield


@pytest.fixture(scope="module")
def small_dataset(coarse_dataset: Path, request: pytest.FixtureRequest) -> Path:
    """A data set that is trained on in a tenth of the time."""
    request.getfixturevalue("small_patches")
    return coarse_dataset


TINY = {"channels": 12, "depth": 2, "heads": 1, "head_dim": 12, "mixing": "per_level"}


@pytest.fixture
def tiny_architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--arch m2ort-tiny`, of the sizes TINY, the module's own if it has any."""
    monkeypatch.setitem(ARCHITECTURES, "m2ort-tiny", getattr(request.module, "TINY", TINY))


@pytest.fixture(scope="package")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("encoders") / "tiny.pt2", Tiny(), px=224)


@pytest.fixture(scope="module")
def slides(coarse_region: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slides without counts."""
    return write_slides(tmp_path_factory.mktemp("slides"), coarse_region)
