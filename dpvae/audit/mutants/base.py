"""What a mutant is, and how it is put into the program and taken out again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

CLIPPINGS = ("fast", "hooks", "ghost")
TRAINED = ("anchored", "decoder_only", "joint")  # with DP-SGD, which most mutants break
ANY = ("table", "images", "text")


class Patch:
    """Replaces attributes of the running program until it is closed. ``program`` is the module of ``train``."""

    def __init__(self, program: ModuleType) -> None:
        self.program = program
        self._undo = contextlib.ExitStack()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``, for as long as the mutant lives."""
        before = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
        self._undo.callback(setattr, owner, name, before)
        setattr(owner, name, value)

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """``around(real, *args)`` in place of ``owner.name(*args)``."""
        real = getattr(owner, name)
        self.set(owner, name, lambda *args, **kwargs: around(real, *args, **kwargs))

    def close(self) -> None:
        """Everything as it was."""
        self._undo.close()


@dataclass(frozen=True)
class Mutant:
    """One broken program: what it does wrong, and where that can happen."""

    name: str
    says: str
    apply: Callable[[Patch], None]
    whole: bool = False  # a fault of the program around the trainer, not of a step
    trainers: tuple[str, ...] = TRAINED
    clippings: tuple[str, ...] = CLIPPINGS
    kinds: tuple[str, ...] = ANY  # of data, whose training goes through what is broken

    @contextlib.contextmanager
    def living(self, program: ModuleType) -> Iterator[None]:
        """The program is this mutant inside the context."""
        patch = Patch(program)
        try:
            self.apply(patch)
            yield
        finally:
            patch.close()


def named(says: str, **where: Any) -> Callable[[Callable[[Patch], None]], Mutant]:
    """A function that breaks the program, as a :class:`Mutant` of its name."""
    def made(apply: Callable[[Patch], None]) -> Mutant:
        return Mutant(apply.__name__.replace("_", " ").strip(), says, apply, **where)

    return made


def whole(says: str, kinds: tuple[str, ...] = ("table",), **where: Any) -> Callable[[Callable[[Patch], None]], Mutant]:
    """The same, for a fault of the program around the trainer."""
    return named(says, whole=True, kinds=kinds, **where)


def telling(codes: Any) -> float:
    """A statistic of private codes that no two of the auditor's tables share. A survey of 90 records may leave a column
    two codes, and then means agree now and then: a mutant that looked at one would have changed nothing."""
    return math.log(float(np.asarray(codes, dtype=np.float64).sum()) + len(codes))


def private_loss(trainer: Any) -> float:
    """The exact mean ELBO of the private rows: what several mutants look at."""
    return float(np.concatenate(list(getattr(trainer, "_elbos")(0))).mean())  # noqa: B009
