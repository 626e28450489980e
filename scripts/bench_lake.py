#!/usr/bin/env python3
"""What the lakehouse costs, measured: drawing, scoring, and the whole way from a table to a published one.

    python scripts/bench_lake.py sampling rows=1000000,10000000      # of a narrow table with a small model
    python scripts/bench_lake.py scoring rows=15000000               # of an Iceberg table of 8 numbers
    python scripts/bench_lake.py whole rows=1000000                  # acs_income_2018, replicated: train .. score
    python scripts/bench_lake.py killed times=20                     # SIGKILL while releasing and while scoring
    python scripts/bench_lake.py stored rows=54000000 limit_mb=512   # training under ulimit -d, and in memory

Each part writes its own section of reports/bench/lake.json, and reports/bench/lake.md is made of them. Memory is the
largest sum over all processes, looked at ten times a second: resident (rss), with the pages that they share counted
once (pss, which is what the machine must have), and writable, touched or not (data, which ulimit -d counts). Time is
wall and CPU time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPORT = Path(__file__).resolve().parents[1] / "reports" / "bench"
TABLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "tabular"
ACS = TABLES / "acs_income_2018" / "acs_income_2018.parquet"
SMALL = ["model.components=64", "model.latent_dim=8", "trainer.fit_steps=100", "trainer.steps=10",
         "trainer.sleep_steps=20"]


def typed(line: str, **named: Any) -> dict[str, float]:
    """Run one command to its end; seconds, CPU seconds and peak memory of it and its children."""
    print(f"$ dpvae {line}", flush=True)
    before, started, rss, pss, data = os.times(), time.perf_counter(), 0, 0, 0
    process = subprocess.Popen([sys.executable, "-m", "dpvae", *line.split()], **named)
    while process.poll() is None:
        family = processes(process.pid)
        rss, pss = max(rss, sum(map(resident, family))), max(pss, sum(map(proportional, family)))
        data = max(data, sum(map(writable, family)))
        time.sleep(0.1)
    after = os.times()
    if process.returncode:
        raise SystemExit(f"dpvae {line}: exit code {process.returncode}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    cost = {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(used, 1), "peak_rss_mb": rss >> 20,
            "peak_pss_mb": pss >> 20, "peak_data_mb": data >> 20}
    print(cost, flush=True)
    return cost


def processes(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [each for child in task.read_text().split() for each in processes(int(child))]
    return found


def resident(pid: int) -> int:
    """Resident bytes; 0 of a process that is gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def proportional(pid: int) -> int:
    """Resident bytes, a page that n processes share counted as 1/n."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def writable(pid: int) -> int:
    """Bytes of private writable memory, touched or not."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def narrow(rows: int) -> pa.Table:
    """Four columns of made-up people."""
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, rows)
    return pa.table({"city": rng.choice(["north", "south", "east"], rows), "age": age,
                     "pay": rng.gamma(2.0, 10.0, rows).round(1), "income": np.where(age > 50, "high", "low")})


def numbers(rows: int, seed: int = 0) -> pa.Table:
    """Eight dependent numbers of single precision."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, 1))
    return pa.table({f"x{j}": (hidden[:, 0] * (j % 3) + rng.normal(size=rows)).astype(np.float32) for j in range(8)})


def sampling(rows: str = "1000000,10000000", engine: str = "local", workers: str = "2") -> dict[str, Any]:
    """Releases of growing length into folders, from one small run."""
    pq.write_table(narrow(100_000), "people.parquet")
    typed(f"train data=people.parquet run.name=narrow data.rows=100000 report.progress=quiet {' '.join(SMALL)}")
    found: dict[str, Any] = {}
    for count in map(int, rows.split(",")):
        cost = typed(f"release run=narrow rows={count} to=out-{count} engine={engine} workers={workers}")
        size = sum(path.stat().st_size for path in Path(f"out-{count}").rglob("*") if path.is_file())
        found[f"{count} rows, {engine}, {workers} workers"] = {
            **cost, "rows_per_wall_s": round(count / cost["wall_s"]), "rows_per_cpu_s": round(count / cost["cpu_s"]),
            "mb_written": size >> 20}
        for part in Path(f"out-{count}/data").iterdir():
            part.unlink()
    return found


def scoring(rows: str = "15000000", engine: str = "local", workers: str = "2", score: str = "elbo") -> dict[str, Any]:
    """Scores of an Iceberg table, a side table keyed by nothing but with the eight numbers kept."""
    from dpvae.data.lake import register

    typed("lake init warehouse demo=false")
    home, count = register.home("iceberg:demo.numbers"), int(rows)
    files = []
    home.create(numbers(1).schema)
    for number, first in enumerate(range(0, count, 1_000_000)):
        files.append(home.folder() / f"part-{number}.parquet")
        pq.write_table(numbers(min(1_000_000, count - first), number), files[-1])
    held = home.held()
    home.write(files, {}, replace=False, expected=held.version if held else None)
    pq.write_table(numbers(100_000), "numbers.parquet")
    typed(f"train data=numbers.parquet run.name=numbers data.rows=100000 report.progress=quiet {' '.join(SMALL)}")
    cost = typed(f"score run=numbers data=iceberg:demo.numbers to=iceberg:demo.scored contributions=0 score={score} "
                 f"engine={engine} workers={workers}")
    again = typed("score run=numbers data=iceberg:demo.numbers to=iceberg:demo.scored contributions=0 "
                  f"score={score} engine={engine} workers={workers}")
    held = register.home("iceberg:demo.scored").held()
    assert held is not None
    scored = sum(pq.read_metadata(file).num_rows for file in held.files)
    return {f"{count} rows, {engine}, {workers} workers, score={score}": {
        **cost, "rows_per_wall_s": round(count / cost["wall_s"]), "rows_per_cpu_s": round(count / cost["cpu_s"]),
        "rows_scored": scored, "again_wall_s": again["wall_s"]}}


def whole(rows: str = "1000000", settings: str = "", scoring: str = "") -> dict[str, Any]:
    """A real table, replicated: into a lake, trained on, released, verified, scored; and every mark read back.

    ``settings`` of the training and of the ``scoring``, separated by commas, are added to the commands: the page shows
    them.
    """
    import duckdb

    from dpvae.data.lake import iceberg, register

    count = int(rows)
    table = pq.read_table(ACS)
    pq.write_table(pa.concat_tables([table] * -(-count // len(table))).slice(0, count), "acs.parquet")
    found = {step: typed(line) for step, line in {
        "lake init": "lake init warehouse demo=false",
        "copy in": "lake copy acs.parquet to=iceberg:demo.acs",
        "train": ("train data=iceberg:demo.acs privacy.epsilon=3 run.name=lake1 report.progress=plain "
                  + settings.replace(",", " ")),
        "release": f"release run=lake1 rows={count} to=iceberg:demo.acs_synth",
        "verify": "verify iceberg:demo.acs_synth",
        "score": "score run=lake1 data=iceberg:demo.acs to=iceberg:demo.acs_scored " + scoring.replace(",", " "),
    }.items()}
    snapshot = iceberg.table_of("iceberg:demo.acs_synth").current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    by_pyiceberg = {k: v for k, v in snapshot.summary.additional_properties.items() if k.startswith("dpvae.")}
    metadata = iceberg.table_of("iceberg:demo.acs_synth").metadata_location.removeprefix("file://")
    by_duckdb = duckdb.sql(f"SELECT unnest(snapshots) AS s FROM read_json('{metadata}')").fetchall()
    said = next(s["summary"] for (s,) in by_duckdb if s["snapshot-id"] == snapshot.snapshot_id)
    held = register.home("iceberg:demo.acs_synth").held()
    assert held is not None
    footers = {bytes(key).decode(): bytes(value).decode() for key, value in duckdb.sql(
        f"SELECT key, value FROM parquet_kv_metadata('{held.files[0]}')").fetchall()}
    found["marks"] = {name: {"pyiceberg": value, "duckdb reads it in the snapshot": said.get(name) == value,
                             "duckdb reads it in the file": footers.get(name) == value}
                      for name, value in by_pyiceberg.items()}
    return {f"{count} rows x {len(table.column_names)} columns": found}


def killed(times: str = "20", rows: str = "300000", what: str = "release,score") -> dict[str, Any]:
    """SIGKILL at random moments; after each, readers see a whole table; in the end the same command finishes."""
    pq.write_table(narrow(400_000), "people.parquet")
    typed("lake init warehouse demo=false")
    typed("lake copy people.parquet to=iceberg:demo.people")
    typed(f"train data=iceberg:demo.people run.name=k data.rows=100000 report.progress=quiet {' '.join(SMALL)}")
    lines = {"release": f"release run=k rows={rows} to=iceberg:demo.synth",
             "score": "score run=k data=iceberg:demo.people to=iceberg:demo.scored contributions=0"}
    wanted = {"release": int(rows), "score": 400_000}
    return {step: _killed(step, lines[step], wanted[step], int(times)) for step in what.split(",")}


def _killed(step: str, line: str, wanted: int, times: int) -> dict[str, Any]:
    """A command killed at random moments, after the seconds in which Python starts; each command goes on where the one
    before was killed, until a table is there: the next ones then begin another one. In the end all are whole."""
    from dpvae.audit.published import verify_table
    from dpvae.data.lake import register

    table = line.partition(" to=")[2].split()[0]
    if step == "release":
        typed("audit run=k quick=true")  # or each command would begin with it
    commands = [line.replace(table, f"{table}{number}").split() for number in range(times + 2)]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dpvae", *commands.pop()], check=True, stdout=subprocess.DEVNULL)
    wall, number, seen = time.perf_counter() - began, 0, []
    rng = random.Random(0)
    for moment in [rng.uniform(0.4 * wall, wall) for _ in range(times)]:
        process = subprocess.Popen([sys.executable, "-m", "dpvae", *commands[number]], stdout=subprocess.DEVNULL,
                                   start_new_session=True)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        rows = _rows(register.home(f"{table}{number}"), wanted)
        assert step == "score" or not rows or verify_table(f"{table}{number}").ok
        seen.append({"killed_after_s": round(moment, 1), "table": number, "rows": rows})
        number += rows > 0
    typed(" ".join(commands[number]))
    for each in range(number + 1):
        assert _rows(register.home(f"{table}{each}"), wanted) == wanted
    return {"kills": times, "whole_run_s": round(wall, 1), "tables": number + 1, "rows_in_the_end_of_each": wanted,
            "kills_before_a_table_was_there": sum(not found["rows"] for found in seen), "seen": seen}


def _rows(home: Any, wanted: int) -> int:
    """Rows that readers see: all that are ``wanted``, or none, and no file twice."""
    held = home.held()
    files = held.files if held is not None else ()
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    assert rows in (0, wanted), rows
    assert len(set(files)) == len(files)
    return rows


def stored(rows: str = "54000000", columns: str = "20", limit_mb: str = "512") -> dict[str, Any]:
    """The same run with its writable memory limited, which leaves the rows on disk, and in memory: byte by byte the
    same model.

    Answers from 0 to 7, and two numbers whose bins are measured; a folder names one file of a million rows as often as
    it takes. Rounding depends on how many records a step takes at once, and that on the memory that is free: so it is
    said.
    """
    count, width, limit = int(rows), int(columns), int(limit_mb) << 20
    most = min(count, 1_000_000)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=most)
    made = {f"q{j}": (hidden * (j % 3) + rng.normal(size=most)).round().clip(-4, 3).astype(np.int8) + np.int8(4)
            for j in range(width - 2)}
    made |= {f"x{j}": (hidden + rng.normal(size=most)).round(1).clip(-9, 9) for j in range(2)}
    pq.write_table(pa.table(made), "part.parquet")
    Path("table").mkdir()
    for part in range(-(-count // most)):
        os.link("part.parquet", f"table/{part:05d}.parquet")
    kinds = {"q": "kind: integer, min: 0, max: 7", "x": "kind: continuous, min: -9, max: 9, decimals: 1"}
    Path("table.yaml").write_text("columns:\n" + "".join(
        f"  {name}: {{{kinds[name[0]]}, missing: false}}\n" for name in made))
    line = (f"train data=table/ data.schema=table.yaml data.rows={count} privacy.secret_seed=1 privacy.epsilon=3 "
            "report.progress=quiet performance.threads=1 performance.microbatch=512 trainer.sampling_rate=0.001 "
            f"trainer.metric_releases=1 {' '.join(SMALL)} ".replace("components=64", "components=16"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cost = {"limited": typed(line + "run.name=disk", env=environment,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))),
            "in memory": typed(line + "run.name=memory performance.stored=never", env=environment)}
    files = [[Path(f"runs/{name}/public/{file}").read_bytes() for file in ("model.safetensors", "events.jsonl")]
             for name in ("disk", "memory")]
    assert files[0] == files[1]
    return {f"{count} rows x {width} columns": {
        "ulimit_d_mb": int(limit_mb), "codes_mb": count * width * 2 >> 20,
        "codes_per_byte_allowed": round(count * width * 2 / limit, 2), "same_bytes": True, **cost}}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"sampling": sampling, "scoring": scoring, "whole": whole,
                                                   "killed": killed, "stored": stored}


def write_report(part: str, line: str, found: dict[str, Any]) -> None:
    """One section of the numbers, and the page made of all of them."""
    REPORT.mkdir(parents=True, exist_ok=True)
    path = REPORT / "lake.json"
    numbers = json.loads(path.read_text()) if path.is_file() else {"command": "python scripts/bench_lake.py PART"}
    section = numbers.setdefault(part, {})
    for name, values in found.items():
        section[name] = {"command": line, **values} if isinstance(values, dict) else values
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    lines = [f"<!-- python scripts/bench_lake.py {'|'.join(PARTS)} -->", "# The lakehouse, measured", ""]
    for name, sections in numbers.items():
        if not isinstance(sections, dict):
            continue
        lines += [f"## {name}", ""]
        for title, values in sections.items():
            lines += [f"**{title}** (`{values.get('command')}`)", ""]
            lines += [f"- {key}: {shown(value)}" for key, value in values.items() if key != "command"] + [""]
        lines += billion(sections) if name == "sampling" and len(sections) > 1 else []
    (REPORT / "lake.md").write_text("\n".join(lines))


def billion(points: dict[str, Any]) -> list[str]:
    """10^9 rows, on the line through the shortest and the longest release that were measured alike."""
    measured = sorted((int(title.split()[0]), cost) for title, cost in points.items() if "local, 2" in title)
    (few, low), (many, high) = measured[0], measured[-1]
    cpu, wall = ((high[each] - low[each]) / (many - few) for each in ("cpu_s", "wall_s"))
    return [f"**10^9 rows, on the line through {few} and {many}**: {low['cpu_s'] + cpu * 1e9:,.0f} CPU seconds, "
            f"{(low['wall_s'] + wall * 1e9) / 60:.0f} minutes, in the same memory. Every shard of 65,536 rows is drawn "
            "by itself and written before the next, so a worker holds one, whatever follows; what grows is the list of "
            "files: 1,908 names and digests.", ""]


def shown(value: Any) -> str:
    """A number, a list, or named numbers in one line."""
    if isinstance(value, list):
        return " | ".join(map(shown, value))
    return "; ".join(f"{k} {shown(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def main(arguments: list[str]) -> None:
    """Run one part in a folder that is removed afterwards."""
    if not arguments or arguments[0] not in PARTS:
        raise SystemExit(__doc__)
    part, named = arguments[0], dict(word.split("=", 1) for word in arguments[1:])
    here = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="bench-lake-") as folder:
        os.chdir(folder)
        found = PARTS[part](**named)
        os.chdir(here)
    write_report(part, f"python scripts/bench_lake.py {' '.join(arguments)}", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
