"""Lists of genes as people keep them: a name per line, many on a line, or a column of a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?(_PAR_Y)?")
#: Headers of a column of genes, without case, blanks, points and dashes. Symbols come before ids.
SYMBOL_HEADERS = {
    "gene", "genes", "symbol", "symbols", "genename", "genenames", "genesymbol", "genesymbols", "hgncsymbol",
    "hugosymbol", "hugogenesymbol", "approvedsymbol", "externalgenename", "featurename", "name", "names",
    "geneshortname",
}  # fmt: skip
ID_HEADERS = {"geneid", "geneids", "ensembl", "ensemblid", "ensemblids", "ensemblgeneid", "featureid", "id"}
#: Blanks that separate names. A blank before an id in brackets does not: the id tells two genes with one symbol apart.
BLANKS = re.compile(r"\s+(?!\(ENS)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?|nan|na|-?inf", re.IGNORECASE)
#: Months, in some languages, that spreadsheets find in genes' names, and the genes: old names and present ones.
MONTHS = {
    3: (r"mar|march|mär|märz|mrz|mars|marzo|mrt|março", ("MARCH", "MARCHF", "MARC", "MTARC")),
    9: (r"sep|sept|september|set|septembre|settembre|setembro", ("SEPT", "SEPTIN")),
    10: (r"oct|okt|october|oktober|octobre|out|ott", ("OCT",)),
    12: (r"dec|dez|december|dezember|déc|décembre|dic", ("DEC", "DELEC")),
}
#: Separators of a date's day from its month.
PARTED = re.compile(r"[\s./-]")
#: Genes that were renamed because spreadsheets took them for dates.
RENAMED = {"MARCH": "MARCHF", "SEPT": "SEPTIN", "MARC": "MTARC", "DEC": "DELEC"}


def parse_gene_list(text: str) -> list[str]:
    """The names in a text, in its order.

    If a first line names the columns, the first column of genes is taken. Without such a line, the text is a table if
    its further columns hold numbers, descriptions, or repeated words; then its first column is taken. Else every cell
    is a gene. Lines that begin with # are comments. Raises ValueError for quotes that do not end.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    marks = (re.search(r"[\t;,|]", line) for line in lines)
    separator = next((mark[0] for mark in marks if mark), None)
    try:
        table = [_cells(line, separator) for line in lines] if separator else _in_words(lines)
    except csv.Error as error:
        raise ValueError("a quotation mark in it has no other") from error
    if not table:
        return []
    column = _headed(table[0]) if len(table) > 1 else None
    if column is not None:
        return [row[column] for row in table[1:] if len(row) > column and row[column]]
    if len(table) > 1 and len(table[0]) > 1 and not table[0][0]:  # row names have no header
        numbered = all(row[0].isdecimal() for row in table[1:])
        return [row[numbered] for row in table[1:] if len(row) > 1 and row[numbered]]
    if _plain(table[0][0]) in SYMBOL_HEADERS | ID_HEADERS:
        table[0] = table[0][1:]
    if len(table) > 1 and _is_table(table):
        return [row[0] for row in table if row[0]]
    cells = [cell for row in table for cell in row if cell and not (len(row) > 1 and NUMBER.fullmatch(cell))]
    return [name for cell in cells for name in BLANKS.split(cell)]


def _in_words(lines: Sequence[str]) -> list[list[str]]:
    """Each line as one cell, or as words if all lines have equally many, as in a table."""
    words = [[word.strip("\"'") for word in BLANKS.split(line.strip())] for line in lines]
    if len(words) > 1 and len({len(row) for row in words}) == 1:
        return words
    return [[line.strip().strip("\"'")] for line in lines]


def _cells(line: str, separator: str) -> list[str]:
    (row,) = csv.reader([line.strip(" ")], delimiter=separator, skipinitialspace=True, strict=True)
    return [cell.strip().strip("'") for cell in row]


def _plain(cell: str) -> str:
    return re.sub(r"[\s._-]", "", cell).lower()


def _headed(header: Sequence[str]) -> int | None:
    """The column of symbols, or else of ids, if the line names columns."""
    names = [_plain(name) for name in header]
    for known in (SYMBOL_HEADERS, ID_HEADERS):
        for i, name in enumerate(names):
            if name in known:
                return i
    return None


def _is_table(table: Sequence[Sequence[str]]) -> bool:
    """Whether lines without a header hold one gene each, and something else about it."""
    if len({len(row) for row in table}) > 1 or len(table[0]) < 2 or not all(row[0] for row in table):
        return False
    if all(NUMBER.fullmatch(row[0]) for row in table):
        return False
    others = [cell for row in table for cell in row[1:] if cell and not NUMBER.fullmatch(cell)]
    if not others or len(set(others)) < len(others) or any(" " in cell for cell in others):
        return True
    ids = [ENSEMBL.fullmatch(cell) is not None for row in table for cell in row]
    return any(ids) and not all(ids)


def genes_of_a_date(name: str) -> list[str]:
    """The genes that a spreadsheet may have turned into this date, as 1-Mar or 2001-09-02; none if it is no date."""
    text = name.strip().lower()
    if not (text[:1].isdecimal() or PARTED.search(text)):  # a quick exit for most names
        return []
    if match := re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})(?:[ t]00:00:00)?", text):
        return _dated(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(\d{1,2})(?:[/-](\d{1,2})(?:[/-]\d{2,4})?|\.(\d{1,2})\.(?:\d{2,4})?)", text):
        one, other = int(match[1]), int(match[2] or match[3])
        return _dated(one, other) + _dated(other, one)
    for month, (words, _) in MONTHS.items():
        day_first = rf"(\d{{1,2}})[\s.\-/]*(?:{words})\.?(?:[\s.\-/]+\d{{2,4}})?"
        month_first = rf"(?:{words})[\s.\-/]+(\d{{1,2}})(?:[\s,.\-/]+\d{{2,4}})?"
        if match := re.fullmatch(f"{day_first}|{month_first}", text):
            return _dated(month, int(match[1] or match[2]))
    return []


def _dated(month: int, day: int) -> list[str]:
    return [f"{stem}{day}" for stem in MONTHS[month][1]] if month in MONTHS and 0 < day < 32 else []


def names_of_today(name: str) -> list[str]:
    """Present names of a gene that spreadsheets take for a date, as MARCHF1 for MARCH1."""
    match = re.fullmatch(r"([A-Za-z]+)(\d{1,2})", name)
    return [f"{RENAMED[match[1].upper()]}{int(match[2])}"] if match and match[1].upper() in RENAMED else []
