"""The book of spends: written before the noise is drawn.

``reserve`` books what a run is about to spend; only then may it draw noise. A crash leaves the reservation standing, so
it counts. ``commit`` notes the release, ``abort`` gives a reservation back whose noise was *never* drawn. A resumed run
asks for the same reservation again and gets it back, uncounted, if and only if its events and its noise are the same.

Checking a data set's cap and booking against it are one transaction, so parallel sweeps cannot overspend together.
Rows are chained by hashes (:mod:`dpvae.privacy.chain`); a broken chain refuses to work. Cutting off the last rows
leaves a valid chain, which is why certificates pin :meth:`Ledger.head`.

>>> from dpvae.privacy.events import Gaussian
>>> ledger = Ledger.open("sqlite://")
>>> ledger.cap("adult", epsilon=1.0, delta=1e-5)
>>> booked = ledger.reserve("adult", "run-1", [Gaussian("anchor", "counts", 5.0)], delta=1e-5)
>>> ledger.commit(booked)
>>> ledger.check()
3
>>> print(ledger.spent("adult", delta=1e-5))
epsilon <= 0.726 (between 0.723 and 0.726) at delta=1e-05, unit row, add_remove
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dpvae import checks
from dpvae.config import NEIGHBOURS, RECORDS
from dpvae.errors import BudgetError, ConfigError, LedgerError
from dpvae.privacy.accountant import Epsilon, price
from dpvae.privacy.chain import GENESIS, Chain, Row
from dpvae.privacy.composition import merge
from dpvae.privacy.events import Event, canonical, from_dict, to_dict
from dpvae.privacy.noise import SecretKey


@dataclass(frozen=True)
class Cap:
    """The most that a data set may ever spend."""

    epsilon: float
    delta: float
    unit: str = "row"
    reason: str | None = None

    def __post_init__(self) -> None:
        checks.positive(epsilon=self.epsilon)
        checks.fraction(delta=self.delta)
        _named(unit=self.unit)
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "delta", float(self.delta))

    def changes(self, old: dict[str, Any] | None, dataset: str) -> bool:
        """Whether it differs from the cap that holds; :class:`BudgetError` where it is higher and has no reason."""
        if old is None:
            return True
        raised = self.epsilon > old["epsilon"] or self.delta > old["delta"] or not _alike(self.unit, old["unit"])
        if raised and not (self.reason and self.reason.strip()):
            raise BudgetError(
                f"epsilon={self.epsilon:g}, delta={self.delta:g}, unit={self.unit}: dataset {dataset!r} is capped at "
                f"{old['epsilon']:g}, {old['delta']:g}, {old['unit']}; raising a cap needs a reason"
            )
        return raised or (self.epsilon, self.delta) != (old["epsilon"], old["delta"])


@dataclass(frozen=True)
class Ask:
    """What one run is about to spend; :meth:`Ledger.reserve` has the fields.

    ``cap`` comes with it: written with the reservation or not at all, so a run that is refused leaves none.
    """

    dataset: str
    run: str
    events: tuple[Event, ...]
    delta: float
    neighbouring: str = "add_remove"
    noise: str = ""
    content: str = ""
    cap: Cap | None = None
    unit: str = "row"

    def payload(self) -> dict[str, Any]:
        """The row that would be written; refuses what no accountant can price."""
        checks.fraction(delta=self.delta)
        _named(dataset=self.dataset, run=self.run, unit=self.unit)
        merge(self.events, self.neighbouring)
        optional = {"content": self.content} if self.content else {}
        return {"events": [to_dict(event) for event in self.events], "delta": float(self.delta),
                "neighbouring": self.neighbouring, "noise": self.noise, "unit": self.unit, **optional}


@dataclass(frozen=True)
class Reservation:
    """Events that are booked: their noise may be drawn."""

    id: int
    dataset: str
    run: str
    events: tuple[Event, ...]


class Ledger:
    """The ledger behind one URL; safe to use from many processes."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Ledger:
        """The ledger at a SQLAlchemy URL, or in a SQLite file at this path; made if it is new."""
        return cls(Chain(str(url)))

    @property
    def name(self) -> str:
        """Where it is, without a password."""
        return self._chain.name

    def cap(
        self, dataset: str, epsilon: float, delta: float, unit: str = "row", reason: str | None = None
    ) -> None:
        """Sets the most that ``dataset`` may ever spend. Raising it, or another unit, needs a ``reason``."""
        _named(dataset=dataset)
        cap = Cap(epsilon, delta, unit, reason)
        self._chain.transact(lambda connection: self._limit(connection, self._chain.read(connection), dataset, cap))

    def reserve(
        self, dataset: str, run: str, events: Sequence[Event], *, delta: float, neighbouring: str = "add_remove",
        noise: str = "", content: str = "", unit: str = "row",
    ) -> Reservation:
        """Books ``events`` before their noise is drawn; :class:`BudgetError` if the data set's cap forbids it.

        ``noise`` says which secret noise will be used (``key.tag(b"noise")``). A run that is known already gets its
        reservation back only if events *and* noise are the same: the same plan with fresh noise is a second spend.
        ``content`` is a keyed digest of the rows: rows known under one name are not booked under another.
        ``unit`` is whom the events' price protects: a data set is counted by one, since what is spent on a row says
        nothing of a person with several. :class:`LedgerError` for another.
        """
        asked = Ask(dataset, run, tuple(events), delta, neighbouring, noise, content, unit=unit)
        return self.reserve_all([asked])[0]

    def reserve_all(self, asks: Sequence[Ask], *, sweep: str = "") -> list[Reservation]:
        """:meth:`reserve` for several runs, all or none of them, in one transaction; ``sweep`` is noted in each row."""
        noted = {"sweep": sweep} if sweep else {}
        payloads = [ask.payload() for ask in asks]

        def write(connection: sa.Connection) -> list[Reservation]:
            rows = self._chain.read(connection)
            for ask in asks:
                _one_unit(rows, ask.dataset, ask.unit)
                self._limit(connection, rows, ask.dataset, ask.cap)
            known = [_known(rows, ask) for ask in asks]
            fresh = [ask for ask, row in zip(asks, known, strict=True) if row is None]
            _one_name(rows, fresh)
            for dataset in dict.fromkeys(ask.dataset for ask in fresh):
                _afford(rows, [ask for ask in fresh if ask.dataset == dataset])
            booked = []
            for ask, payload, row in zip(asks, payloads, known, strict=True):
                if row is not None:
                    booked.append(_resumed(row, payload))
                    continue
                new = self._chain.append(connection, rows, ask.dataset, ask.run, "reserve", {**payload, **noted})
                rows.append(new)
                booked.append(Reservation(new.seq, ask.dataset, ask.run, ask.events))
            return booked

        return self._chain.transact(write)

    def commit(self, reservation: Reservation) -> None:
        """Notes that the reservation's results were released. Doing it twice changes nothing."""
        self._close(reservation, "commit", {"reserve": reservation.id})

    def abort(self, reservation: Reservation, reason: str) -> None:
        """Gives a reservation back. Only for one whose noise was never drawn: after a crash, leave it standing."""
        _named(reason=reason)
        self._close(reservation, "abort", {"reserve": reservation.id, "reason": reason})

    def events(self, dataset: str) -> list[Event]:
        """Everything reserved on ``dataset`` and not aborted, committed or not."""
        return [event for row in _standing(self._chain.rows(), dataset) for event in _events(row)]

    def spent(self, dataset: str, delta: float) -> Epsilon:
        """What :meth:`events` cost together; under replace-one as soon as one reservation asked for it.

        Infinite where published thresholds alone have used up ``delta``.
        """
        checks.fraction(delta=delta)
        rows = self._chain.rows()
        try:
            return _spent(rows, dataset, (), delta)
        except ConfigError:
            return Epsilon(0.0, math.inf, math.inf, delta, _unit(rows, dataset) or "row")

    def known_as(self, content: str) -> str | None:
        """The name under which these rows are booked; ``None`` for rows that are new."""
        return _names(self._chain.rows()).get(content)

    def rows(self, run: str | None = None) -> list[Row]:
        """The rows of ``run``, or all; the chain was checked on the way."""
        return [row for row in self._chain.rows() if run is None or row.run == run]

    def check(self, head: str | None = None) -> int:
        """The number of rows, all verified; :class:`LedgerError` names the first bad one, or a missing ``head``."""
        rows = self._chain.rows()
        if head not in (None, GENESIS, *(row.hash for row in rows)):
            raise LedgerError(f"head={head!r}: no such row in ledger {self._chain.name!r}; its last rows were cut off")
        return len(rows)

    def head(self) -> str:
        """Hash of the last row: pins the whole book up to here."""
        rows = self._chain.rows()
        return rows[-1].hash if rows else GENESIS

    def _limit(self, connection: sa.Connection, rows: list[Row], dataset: str, cap: Cap | None) -> None:
        if cap is not None and cap.changes(_cap(rows, dataset), dataset):
            if standing := _standing(rows, dataset):
                _one_unit(standing, dataset, cap.unit)
            rows.append(self._chain.append(connection, rows, dataset, "", "cap", asdict(cap)))

    def _close(self, reservation: Reservation, kind: str, payload: dict[str, Any]) -> None:
        def write(connection: sa.Connection) -> None:
            rows = self._chain.read(connection)
            row = next((row for row in rows if row.seq == reservation.id), None)
            if row is None or (row.kind, row.dataset, row.run) != ("reserve", reservation.dataset, reservation.run):
                raise LedgerError(f"reservation={reservation.id}: not in ledger {self._chain.name!r}; reserve it first")
            state = _closed(rows).get(reservation.id)
            if state is None:
                self._chain.append(connection, rows, row.dataset, row.run, kind, payload)
            elif state != kind:
                raise LedgerError(f"reservation={reservation.id}: cannot {kind} after an earlier {state}")

        self._chain.transact(write)


def content_tag(place: str, fingerprint: bytes, folder: str | os.PathLike[str]) -> str:
    """A digest of the rows under a secret key: it recognises rows that are known, and confirms no guess of them.

    A bare hash of a small table would tell anyone with a guess of it whether it is right. The key lies beside a SQLite
    ledger, or in ``folder``; whoever shares it (a team, with a ledger on a server) shares what it recognises.
    """
    path = place.partition(":///")[2] if place.startswith("sqlite:") else place
    file = Path(folder) / "ledger.key" if "://" in path or path in ("", ":memory:") else Path(f"{path}.key")
    key = SecretKey.shared(file)
    return f"{key.tag(b'name')[:16]}:{key.tag(b'data' + fingerprint)}"


def _cap(rows: Sequence[Row], dataset: str) -> dict[str, Any] | None:
    return next((row.content for row in reversed(rows) if row.kind == "cap" and row.dataset == dataset), None)


def _closed(rows: Sequence[Row]) -> dict[int, str]:
    """How each closed reservation ended, by id."""
    return {int(row.content["reserve"]): row.kind for row in rows if row.kind in ("commit", "abort")}


def _standing(rows: Sequence[Row], dataset: str) -> list[Row]:
    """Reservations that count: all but the aborted."""
    closed = _closed(rows)
    return [row for row in rows
            if row.kind == "reserve" and row.dataset == dataset and closed.get(row.seq) != "abort"]


def _events(row: Row) -> list[Event]:
    return [from_dict(event) for event in row.content["events"]]


def _known(rows: Sequence[Row], ask: Ask) -> Row | None:
    return next((row for row in _standing(rows, ask.dataset) if row.run == ask.run), None)


def _unit(rows: Sequence[Row], dataset: str) -> str | None:
    """Whom the spends on ``dataset`` are counted for; ``None`` where nobody has said."""
    cap, standing = _cap(rows, dataset), _standing(rows, dataset)
    return str(cap["unit"]) if cap else str(standing[0].content.get("unit", "row")) if standing else None


def _alike(unit: str, other: str) -> bool:
    """A row, an image and a text are one record; what a column names is a unit of its own."""
    return unit == other or {unit, other} <= set(RECORDS.values())


def _one_unit(rows: Sequence[Row], dataset: str, unit: str) -> None:
    """Refuse a spend, or a cap, in another unit than those before: they do not add up."""
    known = _unit(rows, dataset)
    if known is not None and not _alike(known, unit):
        raise LedgerError(f"unit={unit}: dataset {dataset!r} is counted by {known}, and what is spent on one says "
                          f"nothing of the other; expected unit={known}, by which every run on it is to be trained")


def _names(rows: Sequence[Row]) -> dict[str, str]:
    return {row.content["content"]: row.dataset for row in rows if row.kind == "reserve" and "content" in row.content}


def _one_name(rows: Sequence[Row], asks: Iterable[Ask]) -> None:
    """The same rows under a second name would be a second budget for the same people."""
    names = _names(rows)
    for ask in asks:
        if ask.content and names.setdefault(ask.content, ask.dataset) != ask.dataset:
            raise LedgerError(f"ledger.dataset={ask.dataset!r}: these rows are booked as {names[ask.content]!r} "
                              f"already; say ledger.dataset={names[ask.content]}, so that they have one budget")


def _resumed(row: Row, payload: dict[str, Any]) -> Reservation:
    """The standing reservation, if it is the same in every respect."""
    known, asked = row.content, json.loads(canonical(payload))
    for key, value in asked.items():
        if known.get(key) != value:
            raise LedgerError(
                f"run={row.run!r}: already booked on {row.dataset!r} with different {key} (row {row.seq}); "
                "a new spend needs a new run.name"
            )
    return Reservation(row.seq, row.dataset, row.run, tuple(_events(row)))


def _spent(
    rows: Sequence[Row], dataset: str, more: Sequence[Event], delta: float, neighbouring: Iterable[str] = ()
) -> Epsilon:
    standing = _standing(rows, dataset)
    relations = {NEIGHBOURS[0], *neighbouring, *(row.content["neighbouring"] for row in standing)}
    strictest = max(relations, key=NEIGHBOURS.index)  # replace_one costs more, for the same events
    events = [event for row in standing for event in _events(row)]
    return price([*events, *more], delta=delta, neighbouring=strictest, unit=_unit(rows, dataset) or "row")


def _afford(rows: Sequence[Row], asks: Sequence[Ask]) -> None:
    """Raises :class:`BudgetError` unless all spends on one data set and ``asks`` together stay within its cap."""
    dataset = asks[0].dataset
    cap = _cap(rows, dataset)
    if cap is None:
        return
    who = f"run {asks[0].run!r}" if len(asks) == 1 else f"a sweep of {len(asks)} runs"
    events, relations = [event for ask in asks for event in ask.events], {ask.neighbouring for ask in asks}
    delta, most = cap["delta"], cap["epsilon"]
    try:
        total = _spent(rows, dataset, events, delta, relations).upper
        if total <= most:
            return
        asked = price(events, delta=delta, neighbouring=max(relations, key=NEIGHBOURS.index)).upper
        spent = _spent(rows, dataset, (), delta).upper
    except ConfigError as error:
        raise BudgetError(f"{who}: dataset {dataset!r} has no delta left under its cap ({error})") from None
    raise BudgetError(
        f"epsilon={asked:.4g} asked by {who}: expected at most {max(0.0, most - spent):.4g}, which is left of "
        f"dataset {dataset!r} (spent {spent:.4g}, cap {most:.4g} at delta={delta:g}; together {total:.4g}); "
        "lower privacy.epsilon, or raise the cap with a reason"
    )


def _named(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ConfigError(f"{name}={value!r}: expected one line of text")
