"""How a table is named: one form of text for every place that a table can be read from or written to.

    iceberg:[catalog.]namespace.table[@snapshot|branch|tag]      delta:PATH[@version]      duckdb:FILE[?table=NAME]
    sqlite:FILE[?table=NAME]      postgresql://USER@HOST/DATABASE[?table=NAME]      anything else: a file or a folder

Pure text: nothing here opens anything, or imports a library that could.

>>> scheme_of("iceberg:demo.census"), scheme_of("people.csv"), scheme_of("C:\\\\people.csv")
('iceberg', None, None)
>>> split("iceberg:demo.census@7")
Place(scheme='iceberg', name='demo.census', version='7', table=None)
>>> split("duckdb:dev.db?table=orders")
Place(scheme='duckdb', name='dev.db', version=None, table='orders')
>>> dataset("iceberg:demo.census@7"), dataset("delta:/lake/orders@3"), dataset("people.csv")
('demo.census', 'orders', 'people')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dpvae.errors import DataError

LAKES = ("iceberg", "delta")  # formats whose commits carry a certificate
DATABASES = ("duckdb", "sqlite", "postgresql")
SCHEMES = (*LAKES, *DATABASES)


@dataclass(frozen=True)
class Place:
    """A named table: ``version`` after an @ (Iceberg, Delta), ``table`` of a database."""

    scheme: str
    name: str
    version: str | None = None
    table: str | None = None


def scheme_of(text: str) -> str | None:
    """``iceberg`` for ``iceberg:demo.census``; ``None`` for a file or a folder."""
    scheme = text.partition(":")[0]
    kind = scheme.partition("+")[0]  # postgresql+psycopg://
    return kind if kind in SCHEMES and ":" in text else None


def split(text: str) -> Place:
    """The parts of a named table; :class:`DataError` where one is missing."""
    scheme = scheme_of(text)
    if scheme is None:
        raise DataError(f"{text!r}: expected one of {', '.join(f'{name}:' for name in SCHEMES)}")
    rest = text.partition(":")[2]
    if scheme in DATABASES:
        name, _, query = rest.partition("?table=")
        if scheme == "postgresql":
            name = f"{text.partition(':')[0]}:{name}"
        return _checked(text, Place(scheme, name, None, query or None))
    name, at, version = rest.rpartition("@")
    if not at or "/" in version:  # an @ in the name of a folder
        name, at, version = rest, "", ""
    if at and not version:
        raise DataError(f"{text!r}: expected a snapshot, a branch or a version after @, or no @")
    return _checked(text, Place(scheme, name, version or None))


def shown(text: str) -> str:
    """The name as it may be printed: a password in it is not.

    >>> shown("postgresql://me:secret@host/db"), shown("postgresql://me@host/db"), shown("delta:a/b")
    ('postgresql://me:***@host/db', 'postgresql://me@host/db', 'delta:a/b')
    """
    return re.sub(r"(://[^/@:]*:)[^/]*@", r"\1***@", text)


def _checked(text: str, place: Place) -> Place:
    if place.scheme == "iceberg" and (place.name.count(".") < 1 or not all(place.name.split("."))):
        raise DataError(f"{text!r}: expected iceberg:[catalog.]namespace.table, such as iceberg:demo.census")
    if not place.name:
        raise DataError(f"{text!r}: expected a path after {place.scheme}:")
    return place


def dataset(text: str) -> str:
    """The name that a table has on the ledger: the same for every version of it."""
    scheme = scheme_of(text)
    if scheme is None:
        return Path(text).stem
    place = split(text)
    if scheme == "iceberg":
        return place.name
    return f"{Path(place.name).stem}.{place.table}" if place.table else Path(place.name).stem
