from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_house_is_drawn_from_the_layers_that_hold():
    specification = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
    assert specification
    assert specification.loader
    house = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(house)
    assert (ROOT / "docs" / "house.md").read_text() == house.page()  # else: python docs/house.py


def test_each_room_says_who_lives_there():
    for room in (path for path in (ROOT / "stpredict").iterdir() if (path / "__init__.py").exists()):
        assert (room / "__init__.py").read_text().startswith('"""'), room
