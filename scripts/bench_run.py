#!/usr/bin/env python3
"""What a whole training costs with book-keeping and with Opacus' hooks: the same settings, the same known noise.

    python scripts/bench_run.py out=reports/bench/run.json

``anchored`` is the default on Adult, where DP-SGD is a small share of the work; ``joint`` is the textbook DP-SGD VAE,
where it is nearly all, cut to 200 of its 400 steps. Both ways draw the same noise: the last noisy ELBO (nats per row)
and the largest difference of any weight are reported; later fits by Adam spread what rounding left. CPU seconds are
of the whole command, one thread. The known seed makes these runs NOT PRIVATE.

``judge=tabular_eval.py,TRAIN.csv,TEST.csv`` judges 40,000 rows drawn from each: AUC of the income by gradient boosting
and by logistic regression trained on them, and the mean distance of pairs of columns.

Options: cases=anchored,joint  ways=hooks,fast  judge=PROGRAM,TRAIN,TEST
out=FILE.json (a file that is there is added to)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

CASES = {"anchored": ["data=adult", "privacy.epsilon=1"],
         "joint": ["data=adult", "trainer=joint", "privacy.epsilon=1", "trainer.steps=200"]}
COMMON = ["privacy.secret_seed=5", "report=quiet", "performance.device=cpu", "performance.threads=1"]


def trained(case: str, way: str, root: Path) -> dict[str, Any]:
    """CPU seconds and public folder of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dpvae", "train", *CASES[case], *COMMON, f"performance.clipping={way}",
                    f"run.root={root / way}", f"run.name={case}"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    public = root / way / case / "public"
    elbo = json.loads((public / "metrics.jsonl").read_text().splitlines()[-1])["noisy_elbo"]
    return {"cpu_seconds": round(seconds, 1), "noisy_elbo": round(elbo, 3), "public": public}


def judged(run: Path, judge: list[str]) -> dict[str, float]:
    """What the judge says of rows drawn from a run."""
    program, train, test = judge
    rows = run / "rows.csv"
    subprocess.run([sys.executable, "-m", "dpvae", "sample", f"run={run}", "rows=40000", f"to={rows}"], check=True,
                   stdout=subprocess.DEVNULL)
    done = subprocess.run([sys.executable, program, "--real-train", train, "--real-test", test, "--synth", str(rows),
                           "--target", "income", "--no-dcr"], check=True, capture_output=True, text=True)
    said = json.loads(done.stdout)
    found = {"gb_auc": said["tstr"]["gb"]["roc_auc"], "lr_auc": said["tstr"]["lr"]["roc_auc"],
             "two_way_distance": said["fidelity"]["tvd_2way"]}
    return {name: round(value, 4) for name, value in found.items()}


def difference(one: Path, other: Path) -> float:
    """The largest difference between any weight of two models."""
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return max(float((value - others[name]).abs().max()) for name, value in weights.items())


def compared(case: str, ways: list[str], root: Path, judge: list[str]) -> dict[str, Any]:
    """Every way's cost, and how far its model is from the first way's."""
    runs = {way: trained(case, way, root) for way in ways}
    first = runs[ways[0]]
    events = {(run["public"] / "events.jsonl").read_bytes() for run in runs.values()}
    found: dict[str, Any] = {"command": "python scripts/bench_run.py " + " ".join(sys.argv[1:]),
                             "settings": CASES[case], "same_events": len(events) == 1,
                             "load": round(os.getloadavg()[0], 1)}
    for way, run in runs.items():
        found[way] = {"cpu_seconds": run["cpu_seconds"], "noisy_elbo": run["noisy_elbo"],
                      "times_faster": round(first["cpu_seconds"] / run["cpu_seconds"], 2),
                      "largest_difference_of_a_weight": difference(first["public"], run["public"])}
        if judge:
            found[way] |= judged(run["public"].parent, judge)
    return found


def main() -> None:
    options = {"cases": ",".join(CASES), "ways": "hooks,fast", "judge": "", "out": ""}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    out = Path(options["out"]) if options["out"] else None
    results: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {"command": ""}
    results = {**results, "command": "python scripts/bench_run.py " + " ".join(sys.argv[1:])}
    judge = options["judge"].split(",") if options["judge"] else []
    for case in options["cases"].split(","):
        with tempfile.TemporaryDirectory() as scratch:
            results[case] = compared(case, options["ways"].split(","), Path(scratch), judge)
        print(case, json.dumps(results[case]), flush=True)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
