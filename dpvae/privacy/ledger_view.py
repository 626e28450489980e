"""The book, for people: who spent what, is it whole, how much may be spent, and a copy for the files.

    dpvae ledger show                            every data set: cap, spent, left, runs
    dpvae ledger cap census epsilon=3 delta=1e-5
    dpvae ledger check                           every row's hash, and with head=HASH that none was cut off
    dpvae ledger export book.jsonl               one row per line; check book.jsonl needs no data base

An export ends in a line with its head and its number of rows, so that a copy that was cut short says so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpvae.config import LedgerVerbConfig
from dpvae.errors import ConfigError, LedgerError
from dpvae.privacy.accountant import rounded_up
from dpvae.privacy.chain import GENESIS, Row
from dpvae.privacy.events import canonical
from dpvae.privacy.ledger import Ledger

FIELDS = ("seq", "dataset", "run", "kind", "payload", "time", "previous", "hash")


@dataclass(frozen=True)
class Account:
    """What the ledger holds about one data set. ``left`` is a rule of thumb: spends compose to less than their sum."""

    dataset: str
    cap: float | None
    delta: float | None
    unit: str
    spent: float | None  # None: no bound is left at this delta
    left: float | None
    committed: int
    reserved: int
    aborted: int


def act(config: LedgerVerbConfig) -> str:
    """What ``dpvae ledger ACTION`` prints."""
    if config.action == "check" and config.file is not None:
        rows = read_export(Path(config.file))
        _pinned(rows, config.head, config.file)
        return f"{config.file}: {len(rows)} rows, all as they were written; head {rows[-1].hash if rows else GENESIS}"
    url = config.ledger.url or str(Path(config.root) / "ledger.db")
    if config.action != "cap" and _absent(url):
        raise LedgerError(f"ledger.url={url}: no ledger there; name one with ledger.url=..., or its "
                          "folder with root=...")
    ledger = Ledger.open(url)
    if config.action == "show":
        return show(ledger, config.ledger.dataset, as_json=config.format == "json")
    if config.action == "cap":
        return _cap(ledger, config)
    if config.action == "check":
        rows = ledger.rows()
        _pinned(rows, config.head, ledger.name)
        return f"{ledger.name}: {len(rows)} rows, all as they were written; head {rows[-1].hash if rows else GENESIS}"
    if config.file is None:
        raise ConfigError("file=null: expected where to write the copy, such as dpvae ledger export book.jsonl")
    count = export(ledger, Path(config.file))
    return f"exported {count} rows to {config.file}; check it with: dpvae ledger check {config.file}"


def show(ledger: Ledger, dataset: str | None = None, *, as_json: bool = False) -> str:
    """Every data set of the ledger, or one."""
    rows = ledger.rows()
    names = [dataset] if dataset else sorted({row.dataset for row in rows})
    if dataset and dataset not in {row.dataset for row in rows}:
        raise LedgerError(f"ledger.dataset={dataset}: nothing is booked or capped under that name in {ledger.name}")
    accounts = [account(ledger, rows, name) for name in names]
    if as_json:
        return json.dumps({"ledger": ledger.name, "rows": len(rows), "head": rows[-1].hash if rows else GENESIS,
                           "datasets": [asdict(each) for each in accounts]}, indent=2)
    lines = [f"ledger {ledger.name}: {len(rows)} rows, all as they were written"]
    if accounts:
        lines += ["", f"  {'data set':24}{'spent':>10}{'cap':>10}{'left':>10}{'delta':>10}  runs"]
    for each in accounts:
        left = "-" if each.left is None else f"{math.floor(each.left * 1000) / 1000:.3f}"
        cap = "none" if each.cap is None else f"{each.cap:g}"
        runs = [f"{each.committed} finished", f"{each.reserved} open", f"{each.aborted} given back"]
        spent = "no bound" if each.spent is None else rounded_up(each.spent)
        lines.append(f"  {each.dataset:24}{spent:>10}{cap:>10}{left:>10}{each.delta or 0:>10.0e}  "
                     f"{', '.join(runs)}")
    return "\n".join(lines)


def account(ledger: Ledger, rows: Sequence[Row], dataset: str) -> Account:
    """The state of one data set, priced at its cap's delta, or at the largest delta that a run asked for."""
    mine = [row for row in rows if row.dataset == dataset]
    ended = {int(row.content["reserve"]): row.kind for row in mine if row.kind in ("commit", "abort")}
    reserved = [row for row in mine if row.kind == "reserve"]
    cap = next((row.content for row in reversed(mine) if row.kind == "cap"), None)
    delta = cap["delta"] if cap else max(row.content["delta"] for row in reserved)
    spent = ledger.spent(dataset, delta)
    states = [ended.get(row.seq, "open") for row in reserved]
    return Account(dataset=dataset, cap=cap["epsilon"] if cap else None, delta=delta, unit=spent.unit,
                   spent=spent.upper if math.isfinite(spent.upper) else None,
                   left=max(0.0, cap["epsilon"] - spent.upper) if cap else None,
                   committed=states.count("commit"), reserved=states.count("open"), aborted=states.count("abort"))


def export(ledger: Ledger, file: Path) -> int:
    """The whole chain as JSON lines, into a new file; returns the number of rows."""
    rows = ledger.rows()
    lines = [{name: getattr(row, name) for name in FIELDS} for row in rows]
    lines.append({"head": rows[-1].hash if rows else GENESIS, "rows": len(rows)})
    try:
        with file.open("xb") as out:
            out.write(b"".join(canonical(line) + b"\n" for line in lines))
            out.flush()
            os.fsync(out.fileno())
    except FileExistsError:
        raise ConfigError(f"file={file}: is there already; an export never overwrites, choose another name") from None
    return len(rows)


def read_export(file: Path) -> list[Row]:
    """The rows of an export, verified; :class:`LedgerError` names the first line that does not continue the chain."""
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"file={file}: cannot be read ({type(error).__name__}); expected an exported ledger"
                          ) from None
    if lines.pop() != "" or not lines:
        raise LedgerError(f"file={file}: cut short; expected whole lines")
    end = _object(file, len(lines), lines.pop())
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = _row(file, number, line)
        if row.seq != number or row.previous != (rows[-1].hash if rows else GENESIS) or row.hash != row.seal():
            raise LedgerError(f"file={file} line {number}: does not continue the chain; it was edited, moved or "
                              "removed")
        rows.append(row)
    if end != {"head": rows[-1].hash if rows else GENESIS, "rows": len(rows)}:
        raise LedgerError(f"file={file} line {len(rows) + 1}: is not the end of these rows; some were cut off")
    return rows


def _row(file: Path, number: int, line: str) -> Row:
    value = _object(file, number, line)
    wrong = [name for name in FIELDS if type(value.get(name)) is not (int if name == "seq" else str)]
    if wrong or set(value) != set(FIELDS) or canonical(value).decode() != line:
        raise LedgerError(f"file={file} line {number}: not a row as the ledger writes it")
    return Row(**value)


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LedgerError(f"file={file} line {number}: expected one JSON object")
    return value


def _pinned(rows: Sequence[Row], head: str | None, name: str) -> None:
    if head not in (None, GENESIS, *(row.hash for row in rows)):
        raise LedgerError(f"head={head}: no such row in {name}; its last rows were cut off, or this is another ledger")


def _absent(url: str) -> bool:
    """Whether a SQLite ledger would have to be made: looking must not leave a new file."""
    path = url.partition(":///")[2] if url.startswith("sqlite:") else url
    return "://" not in path and path not in ("", ":memory:") and not Path(path).is_file()


def _cap(ledger: Ledger, config: LedgerVerbConfig) -> str:
    dataset = config.ledger.dataset
    if dataset is None or config.epsilon is None or config.delta is None:
        raise ConfigError("ledger cap: expected a data set, epsilon and delta; say "
                          "dpvae ledger cap census epsilon=3 delta=1e-5")
    ledger.cap(dataset, config.epsilon, config.delta, config.unit, config.reason)
    return show(ledger, dataset)
