"""How well expression is predicted: a model or a result on measured sections, always beside its baselines.

It may import `prediction` and what lies below it; not `rendering`, `training` or `batch`.
"""

from __future__ import annotations

#: Scores leave out spots with fewer counts by default, as these are mostly noise.
MIN_DEPTH = 500
