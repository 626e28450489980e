"""What a program does outside its folder, and what it could take for chance: seen while it runs.

Public is what leaves, by whatever door: a file left in another place, a connection. And a secret must not follow from
what others can guess: the time of day, the state of a global generator. Both are contexts around one run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

MOMENT = 1_800_000_000
GENERATORS: tuple[tuple[Any, Any], ...] = (  # the global ones: how to read their state, how to set it
    (random._inst.getstate, random._inst.setstate),
    (np.random.mtrand._rand.get_state, np.random.mtrand._rand.set_state),
    (torch.default_generator.get_state, torch.default_generator.set_state))
START = tuple(read() for read, _ in GENERATORS)
CALLS = ("socket.connect", "socket.sendto", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
PLACES = {"os.rename": 1, "os.link": 1, "os.symlink": 1, "sqlite3.connect": 0}  # event -> argument
COMPILED: tuple[tuple[Any, str, int], ...] = (  # writers that Python does not hear of, and where they are told to write
    (torch._C, "PyTorchFileWriter", 0), (safetensors.torch, "serialize_file", 1),
    (safetensors.numpy, "serialize_file", 1))
_listening: list[list[tuple[str, Any]]] = []  # of the contexts that are open


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _listening:
        return
    if event == "open":
        path, _, flags = args
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _wrote(path)
    elif event in PLACES:
        _wrote(args[PLACES[event]])
    elif event in CALLS:
        _listening[-1].append((event, str(args[-1] if event.startswith("socket") else args[0])))


def _wrote(path: Any) -> None:
    if isinstance(path, (str, bytes, os.PathLike)):
        _listening[-1].append(("file", os.fsdecode(path)))


def _overheard(real: Callable[..., Any], place: int) -> Callable[..., Any]:
    """``real``, whose argument number ``place`` says where it writes."""
    def write(*args: Any, **kwargs: Any) -> Any:
        _wrote(args[place] if len(args) > place else kwargs.get("filename"))
        return real(*args, **kwargs)

    return write


@functools.cache
def _listen() -> None:
    """Once, for as long as the process lives: Python has no way to take a hook back."""
    sys.addaudithook(_hook)


@contextlib.contextmanager
def elsewhere(root: Path) -> Iterator[list[str]]:
    """Files that are written, moved or linked outside ``root`` and still there at the end, connections, other
    programs: filled in when the context closes. Compiled Python is none of it."""
    _listen()
    found: list[str] = []
    seen: list[tuple[str, Any]] = []
    _listening.append(seen)
    try:
        with contextlib.ExitStack() as stack:
            for owner, name, place in COMPILED:
                stack.enter_context(mock.patch.object(owner, name, _overheard(getattr(owner, name), place)))
            yield found
    finally:
        _listening.pop()
        for kind, what in dict.fromkeys(seen):
            if kind != "file":
                found.append(f"{kind} {what}")
            elif _left(Path(what), root):
                found.append(what)


def _left(path: Path, root: Path) -> bool:
    try:
        return path.is_file() and not path.resolve().is_relative_to(root.resolve()) and "__pycache__" not in path.parts
    except OSError:
        return False


@contextlib.contextmanager
def standing_still() -> Iterator[None]:
    """The same time of day and the same global generators whenever it is entered; afterwards as they were."""
    before = [read() for read, _ in GENERATORS]
    for (_, write), state in zip(GENERATORS, START, strict=True):
        write(state)
    try:
        with (mock.patch("time.time", return_value=float(MOMENT)),
              mock.patch("time.time_ns", return_value=MOMENT * 10**9)):
            yield
    finally:
        for (_, write), state in zip(GENERATORS, before, strict=True):
            write(state)
