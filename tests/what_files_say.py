"""All the text in a file that the program wrote, to look for what must not be in it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import tifffile
from PIL import Image


def contents(path: Path) -> Iterator[str]:
    """All that a file says: its name, its bytes, and what is packed in those."""
    yield path.name
    content = path.read_bytes()
    yield content.decode("latin-1")
    if path.suffix == ".gz":
        yield gzip.decompress(content).decode()
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            yield repr(picture.info)
    elif path.suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                yield from (str(tag.value) for tag in page.tags.values())
    elif path.suffix == ".h5ad":
        found: list[str] = []
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.extend(texts_of(name, item)))
            yield from (str(value) for value in file.attrs.values())
        assert any('"format_version"' in text for text in found)
        yield from found


def texts_of(name: str, item: h5py.Group | h5py.Dataset) -> Iterator[str]:
    yield name
    yield from (f"{key} {value}" for key, value in item.attrs.items())
    if isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype):
        yield from map(str, np.ravel(item.asstr()[()]).tolist())
