"""Defaults of `train` and `compare`, in a file that help can read without waiting for torch."""

from __future__ import annotations

EPOCHS = 8
BATCH_SIZE = 16
LEARNING_RATE = 1e-4
STAIN_JITTER = 0.1
OBJECTIVE = "residuals"
#: How many unlabelled patches are cut, and how many a network sees in all.
UNLABELLED, TEACH_PATCHES = 5000, 6_000
#: Defaults that a paper's protocol replaces.
FOLDS, PANEL_RULE = "patient", "variance"
