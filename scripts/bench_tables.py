#!/usr/bin/env python3
"""Us, simple floors and other people's generators, side by side: quality and cost on one table.

    python scripts/bench_tables.py --train TRAIN.csv --test TEST.csv --target income --judge JUDGE.py \
        --schema dpvae/data/tables/adult.yaml --epsilon 0.5 1 3 10 --seeds 0 1 2 --peers --out reports/bench/tables

dpvae runs as the command line a user would type, the floors of scripts/table_floors.py and the peers of
scripts/table_peers.py as programs; each in a process of its own, whose CPU seconds and peak memory are the kernel's
count. Peers are run only where asked for (``--peers``: all; ``--peers tvae``: that one): each is installed from PyPI
into a virtual environment below ``--venvs`` on first use, and skipped with the reason where that fails, or where it
exceeds ``--cpu-limit``, ``--wall-limit`` or ``--memory-limit``.

The judge is any program with the options --real-train, --real-test, --synth, --target that prints JSON; without one,
``dpvae evaluate``. It sees only the synthetic table. OUT.json keeps every run; a further call adds to it and replaces
what it ran again, so a long comparison can be made in parts. OUT.md and OUT.svg show medians. Figures of
reports/bench/cited.json were not run here, and are marked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True  # scripts/ holds scripts, nothing else
from table_floors import SHARES  # noqa: E402
from table_peers import PEERS  # noqa: E402
from table_report import FIGURES, citations, write  # noqa: E402

from dpvae.evaluate.fidelity import mean, rank_correlation_errors, select  # noqa: E402
from dpvae.evaluate.judge import read_synthetic  # noqa: E402

SCRIPTS = Path(__file__).resolve().parent
REAL, OURS = "real rows", "dpvae"
Run = dict[str, Any]


class Failed(Exception):
    """A system that did not finish, with the reason to print."""


class Limits:
    """What one process may use before it is ended; infinite where nothing is said."""

    def __init__(self, cpu_s: float = math.inf, wall_s: float = math.inf, memory_mb: float = math.inf) -> None:
        self.cpu_s, self.wall_s, self.memory_mb = cpu_s, wall_s, memory_mb

    def broken(self, pid: int, seconds: float) -> str:
        """Which limit the process is over, or nothing."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        memory = int(stat[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        used = ((cpu, self.cpu_s, "CPU seconds"), (memory, self.memory_mb, "MB"), (seconds, self.wall_s, "seconds"))
        return next((f"over its limit of {most:g} {unit}" for value, most, unit in used if value > most), "")


def measured(command: list[str], folder: Path, limits: Limits | None = None) -> tuple[dict[str, float], str]:
    """Run ``command`` in ``folder``: CPU seconds and peak resident memory of the process, and what it printed."""
    limits, broken, started, peak = limits or Limits(), "", time.monotonic(), 0.0
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, env=environment, start_new_session=True)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, highest(process.pid))
            broken = broken or limits.broken(process.pid, time.monotonic() - started)
            if broken:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
        said, complaint = ([file.seek(0), file.read().decode(errors="replace")][1] for file in (out, err))
    if status != 0:
        last = (complaint.strip().splitlines() or ["no message"])[-1][:200]
        raise Failed(broken or f"exit code {process.returncode}: {last}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": peak or usage.ru_maxrss / 1024}, said


def highest(pid: int) -> float:
    """Peak resident memory of a living process, MB; the kernel's final count begins with what its parent held."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


# ---- one table from each kind of system ----------------------------------------------------------------------------


class Bench:
    """One table, one judge, and the ways to make rows like it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        with args.train.open() as file:
            self.rows = sum(1 for _ in file) - 1
        self.ready: dict[str, Path] = {}  # pythons of peers, by package

    def run(self, system: str, epsilon: float, seed: int) -> Run:
        """One synthetic table, made and judged; :class:`Failed` where the system does not finish."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if system == REAL:
                return self.real(folder)
            make = self.ours if system == OURS else self.floor if system in SHARES else self.peer
            synth, cost = make(system, folder, epsilon, seed)
            return {**figures(self.judged(synth, folder)), "rank_error": self.rank_error(synth), **cost}

    def real(self, folder: Path) -> Run:
        """The real train rows in place of synthetic ones: the ceiling; and the distance that sampling alone brings."""
        judged = self.judged(self.args.train, folder)
        rows, fit = judged["rows"], judged["fidelity"]
        fewer = math.sqrt(2 / rows["train"] / (1 / rows["train"] + 1 / rows["test"]))
        return {**figures(judged), **{f"tvd_{way}": fit[f"floor_{way}"] * fewer for way in ("1way", "2way")},
                "tvd_1way_max": None, "rank_error": None, "cpu_s": None, "peak_mb": None}

    def ours(self, system: str, folder: Path, epsilon: float, seed: int) -> tuple[Path, Run]:
        """Train, release, verify, as a user types it; what training costs is what counts."""
        args, dpvae = self.args, [sys.executable, "-m", "dpvae"]
        options = [f"data={args.train}", f"data.target={args.target}", f"data.rows={self.rows}",
                   f"privacy.epsilon={epsilon}", f"privacy.delta={args.delta}", "run.name=bench", f"run.seed={seed}",
                   "report.progress=quiet"]
        options += [f"data.schema={args.schema}"] if args.schema else []
        cost, _ = measured([*dpvae, "train", *options, *args.override], folder)
        measured([*dpvae, "release", "run=bench", f"rows={self.rows}", "to=out", f"seed={seed}"], folder)
        measured([*dpvae, "verify", "out"], folder)
        (synth,) = (folder / "out" / "data").glob("*.parquet")
        return synth, cost

    def floor(self, system: str, folder: Path, epsilon: float, seed: int) -> tuple[Path, Run]:
        schema = ["--schema", str(self.args.schema)] if self.args.schema else []
        command = [sys.executable, str(SCRIPTS / "table_floors.py"), system, "--target", self.args.target, *schema]
        return self._program(command, folder / "synth.parquet", folder, epsilon, seed)

    def peer(self, system: str, folder: Path, epsilon: float, seed: int) -> tuple[Path, Run]:
        (folder / "facts.json").write_text(json.dumps(declared(self.args.train, self.args.schema)))
        command = [str(self.python(system)), str(SCRIPTS / "table_peers.py"), system, "--facts", "facts.json"]
        return self._program(command, folder / "synth.csv", folder, epsilon, seed)

    def _program(self, command: list[str], out: Path, folder: Path, epsilon: float, seed: int) -> tuple[Path, Run]:
        """Run one of the programs beside this one; the last line it prints is JSON."""
        args = self.args
        options = ["--train", str(args.train), "--delta", str(args.delta), "--seed", str(seed), "--out", str(out),
                   "--epsilon", str(epsilon if math.isfinite(epsilon) else 1.0)]
        limits = Limits(args.cpu_limit, args.wall_limit, args.memory_limit)
        cost, said = measured([*command, *options], folder, limits)
        facts = json.loads(said.strip().splitlines()[-1])
        return out, {**cost, **{name: facts[name] for name in ("version",) if name in facts}}

    def python(self, system: str) -> Path:
        """The interpreter of a peer's environment, made on first use."""
        peer = PEERS[system]
        if peer.package not in self.ready:
            home = self.args.venvs / peer.package
            python = home / "bin" / "python"
            if not (home / ".installed").exists():
                limits = Limits(wall_s=self.args.install_limit)
                quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                measured([sys.executable, "-m", "venv", "--clear", str(home)], SCRIPTS, limits)
                measured([str(python), *quiet, peer.package], SCRIPTS, limits)
                if peer.without:
                    measured([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", peer.without], SCRIPTS, limits)
                (home / ".installed").touch()
            self.ready[peer.package] = python
        return self.ready[peer.package]

    def rank_error(self, synth: Path) -> float | None:
        """By our own count, since few judges look at columns at full resolution; none without two numeric columns."""
        real, made = read_synthetic(self.args.train), read_synthetic(synth)
        errors = rank_correlation_errors(real, select(made, real.names))
        return mean(list(errors.values())) if errors else None

    def judged(self, synth: Path, folder: Path) -> dict[str, Any]:
        """What the judge prints; its own cost is nobody's."""
        args = self.args
        command = [sys.executable, "-m", "dpvae", "evaluate", f"real={args.train}", f"test={args.test}",
                   f"synth={synth}", f"target={args.target}", "format=json"]
        if args.judge is not None:
            command = [sys.executable, str(args.judge), "--real-train", str(args.train), "--real-test", str(args.test),
                       "--synth", str(synth), "--target", args.target, "--no-dcr"]
        found = json.loads(measured(command, folder)[1])
        assert isinstance(found, dict)
        return found


def figures(judged: Mapping[str, Any]) -> Run:
    """The judge's numbers this report keeps."""
    fidelity = judged["fidelity"]
    return {"gb_auc": judged["tstr"]["gb"]["roc_auc"], "lr_auc": judged["tstr"]["lr"]["roc_auc"],
            **{name: fidelity[name] for name in FIGURES if name.startswith("tvd_")}}


def declared(train: Path, schema: Path | None) -> dict[str, dict[str, Any]]:
    """The public facts of the schema in the words of :mod:`table_peers`."""
    if schema is None:
        return {}
    from dpvae.data import lake
    from dpvae.data.schema import Schema

    bound = Schema.from_yaml(schema).bind(lake.header(train))
    return {column.name: {key: value for key, value in (
        ("categories", column.categories), ("lower", column.lower), ("upper", column.upper)) if value is not None}
        for column in bound.columns}


# ---- all of them ---------------------------------------------------------------------------------------------------


def systems_of(args: argparse.Namespace) -> list[str]:
    """In the order they are run: the quick ones first."""
    peers = [] if args.peers is None else args.peers or list(PEERS)
    return [name for name in (REAL, *SHARES, OURS) if name in args.systems] + [n for n in PEERS if n in peers]


def jobs(args: argparse.Namespace) -> list[tuple[str, float, int]]:
    """(system, epsilon, seed); what is not private has no epsilon, and real rows have no seed."""
    found = []
    for system in systems_of(args):
        free = system == REAL or (system in PEERS and not PEERS[system].private)
        for epsilon in [math.inf] if free else args.epsilon:
            found += [(system, epsilon, seed) for seed in (args.seeds[:1] if system == REAL else args.seeds)]
    return found


def command_line(args: argparse.Namespace) -> str:
    """The command of this call, with file names in place of paths."""
    words = ["python scripts/bench_tables.py", f"--train {args.train.name} --test {args.test.name}",
             f"--target {args.target}", f"--schema {args.schema.name}" if args.schema else "",
             f"--epsilon {' '.join(f'{e:g}' for e in args.epsilon)} --seeds {' '.join(map(str, args.seeds))}",
             f"--delta {args.delta:g} --table {args.table}",
             "--systems " + " ".join(shlex.quote(name) for name in args.systems) if args.systems else "",
             "" if args.peers is None else " ".join(["--peers", *args.peers]),
             "--set " + " ".join(args.override) if args.override else ""]
    return " ".join(word for word in words if word)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = lambda text: Path(text).expanduser().resolve()  # noqa: E731
    for name in ("train", "test"):
        parser.add_argument(f"--{name}", type=place, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--judge", type=place, help="a program; without it, dpvae evaluate")
    parser.add_argument("--schema", type=place, help="public schema; without it all is surveyed")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 1.0, 3.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--table", help="what the table is called in the report; by default its folder's name")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/tables"))
    parser.add_argument("--set", dest="override", nargs="*", default=[], help="further key=value for dpvae train")
    parser.add_argument("--systems", nargs="*", choices=(REAL, *SHARES, OURS), default=[REAL, *SHARES, OURS])
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), help="all, or those named; without it, none")
    parser.add_argument("--venvs", type=place, default=place("~/.cache/dpvae-peers"), help="environments of the peers")
    parser.add_argument("--cpu-limit", type=float, default=900.0, help="CPU seconds of one floor or peer")
    parser.add_argument("--wall-limit", type=float, default=3600.0, help="seconds of one floor or peer")
    parser.add_argument("--memory-limit", type=float, default=8000.0, help="MB of one floor or peer")
    parser.add_argument("--install-limit", type=float, default=600.0, help="seconds to install one peer")
    args = parser.parse_args(argv)
    args.table = args.table or args.train.parent.name
    return args


def main() -> None:
    args = parse()
    for name in ("train", "test", "schema", "judge"):
        path = getattr(args, name)
        if path is not None and not path.is_file():
            sys.exit(f"--{name} {path}: no such file")
    citations(args.out)
    bench, skipped = Bench(args), {}
    for system, epsilon, seed in jobs(args):
        where = {"table": args.table, "system": system, "epsilon": epsilon if math.isfinite(epsilon) else None,
                 "seed": seed}
        if (system, epsilon) in skipped:
            continue
        try:
            run = {**where, **bench.run(system, epsilon, seed)}
        except Failed as failure:
            if system not in PEERS:
                raise SystemExit(f"failed: {system} at epsilon {epsilon:g}: {failure}") from None
            skipped[system, epsilon] = str(failure)
            print(f"skipped: {system} at epsilon {epsilon:g}: {failure}", flush=True)
            run = {**where, "skipped": str(failure)}
        else:
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in run.items()}), flush=True)
        write(args.out, args.table, command_line(args), [run])


if __name__ == "__main__":
    main()
