"""The whole program as one function of the table: survey, anchors, DP-SGD, fitting, report.

Whatever a careless line may do (an encoder shown raw rows, a vocabulary read off the table, a stop rule that looks at
the private loss, the seed in a log file), it makes something public that does not follow from what was released. So:

* P1: the same releases and the same secrets, a table with one person more (last, first, in the middle), and another
  table altogether, none of whose records has a finite loss (or a rounded count, a first record, a rare event would not
  show): all that leaves (:mod:`dpvae.audit.passage`) must be the same. The same releases, *other* secrets: the same
  again, or the secret shows;
* A1: the ledger is priced by an accountant that the program has no part in (:mod:`dpvae.audit.prices`);
* M1, M2: each one-shot release, many times over (:mod:`dpvae.audit.one_shot`);
* T5: each release has its line on the ledger and each line its release; the ledger is written first; keys and streams
  are secret and apart (:mod:`dpvae.audit.secrecy`); a run that was stopped goes on with its own rows and key, and ends
  with the same bytes and one booking; a second run is booked beside the first;
* T6: one row more changes no step, no rate, no order of draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpvae.audit.instruments import NORMALS, Secrets, seeded
from dpvae.audit.one_shot import alike, alone, beside
from dpvae.audit.passage import Passage, differing, passage, spellings
from dpvae.audit.prices import DOUBT, cost
from dpvae.audit.secrecy import apart, keys
from dpvae.audit.twin import Train
from dpvae.audit.verdict import Finding
from dpvae.config import TrainConfig
from dpvae.privacy.events import SampledGaussian
from dpvae.report.source import read_events

# -- P1 --------------------------------------------------------------------------------------------------------------


def same_public(one: Passage, two: Passage, law: str, where: str) -> Finding:
    """P1: everything public is a function of what was released."""
    found = differing(one, two) + [x for x in (two.error, *two.trace.unheard[:2]) if x]
    found += ["what the progress line was told"] if one.progress != two.progress else []
    return Finding("P1", law, float(not found and bool(one.files)), f"{len(one.files)} files" if not found
                   else f"differs: {', '.join(found[:6])}", where)


def no_secret(run: Passage, where: str) -> list[Finding]:
    """No public file and no printed line holds the key, in any common spelling; when all is done, nothing does."""
    shown = b"\n".join(run.files.values()) + run.printed.encode()
    marks = [m for key in run.secrets.used for m in spellings(key)]
    held = [mark for mark in marks if mark in shown]
    spelt = f"{len(marks)} spellings"
    return [Finding("P1", "the secret key is nowhere in what leaves", float(not held), spelt, where),
            Finding("T5", "the secret key is destroyed when the run ends", float(not run.kept), ", ".join(run.kept),
                    where)]


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


def _releases_off(run: Passage) -> Iterator[str]:
    """Releases that are drawn another number of times than they are booked."""
    seen: Counter[tuple[str, str]] = Counter()
    for release in run.trace.releases:  # a private choice names several, and each is a release
        seen[release.phase, release.what] += int(release.kwargs.get("choices", 1))
    for event in run.ledger:
        if not isinstance(event, SampledGaussian):
            count, drawn = getattr(event, "count", 1), seen.pop((event.phase, event.what), 0)
            if drawn != count and not (drawn == 0 and event.phase == "survey"):  # one with no columns is paid for too
                yield f"{event.what}: {drawn} drawn, {count} booked"
    yield from (f"{what}: {count} drawn, none booked" for (_, what), count in seen.items())


def _steps_off(run: Passage) -> Iterator[str]:
    """Steps of DP-SGD that are none of those that are booked."""
    booked = [event for event in run.ledger if isinstance(event, SampledGaussian)]
    ran = (*(run.trace.sgd or (0.0, 0.0)), len(run.trace.updates))
    for event in booked:
        if ran != (event.noise_multiplier, event.sampling_rate, event.steps):
            yield "DP-SGD ran with noise {:.4g}, rate {:.4g}, {} steps; booked {:.4g}, {:.4g}, {}".format(
                *ran, event.noise_multiplier, event.sampling_rate, event.steps)
    if run.trace.updates and not booked:
        yield "DP-SGD is not booked"


def booked_is_drawn(run: Passage, where: str) -> list[Finding]:
    """T5: releases and ledger, one by one; and the order in which they were made."""
    wrong = [*_releases_off(run), *_steps_off(run)]
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
        Finding("T5", "its key is one that SecretKey.generate drew", float(
            all(key.tag(b"audit") in run.keys for key in run.secrets.used)), "", where),
        _streams(run, where),
    ]


def priced(run: Passage, config: TrainConfig, where: str) -> tuple[list[Finding], list[str]]:
    """A1: what is on the ledger costs no more than was asked for, by an accountant that the program has no part in."""
    delta, target = run.claim.get("delta"), config.privacy.epsilon
    found = cost(run.ledger, delta, target=target) if delta and run.claim["neighbouring"] == "add_remove" else None
    if found is None:
        return [], ["A1: the ledger is priced by the program's own accountants only"]
    asked = config.privacy.delta in (None, delta) and run.claim["epsilon_target"] == target
    return [Finding("A1", "what is booked costs no more than was asked for", float(found <= target * (1 + DOUBT)),
                    f"{found:.4f} of {target:g}", where),
            Finding("A1", "what is claimed is what was asked for", float(asked), "", where)], []


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
    fewer = {name: values[1:] for name, values in table.items()}  # the same noise on other rows would show them
    changed = passage(train, config, table, seeded(7), stop_at=1, then=fewer, known=True)
    found = differing(whole, parts) + ([parts.error] if parts.error else [])
    same = (parts.booked, parts.ledger) == (whole.booked, whole.ledger)
    return [Finding("T5", "a run that was stopped and goes on ends as if it had not been", float(not found),
                    ", ".join(found[:4]), where),
            Finding("T5", "it goes on with its own key", float(_own_keys(parts)), "", where),
            Finding("T5", "it goes on with its own rows only", float(changed.refused), changed.error, where),
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

    def joined(self, row: Mapping[str, Any], at: int) -> dict[str, list[Any]]:
        """The table with one person more, before the one who is there at place ``at``."""
        return {name: [*values[:at], row[name], *values[at:]] for name, values in self.table.items()}

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
    yield [*booked_is_drawn(run, where), *no_secret(run, where), *keys(where), Finding(
        "P1", "nothing is left outside its folder, and nobody is called", float(not run.elsewhere),
        ", ".join(run.elsewhere[:3]), where)], []
    yield priced(run, config, where)
    yield [apart(run.secrets.used[0], [draw.names for draw in run.secrets.draws], where)], []
    yield _of_another_table(program, run), []
    yield from alone(run.trace.releases, run.ledger, where)
    yield from _of_neighbours(program, run)
    stranger = passage(train, config, program.table, Secrets(), told=run.trace, known=True)
    yield [same_public(run, stranger, "other secrets change nothing public, given the releases", where),
           Finding("T5", "each run has a key of its own, and one only", float(_own_keys(run, stranger)), "", where),
           ], []
    if program.quick:
        yield [], ["T5: stopping and going on", "T5: a second run on the same ledger"]
        return
    yield resumed(train, config, program.table, where), []
    yield [second_run(train, config, program.table, where)], []


def _of_another_table(program: Program, run: Passage) -> list[Finding]:
    """What a run on another table altogether has in common with ``run``, given its releases: everything."""
    other = passage(program.train, program.config, program.another(), Secrets(key=run.secrets.used[0]),
                    told=run.trace, known=True, fault=without_a_loss)
    at = f"{program.where} another table".strip()
    return [same_public(run, other, "another table altogether changes nothing public, given the releases", at),
            *same_control(run, other, at), *_encoded_alone(run, other, at),
            *alike(run.trace.releases, other.trace.releases, at)]


def _of_neighbours(program: Program, run: Passage) -> Iterator[tuple[list[Finding], list[str]]]:
    """What one person more changes, person after person; last of all in the releases themselves."""
    releases = {}
    for number, (who, row) in enumerate(program.people.items()):
        other = _with_person(program, run, row, (program.rows, 0, program.rows // 2)[number % 3])
        releases[who], at = other.trace.releases, f"{program.where} {who}".strip()
        yield [same_public(run, other, "one person more changes nothing public, given the releases", at),
               *_absent(program, run, other, at), *(same_control(run, other, at) if number < 2 else [])], []
    yield beside(run.trace.releases, releases, run.ledger, program.where)


def _encoded_alone(run: Passage, other: Passage, where: str) -> list[Finding]:
    """The last record of ``run`` is everybody in ``other``: DP-SGD was given the same of it."""
    same = run.trace.last == other.trace.last
    return [Finding("T1", "what a record becomes depends on it alone", float(same), "", where)
            ] if run.trace.updates else []


def without_a_loss(loss_B: Any, codes: Any) -> Any:
    """A fault: no record has a finite loss. What is made of such a record is rare, and as private as anything else."""
    return loss_B * math.nan


def _with_person(program: Program, run: Passage, row: Mapping[str, Any], at: int) -> Passage:
    """The same secrets and the same releases, one person more, who is in every second batch."""
    secrets = Secrets(key=run.secrets.used[0], person=at, present=_every_second)
    return passage(program.train, program.config, program.joined(row, at), secrets, told=run.trace, known=True)


def _every_second(step: int) -> bool:
    return step % 2 == 0


def _absent(program: Program, run: Passage, other: Passage, where: str) -> list[Finding]:
    """DP-SGD inside the whole program: by at most C where the person takes part, by nothing where not."""
    claim = run.claim
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
