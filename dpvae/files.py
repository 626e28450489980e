"""Files that are whole or not there: written beside their target and renamed, so that a crash leaves the old one.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     write_json(Path(folder, "a.json"), {"rows": 3})
...     read_json(Path(folder, "a.json"))
{'rows': 3}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpvae.errors import DataError, RunError

DAMAGED = "the run folder is damaged: restore it, or train again"


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` durably: all of it or nothing."""
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk is told of a file's number, not of its name
            error.filename = str(path)
        raise


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Where to write what a person asked for as ``to=target``: it appears there when all of it is written.

    Nothing is left where the block ends otherwise; :class:`DataError` where the disk refuses.
    """
    part = target.with_name(f"{target.name}.partial")
    try:
        part.unlink(missing_ok=True)
        yield part
        if part.exists():
            os.replace(part, target)
    except OSError as error:
        raise DataError(f"to={str(target)!r}: cannot be written ({error.strerror or error}); choose another place"
                        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote; :class:`RunError` where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error.__class__.__name__}); {DAMAGED}") from None
