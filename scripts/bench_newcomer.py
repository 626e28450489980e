#!/usr/bin/env python3
"""A newcomer's path, typed by a program and timed: from the clone to the first report, in a fresh virtual environment.

    python scripts/bench_newcomer.py              # writes reports/newcomer.md
    PYTHON=/path/to/python3 python scripts/bench_newcomer.py     # a Python that has torch: nothing is downloaded

Every command is one that the help of the command before it shows. Installing is timed apart: it is what a download is.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "reports" / "newcomer.md"
BAR_SECONDS, BAR_COMMANDS = 300, 8
GET, INSTALL = f"git clone --quiet {ROOT} dpvae", "./scripts/install"
PATH = (
    ".venv/bin/dpvae train",
    ".venv/bin/dpvae audit run=latest quick=true",
    ".venv/bin/dpvae release run=latest to=release/first",
    ".venv/bin/dpvae verify release/first",
    ".venv/bin/dpvae report run=latest",
)


@dataclass(frozen=True)
class Timed:
    """One command: seconds on the clock and of all processors together, and the last line that it said."""

    command: str
    wall: float
    cpu: float
    said: str


def run(command: str, folder: Path) -> Timed:
    """Run it as a person would; a failure ends the benchmark with what was said."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    return Timed(command.replace(str(ROOT), "URL"), time.monotonic() - started, cpu, said[-1].strip())


def main() -> None:
    """Clone, install, go the path, write what it took."""
    with tempfile.TemporaryDirectory(prefix="newcomer-") as home:
        got = run(GET, Path(home))
        folder = Path(home) / "dpvae"
        installed = run(INSTALL, folder)
        path = [run(command, folder) for command in PATH]
        pages = sorted(str(page.relative_to(folder)) for page in folder.glob("runs/*/public/report.html"))
    everything = [got, installed, *path]
    wall, cpu = (sum(getattr(each, name) for each in (got, *path)) for name in ("wall", "cpu"))
    rows = [f"| `{each.command}` | {each.wall:.0f} | {each.cpu:.0f} |" for each in everything]
    REPORT.write_text("\n".join([
        "<!-- python scripts/bench_newcomer.py -->", "# A newcomer's path", "",
        f"From the clone to the first report ({len(pages)} page) in a fresh environment, on the table that ships with "
        f"the package; {os.cpu_count()} processors, Python {platform.python_version()}, a machine shared with other "
        "work.", "",
        "| command | seconds | CPU seconds |", "|---|---|---|", *rows, "",
        f"{len(everything)} commands (at most {BAR_COMMANDS} wanted), {wall:.0f} s without the installation (at most "
        f"{BAR_SECONDS} wanted), {cpu:.0f} CPU-s.", ""]))
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
