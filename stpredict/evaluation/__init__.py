"""How well expression is predicted."""

from __future__ import annotations

#: Spots of fewer counts are left out of scores, unless told otherwise: they are mostly noise.
MIN_DEPTH = 500
