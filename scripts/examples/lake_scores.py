#!/usr/bin/env python
"""Anomalies of a table in a lakehouse: trained on one snapshot, scored into a table of its own, with its lineage.

    python scripts/examples/lake_scores.py            # minutes: Iceberg on a local disk, pip install 'dpvae[lake]'
    python scripts/examples/lake_scores.py --fast     # less: the same path with a tiny model

The commands are those of a terminal; they are run one after the other in a new folder.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from dpvae import cli
from dpvae.data import lake

PATH = (
    "lake init warehouse",
    "train data=iceberg:demo.census privacy.epsilon=3 run.name=census",
    "score run=census data=iceberg:demo.census to=iceberg:demo.census_scored threshold=synthetic",
    "lake show iceberg:demo.census_scored",
)


def main(folder: Path, *, fast: bool) -> float:
    """The whole path below ``folder``; the share of rows that lie above the threshold."""
    with contextlib.chdir(folder):
        for line in PATH:
            print(f"$ dpvae {line}")
            code = cli.main([*line.split(), *(["experiment=smoke"] if fast and line.startswith("train") else [])])
            if code:
                raise SystemExit(code)
        scored = lake.read("iceberg:demo.census_scored")
    share = float(scored.column("anomaly").values.mean())
    print(f"{scored.rows:,} rows are scored in the lake; {share:.2%} of them are stranger than 99 % of the model's own")
    return share


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tiny model, for a test")
    main(Path(tempfile.mkdtemp(prefix="dpvae-")), fast=parser.parse_args().fast)
