"""Tables that ship inside the package, each with the schema of what is publicly documented about it.

>>> names()
('adult',)
>>> path("adult").name, schema("adult").name
('adult.parquet', 'adult.yaml')
"""

from __future__ import annotations

from pathlib import Path

from dpvae.checks import did_you_mean
from dpvae.errors import DataError

FOLDER = Path(__file__).parent / "tables"


def names() -> tuple[str, ...]:
    """The tables there are."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.parquet")))


def path(name: str) -> Path:
    """The table's Parquet file."""
    if name not in names():
        raise DataError(f"data={name!r}: no such built-in table{did_you_mean(name, names())}; "
                        f"expected one of {', '.join(names())}, or a path")
    return FOLDER / f"{name}.parquet"


def schema(name: str) -> Path:
    """The table's public schema, a YAML file."""
    return path(name).with_suffix(".yaml")
