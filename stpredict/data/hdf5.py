"""Open HDF5 files from strangers safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from stpredict.errors import DatasetError
from stpredict.storage.stored_text import check_all_heaps

#: Errors that reading a damaged file may raise; SystemError if h5py cannot decode a name.
HDF5_ERRORS = (
    OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError, ArithmeticError,
    MemoryError, SystemError,
)  # fmt: skip
#: A data set larger than this and than this many times its file was never stored, only claimed.
CLAIM_BYTES, CLAIM_RATIO = 1 << 30, 5000


@contextmanager
def opened_hdf5(path: Path, *, check_heaps: bool = True) -> Iterator[h5py.File]:
    """An HDF5 file that holds all its data itself.

    It refuses links to other files, sizes that are only claimed, and heaps of text that the library would follow for
    ever. To find these it reads the whole file. Without `check_heaps`, for large files, only `read_text` may read text.
    Raises DatasetError for what is refused, and for any error while the file is read.
    """

    wrong: list[str] = []  # the library would lose an error that a visitor raises

    def check_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            wrong.append(f"{name} is a link to another file")

    def check_data(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                wrong.append(f"{name} is stored in another file")
            if item.nbytes > max(CLAIM_BYTES, CLAIM_RATIO * path.stat().st_size):
                wrong.append(f"{name} claims more data than the file can hold")

    try:
        if check_heaps:
            check_all_heaps(path)
        with h5py.File(path) as file:
            file.visititems_links(check_link)
            file.visititems(check_data)
            if wrong:
                raise ValueError(wrong[0])
            yield file
    except HDF5_ERRORS as error:
        raise DatasetError(f"{path.name}: cannot be read, or is damaged ({error}).") from error
