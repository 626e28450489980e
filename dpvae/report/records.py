"""JSON that is written one way and read strictly: the bytes under every digest and signature.

Written as RFC 8785 (one byte string per value, in any language), read with everything refused that two readers
could understand differently: duplicate keys, NaN, numbers beyond a double, lone surrogates. :func:`read` turns
JSON into frozen dataclasses and refuses a field that is unknown, missing or of another type, so that a
certificate cannot carry a claim that no check looks at.

>>> parse(canonical({"b": 1.0, "a": "x"}), "demo.json")
{'a': 'x', 'b': 1}
>>> parse(b'{"a": 1, "a": 2}', "demo.json")
Traceback (most recent call last):
    ...
dpvae.errors.ReleaseError: demo.json: key 'a' stands twice; a record names each field once
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import rfc8785

from dpvae import checks
from dpvae.errors import ReleaseError

T = TypeVar("T")

LARGEST_WHOLE = 2**53 - 1
LARGEST_FILE = 64 << 20  # a certificate is 20 kB; more than this is an attempt to exhaust memory


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of a JSON value; what cannot be written so is a :class:`ReleaseError`."""
    try:
        return rfc8785.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ReleaseError(f"value={clip(value)}: cannot be written as canonical JSON ({error})") from None


def parse(data: bytes, name: str) -> Any:
    """The JSON value in ``data``; ``name`` (a file, perhaps with a line) opens every message."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=lambda pairs: _object(pairs, name),
                          parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{name}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ReleaseError(f"{name}: not JSON at line {error.lineno}, column {error.colno} ({error.msg})") from None
    except RecursionError:
        raise ReleaseError(f"{name}: nested too deeply to be a record of dpvae") from None
    except ReleaseError:
        raise
    except ValueError as error:
        raise ReleaseError(f"{name}: {clip(error)}") from None


def parse_file(path: Path, name: str) -> Any:
    """:func:`parse` of a file; unreadable or oversized files are a :class:`ReleaseError`."""
    return parse(read_bytes(path, name), name)


def parse_lines(data: bytes, name: str) -> list[Any]:
    """One JSON value per line, every line ended by a newline."""
    if data and not data.endswith(b"\n"):
        raise ReleaseError(f"{name}: the last line has no end; the file was cut")
    return [parse(line, f"{name} line {number}") for number, line in enumerate(data.split(b"\n")[:-1], start=1)]


def read_bytes(path: Path, name: str) -> bytes:
    """The content of a small plain file."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ReleaseError(f"{name}: larger than {LARGEST_FILE >> 20} MiB; no record of dpvae is")
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{name}: cannot be read ({error.strerror})") from None


def read(kind: type[T], value: Any, where: str) -> T:
    """The frozen dataclass ``kind`` from parsed JSON, strictly; ``where`` is the dotted path for messages."""
    if not isinstance(value, dict):
        raise ReleaseError(f"{where}={clip(value)}: expected an object")
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise ReleaseError(f"{where}.{clip(key, quote=False)}: no such field{checks.did_you_mean(key, hints)}")
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if field.name not in value:
            raise ReleaseError(f"{where}.{field.name}: missing")
    return kind(**{name: _cell(hints[name], value[name], f"{where}.{name}") for name in hints})


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON objects and lists; everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def clip(value: object, quote: bool = True) -> str:
    """A short printable rendering: what others wrote never reaches a terminal raw."""
    text = repr(value) if quote and isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 80 else text[:77] + "..."


def _object(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ReleaseError(f"{name}: key {clip(key)} stands twice; a record names each field once")
        found[key] = value
    return found


def _finite(text: str) -> float:
    """Also called for the words NaN and Infinity, which Python would accept."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond the range of a double")
    return number


def _whole(text: str) -> int | float:
    """RFC 8785 knows doubles only: beyond 2^53 an integer is one of several that other readers take for the same."""
    return int(text) if len(text) <= 17 and abs(int(text)) <= LARGEST_WHOLE else _finite(text)


def _cell(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return read(typing.cast(type, kind), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ReleaseError(f"{where}={clip(value)}: expected a list")
        return tuple(_cell(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        return _literal(typing.get_args(kind), value, where)
    if origin in (typing.Union, types.UnionType):
        return _either(typing.get_args(kind), value, where)
    return _scalar(kind, value, where)


def _either(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first kind that fits; the word ``none`` is always tried as itself first."""
    literals = [k for k in kinds if typing.get_origin(k) is typing.Literal]
    others = [k for k in kinds if k not in literals and k is not types.NoneType]
    if value is None and types.NoneType in kinds:
        return None
    if isinstance(value, str) and any(value in typing.get_args(k) for k in literals):
        return value
    if len(others) == 1:
        return _cell(others[0], value, where)
    raise ReleaseError(f"{where}={clip(value)}: not a value this field can take")


def _literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ReleaseError(f"{where}={clip(value)}: expected {' or '.join(map(str, choices))}")
    return value


def _scalar(kind: type, value: Any, where: str) -> Any:
    """RFC 8785 writes 1.0 as ``1``, so an integer is a float; a bool is never a number."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ReleaseError(f"{where}={clip(value)}: expected {kind.__name__}")
    return value
