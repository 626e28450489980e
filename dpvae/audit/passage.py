"""One run of the program in a place that vanishes, and all of it that others could see: an execution trace.

    run = passage(train, config, table, Secrets())
    run.files, run.printed, run.ledger, run.trace

Public is what leaves, by whatever door: files of the run's folder and beside it, the rows that a release would hold,
what is printed, logged, warned of, told to the progress line or returned. Only ``private/`` and the ledger are not: of
these it is asked what they book, and whether the secret key is gone when the run has ended.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from dpvae.audit.elsewhere import elsewhere, standing_still
from dpvae.audit.instruments import Laboratory, Secrets, Trace
from dpvae.audit.twin import Train, scratch
from dpvae.config import TrainConfig
from dpvae.errors import DPVAEError
from dpvae.modalities import released
from dpvae.privacy.events import Event
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.report.progress import Progress
from dpvae.train import dpsgd

NAME = "twin"
DRAWN = 24  # rows of a release
BESIDE = ("ledger.", "signing", ".new-")  # names in the root that are not a run's
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in memory, of an object without words of its own
NEW = ("created", "ledger_run", "settings")  # of run.json: when, a random name, and a digest that holds the place


@dataclass
class Passage:
    """One run of the program: what it made public, what it booked, what it was seen to do."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path below public/
    printed: str = ""
    progress: list[str] = field(default_factory=list)  # what the progress line was told: twins are quiet, runs are not
    trace: Trace = field(default_factory=Trace)
    secrets: Secrets = field(default_factory=Secrets)
    keys: list[str] = field(default_factory=list)  # tags of what SecretKey.generate drew
    ledger: tuple[Event, ...] = ()
    heads: tuple[str, ...] = ()  # what a hash of the ledger's last row could be
    booked: int = 0  # reservations on the ledger
    rows_at_first_draw: int = -1
    error: str = ""
    refused: bool = False  # by an error that dpvae means
    elsewhere: list[str] = field(default_factory=list)  # files left, addresses called, outside its folder
    kept: list[str] = field(default_factory=list)  # files that hold the key when all is done

    @property
    def claim(self) -> dict[str, Any]:
        """The content of ``claim.json``."""
        found: dict[str, Any] = json.loads(self.files.get("claim.json", b"{}"))
        return found


def passage(train: Train, config: TrainConfig, table: Any, secrets: Secrets, *, told: Trace | None = None,
            stop_at: int | None = None, then: Any = None, again: int = 0, known: bool = False,
            fault: Callable[[Any, Any], Any] | None = None) -> Passage:
    """Run the program on ``table`` in a place that vanishes.

    ``stop_at``: interrupt it there, then let it go on (on another table, ``then``); ``again``: so many further runs on
    the same ledger; ``known``: what it asks of public records before it trains was asked in an earlier run; ``fault``:
    what records do to their losses. Each begins at the same time of day, with the same global generators.
    """
    done = Passage(secrets=secrets)
    with contextlib.ExitStack() as stack:
        if known:
            stack.enter_context(mock.patch.object(dpsgd, "check_independence"))
        placed = stack.enter_context(scratch(config, NAME))
        root = Path(placed.run.root)
        stack.enter_context(mock.patch.object(dpsgd, "WORTH_COMPILING", math.inf))  # a compiler would be a call
        done.elsewhere = stack.enter_context(elsewhere(root))
        heard = stack.enter_context(_heard(done.progress))
        stack.enter_context(standing_still())
        stack.enter_context(_drawn_keys(done.keys))
        secrets.first = lambda: setattr(done, "rows_at_first_draw", _standing(root))
        if stop_at is not None:
            with Laboratory(secrets, stop_at=stop_at) as first, contextlib.suppress(KeyboardInterrupt):
                train(placed, table)
            done.trace.updates += first.trace.updates
        with Laboratory(secrets, told=told, fault=fault) as laboratory:
            try:
                found = train(placed, table if then is None else then)
                answer = f"{found}\n{getattr(found, '__dict__', {})}"
                heard.write(ADDRESS.sub("", answer.replace(str(root), "")))
                _release(root / NAME)
            except Exception as error:  # whatever a broken program raises is a finding, not an end of the audit
                done.error, done.refused = f"{type(error).__name__}: {error}", isinstance(error, DPVAEError)
        done.trace = laboratory.trace
        for number in range(again):
            train(replace(placed, run=replace(placed.run, name=f"{NAME}-{number}")), table)
        _gather(done, root)
    done.printed = heard.getvalue()
    return done


@contextlib.contextmanager
def _heard(progress: list[str]) -> Iterator[io.StringIO]:
    """All that is printed, logged or warned of; ``progress`` fills up with what its line is told."""
    heard = io.StringIO()
    show = Progress._show

    def told(self: Progress, *moment: Any) -> None:
        progress.append(str(moment))
        show(self, *moment)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        with (contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard),
              mock.patch.multiple(sys, __stdout__=heard, __stderr__=heard),
              mock.patch.object(root, "handlers", [logging.StreamHandler(heard)]),
              mock.patch.object(Progress, "_show", told), warnings.catch_warnings(record=True) as warned):
            warnings.simplefilter("always")
            yield heard
            heard.write("\n".join(sorted({f"{each.category.__name__}: {each.message}" for each in warned})))
    finally:
        root.setLevel(level)


@contextlib.contextmanager
def _drawn_keys(tags: list[str]) -> Iterator[None]:
    """``tags`` fills up with those of the keys that the program draws."""
    real = SecretKey.generate

    def generate() -> SecretKey:
        key = real()
        tags.append(key.tag(b"audit"))
        return key

    with mock.patch.object(SecretKey, "generate", staticmethod(generate)):
        yield


def _standing(root: Path) -> int:
    """Reservations on the ledger of ``root``."""
    path = root / "ledger.db"
    return sum(row.kind == "reserve" for row in Ledger.open(path).rows()) if path.is_file() else 0


def _release(run: Path) -> None:
    """The data files of a release from it, beside its public folder."""
    (run / "release").mkdir()
    written = released(run / "public").writer(run / "public", DRAWN, seed=5)(run / "release", {})
    (run / "release" / "statement").write_text(repr(sorted(written.items())))


def _gather(done: Passage, root: Path) -> None:
    private, public = root / NAME / "private", root / NAME / "public"
    others = {path for path in root.iterdir() if path.name.startswith((*BESIDE, f"{NAME}-"))}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not {private, *others} & {path, *path.parents}:
            name = path.relative_to(public) if path.is_relative_to(public) else Path("..") / path.relative_to(root)
            done.files[name.as_posix()] = path.read_bytes()
    record = f"../{NAME}/run.json"
    if record in done.files:
        known = json.loads(done.files[record])
        done.files[record] = json.dumps({name: known[name] for name in known if name not in NEW}).encode()
    marks = [mark for key in done.secrets.used for mark in spellings(key)]
    done.kept = [path.name for path in sorted(private.rglob("*")) if path.is_file()
                 and any(mark in path.read_bytes() for mark in marks)]
    if (root / "ledger.db").is_file():
        rows = Ledger.open(root / "ledger.db").rows()
        done.heads = tuple(row.hash for row in rows)
        names = [row.dataset for row in rows if row.kind == "reserve"]
        done.booked = len(names)
        done.ledger = tuple(Ledger.open(root / "ledger.db").events(names[0])) if names else ()


def plain(run: Passage, name: str) -> bytes:
    """A public file without what differs between any two runs: the ledger's hash, where it is one."""
    data, head = run.files.get(name, b"-"), run.claim.get("ledger_head")
    return data.replace(str(head).encode(), b"") if head in run.heads else data


def differing(one: Passage, two: Passage) -> list[str]:
    """Names of public files that differ, and the words printed where they do."""
    names = sorted({*one.files, *two.files})
    found = [name for name in names if plain(one, name) != plain(two, name)]
    return found + (["what was printed"] if one.printed != two.printed else [])


def spellings(key: SecretKey) -> list[bytes]:
    """A key in common notations."""
    raw: bytes = getattr(key, "_master")  # noqa: B009
    number = int.from_bytes(raw, "big")
    return [raw, raw.hex().encode(), base64.b64encode(raw)[:40], str(number).encode(),
            str(int.from_bytes(raw, "little")).encode(), str(list(raw))[1:60].encode()]
