"""Nested mappings as typed objects: every key known, every value of the type that its dataclass says.

>>> from dpvae.config import PrivacyConfig
>>> convert("privacy", PrivacyConfig, {"epsilon": 1}).epsilon
1.0
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from dpvae import checks
from dpvae.errors import ConfigError

T = TypeVar("T")
WORDS: dict[type, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def plain_type(kind: Any) -> type:
    """``float`` for ``float | None``; the class itself otherwise."""
    options = [k for k in typing.get_args(kind) if k is not types.NoneType]
    return options[0] if options else kind


def convert(where: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``, which may be a frozen dataclass; :class:`ConfigError` names it as ``where``."""
    if value is None:
        if types.NoneType in typing.get_args(kind):
            return None
        raise ConfigError(f"{where}=null: expected {WORDS.get(plain_type(kind), 'a value')}")
    wanted = plain_type(kind)
    if dataclasses.is_dataclass(wanted):
        return value if isinstance(value, wanted) else build(typing.cast(Any, wanted), value, where)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{where}={value!r}: expected {WORDS.get(wanted, wanted.__name__)}")
    return value


def build(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """A ``cls`` from nested mappings; unknown keys and wrong types raise :class:`ConfigError`."""
    prefix = f"{where}." if where else ""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}={mapping!r}: expected a group of keys")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: no such key{checks.did_you_mean(str(key), hints)}")
    return cls(**{key: convert(prefix + key, hints[key], value) for key, value in mapping.items()})
