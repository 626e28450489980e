#!/usr/bin/env python3
"""The report of scripts/bench_tables.py: every run as JSON, medians as a Markdown table and as a picture.

    python scripts/table_report.py reports/bench/tables      writes .md and .svg again from the .json

Figures that were not run here come from cited.json beside the report, and are marked wherever they are shown.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpvae.report.canvas import Canvas, number, ticks

FIGURES = ("gb_auc", "lr_auc", "tvd_2way", "tvd_1way", "tvd_1way_max", "rank_error", "cpu_s", "peak_mb")
WHOLE = ("cpu_s", "peak_mb")
NAMES = {"independent": "floor: independent columns", "naive_bayes": "floor: naive Bayes",
         "tan": "floor: tree-augmented naive Bayes", "dpmm_mst": "dpmm MST", "smartnoise_mst": "smartnoise-synth MST",
         "mostlyai": "MOSTLY AI engine", "tvae": "TVAE (not private)", "ctgan": "CTGAN (not private)"}
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
Run = dict[str, Any]


def write(out: Path, table: str, command: str, runs: Sequence[Run]) -> None:
    """Add ``runs`` of ``table`` to OUT.json, in place of what it holds for the same system, epsilon and seed."""
    path = out.with_suffix(".json")
    held = json.loads(path.read_text()) if path.exists() else {"runs": []}
    old = [{"table": table, "system": "dpvae", **run} for run in held["runs"]]
    new = {_key(run) for run in runs}
    kept = [run for run in old if _key(run) not in new]
    commands = [line for line in held.get("commands", []) if line != command]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"commands": [command, *commands], "runs": [*kept, *runs]}, indent=1) + "\n")
    render(out)


def render(out: Path) -> None:
    """OUT.md and OUT.svg from OUT.json and cited.json."""
    held = json.loads(out.with_suffix(".json").read_text())
    rows = [*medians(held["runs"]), *cited(out.parent / "cited.json", {run["table"] for run in held["runs"]})]
    out.with_suffix(".md").write_text(markdown(held["commands"], held["runs"], rows))
    out.with_suffix(".svg").write_text(picture(rows))


def _key(run: Run) -> tuple[Any, ...]:
    return run["table"], run["system"], run["epsilon"], run["seed"]


def medians(runs: Iterable[Run]) -> list[Run]:
    """One row per table, system and epsilon, with the number of seeds; runs that were skipped have no figures."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if "skipped" not in run:
            groups.setdefault(_key(run)[:3], []).append(run)
    return [{"table": table, "name": NAMES.get(system, system), "system": system, "epsilon": epsilon,
             "seeds": len(group), **{figure: _median([run.get(figure) for run in group]) for figure in FIGURES}}
            for (table, system, epsilon), group in groups.items()]


def _median(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def cited(path: Path, tables: set[str]) -> list[Run]:
    """Rows of other people's systems that were measured once before."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())["tables"]
    return [{"table": table, "name": f"{row['system']} (cited)", "cited": True, "seeds": 1,
             **dict.fromkeys(FIGURES), **row} for table in sorted(tables) for row in found.get(table, [])]


def markdown(commands: Sequence[str], runs: Sequence[Run], rows: Sequence[Run]) -> str:
    """The commands that made it first; then one table of medians per data set, best first at each epsilon."""
    lines = [f"`{commands[0]}`", *(f"\n`{command}`" for command in commands[1:]), "",
             "Medians over seeds. Classifiers are trained on synthetic rows and tested on real ones; tvd is total "
             "variation distance, rank_error the mean error of rank correlations. Real rows stand for the ceiling of "
             "the AUCs and for what sampling alone costs in distance. Rows marked (cited) were not run here: see "
             "cited.json.", ""]
    for table in dict.fromkeys(row["table"] for row in rows):
        lines += [f"## {table}", "", "| epsilon | system | seeds | " + " | ".join(FIGURES) + " |",
                  "|---" * (len(FIGURES) + 3) + "|"]
        mine = sorted((row for row in rows if row["table"] == table),
                      key=lambda row: (row["epsilon"] or 0.0, -(row["gb_auc"] or 0.0)))
        lines += [f"| {_epsilon(row)} | {row['name']} | {row['seeds']} | "
                  + " | ".join(_cell(figure, row[figure]) for figure in FIGURES) + " |" for row in mine]
        lines += ["", *sorted({f"- {NAMES.get(run['system'], run['system'])} skipped at epsilon {_epsilon(run)}: "
                               f"{run['skipped']}" for run in runs if run["table"] == table and "skipped" in run}), ""]
    return "\n".join(lines).rstrip() + "\n"


def _epsilon(row: Run) -> str:
    return f"{row['epsilon']:g}" if row["epsilon"] else "-"


def _cell(figure: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{0 if figure in WHOLE else 4}f}"


# ---- the picture ---------------------------------------------------------------------------------------------------

LEFT, PANEL, GAP, ROW, TOP = 250, 260, 40, 20, 62
PANELS = (("gb_auc", "AUC of gradient boosting (right is better)"),
          ("tvd_2way", "2-way total variation distance (left is better)"))


def picture(rows: Sequence[Run]) -> str:
    """One block per data set: a line per system, a dot per epsilon, for utility and for fidelity side by side."""
    epsilons = sorted({row["epsilon"] for row in rows if row["epsilon"]})
    colour = {epsilon: COLOURS[i % len(COLOURS)] for i, epsilon in enumerate(epsilons)} | {None: "m"}
    blocks = [_block(table, [row for row in rows if row["table"] == table], colour)
              for table in dict.fromkeys(row["table"] for row in rows)]
    sheet = Canvas(LEFT + 2 * PANEL + GAP + 30, sum(block.height for block in blocks) + 24)
    x = 14.0
    for epsilon in epsilons:
        sheet.dot(x, 14, 4, colour[epsilon]).text(x + 8, 18, f"epsilon {epsilon:g}")
        x += 84
    sheet.dot(x, 14, 4, colour[None]).text(x + 8, 18, "not private")
    y = 24.0
    for block in blocks:
        sheet.place(block, 0, y)
        y += block.height
    described = "; ".join(f"{row['table']}, {row['name']}, epsilon {_epsilon(row)}: AUC "
                          f"{_cell('gb_auc', row['gb_auc'])}, distance {_cell('tvd_2way', row['tvd_2way'])}"
                          for row in rows)
    return sheet.svg("bench", "Synthetic tables: utility and fidelity by system and epsilon", described,
                     standalone=True) + "\n"


def _block(table: str, rows: Sequence[Run], colour: dict[float | None, str]) -> Canvas:
    real = next((row for row in rows if row["system"] == "real rows"), None)
    rows = [row for row in rows if row is not real]
    best = {row["name"]: max(other["gb_auc"] or 0.0 for other in rows if other["name"] == row["name"]) for row in rows}
    names = sorted(best, key=lambda name: -best[name])
    bottom = TOP + ROW * len(names)
    canvas = Canvas(LEFT + 2 * PANEL + GAP + 30, bottom + 30)
    canvas.text(14, 22, table, "h")
    for i, name in enumerate(names):
        canvas.text(LEFT - 12, TOP + ROW * i + 14, name, "h" if name == "dpvae" else "t", "end")
    for panel, (figure, words) in enumerate(PANELS):
        left = LEFT + panel * (PANEL + GAP)
        values = [row[figure] for row in rows if row[figure] is not None]
        ceiling = real[figure] if real is not None else None
        low, high = min([*values, ceiling or values[0]]), max([*values, ceiling or values[0]])
        pad = 0.05 * max(high - low, 1e-6)
        low, high = low - pad, high + pad

        def at(value: float, left: float = left, low: float = low, high: float = high) -> float:
            return left + PANEL * (value - low) / (high - low)

        canvas.text(left, 40, words, "m")
        for tick in ticks(low, high):
            canvas.line(at(tick), TOP, at(tick), bottom, "grid")
            canvas.text(at(tick), bottom + 14, number(tick), "m", "middle")
        if ceiling is not None:
            canvas.line(at(ceiling), TOP - 4, at(ceiling), bottom, "dash")
            canvas.text(at(ceiling), TOP - 8, "real rows", "m", "end" if figure == "gb_auc" else "start")
        for row in rows:
            if row[figure] is not None:
                canvas.dot(at(row[figure]), TOP + ROW * names.index(row["name"]) + 10, 4, colour[row["epsilon"]])
    return canvas


if __name__ == "__main__":
    render(Path(sys.argv[1]))
