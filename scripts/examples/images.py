#!/usr/bin/env python
"""Private images that a classifier can learn from: train on digits, release as many, judge by the real ones.

    python scripts/examples/images.py             # half a minute: scikit-learn's digits, no download
    python scripts/examples/images.py --fast      # seconds: the same path with two steps of everything

The digits are public, so the judge may look at them; with images of your own, `dpvae evaluate` keeps its result sealed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import dpvae
from dpvae.config import DataConfig, PrivacyConfig, ReleaseConfig, ReportConfig, RunConfig, TrainConfig, TrainerConfig

SHORT = TrainerConfig(fit_steps=2, steps=2, sampling_rate=0.01, metric_releases=1, sleep_steps=2, latent_samples=1)


def main(folder: Path, *, fast: bool) -> float:
    """Everything below ``folder``; the accuracy on real digits of a classifier that saw synthetic ones only."""
    config = TrainConfig(data=DataConfig(kind="images", builtin="digits"), privacy=PrivacyConfig(epsilon=10.0),
                         run=RunConfig(root=str(folder / "runs"), name="digits"),
                         report=ReportConfig(progress="quiet" if fast else "plain"))
    print(dpvae.train(replace(config, trainer=SHORT) if fast else config))
    release = dpvae.release(ReleaseConfig(run="digits", to=str(folder / "release"), root=config.run.root))
    with np.load(release / "data" / "images.npz") as drawn:
        images, labels = drawn["images"].astype(float), drawn["labels"]
    real = load_digits()
    learned = LogisticRegression(max_iter=2000).fit(images.reshape(len(images), -1) / images.max(), labels)
    accuracy = float(learned.score(real.data / real.data.max(), real.target))
    print(f"trained on {len(images):,} synthetic digits, right on {accuracy:.1%} of the real ones")
    print(f"look at {release}/report.html")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="two steps of everything, for a test")
    main(Path(tempfile.mkdtemp(prefix="dpvae-")), fast=parser.parse_args().fast)
