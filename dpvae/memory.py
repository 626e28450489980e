"""How much memory this process may take: what the machine has free, or less where ``ulimit`` or a container says so.

Only memory that nobody can take back counts: pages of files that are mapped, as the pieces of a large table are
(:mod:`dpvae.data.stored`), the kernel drops where it needs room.

>>> 0 < free() < 2**50
True
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

AMPLE = 2 * 2**30  # bytes; with less, what is freed goes back to the system at once
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h
_KEPT = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)
_USUAL = (_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 128 << 10), (_TOP_PAD, 0)
_GIVEN_BACK = (_MMAP_THRESHOLD, 1 << 20), (_TRIM_THRESHOLD, 1 << 20)
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free() -> int:
    """Bytes that can be had now."""
    return max(min([_of_machine(), *_allowed()]), 0)


def short() -> bool:
    """Whether there is so little that none may lie about."""
    return free() < AMPLE


def spare() -> None:
    """Where memory is short, and before Arrow is loaded: allocate through the C library, and give back what is freed.

    Arrow's own pool would reserve up to a gigabyte that it never touches, which ``ulimit -d`` counts.
    """
    if short():
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
        _tell(_GIVEN_BACK)


def keep_pages(keep: bool) -> None:
    """Tell glibc to hold on to freed memory between steps, or to behave as usual again and give it back.

    By default every large tensor is mapped and unmapped by the kernel, and clearing its pages costs two to four times
    the arithmetic on it. No environment variable, no effect after training; nothing is kept where memory is short.
    """
    if not keep:
        _tell(_USUAL, trim=True)
    elif not short():
        _tell(_KEPT)


def _tell(options: tuple[tuple[int, int], ...], *, trim: bool = False) -> None:
    """Options of glibc's allocator; where there is no glibc, nothing happens."""
    try:
        glibc = ctypes.CDLL(None)
        for option, value in options:
            glibc.mallopt(option, value)
        if trim:
            glibc.malloc_trim(0)
    except (OSError, AttributeError):
        return


def _of_machine() -> int:
    found = _numbers(PROC / "meminfo").get("MemAvailable")
    return found * 1024 if found is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _allowed() -> Iterator[int]:
    """What each limit leaves."""
    own = _numbers(PROC / "self/status")
    for kind, counted in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY:
            yield most - own.get(counted, 0) * 1024
    for folder, limit, counted in _groups():
        try:
            yield int((folder / limit).read_text()) - _numbers(folder / "memory.stat").get(counted, 0)
        except (OSError, ValueError):  # no such file; or "max"
            continue


def _groups() -> Iterator[tuple[Path, str, str]]:
    """(folder, its limit, what counts against it) of this process's control group and those above it; within a
    container, the names of those above may not be there."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            root, files = CGROUPS, ("memory.max", "anon")
        elif "memory" in controllers.split(","):
            root, files = CGROUPS / "memory", ("memory.limit_in_bytes", "total_rss")
        else:
            continue
        folder = root / name.lstrip("/")
        yield from ((each, *files) for each in (folder, *folder.parents) if each == root or root in each.parents)


def _numbers(path: Path) -> dict[str, int]:
    """The lines ``name: number ...`` of one of the kernel's files."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
