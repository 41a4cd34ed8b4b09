"""What the readers of measured data share: finding files, reading tables, joining them by spot."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stpredict.errors import DatasetError, first_line
from stpredict.slides.slide import PLAIN_IMAGES

IMAGES = PLAIN_IMAGES | {".bif", ".btf", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"}

#: No table of spots holds more; what is packed so that it does is a trap.
MAX_TABLE_BYTES = 4 << 30


def files_of(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, but those that are hidden or that macOS leaves in archives."""
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV or TSV table, gzipped or not. Raises DatasetError if it cannot be read."""
    try:
        if path.suffix == ".gz":
            _refuse_bomb(path)
        return pd.read_csv(path, **options)
    except (OSError, EOFError, ValueError, LookupError, OverflowError, csv.Error, zlib.error) as error:
        raise DatasetError(f"{path.name}: cannot be read as a table ({first_line(error)}).") from error


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError for a gzipped file that holds more than a table does."""
    n_bytes = 0
    with gzip.open(path) as file:
        while n_bytes <= MAX_TABLE_BYTES and (block := file.read(1 << 20)):
            n_bytes += len(block)
    if n_bytes > MAX_TABLE_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_TABLE_BYTES >> 20} MB")


def joined(spots: Sequence[str], others: Sequence[str], file: str, other_file: str) -> tuple[list[int], list[int]]:
    """Positions in both of the spots that both have, in the order of `spots`.

    Raises DatasetError if one of them names a spot twice, or they have none in common.
    """
    for names, name in ((spots, file), (others, other_file)):
        spot, times = Counter(names).most_common(1)[0] if names else ("", 0)
        if times > 1:
            raise DatasetError(f"{name}: names spot {spot} more than once.")
    position = {spot: i for i, spot in enumerate(others)}
    left = [i for i, spot in enumerate(spots) if spot in position]
    if not left:
        raise DatasetError(f"{file}: no spot in common with {other_file}.")
    return left, [position[spots[i]] for i in left]
