"""``dpvae audit``: one run, everything there is to ask, one verdict.

The run itself is only read (its ``public/`` folder). A twin is trained on rows drawn from its released model, by the
code and with the plan of the run: what the program does to those made-up people is what it did to the real ones.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dpvae import __version__
from dpvae.audit import attacks, page, scenes
from dpvae.audit.battery import Caught, all_stages, gather, self_test
from dpvae.audit.instruments import Secrets
from dpvae.audit.mutants.base import CLIPPINGS, TRAINED
from dpvae.audit.passage import passage
from dpvae.audit.pipeline import Program
from dpvae.audit.runner import Claim
from dpvae.audit.twin import Train
from dpvae.audit.verdict import TESTS, Battery, Finding
from dpvae.config import PerformanceConfig, TrainConfig, build
from dpvae.errors import DPVAEError, RunError
from dpvae.files import read_json, write_bytes, write_json
from dpvae.modalities import released
from dpvae.privacy.accountant import CrossCheck, crosscheck
from dpvae.privacy.events import RepeatAndSelect, SampledGaussian
from dpvae.privacy.ledger import Ledger
from dpvae.report.meaning import decimals
from dpvae.report.source import Source, read_run, schema_columns, write_events
from dpvae.rng import stream

ROWS, MEMBERS, PLANTED = 240, 500, 24
BOOKED = ("noise_multiplier", "sampling_rate", "steps")  # of DP-SGD, in the plan and on the ledger
LEFT_OUT_QUICK = ("the self-test: power was not proved again", "attacks on a released table")


@dataclass(frozen=True)
class AuditReport:
    """The verdict, where it was written, and everything behind it."""

    passed: bool
    battery: Battery
    caught: tuple[Caught, ...]
    path: Path
    seconds: float
    numbers: Mapping[str, Any]

    def __str__(self) -> str:
        lines = [self.numbers["sentence"]]
        for test in self.numbers["tests"]:
            mark = "ok  " if test["passed"] else "FAIL"
            lines.append(f"  {mark} {test['test']}  {test['says']} ({test['asked']} questions)")
            lines += [f"         {text}" for text in test["failed"][:3]]
        lines += [f"  left out: {', '.join(self.numbers['left_out'])}"] if self.numbers["left_out"] else []
        missed = [c.mutant for c in self.caught if not c.by]
        if self.caught:
            lines.append(f"  self-test: {len(self.caught) - len(missed)} of {len(self.caught)} broken programs caught"
                         + (f"; missed {', '.join(missed)}" if missed else ""))
        return "\n".join([*lines, f"  page     {self.path}"])


def audit_run(run: Path, train: Train, *, quick: bool = False) -> AuditReport:
    """Audit a finished run and write ``audit.html`` and ``audit.json`` into its public folder."""
    started = time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # products of small matrices: a second thread would only spin
            return _audited(run, train, quick, started)
    finally:
        torch.set_num_threads(threads)


def _audited(run: Path, train: Train, quick: bool, started: float) -> AuditReport:
    source = read_run(run)
    config = config_of(source)
    kind = released(run / "public")
    table = kind.made_up(run / "public", ROWS // (2 if quick else 1), seed=1)
    findings, check = accounting(run, source)
    program = Program(train, scenes.small(config), table, kind.troublemakers(table, run / "public"), quick=quick)
    stages = list(all_stages(program, claim=claim_of(source)))
    attacked, caught = None, []
    if not quick:
        attacked = attack_twin(run / "public", train, config)
        findings.append(_attacks_hold(attacked, check))
        clipping = config.performance.clipping if config.performance.clipping in CLIPPINGS else "fast"
        name = config.trainer.name if config.trainer.name in TRAINED else TRAINED[0]
        caught = self_test(train, trainers=[name], clippings=[clipping], kinds=[config.data.kind])
    left_out = [*(LEFT_OUT_QUICK if quick else ()), *unlike_the_run(config)]
    battery = gather([(findings, [], left_out), *stages])
    passed = battery.passed and all(each.by for each in caught)
    numbers = _numbers(source, battery, caught, attacked, check, passed=passed, quick=quick,
                       seconds=time.process_time() - started)
    write_json(run / "public" / "audit.json", numbers)
    path = run / "public" / "audit.html"
    write_bytes(path, page.render(numbers).encode())
    return AuditReport(passed, battery, tuple(caught), path, numbers["cpu_seconds"], numbers)


# -- what is audited -------------------------------------------------------------------------------------------------


def config_of(source: Source) -> TrainConfig:
    """The run's settings as its public folder has them; places are not in there, and not needed."""
    if not source.config:
        raise RunError(f"run={source.name}: public/config.json is missing; train it again to have it audited")
    try:
        plain = {name: dict(group) for name, group in source.config.items()}
        plain["data"] |= {"path": None, "schema": None, "columns": None, "where": None}  # its rows are chosen already
        plain["privacy"]["secret_seed"] = None
        plain["run"]["root"] = "runs"
        if source.schema.get("kind", "table") != "table":  # a twin has too few records to find its classes in
            plain["data"] |= {"label": source.schema.get("target"), "labels": _released_labels(source)}
        return build(TrainConfig, plain)
    except (DPVAEError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"run={source.name}: public/config.json does not parse ({error})") from None


def unlike_the_run(config: TrainConfig) -> list[str]:
    """What twins do not do as the run did: left out."""
    other = {name: getattr(config.performance, name) for name in ("compile", "precision", "sharding")
             if getattr(config.performance, name) != getattr(PerformanceConfig(), name)}
    return [f"performance.{name}={value}: twins run uncompiled, in single precision, in one process"
            for name, value in other.items()]


def _released_labels(source: Source) -> str | None:
    target = source.schema.get("target")
    found = [column.get("categories") or [] for name, column in schema_columns(source.schema) if name == target]
    return "|".join(map(str, found[0])) if found else None


def claim_of(source: Source) -> Claim | None:
    """What the run booked for DP-SGD, with the noise, rate and clip norm of its own plan."""
    plan = json.loads(source.plan_bytes)
    sgd = plan.get("sgd")
    if not sgd:
        return None
    return Claim(clip_norm=sgd["clip_norm"], noise_multiplier=sgd["noise_multiplier"], steps=sgd["steps"],
                 sampling_rate=sgd["sampling_rate"], delta=source.claim.delta)


def accounting(run: Path, source: Source) -> tuple[list[Finding], CrossCheck | None]:
    """A1: PLD, PRV and RDP on the events, the claim they stand for, and the ledger, where it is at hand."""
    try:
        check = crosscheck(source.events, source.claim.delta, source.claim.neighbouring)
    except DPVAEError as error:
        return [Finding("A1", "three accountants agree", 0.0, str(error))], None
    upper = check.epsilon.upper
    order = f"{check.prv_lower:.4f} <= {check.pld:.4f} <= {check.rdp:.4f}"
    found = [*_planned(source), Finding("A1", "three accountants agree", 1.0, order),
             Finding("A1", "the booked events cost no more than the target", float(
                 upper <= source.claim.epsilon_target * (1 + 1e-9)), f"{upper:.4f} of {source.claim.epsilon_target:g}"),
             Finding("A1", "the run's randomness was secret", float(source.claim.private), "")]
    ledger, name = run.resolve().parent / "ledger.db", read_json(run / "run.json").get("ledger_run")
    if ledger.is_file() and name:
        try:
            booked = [event for row in Ledger.open(ledger).rows(name) if row.kind == "reserve"
                      for event in row.content["events"]]
        except DPVAEError as error:
            return [*found, Finding("A1", "the ledger's chain holds", 0.0, str(error))], check
        stated = [json.loads(line) for line in (run / "public" / "events.jsonl").read_text().splitlines()]
        found.append(Finding("A1", "the ledger holds the events of the run", float(booked == stated),
                             f"{len(booked)} booked, {len(stated)} stated"))
    return found, check


def _planned(source: Source) -> list[Finding]:
    """A1: what DP-SGD is replayed by is what was booked for it; a selection among settings books the dearest of all."""
    if any(isinstance(event, RepeatAndSelect) for event in source.events):
        return []
    sgd = json.loads(source.plan_bytes).get("sgd")
    planned = [tuple(sgd.get(name) for name in BOOKED)] if sgd else []
    booked = [tuple(getattr(e, name) for name in BOOKED) for e in source.events if isinstance(e, SampledGaussian)]
    return [Finding("A1", "DP-SGD was booked as it was planned", float(planned == booked),
                    f"{planned} planned, {booked} booked" if planned != booked else "")]


# -- attacks on a twin's table ---------------------------------------------------------------------------------------


def attack_twin(public: Path, train: Train, config: TrainConfig) -> attacks.Attacked:
    """A twin on members drawn from the released model, with planted outliers; its table and its model are attacked."""
    settings = replace(scenes.small(config), model=config.model)
    settings = replace(settings, model=replace(settings.model, components=64, latent_dim=16, hidden=32),
                       trainer=replace(settings.trainer, fit_steps=80, sleep_steps=40))
    kind = released(public)
    everybody = kind.made_up(public, MEMBERS + MEMBERS * 3 // 2, seed=2)
    members = {name: values[:MEMBERS] for name, values in everybody.items()}
    outsiders = {name: values[MEMBERS:] for name, values in everybody.items()}
    rng = stream(3, "planted")
    strange = {name: [values[i] for i in rng.integers(0, len(values), 2 * PLANTED)]
               for name, values in everybody.items()}
    joined = {name: values[:PLANTED] for name, values in strange.items()}
    run = passage(train, settings, {n: [*values, *joined[n]] for n, values in members.items()}, Secrets())
    if run.error:
        raise RunError(f"twin: {run.error}")
    with tempfile.TemporaryDirectory(prefix="dpvae-audit-") as folder:
        twin = Path(folder)
        for name, data in run.files.items():
            if "/" not in name:
                (twin / name).write_bytes(data)
        apart = {name: values[PLANTED:] for name, values in strange.items()}
        drawn = kind.told(twin, kind.made_up(twin, MEMBERS, seed=5))
        codes = [kind.told(twin, group) for group in (members, outsiders, joined, apart)]
        likely = {row.tobytes(): value for group, told in zip((members, outsiders, joined, apart), codes, strict=True)
                  for row, value in zip(told, kind.log_prob(twin, group), strict=True)}
        return attacks.attack_release(codes[0], codes[1], drawn, planted=(codes[2], codes[3]),
                                      log_prob=lambda rows: np.array([likely[row.tobytes()] for row in rows]))


def _attacks_hold(attacked: attacks.Attacked, check: CrossCheck | None) -> Finding:
    proved = max(each.epsilon for each in attacked.membership)
    claim = check.epsilon.upper if check else 0.0
    return Finding("A2", "the strongest membership attack stays below the claim", float(proved <= claim),
                   f"proves {proved:.3f} of {claim:.3f}; AUC {attacked.strongest.auc.value:.3f} "
                   f"({attacked.strongest.attack})")


# -- the numbers of the page -----------------------------------------------------------------------------------------


def _numbers(source: Source, battery: Battery, caught: Sequence[Caught], attacked: attacks.Attacked | None,
             check: CrossCheck | None, *, passed: bool, quick: bool, seconds: float) -> dict[str, Any]:
    missed = [each.mutant for each in caught if not each.by]
    proved = max((b.epsilon for b in battery.bounds), default=0.0)
    return {
        "format": "dpvae-audit/1", "version": __version__, "run": source.name, "passed": passed, "quick": quick,
        "sentence": _sentence(battery, missed, len(caught), check, passed, quick), "alpha": battery.alpha,
        "events_sha256": hashlib.sha256(write_events(source.events)).hexdigest(), "model_sha256": source.model_sha256,
        "claim": {"epsilon_target": source.claim.epsilon_target, "delta": source.claim.delta,
                  "lower": check.epsilon.lower if check else None, "upper": check.epsilon.upper if check else None,
                  "accountants": asdict(check) | {"epsilon": None} if check else None,
                  "trainer": source.config.get("trainer", {}).get("name", "none")},
        "tests": [_test(name, found, battery, caught) for name, found in battery.tests.items()],
        "bounds": [asdict(b) for b in battery.bounds], "proved": proved,
        "self_test": {"tried": len(caught), "caught": len(caught) - len(missed), "missed": missed,
                      "lines": [str(each) for each in caught]},
        "attacks": dict(attacks.to_dict(attacked)) if attacked is not None else None,
        "left_out": list(battery.left_out), "cpu_seconds": round(seconds, 1),
    }


def _test(name: str, found: Sequence[Finding], battery: Battery, caught: Sequence[Caught]) -> dict[str, Any]:
    failed = [str(f) for f in battery.failed if f.test == name]
    open_ = [f.p for f in found if 0 < f.p < 1]
    return {"test": name, "says": TESTS[name], "passed": not failed, "asked": len(found), "failed": failed,
            "smallest_p": min(open_) if open_ else 1.0, "of": len(open_),
            "catches": list(dict.fromkeys(each.says for each in caught if each.by[:1] == (name,)))[:40]}


def _sentence(battery: Battery, missed: Sequence[str], tried: int, check: CrossCheck | None, passed: bool,
              quick: bool) -> str:
    upper = decimals(check.epsilon.upper, up=True) if check else "?"
    if passed:
        power = "" if quick else f", after catching {tried} of {tried} programs that were broken on purpose"
        return (f"Nothing contradicts the claim of epsilon <= {upper}: {len(battery.findings)} questions were asked of "
                f"twins of this run{power}.")
    if battery.failed:
        return (f"The claim of epsilon <= {upper} must not be relied on: {', '.join(battery.caught_by)} failed. "
                "Nothing of this run may be signed.")
    return (f"This audit may not sign: it missed {len(missed)} of {tried} programs that were broken on purpose "
            f"({', '.join(missed[:3])}).")
