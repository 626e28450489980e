#!/usr/bin/env python3
"""The report of scripts/bench_tables.py: every run as JSON, medians as a Markdown table and as a picture.

    python scripts/table_report.py reports/bench/tables      writes .md and .svg again from the .json

Figures that were not run here come from cited.json beside the report, or else from reports/bench, and are marked
wherever they are shown.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvae.report.canvas import Canvas, number, ticks

FIGURES = ("gb_auc", "lr_auc", "tvd_2way", "tvd_1way", "tvd_1way_max", "rank_error", "cpu_s", "peak_mb")
WHOLE = ("cpu_s", "peak_mb")
NAMES = {"independent": "floor: independent columns", "naive_bayes": "floor: naive Bayes",
         "tan": "floor: tree-augmented naive Bayes", "dpmm_mst": "dpmm MST", "smartnoise_mst": "smartnoise-synth MST",
         "mostlyai": "MOSTLY AI engine", "tvae": "TVAE (not private)", "ctgan": "CTGAN (not private)"}
CITED = Path(__file__).resolve().parents[1] / "reports" / "bench" / "cited.json"
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
    rows = [*medians(held["runs"]), *cited(citations(out), {run["table"] for run in held["runs"]})]
    out.with_suffix(".md").write_text(markdown(held["commands"], held["runs"], rows))
    out.with_suffix(".svg").write_text(picture(rows))


def citations(out: Path) -> Path:
    """The file of figures that were not run here; ends the program where there is none."""
    found = [path for path in (out.parent / CITED.name, CITED) if path.exists()]
    if not found:
        sys.exit(f"{CITED}: no such file; it holds the figures of systems that are not run here. Restore it, or write "
                 f'{{"tables": {{}}}} to {out.parent / CITED.name}')
    return found[0]


def _key(run: Run) -> tuple[Any, ...]:
    return run["table"], run["system"], run["epsilon"], run["seed"]


def medians(runs: Iterable[Run]) -> list[Run]:
    """One row per table, system and epsilon, with the number of seeds; runs that were skipped have no figures."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if "skipped" not in run:
            groups.setdefault(_key(run)[:3], []).append(run)
    return [{"table": table, "name": _name(group[-1]), "system": system, "epsilon": epsilon, "seeds": len(group),
             **{figure: _median([run.get(figure) for run in group]) for figure in FIGURES}}
            for (table, system, epsilon), group in groups.items()]


def _name(run: Run) -> str:
    """As it is shown, with the version that ran where that is somebody else's."""
    name = NAMES.get(run["system"], run["system"])
    return f"{name} {run['version']}" if "version" in run else name


def _median(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def cited(path: Path, tables: set[str]) -> list[Run]:
    """Rows of other people's systems that were measured once before."""
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

LEFT, PANEL, GAP, ROW, TOP = 250, 290, 44, 24, 62
WIDTH = LEFT + 2 * PANEL + GAP + 30
BELOW = 0.16  # how far under the ceiling the axis of the AUC reaches; what lies lower is shown at its end, in numbers
PANELS = {"gb_auc": "AUC of gradient boosting (right is better)",
          "tvd_2way": "2-way total variation distance, log scale (left is better)"}
LOG_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def picture(rows: Sequence[Run]) -> str:
    """One block per data set: a line per system, a dot per epsilon, for utility and for fidelity side by side."""
    epsilons = sorted({row["epsilon"] for row in rows if row["epsilon"]})
    colour = {epsilon: COLOURS[i % len(COLOURS)] for i, epsilon in enumerate(epsilons)} | {None: "m"}
    blocks = [_block(table, [row for row in rows if row["table"] == table], colour)
              for table in dict.fromkeys(row["table"] for row in rows)]
    sheet = Canvas(WIDTH, sum(block.height for block in blocks) + 24)
    x, y = 14.0, 24.0
    for epsilon, style in colour.items():
        sheet.dot(x, 14, 4, style).text(x + 8, 18, f"epsilon {epsilon:g}" if epsilon else "not private")
        x += 84
    for block in blocks:
        sheet.place(block, 0, y)
        y += block.height
    described = "; ".join(f"{row['table']}, {row['name']}, epsilon {_epsilon(row)}: AUC "
                          f"{_cell('gb_auc', row['gb_auc'])}, distance {_cell('tvd_2way', row['tvd_2way'])}"
                          for row in rows)
    return sheet.svg("bench", "Synthetic tables: utility and fidelity by system and epsilon", described,
                     standalone=True) + "\n"


@dataclass(frozen=True)
class Axis:
    """From a figure to a place between ``left`` and ``left + PANEL``; below ``low`` to the very end."""

    left: float
    low: float
    high: float
    ticks: Sequence[float]
    log: bool

    @classmethod
    def of(cls, figure: str, left: float, values: Sequence[float]) -> Axis:
        if figure == "gb_auc":
            high = max(values) + 0.005
            low = max(min(values) - 0.005, high - BELOW)
            return cls(left, low, high, ticks(low, high), False)
        low, high = 0.9 * min(values), 1.1 * max(values)
        return cls(left, low, high, [tick for tick in LOG_TICKS if low <= tick <= high], True)

    def at(self, value: float) -> float:
        low, high, value = ((math.log(v) for v in (self.low, self.high, max(value, 1e-6))) if self.log
                            else (self.low, self.high, value))
        return self.left + PANEL * max((value - low) / (high - low), 0.0)


def _block(table: str, rows: Sequence[Run], colour: dict[float | None, str]) -> Canvas:
    real = next((row for row in rows if row["system"] == "real rows"), None)
    rows = [row for row in rows if row is not real]
    best = {row["name"]: max(other["gb_auc"] or 0.0 for other in rows if other["name"] == row["name"]) for row in rows}
    usual = statistics.mode([row["epsilon"] for row in rows] or [None])
    there = {row["name"]: row["gb_auc"] for row in rows if row["epsilon"] == usual and row["gb_auc"] is not None}
    names = sorted(best, key=lambda name: -there.get(name, best[name]))
    bottom = TOP + ROW * len(names)
    canvas = Canvas(WIDTH, bottom + 34).text(14, 22, table, "h")
    for i, name in enumerate(names):
        canvas.text(LEFT - 14, TOP + ROW * i + 16, name, "h" if name == "dpvae" else "t", "end")
    for panel, (figure, words) in enumerate(PANELS.items()):
        shown = [row for row in rows if row[figure] is not None]
        ceiling = [real[figure]] if real is not None else []
        axis = Axis.of(figure, LEFT + panel * (PANEL + GAP), [row[figure] for row in shown] + ceiling)
        canvas.text(axis.left, 36, words, "m")
        _grid(canvas, axis, bottom, ceiling, "end" if figure == "gb_auc" else "start")
        for row in shown:
            _dot(canvas, axis, row, figure, TOP + ROW * names.index(row["name"]) + 12, colour)
        if figure == "gb_auc":
            for i, name in enumerate(names):
                if best[name] < axis.low:
                    canvas.text(axis.left, TOP + ROW * i + 16, f"< {axis.low:.2f} (at best {best[name]:.2f})", "m")
    return canvas


def _grid(canvas: Canvas, axis: Axis, bottom: float, ceiling: Sequence[float], anchor: str) -> None:
    for tick in axis.ticks:
        canvas.line(axis.at(tick), TOP, axis.at(tick), bottom, "grid")
        canvas.text(axis.at(tick), bottom + 14, number(tick), "m", "middle")
    for value in ceiling:
        canvas.line(axis.at(value), TOP - 4, axis.at(value), bottom, "dash")
        canvas.text(axis.at(value), TOP - 8, "real rows", "m", anchor)


def _dot(canvas: Canvas, axis: Axis, row: Run, figure: str, middle: float, colour: dict[float | None, str]) -> None:
    """Dots of one system lie a little apart, so that equal figures are all seen."""
    step = list(colour).index(row["epsilon"]) - (len(colour) - 1) / 2
    y = middle + 2.5 * step
    if row[figure] >= axis.low:
        canvas.dot(axis.at(row[figure]), y, 3.5, colour[row["epsilon"]])


if __name__ == "__main__":
    render(Path(sys.argv[1]))
