"""The three patients of HER2ST whose pictures there are, as one data set in the HER2ST layout.

python tests/benchmarks/three_patients.py SHARED_FOLDER NEW_FOLDER

Patients B and C are links to `data/her2st`. Patient A, of `data/her2st-coarse`, has pictures of 2,000 pixels: spots are
moved to where its `load.py` says, what is black becomes glass, as does the overview in the corner, and spots that then
lie on glass are left out. NEW_FOLDER-counts has links to the sections of `data/her2st-counts` that are not among them,
for `train --counts-only`. The folders have no licence: they are to be used here and not to be passed on.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from PIL import Image

from stpredict.arrays import UInt8

COARSE = ("A1", "A2")
#: Of the pictures' width and height, from the right and the top: the overview.
OVERVIEW = (0.26, 0.26)
#: Pixels darker than this in all channels were never scanned.
BLACK, GLASS = 10, (236, 228, 236)


def write_three_patients(shared: Path, folder: Path) -> None:
    """Write the data set into a new folder."""
    folder.mkdir(parents=True)
    for path in sorted((shared / "data" / "her2st").iterdir()):
        (folder / path.name).symlink_to(path.resolve())
    coarse = shared / "data" / "her2st-coarse"
    loader = _load_script(coarse / "load.py")
    for name in COARSE:
        image, _, xy, counts = loader.load(name)
        pixels, unseen = as_on_glass(image)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        shutil.copyfile(coarse / f"{name}.tsv.gz", folder / f"{name}.tsv.gz")
        spots = pd.read_csv(coarse / f"{name}_selection.tsv", sep="\t").query("selected == 1")
        spots.index = spots.x.astype(str) + "x" + spots.y.astype(str)
        spots = spots.loc[counts.index].assign(pixel_x=xy[:, 0], pixel_y=xy[:, 1])
        column, row = np.clip(xy.astype(int), 0, np.array(image.shape[1::-1]) - 1).T
        spots = spots[~unseen[row, column]]
        spots.to_csv(folder / f"{name}_selection.tsv", sep="\t", index=False)


def link_other_counts(shared: Path, folder: Path) -> None:
    """Links, in a new folder, to the files of sections without images that are not of patient A's two."""
    folder.mkdir()
    for path in sorted((shared / "data" / "her2st-counts").iterdir()):
        if not path.name.startswith(tuple(f"{name}{end}" for name in COARSE for end in "._")):
            (folder / path.name).symlink_to(path.resolve())


def as_on_glass(image: UInt8) -> tuple[UInt8, np.ndarray]:
    """The picture with glass where it is black or an overview; and where that is."""
    unseen = (image < BLACK).all(axis=2)
    height, width = unseen.shape
    unseen[: round(OVERVIEW[1] * height), round((1 - OVERVIEW[0]) * width) :] = True
    pixels = image.copy()
    pixels[unseen] = GLASS
    return pixels, unseen


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("her2st_coarse", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_three_patients(arguments.shared, arguments.folder)
    link_other_counts(arguments.shared, arguments.folder.with_name(f"{arguments.folder.name}-counts"))
