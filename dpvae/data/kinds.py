"""What kind of thing a cell looks like: one cell, one class, so that classes can be counted with noise.

>>> [classify(text) for text in ("17", "007", "3.140", "2019-06-23", "31/12/2019", "18:30", "True", "n/a")]
['integer', 'text', 'decimals 2', '%Y-%m-%d', '%d/%m/%Y', '%H:%M', 'False or True', 'text']
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from statistics import NormalDist

import numpy as np

from dpvae.data import guess
from dpvae.data.dtypes import is_text, unit_of
from dpvae.data.lake import CSV, Cells, Rows
from dpvae.data.schema import CLOCK, FULL, SPELLINGS, Column, Schema
from dpvae.errors import DataError

DECIMALS = (*(f"decimals {d}" for d in range(7)), f"decimals {FULL}")  # the last: more than six
FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M",
           "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f", "%d/%m/%Y", "%m/%d/%Y", "slashes")
CHANCE = 0.01  # that noise alone passes for cells of a class, anywhere in a survey
TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")
UNITS = ("D", "m", "s", "us")
BOOLEANS = {f"{no} or {yes}": (no, yes) for no, yes in SPELLINGS}
PLAIN = tuple(name for name, (no, _) in BOOLEANS.items() if no.lower() == "false")  # boolean whatever is declared
TEXT = ("text", "integer", *PLAIN, *DECIMALS, *FORMATS, *TIMES)
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(?:\.([0-9]*))?|[-+]?\.([0-9]+)")
_SHAPES = tuple((format, re.compile(re.sub(
    "%(.)", lambda m: {"Y": r"[0-9]{4}", "f": r"[0-9]{1,6}"}.get(m[1], r"[0-9]{2}"), re.escape(format))))
    for format in (*FORMATS[:-3], *TIMES))
_WORDS = {word: name for name, words in BOOLEANS.items() for word in words}
_SLASHES = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/[0-9]{4}")


def classify(text: str) -> str:
    """One of :data:`TEXT`; ``slashes`` is a date that may be read either way."""
    if found := _NUMBER.fullmatch(text):
        fraction = found[2] if found[2] is not None else found[3]
        if fraction is None:
            return "integer"
        return DECIMALS[min(len(fraction.rstrip("0")), 7)]
    if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+[eE][-+]?[0-9]+", text):
        return DECIMALS[-1]
    if text in _WORDS and _WORDS[text] in PLAIN:
        return _WORDS[text]
    if found := _SLASHES.fullmatch(text):
        first, second = int(found[1]), int(found[2])
        if max(first, second) > 31 or min(first, second) > 12 or not min(first, second):
            return "text"
        return "%d/%m/%Y" if first > 12 else "%m/%d/%Y" if second > 12 else "slashes"
    for format, shape in _SHAPES:
        if shape.fullmatch(text):
            return format if _is_date(text, format) else "text"
    return "text"


def _is_date(text: str, format: str) -> bool:
    try:
        datetime.strptime(text, format)
    except ValueError:
        return False
    return True


def asks(column: Column) -> bool:
    """Whether the kinds step has something to measure here."""
    return bool({"kind", "decimals", "unit", "format", "spelling"} & set(column.open))


def classes(column: Column) -> tuple[str, ...]:
    """The cells of the column's histogram: a function of its type and declared kind alone."""
    if column.kind == "boolean":
        return tuple(BOOLEANS)
    if is_text(column.dtype):
        return TEXT
    return {"datetime": UNITS, "time": UNITS[1:]}.get(column.kind or "", DECIMALS)


def count(column: Column, cells: Cells) -> np.ndarray:
    """How many present cells are of each of :func:`classes`."""
    names = classes(column)
    values = cells.values[~cells.missing]
    if is_text(column.dtype):
        texts = Counter(values.tolist())
        counts = Counter[str]()
        for text, times in texts.items():
            counts[_WORDS.get(text, "") if column.kind == "boolean" else classify(text)] += times
        return np.array([counts[name] for name in names], dtype=np.int64)
    if column.kind not in CLOCK:
        return np.bincount(_decimals_index(values, cells.dtype), minlength=len(names))
    coarser = len(UNITS) - len(names)  # of a time of day, the grain is a minute at most
    return np.bincount(np.maximum(_unit_index(values, cells.dtype) - coarser, 0), minlength=len(names))


def _decimals_index(values: np.ndarray, dtype: str) -> np.ndarray:
    """Position in :data:`DECIMALS` of the fewest decimals that write each number exactly."""
    kind = {"float": np.float32, "halffloat": np.float16}.get(dtype, np.float64)
    index = np.full(len(values), len(DECIMALS) - 1)
    values = np.where(np.isfinite(values), values, 0.0)
    with np.errstate(over="ignore"):  # a number too large to be rounded is written exactly by none
        for decimals in range(6, -1, -1):
            index[np.round(values, decimals).astype(kind) == values.astype(kind)] = decimals
    return index


def _unit_index(values: np.ndarray, dtype: str) -> np.ndarray:
    from dpvae.data.cells import ticks_per_second

    ticks = int(max(ticks_per_second(dtype), 1))
    index = np.full(len(values), 3)
    for position, seconds in ((2, 1), (1, 60), (0, 86400)):
        index[values % (ticks * seconds) == 0] = position
    return index


def decide(column: Column, noisy: Mapping[str, float], sd: float, counts: int = 1, *, rows: float
           ) -> dict[str, object]:
    """The answers that the noisy class counts give, of about ``rows`` cells.

    A count below three sd is taken for none, and so is one that the noise of all ``counts`` released together would
    reach once in a hundred surveys: in 200 columns of 28 classes some noise passes three sd. Where that leaves none,
    the likeliest class is taken, and a bare guess says so.
    """
    least = max(3.0, NormalDist().inv_cdf(1 - CHANCE / counts)) * sd
    seen = {name: float(c) if c > least else 0.0 for name, c in noisy.items()}
    if any(seen.values()):
        return _answers(column, seen)
    likely, bare = guess.kind(column, noisy, sd, rows)
    if column.kind == "boolean":
        return _answers(column, seen | ({likely: 1.0} if likely else {})) | (
            {"guessed": ("spelling",)} if bare or likely is None else {})
    if likely is None:
        return _answers(column, seen)
    return _answers(column, seen | {likely: 1.0}) | ({"guessed": ("kind",)} if bare else {})


def _answers(column: Column, seen: dict[str, float]) -> dict[str, object]:
    total = sum(seen.values())
    if column.kind == "boolean":
        return {"spelling": _spelling(seen)}
    if not is_text(column.dtype):
        if column.kind in CLOCK:
            return {"unit": _finest(seen, classes(column), total)}
        return {"decimals": int(_finest(seen, DECIMALS, total).split()[1])}
    kind = column.kind or _kind(column, seen, total)
    answers: dict[str, object] = {"kind": kind}
    if kind == "continuous" and column.decimals is None:
        answers["decimals"] = int(_finest(seen, DECIMALS, total).split()[1])
    if kind == "boolean":
        answers["spelling"] = _spelling(seen)
    if kind == "time" and column.format is None:
        format = max(TIMES, key=lambda name: seen[name])
        answers |= {"format": format, "unit": unit_of(format)}
    if kind == "datetime" and column.format is None:
        seen["%d/%m/%Y" if seen["%d/%m/%Y"] >= seen["%m/%d/%Y"] else "%m/%d/%Y"] += seen["slashes"]
        format = max(FORMATS[:-1], key=lambda name: seen[name])
        answers |= {"format": format, "unit": unit_of(format)}
    return answers


def _kind(column: Column, seen: Mapping[str, float], total: float) -> str:
    most = 0.9 * total
    if total and sum(seen[name] for name in FORMATS) >= most:
        return "datetime"
    if total and sum(seen[name] for name in TIMES) >= most:
        return "time"
    if total and column.dtype == CSV:  # digits in a text column of a typed file are codes, as zip codes are
        decimals = sum(seen[name] for name in DECIMALS)
        if seen["integer"] + decimals >= most:
            return "continuous" if decimals else "integer"
        if sum(seen[name] for name in PLAIN) >= most:
            return "boolean"
    return "categorical"


def _spelling(seen: Mapping[str, float]) -> tuple[str, str]:
    return BOOLEANS[max((name for name in BOOLEANS if name in seen), key=lambda name: seen[name])]


def _finest(seen: Mapping[str, float], names: tuple[str, ...], total: float) -> str:
    """The coarsest grain that all but half a percent of the cells keep to."""
    for position, name in enumerate(names):
        if sum(seen[finer] for finer in names[position + 1:]) <= 0.005 * total:
            return name
    return names[-1]


def refuse_free_text(table: Rows, schema: Schema) -> None:
    """Raise where an undeclared text column holds mostly distinct texts: no category could ever be published."""
    for j, (column, (_, dtype)) in enumerate(zip(schema.columns, table.header, strict=True)):
        if not is_text(dtype) or column.kind not in (None, "categorical", "ordinal") or column.categories:
            continue
        distinct: set[str] = set()
        texts = 0
        for cells in table.pieces(j):
            distinct.update(present := cells.values[~cells.missing].tolist())
            texts += len(present)
        if len(distinct) <= 100 or len(distinct) <= 0.2 * texts:
            continue
        plain = [text for text in distinct if classify(text) == "text"]
        long = bool(plain) and sum(map(len, plain)) > 50 * len(plain)
        if len(plain) > (0.2 if long else 0.5) * texts:
            raise DataError(f"column={column.name!r}: looks like free text ({len(plain)} distinct texts in "
                            f"{texts} cells); drop it, or declare its kind and categories in a schema; "
                            "data.columns= names the columns to keep")
