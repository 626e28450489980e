"""What a synthetic table is good for: train on it, test on real rows. Reads private rows: sealed.

Two classifiers that everybody knows, gradient boosting and logistic regression with their library's defaults, learn the
target from the synthetic rows and are scored on real rows that no generator saw (TSTR). The same learned from the real
train rows (TRTR) is the ceiling: only the gap between the two says something about the synthetic table.

Encoders (categories, scales) are fitted on the real train rows, so that every table is judged in the same space.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.data.lake import Table
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.fidelity import as_numbers, as_words, is_number

MODELS = ("gb", "lr")  # gradient boosting, logistic regression
MOST_CATEGORIES = 250  # of a column, for the trees
FEWEST_ROWS = 5  # of a category that gets a coefficient of its own
SPARSE_BELOW = 0.3  # share of cells that are not zero: scikit-learn's own threshold


@dataclass(frozen=True)
class Scores:
    """Of one classifier on the real test rows; ``degenerate``: it saw one class only, so it knows nothing."""

    roc_auc: float
    accuracy: float
    average_precision: float
    degenerate: bool = False


@dataclass(frozen=True)
class Utility:
    """``tstr`` and ``trtr`` by model name; ``positive`` is the class that counts as 1, last in sort order."""

    target: str
    positive: str
    rate_real: float
    rate_synth: float
    tstr: Mapping[str, Scores]
    trtr: Mapping[str, Scores]


def utility(real: Table, synth: Table, test: Table, target: str, *, seed: int = 0, ceiling: bool = True) -> Utility:
    """Train on ``synth`` (and, for the ceiling, on ``real``), test on ``test``; ``target`` has two values.

    ``seed`` steers the boosting's early stopping. Raises :class:`DataError` where the target is not binary, and
    :class:`ConfigError` where scikit-learn is not installed.
    """
    sklearn_or_say_so()
    positive = _positive(real, target)
    space = _Space(real, target)
    labels = [(as_words(table.column(target)) == positive).astype(int) for table in (real, synth, test)]
    tested = space.encode(test)
    tstr = _scores(space, space.encode(synth), labels[1], tested, labels[2], seed)
    trtr = _scores(space, space.encode(real), labels[0], tested, labels[2], seed) if ceiling else {}
    return Utility(target, positive, float(labels[0].mean()), float(labels[1].mean()), tstr, trtr)


def sklearn_or_say_so() -> None:
    """Raise in one line where the classifiers are not installed."""
    try:
        importlib.import_module("sklearn")
    except ImportError:
        raise ConfigError("target: classifiers need scikit-learn, which is not installed; pip install "
                          "'dpvae[evaluate]', or leave target out to compare marginals only") from None


def _positive(real: Table, target: str) -> str:
    classes = sorted(set(as_words(real.column(target)).tolist()))
    if len(classes) != 2:
        raise DataError(f"target={target!r}: has {len(classes)} values in the real table; expected two. Cut it at a "
                        "public threshold, or leave target out to compare marginals only")
    return str(classes[-1])


Encoded = tuple[Any, NDArray[np.float64]]  # for the linear model (often sparse), for the trees


class _Space:
    """Features as both models want them, fitted on the real train rows."""

    def __init__(self, real: Table, target: str) -> None:
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

        features = [name for name in real.names if name != target]
        if not features:
            raise DataError(f"target={target!r}: is the only column; expected at least one to predict it from")
        self.numeric = [name for name in features if is_number(real.column(name))]
        self.words = [name for name in features if name not in self.numeric]
        numbers, words = self._split(real)
        # Like scikit-learn's ColumnTransformer, which would need a pandas frame for columns of two kinds.
        self.scale = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
        self.one_hot = OneHotEncoder(handle_unknown="ignore", min_frequency=FEWEST_ROWS)
        self.ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan,
                                      max_categories=MOST_CATEGORIES)
        if self.numeric:
            self.scale.fit(numbers)
        self.sparse = False
        if self.words:
            self.ordinal.fit(words)
            hot = self.one_hot.fit_transform(words)
            filled = (hot.nnz + numbers.size) / (real.rows * (hot.shape[1] + len(self.numeric)))
            self.sparse = bool(filled < SPARSE_BELOW)

    def encode(self, table: Table) -> Encoded:
        """Rows of any table with these columns."""
        numbers, words = self._split(table)
        parts: list[Any] = [self.scale.transform(numbers)] if self.numeric else []
        parts += [self.one_hot.transform(words)] if self.words else []
        codes = [numbers] if self.numeric else []
        codes += [self.ordinal.transform(words)] if self.words else []
        return self._beside(parts), np.hstack(codes)

    def _split(self, table: Table) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
        numbers = np.array([as_numbers(table.column(name)) for name in self.numeric]).reshape(-1, table.rows).T
        numbers = np.where(np.isinf(numbers), np.nan, numbers)
        words = np.empty((table.rows, len(self.words)), dtype=object)
        for j, name in enumerate(self.words):
            words[:, j] = as_words(table.column(name))
        return numbers, words

    def _beside(self, parts: list[Any]) -> Any:
        from scipy import sparse

        if self.sparse:
            return sparse.hstack(parts).tocsr()
        return np.hstack([part.toarray() if sparse.issparse(part) else part for part in parts])

    @property
    def categorical(self) -> list[bool]:
        """Which columns of the trees' matrix are categories."""
        return [False] * len(self.numeric) + [True] * len(self.words)


def _scores(space: _Space, fitted: Encoded, y: NDArray[np.int64], tested: Encoded, y_test: NDArray[np.int64],
            seed: int) -> dict[str, Scores]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

    if len(np.unique(y)) < 2:
        rate = float(y_test.mean())
        return dict.fromkeys(MODELS, Scores(0.5, max(rate, 1 - rate), rate, degenerate=True))
    models = {"gb": (HistGradientBoostingClassifier(random_state=seed, categorical_features=space.categorical), 1),
              "lr": (LogisticRegression(max_iter=2000, C=1.0), 0)}
    found = {}
    for name, (model, which) in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that did not converge is scored as it is
            chance = model.fit(fitted[which], y).predict_proba(tested[which])[:, 1]
        found[name] = Scores(float(roc_auc_score(y_test, chance)), float(accuracy_score(y_test, chance >= 0.5)),
                             float(average_precision_score(y_test, chance)))
    return found
