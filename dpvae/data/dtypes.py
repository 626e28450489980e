"""What the name of a column's type tells: plain text in, plain facts out.

>>> is_text("dictionary<values=string, indices=int8, ordered=0>"), natural_kind("int64"), natural_kind("csv")
(True, 'integer', None)
"""

from __future__ import annotations

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of a timestamp or a time, per second


def is_text(dtype: str) -> bool:
    """Whether cells of this type are strings (CSV cells included)."""
    return dtype in ("csv", "string", "large_string", "string_view", "null") or "values=string" in dtype or (
        "values=large_string" in dtype)


def int_range(dtype: str) -> tuple[float, float]:
    """The whole numbers a type can hold; those of int64 where it is no integer type.

    >>> int_range("uint8"), int_range("int16")
    ((0.0, 255.0), (-32768.0, 32767.0))
    """
    for bits in (8, 16, 32):
        if dtype == f"uint{bits}":
            return 0.0, 2.0**bits - 1
        if dtype == f"int{bits}":
            return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return (0.0 if dtype == "uint64" else -(2.0**63)), 2.0**63 - 1024


def float_range(dtype: str) -> tuple[float, float]:
    """The finite numbers a floating or decimal type can hold.

    >>> float_range("halffloat"), float_range("decimal128(4, 2)")[1] < 100
    ((-65504.0, 65504.0), True)
    """
    largest = {"halffloat": 65504.0, "float": 3.4e38}.get(dtype, 1.7e308)
    if dtype.startswith("decimal"):
        precision, scale = (int(part) for part in dtype.partition("(")[2].rstrip(")").split(","))
        largest = 10.0 ** (precision - scale) * (1 - 1e-15) - 10.0**-scale
    return -largest, largest


def natural_kind(dtype: str) -> str | None:
    """The kind that follows from the type alone; ``None`` for text, which may be anything."""
    value = dtype.removeprefix("dictionary<values=").split(",")[0] if dtype.startswith("dictionary") else dtype
    if dtype.startswith("dictionary"):
        return "categorical"
    if value in ("bool",):
        return "boolean"
    if value.startswith(("int", "uint")):
        return "integer"
    if value in ("double", "float", "halffloat") or value.startswith("decimal"):
        return "continuous"
    if value.startswith(("date", "timestamp")):
        return "datetime"
    if value.startswith("time"):
        return "time"
    return "categorical" if value == "null" else None


def unit_of(format: str) -> str:
    """The finest part of a strftime format.

    >>> unit_of("%d/%m/%Y"), unit_of("%Y-%m-%d %H:%M"), unit_of("%Y-%m-%dT%H:%M:%S")
    ('D', 'm', 's')
    """
    for unit, marks in (("us", ("%f",)), ("s", ("%S", "%T", "%X", "%c")), ("m", ("%M", "%R", "%H", "%I"))):
        if any(mark in format for mark in marks):
            return unit
    return "D"
