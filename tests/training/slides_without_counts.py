"""Slides without counts for tests of `--tissue`, and options of quick training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

QUICK = ("--unlabelled", 60, "--threads", 1, "--min-depth", 1)
DENSE = ("--arch", "m2ort-tiny:pool=mean:pixels=density", "--epochs", 0, "--teach-patches", 60, "--batch-size", 16)


def write_slide(path: Path, image: np.ndarray, mpp: float | None = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path, **({"dpi": (25400 / mpp,) * 2} if mpp else {}))
    return path


def bluish(image: np.ndarray) -> np.ndarray:
    """Tissue that is told from that of the sections: half as red."""
    return (image * np.array([0.5, 1, 1])).astype(np.uint8)


def write_slides(folder: Path, image: np.ndarray) -> Path:
    """Write to a folder two slides without counts, one of them below it, and a file that is no slide."""
    write_slide(folder / "one.tif", bluish(image))
    write_slide(folder / "more" / "two.tif", bluish(image[:, ::-1]))
    (folder / "notes.pdf").write_text("no slide")
    return folder
