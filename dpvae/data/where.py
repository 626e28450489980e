"""Which rows of a table take part: a condition on one row at a time, in the part of SQL that every engine agrees on.

    age >= 18 and city in ('north', 'south') and (pay is not null or "net, pay" between 1 and 2.5)

A row takes part where the condition is true; a missing cell makes every comparison untrue, so that ``!=`` does not find
it either. There is no ``not (...)`` and no arithmetic: what an engine is told can then only be wider than what is meant
(:mod:`dpvae.data.lake.select` looks at every row again). Pure text; nothing here opens a table.

Whether a row takes part follows from that row and from this public text alone, so adding or removing a person still
moves no other row: the condition is part of what the guarantee is *about*, and stands on the certificate.

>>> str(parse("age>=18 AND (city = 'it''s' or pay IS NULL)"))
"age >= 18 and (city = 'it''s' or pay is null)"
>>> parse("age >= 18").bound((("age", "int32"),)).values
(18,)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from dpvae.checks import did_you_mean
from dpvae.data.dtypes import TICKS, int_range, is_text
from dpvae.errors import ConfigError, DataError

COMPARED: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
WORDS = ("and", "or", "in", "not", "is", "null", "between", "true", "false")
TOKEN = re.compile(r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")|(?P<number>-?(?:\d+\.?\d*|\.\d+)
                       (?:[eE][+-]?\d+)?)|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,))""", re.VERBOSE)
Value = bool | int | float | str


@dataclass(frozen=True)
class Check:
    """One column against values: a comparison, ``in``, ``not in``, ``is null`` or ``is not null``."""

    column: str
    op: str
    values: tuple[Value, ...] = ()

    def __str__(self) -> str:
        name = self.column if re.fullmatch(r"[^\W\d]\w*", self.column) and self.column.lower() not in WORDS else (
            '"' + self.column.replace('"', '""') + '"')
        said = ", ".join(map(_spelled, self.values))
        return f"{name} {self.op}" + (f" ({said})" if self.op.endswith("in") else f" {said}" if said else "")

    @property
    def columns(self) -> tuple[str, ...]:
        """The one it looks at."""
        return (self.column,)

    def bound(self, header: Sequence[tuple[str, str]]) -> Check:
        """With values as cells of the column's type have them; :class:`DataError` where they cannot be."""
        names = [name for name, _ in header]
        if self.column not in names:
            raise DataError(f"data.where: column={self.column!r}: not in the table{did_you_mean(self.column, names)}; "
                            "text values are written in single quotes")
        dtype = dict(header)[self.column]
        if len({isinstance(value, str) for value in self.values}) > 1:
            raise DataError(f"data.where: column={self.column!r}: expected numbers or texts, not both, in {self}")
        return replace(self, values=tuple(_as_cell(self.column, dtype, value) for value in self.values))

    def holds(self, column: Callable[[str], tuple[Any, Any]]) -> Any:
        """Where it is true, (rows,); ``column`` gives a column's values and which of them are missing. Bound first."""
        values, missing = column(self.column)
        if self.op.startswith("is"):
            return missing if self.op == "is null" else ~missing
        if self.values and isinstance(self.values[0], (int, float)) and values.dtype == object:
            values = np.array([_number(text) for text in values], dtype=np.float64)  # a CSV file's numbers
            missing = missing | np.isnan(values)
        if self.op.endswith("in"):
            found = np.logical_or.reduce([np.equal(values, value) for value in self.values])
            return (found if self.op == "in" else ~found).astype(bool) & ~missing
        return COMPARED[self.op](values, self.values[0]).astype(bool) & ~missing


@dataclass(frozen=True)
class Joined:
    """Conditions of which all (``and``), or at least one (``or``), are to hold."""

    word: str
    parts: tuple[Where, ...]

    def __str__(self) -> str:
        return f" {self.word} ".join(f"({part})" if isinstance(part, Joined) else str(part) for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are looked at, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    def bound(self, header: Sequence[tuple[str, str]]) -> Joined:
        """See :meth:`Check.bound`."""
        return replace(self, parts=tuple(part.bound(header) for part in self.parts))

    def holds(self, column: Callable[[str], tuple[Any, Any]]) -> Any:
        """See :meth:`Check.holds`."""
        join = np.logical_and if self.word == "and" else np.logical_or
        return join.reduce([part.holds(column) for part in self.parts])


Where = Check | Joined


def parse(text: str) -> Where:
    """The condition; :class:`ConfigError` says where it cannot be read, and what was expected there."""
    reader = _Reader(text)
    found = reader.joined("or")
    if reader.at < len(reader.tokens):
        raise reader.expected("and, or, or the end")
    return found


def _spelled(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


class _Reader:
    """Tokens from left to right: (kind, text) each."""

    def __init__(self, text: str) -> None:
        self.text, self.at, position = text, 0, 0
        self.tokens: list[tuple[str, str]] = []
        while position < len(text.rstrip()):
            match = TOKEN.match(text, position)
            if match is None:
                raise ConfigError(f"data.where={text!r}: cannot be read from {text[position:].strip()[:20]!r} on; "
                                  "expected such as age >= 18 and city in ('north', 'south')")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind].lower() if kind == "word" and match[kind].lower() in WORDS
                                else match[kind]))
            position = match.end()

    def expected(self, what: str) -> ConfigError:
        """The error at this place."""
        found = repr(self.tokens[self.at][1]) if self.at < len(self.tokens) else "the end"
        return ConfigError(f"data.where={self.text!r}: expected {what}, found {found}; such as age >= 18 and "
                           "city in ('north', 'south')")

    def next(self, *texts: str) -> str | None:
        """The next token where it is one of these words or signs."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] in ("word", "sign"):
            found = self.tokens[self.at][1]
            if found in texts:
                self.at += 1
                return found
        return None

    def need(self, *texts: str) -> str:
        found = self.next(*texts)
        if found is None:
            raise self.expected(" or ".join(texts))
        return found

    def joined(self, word: str) -> Where:
        """Parts with ``or`` between them, each of parts with ``and`` between them."""
        inner: Callable[[], Where] = self.one if word == "and" else lambda: self.joined("and")
        parts = [inner()]
        while self.next(word):
            parts.append(inner())
        flat = [each for part in parts
                for each in (part.parts if isinstance(part, Joined) and part.word == word else (part,))]
        return flat[0] if len(flat) == 1 else Joined(word, tuple(flat))

    def one(self) -> Where:
        """A condition in parentheses, or a test of a column."""
        if self.next("("):
            found = self.joined("or")
            self.need(")")
            return found
        column = self.column()
        if self.next("is"):
            op = "is not null" if self.next("not") else "is null"
            self.need("null")
            return Check(column, op)
        if self.next("between"):
            low = self.value()
            self.need("and")
            return Joined("and", (Check(column, ">=", (low,)), Check(column, "<=", (self.value(),))))
        op = "not in" if self.next("not") else "in" if self.next("in") else ""
        if op:
            if op == "not in":
                self.need("in")
            self.need("(")
            values = [self.value()]
            while self.next(","):
                values.append(self.value())
            self.need(")")
            return Check(column, op, tuple(values))
        sign = self.need("=", "==", "!=", "<>", "<", "<=", ">", ">=", "in", "is", "between")
        return Check(column, {"==": "=", "<>": "!="}.get(sign, sign), (self.value(),))

    def column(self) -> str:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "quoted" or (kind == "word" and text not in WORDS):
            self.at += 1
            return text[1:-1].replace('""', '"') if kind == "quoted" else text
        raise self.expected("a column")

    def value(self) -> Value:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "text" or kind == "number" or text in ("true", "false"):
            self.at += 1
            if kind == "text":
                return text[1:-1].replace("''", "'")
            if kind == "word":
                return text == "true"
            number = int(text) if re.fullmatch(r"-?\d+", text) else float(text)
            if abs(number) < 1e300:
                return number
        raise self.expected("a number, a text in single quotes, true or false")


# ---- a value meets the type of its column -----------------------------------------------------------------------


def _as_cell(name: str, dtype: str, value: Value) -> Value:
    kind = dtype.removeprefix("dictionary<values=").split(",")[0] if dtype.startswith("dictionary") else dtype
    wrong = DataError(f"data.where: column={name!r} is {dtype}, which {_spelled(value)} cannot be; expected "
                      + _wanted(kind))
    if kind == "bool" or isinstance(value, bool):
        if (kind == "bool") != isinstance(value, bool):
            raise wrong
        return value
    if is_text(kind):
        if not isinstance(value, str) and kind != "csv":
            raise wrong
        return value.strip() if isinstance(value, str) and kind == "csv" else value
    if kind.startswith(("date", "time")):
        return _ticks(kind, value, wrong)
    if isinstance(value, str):
        raise wrong
    if kind.startswith(("int", "uint")):
        low, high = int_range(kind)
        if value != int(value) or not low <= value <= high:
            raise wrong
        return int(value)
    return float(np.float32(value)) if kind == "float" else float(value)


def _wanted(kind: str) -> str:
    if kind.startswith(("int", "uint")):
        return "a whole number of that type"
    if kind.startswith(("time32", "time64")):
        return "'23:59' or '23:59:59', no finer than the column"
    if kind.startswith(("date", "timestamp")):
        return "'2020-12-31'" + (" or '2020-12-31 23:59:59', no finer than the column" if kind[0] == "t" else "")
    return "true or false" if kind == "bool" else "a text in single quotes" if is_text(kind) else "a number"


def _ticks(kind: str, value: Value, wrong: DataError) -> int:
    """A date or a time as the column counts it; without a zone it is UTC."""
    try:
        if kind.startswith("date"):
            return (date.fromisoformat(str(value)) - date(1970, 1, 1)).days
        of_day = not kind.startswith("timestamp")
        when = datetime.fromisoformat(f"1970-01-01T{value}" if of_day else str(value))
    except ValueError:
        raise wrong from None
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    micros = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
    ticks, rest = divmod(micros * TICKS[kind.partition("[")[2].partition(",")[0].rstrip("]")], 10**6)
    if rest:
        raise wrong
    return ticks


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
