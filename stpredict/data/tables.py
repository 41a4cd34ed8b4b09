"""Shared by the readers of measured data: find files, read tables, join them by spot."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stpredict.arrays import Bool
from stpredict.errors import DatasetError, first_line
from stpredict.slides.slide import PLAIN_IMAGES

IMAGES = PLAIN_IMAGES | {".bif", ".btf", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"}

#: Words of tables for a spot on tissue, or off it, in small letters. An empty cell does not say, and counts as on.
TRUE = {"true", "t", "yes", "y", "in", "tissue", "in tissue", "in_tissue", "", "nan", "none", "na", "<na>"}
FALSE = {"false", "f", "no", "n", "out", "off", "background", "off tissue", "off_tissue", "not in tissue"}
#: No table of spots holds more bytes. If a packed one does, it is a trap.
MAX_TABLE_BYTES = 4 << 30


def files_of(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, except hidden ones and those that macOS leaves in archives."""
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())


def read_table(path: Path, *, named_lines: bool = False, **options: Any) -> pd.DataFrame:
    """A CSV or TSV table, gzipped or not.

    Raises DatasetError if it cannot be read, names a column twice, or has lines with more cells than the header. pandas
    would take the first cells of such lines for names, and shift the others; `named_lines` allows that.
    """
    try:
        if path.suffix == ".gz":
            refuse_bomb(path)
        table = pd.read_csv(path, **options)
        if not (named_lines or "index_col" in options or isinstance(table.index, pd.RangeIndex)):
            raise ValueError("its lines have more cells than its header")
        if not ("index_col" in options or "header" in options):
            names = pd.read_csv(path, **{**options, "header": None, "nrows": 1, "dtype": str}).iloc[0].dropna()
            if names.duplicated().any():
                raise ValueError(f"it names the column {names[names.duplicated()].iloc[0]} more than once")
        return table
    except (OSError, EOFError, ValueError, LookupError, OverflowError, csv.Error, zlib.error) as error:
        raise DatasetError(f"{path.name}: cannot be read as a table ({first_line(error)}).") from error


def refuse_bomb(path: Path) -> int:
    """How many bytes a gzipped file holds. Raises ValueError if it holds more than any table does."""
    n_bytes = 0
    with gzip.open(path) as file:
        while n_bytes <= MAX_TABLE_BYTES and (block := file.read(1 << 20)):
            n_bytes += len(block)
    if n_bytes > MAX_TABLE_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_TABLE_BYTES >> 20} MB")
    return n_bytes


def on_tissue(values: pd.Series, file: str) -> Bool:
    """Which spots lie on tissue, from truth values, numbers or words; a spot with an empty cell does.

    Raises DatasetError for another word, and if no spot lies on tissue.
    """
    if values.dtype.kind in "biuf":
        inside = ~(values.to_numpy() == 0)
    else:
        words = {value: _truth(value, file) for value in values.unique().tolist()}
        inside = np.array([words[value] for value in values.tolist()], np.bool_)
    if len(values) and not inside.any():
        raise DatasetError(f"{file}: no spot is in tissue, by its column in_tissue.")
    return np.asarray(inside, dtype=np.bool_)


def _truth(value: object, file: str) -> bool:
    word = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    word = word.strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    try:
        return float(word) != 0
    except ValueError as error:
        raise DatasetError(f"{file}: in_tissue holds {word[:40]!r}, which is neither yes nor no.") from error


def joined(spots: Sequence[str], others: Sequence[str], file: str, other_file: str) -> tuple[list[int], list[int]]:
    """Positions, in both, of the spots that both have, in the order of `spots`.

    Raises DatasetError if either names a spot twice, or they have none in common.
    """
    for names, name in ((spots, file), (others, other_file)):
        spot, times = Counter(names).most_common(1)[0] if names else ("", 0)
        if times > 1:
            raise DatasetError(f"{name}: names spot {spot} more than once.")
    position = {spot: i for i, spot in enumerate(others)}
    left = [i for i, spot in enumerate(spots) if spot in position]
    if not left:
        named = f" ({spots[0]} and {others[0]} are their first)" if spots and others else ""
        raise DatasetError(f"{file}: no spot in common with {other_file}{named}.")
    return left, [position[spots[i]] for i in left]
