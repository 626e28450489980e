"""Keyword validators: the keyword is the name the message quotes.

>>> positive(epsilon=1.0)
>>> positive(epsilon=-1)
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: epsilon=-1: expected a finite number > 0
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from dpvae.errors import ConfigError

Number = float | int


def _number(name: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: expected {wanted}")
    return float(value)


def positive(**values: object) -> None:
    """Each value is a finite number above zero."""
    for name, value in values.items():
        if _number(name, value, "a finite number > 0") <= 0:
            raise ConfigError(f"{name}={value!r}: expected a finite number > 0")


def at_least(minimum: Number, **values: object) -> None:
    """Each value is a finite number of at least ``minimum``."""
    for name, value in values.items():
        if _number(name, value, f"a finite number >= {minimum}") < minimum:
            raise ConfigError(f"{name}={value!r}: expected a finite number >= {minimum}")


def fraction(**values: object) -> None:
    """Each value lies strictly between 0 and 1."""
    for name, value in values.items():
        if not 0 < _number(name, value, "a number between 0 and 1") < 1:
            raise ConfigError(f"{name}={value!r}: expected a number between 0 and 1")


def share(**values: object) -> None:
    """Each value lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= _number(name, value, "a number in [0, 1]") <= 1:
            raise ConfigError(f"{name}={value!r}: expected a number in [0, 1]")


def whole(minimum: int, **values: object) -> None:
    """Each value is an integer of at least ``minimum``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(f"{name}={value!r}: expected a whole number >= {minimum}")


def one_of(choices: Iterable[str], **values: object) -> None:
    """Each value is one of ``choices``; a near miss is offered."""
    choices = list(choices)
    for name, value in values.items():
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise ConfigError(f"{name}={value!r}: expected one of {', '.join(choices)}{hint}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest choice, or an empty string.

    >>> did_you_mean("epsilom", ["epsilon", "delta"])
    "; did you mean 'epsilon'?"
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
