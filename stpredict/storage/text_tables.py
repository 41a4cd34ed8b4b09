"""Read tables that people made: CSV and its relatives from spreadsheets, R and pandas. Read them whole or refuse."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stpredict.errors import StpredictError, UsageError

#: No table is larger; a packed one may unpack to less, because it could be a trap.
MAX_BYTES, MAX_UNPACKED_BYTES = 4 << 30, 256 << 20
SEPARATORS = (",", ";", "\t", "|")
#: First bytes of files that are not text: spreadsheets and archives.
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
#: 1,234 is 1234 to some and 1.234 to others.
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One line of a table: its number in the file, and its cells by column."""

    number: int
    cells: dict[str, str]


def read_text(path: Path) -> str:
    """The text of a file, in UTF-8 or UTF-16, gzipped or not. Raises ValueError or OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(MAX_UNPACKED_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError("it is packed, and damaged") from error
        if len(content) > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it holds more than {MAX_BYTES >> 20} MB")
    if content.startswith(SPREADSHEETS):
        raise ValueError("it is a spreadsheet's own format; save it as CSV")
    start = content[:256]
    encoding = "utf-8-sig"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in start:
        encoding = "utf-16-be" if start.startswith(b"\0") else "utf-16-le"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text; spreadsheets save that as CSV UTF-8") from error
    if "\0" in text:
        raise ValueError("it is no text")
    return text


def read_lines(
    path: Path, needs: Sequence[str], header: str, failure: type[StpredictError] = UsageError,
    known: Sequence[str] = (),
) -> Iterator[Line]:  # fmt: skip
    """The lines of a table whose header line names at least the columns `needs`, in any case and order.

    Commas, semicolons, tabs, bars or blanks separate its cells. Columns are named as in `needs` and `known`. Empty
    lines are skipped. `header` tells in messages what the header line must be. Raises `failure` for a table that
    cannot be read, a column that is named twice, and a line with more cells than the header.
    """
    where = 1
    try:
        separator, text, skipped = _separator(read_text(path), needs)
        if separator is None:
            raise failure(f"{path}: {header}.")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        columns: list[str] = []
        blank: list[Line] = []
        for fields in reader:
            cells = [field.strip() for field in fields]
            where = reader.line_num + skipped
            if not columns:
                if any(cells):
                    columns = _named(cells, [*needs, *known], path, failure)
                continue
            if any(cells[len(columns) :]):
                hint = "; write numbers with a point" if separator == "," and len(cells) == 2 * len(columns) else ""
                raise failure(f"{path}, line {where}: has {len(cells)} cells, and the header {len(columns)}{hint}.")
            line = Line(where, {name: cell for name, cell in zip(columns, cells, strict=False) if name})
            if any(cells):
                yield from blank
                blank.clear()
                yield line
            elif fields:
                blank.append(line)  # at the end a spreadsheet wrote it, elsewhere it is a mistake
    except OSError as error:
        raise failure(f"{path}: cannot be read as CSV ({error.strerror or error}).") from error
    except csv.Error as error:
        raise failure(f"{path}: cannot be read as CSV (after line {where}: {error}).") from error
    except ValueError as error:
        raise failure(f"{path}: cannot be read as CSV ({error}).") from error


def _separator(text: str, needs: Sequence[str]) -> tuple[str | None, str, int]:
    """A table's separator, None if it lacks the columns; its text, and the number of lines before that."""
    skipped = 0
    if match := re.match(r"\s*\"?sep=(.)\"?\r?\n", text):  # spreadsheets write this line for themselves
        skipped, text = match[0].count("\n"), text[match.end() :]
    first = next((line for line in text.splitlines() if line.strip(' ,;|\t"')), "")
    for separator in (*SEPARATORS, " "):
        names = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
        if {name.lower() for name in needs} <= {name.strip().lower() for name in names}:
            return separator, text, skipped
    return None, text, skipped


def _named(cells: Sequence[str], known: Sequence[str], path: Path, failure: type[StpredictError]) -> list[str]:
    """The columns' names. Known names match as they are written or, if none does, in another case."""
    names = []
    for cell in cells:
        meant = next((name for name in known if name.lower() == cell.lower()), cell)
        names.append(cell if meant in cells else meant)
    for name in names:
        if name and names.count(name) > 1:
            raise failure(f"{path}: names the column {name} more than once.")
    while names and not names[-1]:
        names.pop()  # a last column without a name, whose cells must be empty, too
    return names


def read_numbers(texts: Sequence[str]) -> list[float]:
    """Numbers with a decimal point, or, throughout, a decimal comma.

    Raises ValueError, with a reason and the position of the text, for a text that is no number, or is ambiguous.
    """
    try:
        if "_" not in "".join(texts):  # Python takes it for a separator of thousands
            return [float(text) for text in texts]
    except ValueError:
        pass
    with_comma = [text for text in texts if "," in text]
    decimal = bool(with_comma) and not all(AMBIGUOUS.fullmatch(text) for text in with_comma)
    numbers = []
    for i, text in enumerate(texts):
        if decimal and DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        elif AMBIGUOUS.fullmatch(text):
            raise ValueError(f"{text!r} may be {text.replace(',', '')} or {text.replace(',', '.')}", i)
        if not NUMBER.fullmatch(text):
            thousands = re.fullmatch(r"[+-]?\d{1,3}([,.' \u00a0\u202f_]\d{3})+([.,]\d+)?", text)
            hint = ", but without separators of thousands" if thousands else ""
            raise ValueError(f"must be numbers{hint}, not {text!r}" if text else "must be numbers, and one is empty", i)
        numbers.append(float(text))
    if decimal and any("." in text for text in texts):
        first = next(i for i, text in enumerate(texts) if "." in text)
        raise ValueError(f"have points and commas as in {with_comma[0]!r} and {texts[first]!r}; write one kind", first)
    return numbers
