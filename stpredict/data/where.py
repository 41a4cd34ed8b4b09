"""Conditions on a data set's own columns, as in `organ=Breast and st_technology in (Visium, Visium HD)`.

A condition compares a column with a value by =, !=, <, <=, > or >=, or with several by `in`; `and`, `or`, `not` and
brackets join conditions. Put a value into quotation marks if it holds words or signs of the language. Comparison
ignores case, and compares numbers as numbers. An empty cell has the value ''.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stpredict.errors import UsageError, some

Facts = Mapping[str, object]
Test = Callable[[Facts], bool]
TOKEN = re.compile(r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<sign><=|>=|!=|==|[=<>(),])|(?P<word>[^\s"'<>=!(),]+))""")
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
WORDS = ("and", "or", "not", "in")


@dataclass(frozen=True)
class Where:
    """A condition: its text, the columns that it names, and its test of one section's facts."""

    text: str
    columns: tuple[str, ...]
    test: Test

    def chosen(self, facts: Mapping[str, Facts]) -> list[str]:
        """The sections for which it holds. Raises UsageError if no section has a column, or it holds for none."""
        there = sorted({column for own in facts.values() for column in own})
        unknown = [column for column in self.columns if column not in there]
        if unknown:
            raise UsageError(
                f"--where {self.text!r}: the data set has no column {unknown[0]}; it has {some(there, 30) or 'none'}."
            )
        found = [name for name, own in facts.items() if self.test(own)]
        if not found:
            seen = "; ".join(f"{column} is {some(_values(facts, column), 8)}" for column in self.columns)
            raise UsageError(f"--where {self.text!r}: holds for none of {len(facts)} sections, of which {seen}.")
        return found


def parse_where(text: str) -> Where:
    """The condition that a text states. Raises UsageError, which says where, if it states none."""
    return _Parser(text).parse()


def _values(facts: Mapping[str, Facts], column: str) -> list[str]:
    return sorted({_said(own.get(column)) or "''" for own in facts.values()})


def _said(value: object) -> str:
    return "" if value is None or value != value else str(value)


class _Parser:
    """A recursive descent parser; tokens are (kind, text)."""

    def __init__(self, text: str) -> None:
        self.text, self.columns, self.place = text, list[str](), 0
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = TOKEN.match(text, position)
            if match is None:
                raise self._error(text[position:].strip()[:20])
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind]))
            position = match.end()

    def parse(self) -> Where:
        test = self._either()
        if self.place < len(self.tokens):
            raise self._error(self.tokens[self.place][1])
        return Where(self.text, tuple(dict.fromkeys(self.columns)), test)

    def _either(self) -> Test:
        tests = [self._both()]
        while self._take("or"):
            tests.append(self._both())
        return lambda facts: any(test(facts) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._take("and"):
            tests.append(self._one())
        return lambda facts: all(test(facts) for test in tests)

    def _one(self) -> Test:
        if self._take("not"):
            test = self._one()
            return lambda facts: not test(facts)
        if self._take("("):
            test = self._either()
            self._demand(")")
            return test
        column = self._value("a column")
        self.columns.append(column)
        if self._take("in"):
            self._demand("(")
            values = [self._value("a value")]
            while self._take(","):
                values.append(self._value("a value"))
            self._demand(")")
            return lambda facts: any(_compare("=", facts.get(column, ""), value) for value in values)
        sign = self.tokens[self.place][1] if self.place < len(self.tokens) else ""
        if sign not in SIGNS:
            raise self._error(sign or "its end", "a comparison")
        self.place += 1
        value = self._value("a value")
        return lambda facts: _compare(sign, facts.get(column, ""), value)

    def _value(self, what: str) -> str:
        """A quoted text, or words up to a sign or a word of the language."""
        words: list[str] = []
        while self.place < len(self.tokens):
            kind, text = self.tokens[self.place]
            if kind == "quoted" and not words:
                self.place += 1
                return text[1:-1]
            if kind != "word" or text.lower() in WORDS:
                break
            words.append(text)
            self.place += 1
        if not words:
            raise self._error(self.tokens[self.place][1] if self.place < len(self.tokens) else "its end", what)
        return " ".join(words)

    def _take(self, token: str) -> bool:
        there = self.place < len(self.tokens) and self.tokens[self.place][0] != "quoted"
        taken = there and self.tokens[self.place][1].lower() == token
        self.place += taken
        return taken

    def _demand(self, token: str) -> None:
        if not self._take(token):
            raise self._error(self.tokens[self.place][1] if self.place < len(self.tokens) else "its end", token)

    def _error(self, at: str, wanted: str = "'and' or 'or'") -> UsageError:
        return UsageError(
            f"--where {self.text!r}: {wanted} was expected at {at!r}; write as in 'organ=Breast and species!=\"Mus "
            "musculus\"'."
        )


def _compare(sign: str, known: object, value: str) -> bool:
    """Compare a known value by a sign. An unknown one equals '' alone, and is neither less nor more than anything."""
    said = _said(known)
    try:
        numbers: tuple[Any, Any] = (float(said), float(value))
    except ValueError:
        numbers = (said.strip().lower(), value.strip().lower())
        if sign not in ("=", "==", "!=") and not said:
            return False
    return SIGNS[sign](*numbers)
