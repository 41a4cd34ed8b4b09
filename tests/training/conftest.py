from __future__ import annotations

from pathlib import Path

import pytest
from encoders_to_try import Tiny, export


@pytest.fixture(scope="package")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("encoders") / "tiny.pt2", Tiny(), px=224)
