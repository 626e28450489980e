"""Files that were written beside a lake table become its rows: staged, published, pinned; each step one commit.

What dpvae writes into a lake it writes as files of its own, below ``_dpvae`` in the table's location, and then
registers them. So the very files that were signed are the table's rows, a crash leaves files that nobody reads, and a
commit is all or nothing. Names that begin with an underscore are hidden from Delta's VACUUM and from Spark's removal
of orphans.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dpvae.data import place
from dpvae.data.lake.files import check_same
from dpvae.data.lake.write import storable
from dpvae.errors import DataError, ReleaseError

T = TypeVar("T")
FOLDER, MARK = "_dpvae", "dpvae."  # where files are written, and how the names of marks begin
RETRIES = 5  # of a commit that met another one


@dataclass(frozen=True)
class Held:
    """One state of a table: its files (absolute paths), its marks, and how it is named (snapshot id or version)."""

    version: str
    files: tuple[str, ...]
    marks: Mapping[str, str]
    operation: str = "append"


class Home(Protocol):
    """A lake table as a place for files."""

    text: str

    def folder(self) -> Path:
        """Where files for this table are written; made if it is not there."""

    def create(self, schema: pa.Schema) -> None:
        """Make the table, or check that it has these columns: the error names one that differs."""

    def ids(self) -> Mapping[str, int]:
        """The numbers by which its files are to know the columns; none where they go by their names."""

    def held(self, version: str | None = None) -> Held | None:
        """What readers see now, or saw at ``version``; ``None`` where nothing was ever written, or there is no table.
        """

    def history(self) -> list[Held]:
        """All states on the way to the present one, the newest first; their files are left out."""

    def made_from_it(self) -> list[str]:
        """Tables of the same catalog whose marks name this one as their source, with the version they were made of."""

    def write(self, files: Sequence[Path], marks: Mapping[str, str], *, replace: bool, expected: str | None) -> None:
        """Add rows, or replace all of them, in one commit; refused where the table is not as ``expected``."""

    def stage(self, name: str, files: Sequence[Path], marks: Mapping[str, str]) -> None:
        """Replace all rows out of readers' sight, under a name to be verified (Iceberg: a branch)."""

    def staged(self, name: str) -> str | None:
        """How a staged state is read back: a version for :meth:`held`."""

    def publish(self, name: str, tag: str) -> None:
        """What is staged becomes what readers see, pinned by ``tag``; refused where somebody else wrote meanwhile."""


def home(text: str) -> Home:
    """The table that ``text`` names, whether it is there or not."""
    scheme = place.scheme_of(text)
    if scheme not in place.LAKES:
        raise DataError(f"to={text!r}: expected one of {', '.join(f'{name}:' for name in place.LAKES)}")
    if place.split(text).version is not None:
        raise DataError(f"to={text!r}: expected a table, not one of its versions")
    module = importlib.import_module(f"dpvae.data.lake.{scheme}_home")
    found: Home = module.open_home(text)
    return found


@contextlib.contextmanager
def alone(home: Home) -> Iterator[None]:
    """Hold the table's folder for this process; :class:`ReleaseError` where another one is writing there."""
    with (home.folder() / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ReleaseError(f"to={home.text}: another process is writing there; wait for it") from None
        yield


def schema_of(files: Sequence[Path]) -> pa.Schema:
    """The columns of written files, which are all alike."""
    return pq.read_schema(files[0]).remove_metadata()


def rows_of(file: Path) -> int:
    """How many rows a written file has."""
    return int(pq.read_metadata(file).num_rows)


def check_columns(text: str, there: pa.Schema, wanted: pa.Schema) -> None:
    """Raise where the table has other columns than what is to be written into it."""
    check_same(storable(there), storable(wanted), f"to={text}", "the table that is there")


def again(attempt: Callable[[], T], conflict: tuple[type[BaseException], ...], text: str) -> T:
    """``attempt()``, again where another commit came first and left what ``attempt`` looks at as it was."""
    for number in range(RETRIES):
        try:
            return attempt()
        except conflict as error:
            if number == RETRIES - 1:
                raise ReleaseError(f"to={text}: other commits came first {RETRIES} times ({type(error).__name__}); "
                                   "nothing was published, give the same command again") from error
    raise AssertionError("unreachable")


def moved(text: str, expected: Any, found: Any) -> ReleaseError:
    """Somebody else wrote to the table."""
    return ReleaseError(f"to={text}: somebody else wrote there meanwhile (it was at {expected or 'nothing'}, it is at "
                        f"{found or 'nothing'}); their rows stay, nothing was published, give the same command again")
