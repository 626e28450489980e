#!/usr/bin/env python
"""A certified release of a real table, from the plan to the check: what each of the three people does, in Python.

    python scripts/examples/certified_adult.py            # minutes: the table that ships with the package
    python scripts/examples/certified_adult.py --fast     # seconds: the same path with a tiny model
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import dpvae
from dpvae import api
from dpvae.audit.verify import Verdict
from dpvae.config import (
    AuditConfig,
    DataConfig,
    ModelConfig,
    PrivacyConfig,
    ReleaseConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    TrainerConfig,
)


def main(folder: Path, *, fast: bool) -> Verdict:
    """Everything below ``folder``; returns what the check said."""
    config = TrainConfig(data=DataConfig(builtin="adult", target="income", rows=48_842),
                         privacy=PrivacyConfig(epsilon=1.0), run=RunConfig(root=str(folder / "runs"), name="adult"),
                         report=ReportConfig(progress="plain"))
    if fast:
        config = replace(config, model=ModelConfig(latent_dim=4, hidden=8, components=16), trainer=TrainerConfig(
            fit_steps=2, steps=2, sampling_rate=0.01, metric_releases=1, sleep_steps=2, latent_samples=1))
    print(dpvae.plan(config))  # the data scientist: nothing is opened
    print(dpvae.train(config))
    if not fast:  # the privacy officer: twins on made-up rows, about twenty seconds
        print(api.audit(AuditConfig(run="adult", quick=True, root=config.run.root)))
    release = dpvae.release(ReleaseConfig(run="adult", rows=1_000 if fast else None, to=str(folder / "release"),
                                          root=config.run.root))  # the data owner
    verdict = dpvae.verify(release)  # anybody: needs neither data nor model nor torch
    print(verdict)
    print(f"look at {release}/report.html")
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tiny model, for a test")
    parser.add_argument("--to", type=Path, help="a folder for the run and the release; default: a temporary one")
    given = parser.parse_args()
    raise SystemExit(0 if main(given.to or Path(tempfile.mkdtemp(prefix="dpvae-")), fast=given.fast).ok else 1)
