"""Predict spatial gene expression from H&E whole-slide images."""

from __future__ import annotations

__version__ = "0.1.0"
DEFAULT_MODEL = "dictionary-her2st"
UNKNOWN_LICENCE = "not stated"
