"""The judge of scores: ranks, splits, the baseline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dpvae.evaluate.anomaly import auroc, clean_split, collapsed, contaminated_split


def test_auroc_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 9, 300)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_a_clean_split_trains_on_half_of_the_normal_rows_and_on_no_anomaly() -> None:
    rows, labels = np.arange(100.0).reshape(-1, 1), (np.arange(100) < 10).astype(np.int64)
    split = clean_split(rows, labels, rng=np.random.default_rng(0))
    assert (len(split.train), len(split.test), split.anomaly.sum()) == (45, 55, 10)
    assert split.train.min() >= 10
    assert not set(split.train.ravel()) & set(split.test.ravel())


def test_a_contaminated_split_trains_on_everything_and_scores_it() -> None:
    rows, labels = np.arange(20.0).reshape(-1, 1), (np.arange(20) < 2).astype(np.int64)
    split = contaminated_split(rows, labels, rng=np.random.default_rng(0))
    assert sorted(split.train.ravel()) == sorted(split.test.ravel()) == rows.ravel().tolist()
    assert set(split.test[split.anomaly == 1].ravel()) == {0.0, 1.0}


def test_the_collapsed_score_is_the_squared_distance_in_standard_deviations() -> None:
    rows = np.array([[0.0], [2.0], [4.0], [10.0]])
    split = clean_split(rows, np.zeros(4, dtype=np.int64), rng=np.random.default_rng(1))
    mean, sd = split.train.mean(), split.train.std()
    assert collapsed(split) == pytest.approx((((split.test - mean) / sd) ** 2).ravel())
