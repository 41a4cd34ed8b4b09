"""Small networks of each trunk, for patches of 64 px, which are quick to train and to compile."""

from __future__ import annotations

from typing import Any

PATCH_PX = 64
TINY: dict[str, dict[str, Any]] = {
    "stnet": {"network": "patch", "trunk": "densenet", "width": 4, "depths": (1, 2, 1)},
    "resnet50": {"network": "patch", "trunk": "resnet", "width": 4, "depths": (1, 2)},
    "vit-b16": {"network": "patch", "trunk": "vit", "width": 32, "depths": (2,)},
    "deepspace": {"network": "patch", "trunk": "vgg", "width": 2, "depths": (1, 2)},
    "crossvit": {"network": "patch", "trunk": "crossvit", "width": 32, "depths": (1, 2, 1, 1)},
}
