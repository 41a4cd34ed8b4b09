"""Find out what kind of measured data a path holds."""

from __future__ import annotations

from pathlib import Path

from stpredict.data.her2st import is_her2st, read_her2st
from stpredict.data.section import Section
from stpredict.errors import DatasetError


def read_dataset(path: Path) -> list[Section]:
    """The sections of a data set's folder. Raises DatasetError if its layout is not known."""
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder.")
    if path.is_dir() and is_her2st(path):
        return read_her2st(path)
    raise DatasetError(f"{path}: not a data set in a known layout (HER2ST: NAME.jpg, NAME.tsv.gz, NAME_selection.tsv).")
