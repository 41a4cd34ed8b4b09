"""Names that reveal nothing about the slides, and the table of these names, which only its owner can read.

A name is a hash of the slide's path relative to the table's folder, so that it stays the same if both are mounted
elsewhere. The table keeps the salt. Without the table, nobody can try names of patients until a hash fits.
"""

from __future__ import annotations

import csv
import hmac
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stpredict.errors import UsageError
from stpredict.prediction.leases import take_lease
from stpredict.storage.files import atomic_path

COLUMNS = ["name", "slide"]
#: The first row holds the salt.
SALT = "salt"
SALT_BYTES = 16
#: Digits of the hash; the letters before them keep programs from reading one as a number.
DIGITS = 16
WAIT_S = 0.1


def anonymous_names(slides: Sequence[Path], table: Path, keep: bool) -> list[str]:
    """A name for each slide. `keep` makes the table or adds missing names; many calls may do so at once.

    Raises UsageError if the table cannot be read or written, or is another file.
    """
    try:
        path = table.resolve()
        rows = _read(path)
        named = [_name(slide, path.parent, rows[SALT]) for slide in slides]
        if keep and not dict(named).keys() <= rows.keys():
            with _held(path):
                rows = _read(path)  # other calls may have made it or added to it
                named = [_name(slide, path.parent, rows[SALT]) for slide in slides]
                _write(path, rows | dict(named))
    except OSError as error:
        raise UsageError(f"--anonymous {table}: cannot be read or written ({error.strerror}).") from error
    except (ValueError, KeyError, csv.Error) as error:
        raise UsageError(f"--anonymous {table}: not a table of anonymous names; name another file.") from error
    return [name for name, _ in named]


def demand_apart(table: Path, folders: Iterable[Path]) -> None:
    """Raise UsageError if the table lies in a folder of results: who receives the results must not get the names."""
    for folder in folders:
        if table.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--anonymous {table}: lies in the folder of the results ({folder}); keep it in another, or name "
                "another folder for them (-o)."
            )


def readable_by_others(table: Path) -> bool:
    return os.name != "nt" and table.exists() and bool(table.stat().st_mode & 0o077)


def _name(slide: Path, folder: Path, salt: str) -> tuple[str, str]:
    """A slide's name, and its path as the table holds it."""
    place = slide.parent.resolve() / slide.name
    try:
        text = Path(os.path.relpath(place, folder)).as_posix()
        text = text if text.startswith("../") else f"./{text}"  # so no spreadsheet takes it for a formula
    except ValueError:  # on another drive
        text = place.as_posix()
    return f"slide-{hmac.new(bytes.fromhex(salt), os.fsencode(text), 'sha256').hexdigest()[:DIGITS]}", text


def _read(path: Path) -> dict[str, str]:
    """The rows of a table, the salt first; if there is no table, the rows of a new one.

    Raises OSError, ValueError, KeyError or csv.Error.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if next(lines, None) != COLUMNS:
                raise ValueError("other columns")
            rows = dict(lines)
    except FileNotFoundError:
        return {SALT: secrets.token_hex(SALT_BYTES)}
    if len(bytes.fromhex(rows[SALT])) < SALT_BYTES:
        raise ValueError("no salt")
    return rows


def _write(path: Path, rows: dict[str, str]) -> None:
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows.items()])


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Have the sole right to change a file. Waits while another call has it."""
    while (lease := take_lease(path.with_name(f"{path.name}.lease"))) is None:
        time.sleep(WAIT_S)
    try:
        yield
    finally:
        lease.release()
