#!/usr/bin/env python3
"""The ledger under attack, and its price: races, kills, a server that dies, pricing speed, cost in a training.

    python scripts/bench_ledger.py                       everything; writes reports/ledger.json and reports/ledger.md
    python scripts/bench_ledger.py race-sqlite speed     some parts; the others keep their last numbers

A race is 32 processes that each try to overspend one capped data set, 50 of which are killed with SIGKILL at random
moments (and replaced); on PostgreSQL the server is killed once as well. What must hold afterwards is asserted here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dpvae.config import NEIGHBOURS
from dpvae.errors import AccountingError, BudgetError, LedgerError
from dpvae.privacy import rdp
from dpvae.privacy.accountant import crosscheck, price
from dpvae.privacy.composition import merge
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian
from dpvae.privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "reports" / "ledger.json"
DATASET, CAP, DELTA = "census", 1.0, 1e-5
SPEND = Gaussian("anchor", "counts", noise_multiplier=100.0)  # about 700 of them fit under the cap
PAIRS = 3  # of trainings with and without a ledger
PATIENCE = 300.0  # seconds for a process to end by itself, before it counts as hanging


def spender(url: str, name: str, said: Connection, stop: Any) -> None:
    """Book and commit until told to stop; say so only once the ledger has said so."""
    dice = random.Random(name)
    while True:
        try:
            ledger = Ledger.open(url)
            break
        except LedgerError:  # born while the server is away: a wrong URL must fail at once, so this does too
            time.sleep(0.5)
    tries = 0
    while not stop.is_set():
        tries += 1
        start = time.monotonic()
        try:
            booked = ledger.reserve(DATASET, f"{name}-{tries}", [SPEND], delta=DELTA, noise=name)
        except BudgetError:
            said.send(("refused", f"{name}-{tries}", time.monotonic() - start))
            time.sleep(dice.uniform(0, 0.2))
            continue
        said.send(("booked", f"{name}-{tries}", time.monotonic() - start))
        time.sleep(dice.uniform(0, 0.03))  # where a kill is most dangerous
        ledger.commit(booked)
        said.send(("committed", f"{name}-{tries}", 0.0))


def race(url: str, *, processes: int = 32, kills: int = 50, outage: Callable[[], None] | None = None,
         seconds: float = 90.0) -> dict[str, Any]:
    """The counts of one race; raises AssertionError where a promise of the ledger is broken."""
    price([SPEND], delta=DELTA)  # imports are paid before the fork
    Ledger.open(url).cap(DATASET, CAP, DELTA)
    context = multiprocessing.get_context("fork")
    stop, dice = context.Event(), random.Random(7)
    alive: dict[Connection, Any] = {}
    heard: dict[str, set[str]] = {"booked": set(), "committed": set(), "refused": set()}
    slowest, killed, born, outages = 0.0, 0, 0, 0

    def bear() -> None:
        nonlocal born
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=spender, args=(url, f"p{born}", theirs, stop), daemon=True)
        process.start()
        theirs.close()
        alive[ours] = process
        born += 1

    def listen(timeout: float) -> None:
        nonlocal slowest
        for pipe in wait(list(alive), timeout):
            assert isinstance(pipe, Connection)
            try:
                word, run, took = pipe.recv()
            except (EOFError, OSError):
                alive.pop(pipe).join(5)
                continue
            heard[word].add(run)
            slowest = max(slowest, took)

    for _ in range(processes):
        bear()
    start = time.monotonic()
    due = [dice.uniform(1.0, seconds * 0.8) for _ in range(kills)]
    due.sort(reverse=True)
    while time.monotonic() - start < seconds or killed < kills or not heard["refused"]:
        listen(0.02)
        if outage is not None and not outages and killed >= kills // 2:
            outage()
            outages = 1
        if due and time.monotonic() - start > due[-1] and alive:
            due.pop()
            os.kill(dice.choice([*alive.values()]).pid, signal.SIGKILL)
            killed += 1
        while len(alive) < processes and time.monotonic() - start < seconds + PATIENCE:
            bear()
        assert time.monotonic() - start < seconds + PATIENCE, "the race does not come to its end"
    stop.set()
    ended = time.monotonic()
    exits: list[int | None] = []
    watched = list(alive.values())
    while alive and time.monotonic() - ended < PATIENCE:
        listen(0.2)
    for process in watched:
        process.join(1)
        exits.append(process.exitcode)
    return _settled(url, heard, {
        "processes": processes, "started": born, "killed": killed, "server_killed": outages,
        "hanging": exits.count(None), "failed": sum(code not in (0, None, -signal.SIGKILL) for code in exits),
        "seconds": time.monotonic() - start, "slowest_answer_seconds": slowest})


def _settled(url: str, heard: dict[str, set[str]], counts: dict[str, Any]) -> dict[str, Any]:
    """What the book says afterwards, against what its users were told."""
    ledger = Ledger.open(url)
    rows = ledger.rows()
    booked = {row.run for row in rows if row.kind == "reserve"}
    committed = {row.run for row in rows if row.kind == "commit"}
    spent = ledger.spent(DATASET, DELTA).upper
    counts |= {
        "rows": ledger.check(), "reserved": len(booked), "committed": len(committed),
        "open_after_a_kill": len(booked - committed), "refusals": len(heard["refused"]),
        "told_booked": len(heard["booked"]), "told_committed": len(heard["committed"]),
        "lost_bookings": len(heard["booked"] - booked), "lost_commits": len(heard["committed"] - committed),
        "cap": CAP, "spent": spent, "one_more_would_cost": price([SPEND] * (len(booked) + 1), delta=DELTA).upper,
    }
    for name in ("lost_bookings", "lost_commits", "hanging", "failed"):
        assert counts[name] == 0, counts
    assert spent <= CAP < counts["one_more_would_cost"], counts
    assert counts["refusals"] > 0, counts
    return counts


@contextlib.contextmanager
def server() -> Iterator[tuple[str, Path]]:
    """A throw-away PostgreSQL: its URL and folder."""
    script = str(ROOT / "scripts" / "postgres")
    folder = Path(tempfile.mkdtemp(prefix="dpvae-pg-"))
    folder.chmod(0o755)
    done = subprocess.run([script, "start", str(folder)], capture_output=True, text=True, check=True, timeout=120)
    try:
        yield done.stdout.strip(), folder
    finally:
        subprocess.run([script, "stop", str(folder)], check=False, timeout=120)


def race_sqlite() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return race(f"{folder}/ledger.db")


def race_postgres() -> dict[str, Any]:
    script = str(ROOT / "scripts" / "postgres")
    with server() as (url, folder):
        def outage() -> None:
            subprocess.run([script, "crash", str(folder)], check=True, timeout=60)
            time.sleep(1)
            subprocess.run([script, "again", str(folder)], check=True, timeout=120, stdout=subprocess.DEVNULL)

        return race(url, outage=outage)


def speed() -> dict[str, Any]:
    """Seconds to price 100 distinct events, by all accountants, and the width of the answer."""
    price([SPEND], delta=DELTA)
    lists: dict[str, list[Event]] = {
        "100 noise levels of 1 to 3, rate 0.01, 30 steps": [
            SampledGaussian("dpsgd", "x", 1 + i / 50, 0.01, 30) for i in range(100)],
        "100 noise levels and rates, 10 to 208 steps": [
            SampledGaussian("dpsgd", "x", 0.8 + i / 40, 0.002 + i / 1e4, 10 + 2 * i) for i in range(100)],
        "100 noise levels around 1.1, rate 0.004, 25 steps": [
            SampledGaussian("dpsgd", "x", 1.1 + i / 1000, 0.004, 25) for i in range(100)],
        "50 noise levels, 50 Gaussians": [
            *(SampledGaussian("dpsgd", "x", 1 + i / 25, 0.01, 40) for i in range(50)),
            *(Gaussian("anchor", "x", 20.0 + i) for i in range(50))],
    }
    found = {}
    for relation, (name, events) in itertools.product(NEIGHBOURS, lists.items()):
        wall, cpu = time.perf_counter(), time.process_time()
        check = crosscheck(events, DELTA, relation)
        found[f"{name}, {relation}"] = {"epsilon": check.pld, "lower": check.prv_lower, "rdp": check.rdp,
                       "width": check.pld - check.prv_lower, "cpu_seconds": time.process_time() - cpu,
                       "wall_seconds": time.perf_counter() - wall}
    return found


def _timed(spent: list[float], function: Any) -> Any:
    """``function``, adding its CPU seconds to ``spent``."""
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.process_time() - start
    return run


@contextlib.contextmanager
def _noise_timed() -> Iterator[dict[str, float]]:
    """CPU seconds of all DP-SGD steps made inside, and of the noise in them."""
    from dpvae.train.dpsgd import PrivateSteps

    originals = {name: getattr(PrivateSteps, name) for name in ("step", "_noise")}
    clocks: dict[str, list[float]] = {name: [0.0] for name in originals}
    found: dict[str, float] = {}
    for name, function in originals.items():
        setattr(PrivateSteps, name, _timed(clocks[name], function))
    try:
        yield found
    finally:
        found |= {name: clock[0] for name, clock in clocks.items()}
        for name, function in originals.items():
            setattr(PrivateSteps, name, function)


def overhead() -> dict[str, Any]:
    """The ledger's share of the default training, in CPU time: inside it, and in pairs with one that books nothing.

    The pairs alternate, so that a machine that grows slower slows both halves; their medians are compared.
    """
    from dpvae import api
    from dpvae.config import DataConfig, ReportConfig, RunConfig, TrainConfig
    from dpvae.privacy import ledger as module

    spent = [0.0]
    timed = functools.partial(_timed, spent)

    class Nothing:
        """A ledger that writes nothing and prices nothing."""

        def reserve_all(self, asks: Any) -> Any:
            return [None for _ in asks]

        def commit(self, reservation: Any) -> None: ...
        def head(self) -> str:
            return module.GENESIS

        def rows(self) -> list[Any]:
            return []

        def spent(self, dataset: str, delta: float) -> Any:
            return price([], delta=delta)

    def train(folder: str, name: str) -> float:
        config = TrainConfig(data=DataConfig(builtin="adult", target="income", rows=48842),
                             run=RunConfig(root=folder, name=name), report=ReportConfig(progress="quiet"))
        start = time.process_time()
        api.train(config)
        return time.process_time() - start

    originals = api.open_ledger, api.content_tag

    def open_timed(config: Any) -> Any:
        real = timed(originals[0])(config)
        for name in ("reserve_all", "commit", "head", "rows", "spent"):
            setattr(real, name, timed(getattr(real, name)))
        return real

    switches: dict[str, tuple[Any, Any]] = {
        "off": (lambda config: Nothing(), originals[1]), "on": (open_timed, timed(originals[1]))}
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    inside = []
    with tempfile.TemporaryDirectory() as folder:
        with _noise_timed() as noise:
            train(folder, "warm-up")  # imports, the table, the accountants' caches
        for i in range(PAIRS):
            for way in ("off", "on") if i % 2 else ("on", "off"):
                api.open_ledger, api.content_tag = switches[way]
                spent[0] = 0.0
                seconds[way].append(train(folder, f"{way}{i}"))
                inside += [spent[0]] if way == "on" else []
    api.open_ledger, api.content_tag = originals
    on, off = statistics.median(seconds["on"]), statistics.median(seconds["off"])
    counts = {"cpu_seconds_on": seconds["on"], "cpu_seconds_off": seconds["off"], "cpu_seconds_inside": inside,
              "share_inside": statistics.median(inside) / on, "paired_difference": on / off - 1,
              "cpu_seconds_dpsgd": noise["step"], "share_of_its_noise": noise["_noise"] / noise["step"]}
    assert counts["share_inside"] <= 0.01, counts
    assert counts["share_of_its_noise"] <= 0.05, counts
    return counts


def configs() -> dict[str, Any]:
    """500 random lists of events: PRV lower <= PLD <= RDP must hold for each, under both relations."""
    dice, counts = random.Random(500), {"configurations": 0, "outside": 0, "skipped_epsilon_above_100": 0, "many": 0}
    while counts["configurations"] < 500:
        events: list[Event] = []
        for _ in range(dice.choice([1, 1, 2, 3, 12])):
            kind = dice.random()
            if kind < 0.6:
                events.append(SampledGaussian("d", "x", 10 ** dice.uniform(-0.4, 0.9), 10 ** dice.uniform(-4, -0.5),
                                              int(10 ** dice.uniform(0, 3.7))))
            elif kind < 0.85:
                events.append(Gaussian("a", "x", 10 ** dice.uniform(-0.2, 2), dice.randint(1, 9)))
            else:
                events.append(PureDP("p", "x", 10 ** dice.uniform(-2, -0.3), dice.randint(1, 4)))
        delta = 10 ** dice.uniform(-9, -4)
        relation = dice.choice(["add_remove", "add_remove", "replace_one"])
        composition = merge(events, relation)
        if rdp.epsilon(composition, delta) > 100:
            counts["skipped_epsilon_above_100"] += 1
            continue
        counts["configurations"] += 1
        counts["many"] += composition.many
        try:
            crosscheck(events, delta, relation)
        except AccountingError:
            counts["outside"] += 1
    assert counts["outside"] == 0, counts
    return counts


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "race-sqlite": race_sqlite, "race-postgres": race_postgres, "speed": speed, "configs": configs,
    "overhead": overhead}


def markdown(report: dict[str, Any]) -> str:
    """The same numbers as a page."""
    lines = [f"`{report['command']}`", "", "# The ledger under attack, and its price", "", f"{report['machine']}.", ""]
    for part, numbers in report["parts"].items():
        lines += [f"## {part}", "", "| | |", "|---|---|"]
        for name, value in numbers.items():
            inner = value if isinstance(value, dict) else {"": value}
            shown = ", ".join(f"{k} {v:.4g}".strip() if isinstance(v, float) else f"{k} {v}".strip()
                              for k, v in inner.items())
            lines.append(f"| {name} | {shown} |")
        lines.append("")
    lines += ["Wall times are those of a machine that several people share; `overhead` is in CPU",
              "seconds; its share is the time inside the ledger over that of the same training. Run besides, by hand:",
              "",
              "- `DPVAE_FLIPS=2000 pytest tests/audit/test_verify.py -k flipped`: 2,000 one-byte changes, each named.",
              "- `DPVAE_FUZZ=10000 pytest tests/release/test_schemas.py`: three parsers, 10,000 examples each.", ""]
    return "\n".join(lines)


def main(words: list[str]) -> None:
    report = json.loads(REPORT.read_text()) if REPORT.is_file() else {"parts": {}}
    report |= {"command": "python scripts/bench_ledger.py",
               "machine": f"Python {platform.python_version()}, {os.cpu_count()} cores, shared"}
    for word in words or PARTS:
        start = time.perf_counter()
        report["parts"][word] = PARTS[word]()
        print(f"{word}: {time.perf_counter() - start:.0f} s\n{json.dumps(report['parts'][word], indent=1)}", flush=True)
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
        REPORT.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main(sys.argv[1:])
