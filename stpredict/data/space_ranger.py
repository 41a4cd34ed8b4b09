"""Files that Space Ranger writes beside matrices: tables of spots, scale factors."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from stpredict.data.tables import on_tissue
from stpredict.errors import DatasetError, first_line
from stpredict.storage.text_tables import read_text

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_positions(path: Path) -> pd.DataFrame:
    """The table of spots, in any of its three forms, packed or not; in_tissue is true or false.

    Raises DatasetError if there is none, or it cannot be read.
    """
    if not path.exists():
        raise DatasetError(f"{path.parent}: holds no tissue_positions (.parquet, .csv or _list.csv).")
    try:
        table = pd.read_parquet(path, columns=COLUMNS) if path.suffix == ".parquet" else _read_text_table(path)
        inside = on_tissue(table["in_tissue"], path.name)
        table = table.astype(dict.fromkeys(COLUMNS[2:], float)).astype({"barcode": str}).assign(in_tissue=inside)
    except ImportError as error:
        raise DatasetError(f"{path}: reading it needs pyarrow, of stpredict's extra [train].") from error
    except DatasetError:
        raise
    except Exception as error:  # pyarrow's own kinds among them
        raise DatasetError(f"{path}: cannot be read as a table of spots ({first_line(error)}).") from error
    if not np.isfinite(table[COLUMNS[2:]].to_numpy()).all():
        raise DatasetError(f"{path}: positions must be finite numbers.")
    return table


def _read_text_table(path: Path) -> pd.DataFrame:
    """COLUMNS of a table. From Space Ranger 2 on it has a header, and columns in any order. Raises ValueError."""
    text = read_text(path)
    start = text[: text.find("\n") + 1]
    separator = max((",", "\t", ";"), key=start.count)
    table = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False)
    names = [str(name).strip() for name in table.iloc[0]]
    if "barcode" not in names:
        if table.shape[1] != len(COLUMNS):
            raise ValueError(f"it has {table.shape[1]} columns and no header, and {len(COLUMNS)} are needed")
        return table.set_axis(COLUMNS, axis=1)
    wrong = next((name for name in COLUMNS if names.count(name) != 1), None)
    if wrong:
        raise ValueError(f"its header names the column {wrong} {names.count(wrong)} times")
    return table.iloc[1:].set_axis(names, axis=1)[COLUMNS]


def read_scale(path: Path) -> dict[str, float]:
    """The scale factors that are positive numbers; none if there is no file."""
    if not path.exists():
        return {}
    try:
        scale = json.loads(read_text(path))
        numbers = {key: float(value) for key, value in scale.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}).") from error
    return {key: value for key, value in numbers.items() if 0 < value < math.inf}
