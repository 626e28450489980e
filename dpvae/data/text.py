"""Short texts, one per record, from TSV, CSV, Parquet, JSON lines or plain text files; with a label and a person.

Names of columns are public; what a column holds is not. Whatever can be refused is refused here, before a budget is
touched: text that is no UTF-8, a line of another length, a label outside the declared ones, a text above a cap that
refuses.

>>> read({"text": ["hi", "how are you"]}, "text").texts
('hi', 'how are you')
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.checks import did_you_mean
from dpvae.data import lake
from dpvae.data.tokens import cut
from dpvae.errors import ConfigError, DataError

TEXT = "text"
LINES = (".txt", ".text", ".log")
JSON = (".jsonl", ".ndjson")
BUILTIN = Path(__file__).parent / "texts"
NAMES = {"path": BUILTIN / "names.parquet", "text": "name", "label": "list", "rows": 94_293, "cap": 16,
         "labels": ("surname", "female", "male")}


@dataclass(frozen=True)
class Texts:
    """Records: texts, what each is about (``None``: nothing that counts), and whose it is (a number each)."""

    texts: tuple[str, ...]
    labels: tuple[str | None, ...] | None
    owners: NDArray[np.int64]  # (texts,): numbers of units, ascending
    nobodys: int = 0  # texts without the id of a unit, which take no part; private

    @property
    def units(self) -> int:
        """How many are protected: private."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0

    def fingerprint(self) -> bytes:
        """A digest of every record."""
        digest = hashlib.sha256(np.ascontiguousarray(self.owners).tobytes())
        for part in (self.texts, self.labels or ()):
            digest.update(json.dumps(part).encode())
        return digest.digest()


def header(source: Any) -> tuple[tuple[str, str], ...]:
    """Names and types of the columns, and nothing else."""
    if not isinstance(source, str | Path) or _suffix(source) in (".csv", *lake.PARQUET_ENDINGS):
        return lake.header(source)
    with _opened(source) as file:
        return tuple((name, "string") for name in _names(Path(source), file))


def read(source: Any, text: str | None, label: str | None = None, unit: str | None = None, *,
         per_unit: int = 8) -> Texts:
    """The texts of ``source``; a missing text is an empty one. Texts of a unit above ``per_unit`` are left out, and so
    are those that name no unit: taken together they would be one that anybody's text can be a part of."""
    columns = _columns(source)
    name = column_of(tuple(columns), text)
    for wanted in (label, unit):
        if wanted is not None and wanted not in columns:
            raise DataError(f"column={wanted!r}: no such column{did_you_mean(wanted, columns)}")
    texts = tuple("" if value is None else value for value in columns[name])
    labels = None if label is None else tuple(columns[label])
    if len(texts) < 2:
        raise DataError(f"texts={len(texts)}: expected at least 2")
    for value in (*texts, *(labels or ())):
        if value is not None and not _is_text(value):
            raise DataError(f"column={name!r}: holds text that is not UTF-8 (a lone surrogate); write it again as "
                            "UTF-8")
    if unit is None:
        return Texts(texts, labels, np.arange(len(texts)))
    ids = [_id(value) for value in columns[unit]]
    named = [i for i, held in enumerate(ids) if held is not None]
    if len(named) < 2:
        raise DataError(f"data.unit={unit!r}: {len(named)} texts name one; expected at least 2")
    _, numbers = np.unique(np.array([ids[i] for i in named]), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(numbers[order])) + 1]
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    taken = order[place < per_unit]
    kept = [named[i] for i in taken]
    held = None if labels is None else tuple(labels[i] for i in kept)
    return Texts(tuple(texts[i] for i in kept), held, numbers[taken], len(texts) - len(named))


def _id(value: str | None) -> str | None:
    """Whose a text is; ``None`` where nobody's."""
    return value if value is not None and value.strip() else None


def limited(texts: Texts, cap: int, overlong: str) -> Texts:
    """No text is longer than ``cap`` bytes: cut at a character, or refused."""
    longest = max(len(text.encode()) for text in texts.texts)
    if longest > cap and overlong == "refuse":
        raise DataError(f"data.cap={cap}: a text of {longest:,} bytes is longer; expected data.overlong=cut, or a "
                        "larger cap")
    return replace(texts, texts=tuple(cut(text, cap) for text in texts.texts))


def known_labels(texts: Texts, labels: tuple[str, ...], outside: str) -> Texts:
    """A label that is not among the public ``labels`` is refused, or does not count."""
    held = texts.labels or ()
    if outside == "error":
        for value in held:
            if value is not None and value not in labels:
                raise DataError(f"data.labels: a text has the label {value!r}, which is not among the declared ones; "
                                f"declare it, or data.outside=missing{did_you_mean(value, labels)}")
    return replace(texts, labels=tuple(value if value in labels else None for value in held))


def column_of(names: tuple[str, ...], text: str | None) -> str:
    """The column of texts: the one named, the one called text, or the only one."""
    if text is not None:
        if text not in names:
            raise DataError(f"data.text={text!r}: no such column; there are {', '.join(names[:8])}"
                            f"{did_you_mean(text, names)}")
        return text
    if TEXT in names:
        return TEXT
    if len(names) != 1:
        raise ConfigError(f"data.text=null: expected the name of the column of texts, one of {', '.join(names[:8])}")
    return names[0]


def _suffix(source: str | Path) -> str:
    return Path(source).suffix.lower()


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(source: Any) -> Mapping[str, list[str | None]]:
    """Columns of text by name; ``None`` where there is none."""
    if not isinstance(source, str | Path) or _suffix(source) in (".csv", *lake.PARQUET_ENDINGS):
        table = lake.read(source)
        return {name: [None if absent else str(value)
                       for value, absent in zip(cells.values, cells.missing, strict=True)]
                for name, cells in zip(table.names, table.cells, strict=True)}
    path = Path(source)
    with _opened(path) as file:
        if path.suffix.lower() in JSON:
            return _json_columns(path, file)
        names = _names(path, file)
        if names == (TEXT,) and path.suffix.lower() in LINES:
            return {TEXT: [line.rstrip("\r\n") for line in file]}
        columns: dict[str, list[str | None]] = {name: [] for name in names}
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
            if len(row) != len(names):
                raise DataError(f"data={str(path)!r}: line {number} has {len(row)} cells; expected {len(names)} as in "
                                "the header; repair that line")
            for name, value in zip(names, row, strict=True):
                columns[name].append(value or None)
        return columns


class _opened:
    """A file of UTF-8 text; what is wrong with it is told in one line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Any:
        if self.path.is_dir() or not self.path.exists():
            raise DataError(f"data={str(self.path)!r}: no such file; expected texts in .tsv, .csv, .parquet, .jsonl or "
                            ".txt")
        if self.path.suffix.lower() not in (".tsv", ".tab", *LINES, *JSON):
            raise DataError(f"data={str(self.path)!r}: expected .tsv, .csv, .parquet, .jsonl or .txt")
        csv.field_size_limit(2**31 - 1)
        self.file = self.path.open(encoding="utf-8-sig", newline="\n" if self.path.suffix.lower() != ".tsv" else "")
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.file.close()
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"data={str(self.path)!r}: not UTF-8 (near byte {error.start}); save the file as UTF-8"
                            ) from None
        if isinstance(error, csv.Error):
            raise DataError(f"data={str(self.path)!r}: cannot be read ({error}); repair the file") from None


def _names(path: Path, file: Any) -> tuple[str, ...]:
    """The columns of a file; reads its first line, unless every line is a text."""
    if path.suffix.lower() in LINES:
        return (TEXT,)
    line = file.readline()
    if path.suffix.lower() in JSON:
        return tuple(_object(path, 1, line))
    names = tuple(name.strip() for name in line.rstrip("\r\n").split("\t"))
    if not all(names) or len(set(names)) != len(names):
        raise DataError(f"data={str(path)!r}: expected a header line of distinct column names, separated by tabs")
    return names


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value:
        raise DataError(f"data={str(path)!r}: line {number} is no JSON object; expected one a line")
    return value


def _json_columns(path: Path, file: Any) -> dict[str, list[str | None]]:
    rows = [_object(path, number, line) for number, line in enumerate(file, start=1) if line.strip()]
    names = list(rows[0]) if rows else []
    return {name: [None if row.get(name) is None else str(row[name]) for row in rows] for name in names}
