"""Cells of CSV files that no spreadsheet takes for formulas."""

from __future__ import annotations

#: A spreadsheet takes a cell that begins with one of these, or its full-width form, for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def plain_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text
