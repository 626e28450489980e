"""How well scores tell anomalies from normal rows, and the baseline that most published numbers of VAEs amount to.

>>> auroc(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.4]))     # a tie counts half
0.75
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata


class Split(NamedTuple):
    """Rows to train on, rows to score, and which of these are anomalies (1)."""

    train: NDArray[np.float64]
    test: NDArray[np.float64]
    anomaly: NDArray[np.int64]


def clean_split(rows: NDArray[np.float64], labels: NDArray[np.int64], *, rng: np.random.Generator) -> Split:
    """Protocol S: train on a random half of the normal rows, score the other half and all anomalies."""
    normal = rng.permutation(np.flatnonzero(labels == 0))
    kept, rest = normal[:len(normal) // 2], normal[len(normal) // 2:]
    tested = np.concatenate([rest, np.flatnonzero(labels == 1)])
    return Split(rows[kept], rows[tested], labels[tested])


def contaminated_split(rows: NDArray[np.float64], labels: NDArray[np.int64], *, rng: np.random.Generator) -> Split:
    """Protocol U: train on all rows, anomalies among them, and score them."""
    order = rng.permutation(len(rows))
    return Split(rows[order], rows[order], labels[order])


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Chance that an anomaly (label 1) scores higher than a normal row; ties count half (Mann-Whitney)."""
    positive = np.asarray(labels) == 1
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    found, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - found * (found + 1) / 2) / (found * others))


def standardised(split: Split) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both parts on the scale of the training rows: not private, for baselines."""
    mean, sd = split.train.mean(0), split.train.std(0) + 1e-9
    return (split.train - mean) / sd, (split.test - mean) / sd


def collapsed(split: Split) -> NDArray[np.float64]:
    """The score of a collapsed VAE: the sum of squared standardised columns."""
    return (standardised(split)[1] ** 2).sum(1)
