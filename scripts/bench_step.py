#!/usr/bin/env python3
"""What a private step costs beside an ordinary one: the same model, the same machine, the same minute.

    python scripts/bench_step.py models=table batch=1024 out=reports/bench/step.json

Ways: plain (a shuffled batch, mean loss, fused Adam), and DP-SGD with clipping hooks, ghost (both Opacus), fast, and
fast_compiled. A private step is the whole of it: secret Poisson sampling, forward, backward, clipping, secret noise,
update. All ways take turns in one process; the time of a step is process CPU time on a CPU and that of CUDA events on a
GPU; a ratio is the median over rounds of (this way / plain in the same round). Peak memory is the growth of a fresh
process that takes three steps one way; not of a compiled way, where the compiler itself takes more than the step.

Options: models=table,conv,transformer,gru  batch=N,N (default: each model's own)  ways=...  rounds=21  threads=1
device=cpu|cuda  peak=true|false  out=FILE.json (a file that is there is added to)  plot=FILE.svg  page=FILE.md
(models= measures nothing: plot and page of what the file holds)
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_models import MODELS, Model

from dpvae.errors import DPVAEError
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SgdPlan
from dpvae.report.canvas import Canvas
from dpvae.train.dpsgd import PrivateSteps

WAYS = ("plain", "hooks", "ghost", "fast", "fast_compiled")
EPOCH = 8  # batches in the table
STEPS = 1000  # of the run that a step is part of, which makes its noise worth compiling
Step = Callable[[int], None]


def plain_step(model: Model, batch: int, device: torch.device) -> Step:
    """Ordinary training of the same model."""
    records, module = model.records(EPOCH * batch).to(device), model.module.to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
    order = torch.randperm(len(records)).view(EPOCH, batch)

    def step(number: int) -> None:
        x = records[order[number % EPOCH].to(device)]
        optimizer.zero_grad(set_to_none=True)
        model.loss(module, x, torch.randn(batch, *model.latents, device=device)).mean().backward()
        optimizer.step()

    return step


def private_step(model: Model, batch: int, device: torch.device, way: str) -> Step:
    """DP-SGD as ``dpvae train`` takes it, on Poisson batches of the same expected size."""
    records, rows = model.records(EPOCH * batch).to(device), EPOCH * batch
    plan = SgdPlan(noise_multiplier=1.0, sampling_rate=1 / EPOCH, steps=STEPS, clip_norm=1.0, latent_samples=1)
    steps = PrivateSteps(model.module.to(device), records, model.loss, plan=plan, rows=rows, key=SecretKey.generate(),
                         learning_rate=1e-4, microbatch=None, clipping=way.removesuffix("_compiled"),
                         compile=way.endswith("compiled"), latents=model.latents,
                         example=lambda count, generator: model.records(count))
    return lambda number: steps.step(number, 1.0)


def made(name: str, batch: int, way: str, device: torch.device) -> Step | None:
    """The step of one way, warmed up; ``None`` where this way cannot train this model."""
    torch.manual_seed(0)
    model = MODELS[name][0]()
    try:
        step = plain_step(model, batch, device) if way == "plain" else private_step(model, batch, device, way)
        step(0)
        step(1)
    except (DPVAEError, RuntimeError, AttributeError) as error:  # what Opacus raises for a layer it cannot take
        print(f"{name}/{batch} {way}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return step


def milliseconds(step: Step, number: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step(number)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    begin = time.process_time()
    step(number)
    return 1e3 * (time.process_time() - begin)


def timed(name: str, batch: int, ways: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Median milliseconds and ratio of each way; slow ways sit out most rounds."""
    steps = {way: step for way in ways if (step := made(name, batch, way, device)) is not None}
    taken: dict[str, list[float]] = {way: [] for way in steps}
    ratios: dict[str, list[float]] = {way: [] for way in steps}
    slow = {"hooks": 5, "ghost": 3}
    for number in range(2, rounds + 2):
        base = milliseconds(steps["plain"], number, device)
        taken["plain"].append(base)
        for way, step in steps.items():
            if way != "plain" and (number - 2) % slow.get(way, 1) == 0:
                taken[way].append(milliseconds(step, number, device))
                ratios[way].append(taken[way][-1] / base)
    result: dict[str, Any] = {"plain": round(statistics.median(taken["plain"]), 3)}
    for way in ways:
        if way in steps and way != "plain":
            result[way] = {"ms": round(statistics.median(taken[way]), 3),
                           "ratio": round(statistics.median(ratios[way]), 3), "rounds": len(ratios[way])}
        elif way != "plain":
            result[way] = None
    return result


def peak(name: str, batch: int, way: str, device: torch.device) -> float:
    """Megabytes by which memory grows in three steps; in this process, so call it in a fresh one."""
    def resident() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    torch.manual_seed(0)
    MODELS[name][0]().records(8)
    step = made(name, 8, way.removesuffix("_compiled"), device)  # what any step loads
    assert step is not None
    before = resident()
    step = made(name, batch, way, device)
    assert step is not None
    step(2)
    return resident() - before


def peaks(name: str, batch: int, ways: list[str], options: dict[str, str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for way in [way for way in ways if not way.endswith("compiled")]:
        command = [sys.executable, __file__, f"models={name}", f"batch={batch}", f"ways={way}", "only=peak",
                   f"threads={options['threads']}", f"device={options['device']}"]
        done = subprocess.run(command, capture_output=True, text=True)
        found[way] = round(float(done.stdout), 1) if done.returncode == 0 else None
    return found


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios as an SVG on a logarithmic axis: a group of bars per model and batch; the line is an ordinary step."""
    groups = {name: [(way, entry[way]["ratio"]) for way in WAYS[1:] if isinstance(entry.get(way), dict)]
              for name, entry in sorted(results.items(), key=lambda item: _place(item[0]))}
    left, wide, bar = 200, 360, 14
    sheet = Canvas(left + wide + 60, 40 + sum(bar * len(bars) + 12 for bars in groups.values()))
    unit = wide / math.log10(max(ratio for bars in groups.values() for _, ratio in bars) * 1.1)
    sheet.text(8, 16, "time of a private step / that of an ordinary step of the same model (logarithmic)", "h")
    top = 30.0
    for name, bars in groups.items():
        sheet.text(8, top + 10, name, "h")
        for way, ratio in bars:
            sheet.text(left - 8, top + 10, way.replace("_", ", "), "t", "end")
            sheet.rect(left, top, max(unit * math.log10(ratio), 1), bar - 2, f"c{WAYS.index(way) - 1}")
            sheet.text(left + max(unit * math.log10(ratio), 1) + 5, top + 10, f"{ratio:.2f}", "m")
            top += bar
        top += 12
    sheet.line(left, 24, left, top, "axis")
    said = "; ".join(f"{name}: " + ", ".join(f"{way} {ratio:.2f}" for way, ratio in bars)
                     for name, bars in groups.items())
    path.write_text(sheet.svg("bench", "What a private step costs", said, standalone=True) + "\n")


def page(results: dict[str, Any], path: Path) -> None:
    """Ratios, with the milliseconds of an ordinary step and the peak memory of both, as a table."""
    lines = ["<!-- python scripts/bench_step.py models= out=reports/bench/step.json page=reports/bench/step.md -->",
             "# What a private step costs", "",
             "Time of a whole private step as a multiple of an ordinary one of the same model: medians over rounds in "
             "which all ways take turns. The command of each row is in `step.json`.", "",
             "| model / batch | plain, ms | " + " | ".join(way.replace("_", ", ") for way in WAYS[1:])
             + " | rounds | peak MB, plain | peak MB, fast | device |", "|" + "---|" * (len(WAYS) + 5)]
    for name, entry in sorted(results.items(), key=lambda item: _place(item[0])):
        ratios = [f"{entry[way]['ratio']:.2f}" if entry.get(way) else "" for way in WAYS[1:]]
        peaks = [entry.get("peak_mb", {}).get(way) for way in ("plain", "fast")]
        rounds = max(entry[way]["rounds"] for way in WAYS[1:] if entry.get(way))
        cells = [name, f"{entry['plain']:.1f}", *ratios, str(rounds),
                 *["" if value is None else f"{value:.0f}" for value in peaks], entry["device"]]
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n")


def _place(name: str) -> tuple[str, int]:
    model, _, batch = name.partition("/")
    return model, int(batch)


def main() -> None:
    defaults = {"models": ",".join(MODELS), "batch": "", "ways": ",".join(WAYS), "rounds": "21", "threads": "1",
                "device": "cuda" if torch.cuda.is_available() else "cpu", "peak": "false", "out": "", "plot": "",
                "page": "", "only": ""}
    options = defaults | dict(argument.split("=", 1) for argument in sys.argv[1:])
    if unknown := set(options) - set(defaults):
        raise SystemExit(f"{unknown.pop()}: no such option; see the head of this file")
    torch.set_num_threads(int(options["threads"]))
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    device, ways = torch.device(options["device"]), options["ways"].split(",")
    out = Path(options["out"]) if options["out"] else None
    results = json.loads(out.read_text()) if out is not None and out.exists() else {}
    for name in filter(None, options["models"].split(",")):
        for batch in [int(b) for b in options["batch"].split(",") if b] or MODELS[name][1]:
            if options["only"] == "peak":
                print(peak(name, batch, ways[0], device))
                return
            entry = timed(name, batch, ["plain", *[w for w in ways if w != "plain"]], int(options["rounds"]), device)
            if options["peak"] == "true":
                entry["peak_mb"] = peaks(name, batch, list(ways), options)
            load = os.getloadavg()[0]
            entry |= {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                      "threads": int(options["threads"]), "load": round(load, 1), "torch": torch.__version__,
                      "command": "python scripts/bench_step.py " + " ".join(sys.argv[1:])}
            results[f"{name}/{batch}"] = entry
            print(f"{name}/{batch}", json.dumps(entry))
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1) + "\n")
    if options["plot"]:
        plot(results, Path(options["plot"]))
    if options["page"]:
        page(results, Path(options["page"]))


if __name__ == "__main__":
    main()
