"""Features of all spots by a frozen encoder: made section by section by any number of processes, and kept on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from stpredict.arrays import Float, Int
from stpredict.data.tiles import Tiles
from stpredict.storage.files import atomic_path
from stpredict.training.processes import agree_on, is_main_process, wait_for_all, world_and_rank

#: The suffix of the folder of what is made, until all is.
PARTS = ".parts"
#: Features beyond the range of half precision are kept in single precision.
LARGEST_HALF = float(np.finfo(np.float16).max)


def encode_spots(tiles: Tiles, describe: Callable[[Int], Float], cache: Path) -> Float:
    """The features that `describe` gives of all spots, spots x features, in half precision, mapped from a file `cache`.

    Processes that train together share the sections. Those that are done lie in a folder beside the file until all are,
    so that a killed run goes on with the next.
    """
    if not agree_on(int(cache.exists())):
        folder = cache.with_suffix(PARTS)
        folder.mkdir(exist_ok=True)
        names = sorted(set(tiles.section.tolist()))
        parts = {folder / f"section-{number}.npy": np.flatnonzero(tiles.section == name)
                 for number, name in enumerate(names)}  # fmt: skip
        world, rank = world_and_rank()
        for path in list(parts)[rank::world]:
            if not path.exists():
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, describe(parts[path]).astype(np.float32))
        wait_for_all()
        if is_main_process():
            join(parts, len(tiles.section), cache)
            shutil.rmtree(folder)
        wait_for_all()
    mapped: Float = np.load(cache, mmap_mode="r")
    return mapped


def join(parts: dict[Path, Int], n_spots: int, cache: Path) -> None:
    """Write the features in files, of the rows that each is of, to one file, whole or not at all."""
    read = {path: np.load(path, mmap_mode="r") for path in parts}
    largest = max(float(abs(values).max(initial=0)) for values in read.values())
    width = next(iter(read.values())).shape[1]
    with atomic_path(cache) as temporary:
        joined = open_memmap(temporary, "w+", np.float16 if largest < LARGEST_HALF else np.float32, (n_spots, width))
        for path, rows in parts.items():
            joined[rows] = read[path]
        joined.flush()
