"""The whole program as one function of the table: survey, anchors, DP-SGD, fitting, report.

Whatever a careless line may do (an encoder shown raw rows, a vocabulary read off the table, a stop rule that looks at
the private loss, the seed in a log file), it makes something public that does not follow from what was released. So:

* P1: the same releases and the same secrets, a table with one person more, and another table altogether (or a rounded
  count, a first record would not show): every public byte, every line printed, what the progress line is told and what
  is returned must be the same. The same releases, *other* secrets: the same again, or the secret shows. Nothing is left
  in another place;
* M1, M2: each one-shot release, many times over (:mod:`dpvae.audit.one_shot`);
* T5: each release has its line on the ledger and each line its release; the ledger is written first; a run that was
  stopped and goes on ends with the same bytes and one booking; a second run is booked beside the first;
* T6: one row more changes no step, no rate, no order of draws.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from dpvae.audit.elsewhere import elsewhere, standing_still
from dpvae.audit.instruments import NORMALS, Laboratory, Secrets, Trace, seeded
from dpvae.audit.one_shot import alone, beside
from dpvae.audit.twin import Train, scratch
from dpvae.audit.verdict import Finding
from dpvae.config import TrainConfig
from dpvae.privacy.events import Event, SampledGaussian
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.report.progress import Progress
from dpvae.report.source import read_events
from dpvae.train import dpsgd

NAME = "twin"
VOLATILE = re.compile(rb'"(created|ledger_run|ledger_head|issued)": ?"[^"]*"')
VOLATILE_TEXT = re.compile(rb"\b\d{4}-\d\d-\d\dT[0-9:.+Z]+")


@dataclass
class Passage:
    """One run of the program: what it made public, what it booked, what it was seen to do."""

    files: dict[str, bytes] = field(default_factory=dict)
    printed: str = ""
    progress: list[str] = field(default_factory=list)  # what the progress line was told: twins are quiet, runs are not
    trace: Trace = field(default_factory=Trace)
    secrets: Secrets = field(default_factory=Secrets)
    ledger: tuple[Event, ...] = ()
    booked: int = 0  # reservations on the ledger
    rows_at_first_draw: int = -1
    error: str = ""
    elsewhere: list[str] = field(default_factory=list)  # files left, addresses called, outside its folder


@contextlib.contextmanager
def _heard(progress: list[str]) -> Iterator[io.StringIO]:
    """All that is printed or logged; ``progress`` fills up with what its line is told."""
    heard = io.StringIO()
    show = Progress._show

    def told(self: Progress, *moment: Any) -> None:
        progress.append(str(moment))
        show(self, *moment)

    handler = logging.StreamHandler(heard)
    handler.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    try:
        with (contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard),
              mock.patch.object(Progress, "_show", told)):
            yield heard
    finally:
        logging.getLogger().removeHandler(handler)


def passage(train: Train, config: TrainConfig, table: Any, secrets: Secrets, *, told: Trace | None = None,
            stop_at: int | None = None, again: int = 0, known: bool = False) -> Passage:
    """Run the program on ``table`` in a place that vanishes. ``stop_at``: interrupt it there, then let it go on;
    ``again``: so many further runs on the same ledger; ``known``: what it asks of public records before it trains was
    asked in an earlier run. Each begins at the same time of day, with the same global generators."""
    done = Passage(secrets=secrets)
    with contextlib.ExitStack() as stack:
        if known:
            stack.enter_context(mock.patch.object(dpsgd, "check_independence"))
        placed = stack.enter_context(scratch(config, NAME))
        root = Path(placed.run.root)
        done.elsewhere = stack.enter_context(elsewhere(root))
        heard = stack.enter_context(_heard(done.progress))
        stack.enter_context(standing_still())
        secrets.first = lambda: setattr(done, "rows_at_first_draw", _standing(root))
        if stop_at is not None:
            with Laboratory(secrets, stop_at=stop_at) as first, contextlib.suppress(KeyboardInterrupt):
                train(placed, table)
            done.trace.updates += first.trace.updates
        with Laboratory(secrets, told=told) as laboratory:
            try:
                heard.write(str(train(placed, table)).replace(str(root), ""))
            except Exception as error:  # whatever a broken program raises is a finding, not an end of the audit
                done.error = f"{type(error).__name__}: {error}"
        done.trace = laboratory.trace
        for number in range(again):
            train(replace(placed, run=replace(placed.run, name=f"{NAME}-{number}")), table)
        _gather(done, root, placed)
        done.printed = heard.getvalue()
    return done


def _standing(root: Path) -> int:
    """Reservations on the ledger of ``root``."""
    path = root / "ledger.db"
    return sum(row.kind == "reserve" for row in Ledger.open(path).rows()) if path.is_file() else 0


def _gather(done: Passage, root: Path, config: TrainConfig) -> None:
    public = root / NAME / "public"
    for path in sorted(public.rglob("*")):
        if path.is_file():
            done.files[path.relative_to(public).as_posix()] = path.read_bytes()
    for path in sorted(root.iterdir()):
        known = path.name.startswith((NAME, "ledger.", ".new-", "signing"))
        if path.is_file() and not known:
            done.files[f"../{path.name}"] = path.read_bytes()
    if (root / "ledger.db").is_file():
        rows = Ledger.open(root / "ledger.db").rows()
        names = [row.dataset for row in rows if row.kind == "reserve"]
        done.booked = len(names)
        done.ledger = tuple(Ledger.open(root / "ledger.db").events(names[0])) if names else ()


# -- P1 --------------------------------------------------------------------------------------------------------------


def plain(run: Passage, name: str) -> bytes:
    """A public file without what differs between any two runs: when, and where on the ledger."""
    data, head = run.files.get(name, b"-"), json.loads(run.files.get("claim.json", b"{}")).get("ledger_head")
    return VOLATILE_TEXT.sub(b"", VOLATILE.sub(b"", data.replace(str(head).encode(), b"")))


def differing(one: Passage, two: Passage) -> list[str]:
    """Names of public files that differ, and the words printed where they do."""
    names = sorted({*one.files, *two.files})
    found = [name for name in names if plain(one, name) != plain(two, name)]
    return found + (["what was printed"] if one.printed != two.printed else [])


def same_public(one: Passage, two: Passage, law: str, where: str) -> Finding:
    """P1: everything public is a function of what was released."""
    found = differing(one, two) + [x for x in (two.error, *two.trace.unheard[:2]) if x]
    found += ["what the progress line was told"] if one.progress != two.progress else []
    return Finding("P1", law, float(not found and bool(one.files)), f"{len(one.files)} files" if not found
                   else f"differs: {', '.join(found[:6])}", where)


def no_secret(run: Passage, where: str) -> Finding:
    """No public file and no printed line holds the key, in any common spelling."""
    shown = b"\n".join(run.files.values()) + run.printed.encode()
    marks = [m for key in run.secrets.used for m in _spellings(key)]
    held = [mark for mark in marks if mark in shown]
    return Finding("P1", "the secret key is nowhere in what leaves", float(not held), f"{len(marks)} spellings", where)


def _spellings(key: SecretKey) -> list[bytes]:
    raw: bytes = getattr(key, "_master")  # noqa: B009
    number = int.from_bytes(raw, "big")
    return [raw, raw.hex().encode(), base64.b64encode(raw)[:40], str(number).encode(),
            str(int.from_bytes(raw, "little")).encode(), str(list(raw))[1:60].encode()]


# -- T6 --------------------------------------------------------------------------------------------------------------


def same_control(one: Passage, two: Passage, where: str) -> list[Finding]:
    """T6 over the whole program: steps, rates, releases and draws of n and n + 1 rows."""
    def draws(run: Passage) -> list[Any]:
        return [(d.names, d.kind, d.size if d.kind in NORMALS and d.names[0] == "dpsgd" else 0)
                for d in run.secrets.draws]

    pairs = {
        "steps of DP-SGD": (len(one.trace.updates), len(two.trace.updates)),
        "learning rates": (one.trace.rates, two.trace.rates),
        "parameters": (one.trace.layers, two.trace.layers),
        "free steps": (one.trace.other_steps, two.trace.other_steps),
        "releases": ([r.names for r in one.trace.releases], [r.names for r in two.trace.releases]),
        "draws": (draws(one), draws(two)),
        "what is booked": (one.ledger, two.ledger),
    }
    return [Finding("T6", f"one row more leaves the {name} as they are", float(a == b), "", where)
            for name, (a, b) in pairs.items()]


# -- T5 --------------------------------------------------------------------------------------------------------------


def booked_is_drawn(run: Passage, where: str) -> list[Finding]:
    """T5: releases and ledger, one by one; and the order in which they were made."""
    seen: Counter[tuple[str, str]] = Counter()
    for release in run.trace.releases:  # a private choice names several, and each is a release
        seen[release.phase, release.what] += int(release.kwargs.get("choices", 1))
    wrong = []
    for event in run.ledger:
        if isinstance(event, SampledGaussian):
            ran = (*(run.trace.sgd or (0.0, 0.0)), len(run.trace.updates))
            if ran != (event.noise_multiplier, event.sampling_rate, event.steps):
                wrong.append("DP-SGD ran with noise {:.4g}, rate {:.4g}, {} steps; booked {:.4g}, {:.4g}, {}".format(
                    *ran, event.noise_multiplier, event.sampling_rate, event.steps))
            continue
        count = getattr(event, "count", 1)
        drawn = seen.pop((event.phase, event.what), 0)
        if drawn != count and not (drawn == 0 and event.phase == "survey"):  # a step with no columns is paid for too
            wrong.append(f"{event.what}: {drawn} drawn, {count} booked")
    wrong += [f"{what}: {count} drawn, none booked" for (_, what), count in seen.items()]
    if run.trace.updates and not any(isinstance(event, SampledGaussian) for event in run.ledger):
        wrong.append("DP-SGD is not booked")
    outside = Counter("/".join(map(str, d.names[:2])) for d in run.secrets.draws if d.kind in NORMALS and not d.inside)
    twice = [names for names, count in Counter((d.names, d.kind) for d in run.secrets.draws).items() if count > 1
             and names[1] in ("mask",)]
    stated = read_events(run.files["events.jsonl"], "events.jsonl") if "events.jsonl" in run.files else ()
    return [
        Finding("T5", "each release is booked and each booking drawn", float(not wrong and bool(run.ledger)),
                "; ".join(wrong[:3]) or f"{len(run.ledger)} events", where),
        Finding("T5", "no noise is drawn outside a release", float(not outside), ", ".join(outside), where),
        Finding("T5", "no coins are tossed twice", float(not twice), "", where),
        Finding("T5", "the ledger is written before the first draw", float(run.rows_at_first_draw >= 1),
                f"{run.rows_at_first_draw} reservations", where),
        Finding("T5", "the events of the run are those of the ledger", float(stated == run.ledger), "", where),
        _streams(run, where),
    ]


def _streams(run: Passage, where: str) -> Finding:
    """Draws of one release share a stream; no two releases do, and noise shares none with coins."""
    kinds: dict[Any, set[str]] = {}
    for draw in run.secrets.draws:
        kinds.setdefault(draw.names, set()).add("noise" if draw.kind in NORMALS else draw.kind)
    mixed = [names for names, held in kinds.items() if len(held) > 1]
    opened = Counter(release.names for release in run.trace.releases)
    repeated = [names for names, count in opened.items() if count > 1]
    steps = Counter(d.names for d in run.secrets.draws if d.kind in NORMALS and d.names[0] == "dpsgd")
    repeated += [names for names, count in steps.items() if count > 1]
    return Finding("T5", "no two releases share a stream", float(not mixed and not repeated),
                   ", ".join("/".join(map(str, names)) for names in [*mixed, *repeated][:3]), where)


def resumed(train: Train, config: TrainConfig, table: Any, where: str) -> list[Finding]:
    """T5: stopped in the middle of DP-SGD and started again: the same bytes, the same bill."""
    config = replace(config, trainer=replace(config.trainer, metric_releases=5))  # each one is a checkpoint
    whole = passage(train, config, table, seeded(7), known=True)
    if len(whole.trace.updates) < 3:
        return []
    stop = max(len(whole.trace.updates) - 1, 1)
    parts = passage(train, config, table, seeded(7), stop_at=stop, known=True)
    found = differing(whole, parts) + ([parts.error] if parts.error else [])
    same = (parts.booked, parts.ledger) == (whole.booked, whole.ledger)
    return [Finding("T5", "a run that was stopped and goes on ends as if it had not been", float(not found),
                    ", ".join(found[:4]), where),
            Finding("T5", "it goes on with its own key", float(_own_keys(parts)), "", where),
            Finding("T5", "it is booked once, and whole", float(same), f"{parts.booked} reservations", where)]


def second_run(train: Train, config: TrainConfig, table: Any, where: str) -> Finding:
    """T5: every further run on the same table is a further spend."""
    run = passage(train, config, table, Secrets(), again=1, known=True)
    half = Counter(run.ledger[:len(run.ledger) // 2])
    twice = run.booked == 2 and Counter(run.ledger) == half + half
    return Finding("T5", "a second run on the same data is booked beside the first", float(twice),
                   f"{run.booked} reservations, {len(run.ledger)} events", where)


# -- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """What is audited as a whole: ``train(config, table)``, and the auditor's own table and people."""

    train: Train
    config: TrainConfig
    table: Mapping[str, Sequence[Any]]
    people: Mapping[str, Mapping[str, Any]]
    where: str = ""
    quick: bool = False

    def joined(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The table with one person more."""
        return {name: [*values, row[name]] for name, values in self.table.items()}

    @property
    def rows(self) -> int:
        """How many people the table has."""
        return len(next(iter(self.table.values())))

    def another(self) -> dict[str, list[Any]]:
        """Another table altogether: a third of the size, and everybody in it is the last person."""
        return {name: [values[-1]] * max(self.rows // 3, 1) for name, values in self.table.items()}


def stages(program: Program) -> Iterator[tuple[list[Finding], list[str]]]:
    """Every test of the program as a whole, a group at a time; findings, and what was left out."""
    train, config, where = program.train, program.config, program.where
    run = passage(train, config, program.table, Secrets())
    if run.error:
        yield [Finding("P1", "the program runs", 0.0, run.error, where)], []
        return
    yield [*booked_is_drawn(run, where), no_secret(run, where), Finding(
        "P1", "nothing is left outside its folder, and nobody is called", float(not run.elsewhere),
        ", ".join(run.elsewhere[:3]), where)], []
    other = passage(train, config, program.another(), Secrets(key=run.secrets.used[0]), told=run.trace, known=True)
    at = f"{where} another table".strip()
    yield [same_public(run, other, "another table altogether changes nothing public, given the releases", at),
           *same_control(run, other, at)], []
    yield from alone(run.trace.releases, run.ledger, where)
    neighbours = {}
    for number, (who, row) in enumerate(program.people.items()):
        neighbours[who] = _with_person(program, run, row)
        at = f"{where} {who}".strip()
        yield [same_public(run, neighbours[who], "one person more changes nothing public, given the releases", at),
               *_absent(program, run, neighbours[who], at),
               *(same_control(run, neighbours[who], at) if number < 2 else [])], []
    yield beside(run.trace.releases, {who: other.trace.releases for who, other in neighbours.items()}, run.ledger,
                 where)
    stranger = passage(train, config, program.table, Secrets(), told=run.trace, known=True)
    yield [same_public(run, stranger, "other secrets change nothing public, given the releases", where),
           Finding("T5", "each run has a key of its own, and one only", float(_own_keys(run, stranger)), "", where),
           ], []
    if program.quick:
        yield [], ["T5: stopping and going on", "T5: a second run on the same ledger"]
        return
    yield resumed(train, config, program.table, where), []
    yield [second_run(train, config, program.table, where)], []


def _with_person(program: Program, run: Passage, row: Mapping[str, Any]) -> Passage:
    """The same secrets and the same releases, one person more, who is in every second batch."""
    secrets = Secrets(key=run.secrets.used[0], person=program.rows, present=_every_second)
    return passage(program.train, program.config, program.joined(row), secrets, told=run.trace, known=True)


def _every_second(step: int) -> bool:
    return step % 2 == 0


def _absent(program: Program, run: Passage, other: Passage, where: str) -> list[Finding]:
    """DP-SGD inside the whole program: by at most C where the person takes part, by nothing where not."""
    claim = json.loads(run.files.get("claim.json", b"{}"))
    if not run.trace.updates or not claim.get("divisor") or len(run.trace.updates) != len(other.trace.updates):
        return []
    scale = claim["divisor"] / program.config.trainer.clip_norm
    moved = [float(np.linalg.norm(a - b)) * scale if a.shape == b.shape else math.inf
             for a, b in zip(run.trace.updates, other.trace.updates, strict=True)]
    size = max(float(np.linalg.norm(u)) for u in run.trace.updates) * scale
    apart, together = max(moved[1::2], default=0.0), max(moved[::2])
    return [Finding("T1", "inside the whole program, one person moves an update by at most C",
                    float(together <= 1 + 1e-3 + 1e-5 * size), f"{together:.4g} C", where),
            Finding("T1", "inside the whole program, a person who is not sampled moves nothing",
                    float(apart <= 1e-3 + 1e-5 * size), f"{apart:.4g} C", where)]


def _own_keys(*runs: Passage) -> bool:
    """Each run has one key (in however many objects), and no two runs share one."""
    each = [{key.tag(b"audit") for key in run.secrets.used} for run in runs]
    return all(len(tags) == 1 for tags in each) and len(set.union(*each)) == len(runs)
