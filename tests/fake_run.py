"""A finished run folder and a table writer without training, torch or pyarrow: real events, invented numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpvae.privacy.events import Event, Gaussian, SampledGaussian, Threshold, to_dict

EVENTS: tuple[Event, ...] = (
    Gaussian("survey", "missing cells of 15 columns", noise_multiplier=40.0),
    Threshold("survey", "frequent values of 9 columns", noise_multiplier=40.0, delta=1e-7),
    Gaussian("survey", "value ranges of 6 columns", noise_multiplier=40.0, count=2),
    Gaussian("anchor", "1-way marginals of 15 columns", noise_multiplier=9.0),
    Gaussian("anchor", "105 label-conditioned 3-way marginals", noise_multiplier=6.0),
    SampledGaussian("dpsgd", "clipped gradients of the decoder", noise_multiplier=8.0, sampling_rate=0.0625, steps=300),
    Gaussian("metric", "noisy ELBO", noise_multiplier=120.0, count=5),
)
CLAIM: dict[str, Any] = {
    "epsilon_target": 1.0, "delta": 1e-5, "neighbouring": "add_remove", "unit": "row", "n_ref": 39074,
    "n_ref_source": "declared", "private": True, "divisor": 2442.125,
    "noise": "AES-256-CTR keystream keyed from the operating system; DP-SGD by a secret-keyed torch generator",
    "replay": "a replayed step draws the identical noise from a sealed key, which is deleted at the end",
}
JOBS = ("Private", "Self-emp-not-inc", "Local-gov", "?", "State-gov", "Self-emp-inc", "Federal-gov", "Without-pay",
        "Never-worked")


def columns() -> dict[str, dict[str, Any]]:
    """Labels, counts (what is 'true' here) and kind per column."""
    rng = np.random.default_rng(3)
    age = np.exp(-0.5 * ((np.arange(17, 91, 3) - 38) / 14.0) ** 2)
    hours = np.exp(-0.5 * ((np.arange(1, 100, 4) - 40) / 9.0) ** 2)
    hours[10] *= 6
    return {
        "age": {"kind": "integer", "labels": [f"{a}-{a + 2}" for a in range(17, 91, 3)], "weights": age},
        "workclass": {"kind": "categorical", "labels": list(JOBS),
                      "weights": np.array([70, 8, 6, 5, 4, 3, 3, 0.1, 0.05])},
        "hours per <week> & more": {"kind": "integer", "labels": [f"{h}-{h + 3}" for h in range(1, 100, 4)],
                                    "weights": hours},
        "native_country": {"kind": "categorical", "labels": ["United-States", *(f"Country {i}" for i in range(40))],
                           "weights": np.concatenate([[300.0], rng.exponential(1, 40)])},
        "capital_gain": {"kind": "integer", "labels": ["0", *(f"{g}-{g + 2999}" for g in range(1, 90000, 3000)),
                                                       "missing"],
                         "weights": np.concatenate([[92.0], rng.exponential(.3, 30), [0.4]])},
        "income": {"kind": "boolean", "labels": ["<=50K", ">50K"], "weights": np.array([76.0, 24.0])},
    }


def make_run(root: Path, name: str = "adult1", *, claim: Mapping[str, Any] | None = None,
             events: tuple[Event, ...] = EVENTS, status: str = "finished") -> Path:
    """A run folder ``root/name`` as training leaves it."""
    run, public = root / name, root / name / "public"
    public.mkdir(parents=True)
    (run / "private").mkdir()
    (run / "private" / "key").write_bytes(b"SECRET-THAT-MUST-NOT-LEAVE")
    rng, sd = np.random.default_rng(5), 9.0 * np.sqrt(15)
    reference = {}
    for column, item in columns().items():
        counts = 39074 * item["weights"] / item["weights"].sum()
        reference[column] = {"labels": item["labels"], "sd": sd,
                             "noisy": [int(c) for c in np.round(counts + sd * rng.normal(size=len(counts)))]}
    metrics = [{"phase": "dpsgd", "step": 60 * i, "noisy_elbo": -14.2 - 4.0 / i, "sd": 0.08, "unit": "nats per row",
                "rate": None, "epsilon_spent": 0.55 + 0.08 * i} for i in range(1, 6)]
    schema = {"target": "income", "columns": [
        {"name": column, "kind": item["kind"], "dtype": "int64" if item["kind"] == "integer" else "string",
         "nullable": column == "capital_gain", "declared": ["kind", "lower", "upper"] if column == "age" else []}
        for column, item in columns().items()]}
    _json(run / "run.json", {"name": name, "verb": "train", "created": "2026-11-22T10:00:00Z", "status": status,
                             "dpvae": "0.1.0"})
    _json(public / "claim.json", {**CLAIM, **(claim or {})})
    _json(public / "plan.json", {"steps": 300, "sampling_rate": 0.0625})
    _json(public / "schema.json", schema)
    _json(public / "config.json", {"trainer": {"name": "anchored", "clip_norm": 1.0},
                                   "data": {"path": "/secret/x.csv"}})
    _json(public / "reference.json", reference)
    _lines(public / "events.jsonl", [to_dict(event) for event in events])
    _lines(public / "metrics.jsonl", metrics)
    (public / "model.safetensors").write_bytes(b"weights")
    return run


def make_audit(run: Path, *, passed: bool = True, proved: float = 0.4) -> dict[str, Any]:
    """``public/audit.json`` and ``audit.html`` as an audit of that run leaves them."""
    public = run / "public"
    tests = [{"test": name, "says": says, "passed": passed or name != "T1", "asked": 7, "failed": [],
              "smallest_p": 0.2, "of": 3, "catches": []}
             for name, says in (("A1", "Three accountants agree"), ("T1", "One record <moves>"))]
    bounds = [{"method": method, "epsilon": value, "confidence": 0.95, "canaries": 160, "claim": 0.7, "note": "any"}
              for method, value in (("steinke", proved / 2), ("f-dp", proved))]
    found = {"format": "dpvae-audit/1", "run": run.name, "passed": passed, "quick": False, "alpha": 1e-3,
             "sentence": "Nothing contradicts the claim." if passed else "The claim must not be relied on: T1 failed.",
             "model_sha256": hashlib.sha256((public / "model.safetensors").read_bytes()).hexdigest(), "tests": tests,
             "bounds": bounds, "left_out": [], "self_test": {"tried": 20, "caught": 20, "missed": [], "lines": []}}
    _json(public / "audit.json", found)
    (public / "audit.html").write_text("<!doctype html>")
    return found


def make_preview(run: Path, **more: Any) -> dict[str, Any]:
    """``public/preview.json``: what a trained model draws."""
    found = {**table_writer(run / "public", {}), "pairs": {"measured": 15, "worst": [
        {"columns": ["age", "hours per <week> & more"], "distance": 0.09, "distance_of_noise_alone": 0.04},
        {"columns": ["age", "income"], "distance": 0.02, "distance_of_noise_alone": 0.03}]}, **more}
    (run / "public" / "part-00000.parquet").unlink()
    found["sample"] = [{**row, "capital_gain": int(row["capital_gain"]) if row["capital_gain"] == 7688 else "0"}
                       for row in found["sample"]]
    _json(run / "public" / "preview.json", found)
    return found


def table_writer(folder: Path, marks: Mapping[str, str], rows: int = 1000) -> dict[str, Any]:
    """Stands in for sampling: opaque bytes as the table, histograms near the reference."""
    rng = np.random.default_rng(11)
    (folder / "part-00000.parquet").write_bytes(b"PAR1" + rng.bytes(3000) + b"PAR1")
    histograms = {}
    for column, item in columns().items():
        weights = item["weights"] * rng.uniform(0.85, 1.15, len(item["weights"]))
        histograms[column] = [int(c) for c in rng.multinomial(rows, weights / weights.sum())]
    sample = [{column: item["labels"][int(rng.integers(len(item["labels"])))] for column, item in columns().items()}
              for _ in range(10)]
    sample[3]["age"] = None
    sample[4]["capital_gain"] = np.int64(7688)
    return {"histograms": histograms, "rows": rows, "sample": sample}


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
