"""Judge synthetic texts by real ones: sequences, lengths, words, copies, a classifier, a divergence frontier.

Everything here reads private texts without noise, so like all of :mod:`dpvae.evaluate` it is sealed. Jensen-Shannon
divergences are in bits, between 0 and 1.

>>> jensen_shannon(Counter("aab"), Counter("aab")), jensen_shannon(Counter("a"), Counter("b"))
(0.0, 1.0)
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.config import EvaluateConfig
from dpvae.data.text import Texts, read
from dpvae.errors import DataError

SEALED = ("computed from private texts without noise: costs no epsilon only while it stays sealed, so do not publish "
          "it or choose a release by it")
_WORD = re.compile(r"\w+(?:'\w+)*")
ORDERS = (1, 2, 3, 4)
CLUSTERS = 100  # of the frontier
FRONTIER_TEXTS = 5000


@dataclass(frozen=True)
class TextFidelity:
    """How like the real texts the synthetic ones are; the floors hold for held-out real texts, where there are some."""

    js_characters: dict[int, float]  # by order
    js_words: dict[int, float]  # of one and two words
    length_tvd: float
    vocabulary_tvd: float
    copies: float  # share of synthetic texts that are a training text
    frontier: float  # area, up to 1: see `frontier`
    floor: dict[str, float]


@dataclass(frozen=True)
class TextUtility:
    """A classifier of character sequences, trained on synthetic texts and on real ones, tested on real ones."""

    label: str
    accuracy: float
    ceiling: float
    majority: float
    auc: float | None  # of two labels
    auc_ceiling: float | None


def sequences(texts: Sequence[str], order: int) -> Counter[str]:
    """Counts of character sequences, a mark at either end of a text."""
    counts: Counter[str] = Counter()
    for text in texts:
        marked = f"\x02{text}\x03"
        counts.update(marked[i:i + order] for i in range(len(marked) - order + 1))
    return counts


def words(texts: Sequence[str], order: int = 1) -> Counter[tuple[str, ...]]:
    """Counts of sequences of words, in small letters."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = _WORD.findall(text.lower())
        counts.update(zip(*(found[i:] for i in range(order)), strict=False))
    return counts


def jensen_shannon(left: Counter[Any], right: Counter[Any]) -> float:
    """In bits; 1 where one of the two is empty."""
    a, b, total = sum(left.values()), sum(right.values()), 0.0
    if not a or not b:
        return 1.0
    for key in left.keys() | right.keys():
        p, q = left[key] / a, right[key] / b
        middle = (p + q) / 2
        total += sum(0.5 * x * math.log2(x / middle) for x in (p, q) if x > 0)
    return total


def total_variation(left: Counter[Any], right: Counter[Any]) -> float:
    """Half the sum of differences of shares."""
    a, b = max(sum(left.values()), 1), max(sum(right.values()), 1)
    return 0.5 * sum(abs(left[key] / a - right[key] / b) for key in left.keys() | right.keys())


def copies(real: Sequence[Hashable], synthetic: Sequence[Hashable]) -> float:
    """Share of synthetic texts that are one of the real ones, letter by letter."""
    known = set(real)
    return sum(text in known for text in synthetic) / max(len(synthetic), 1)


def frontier(real: Sequence[str], synthetic: Sequence[str], *, seed: int) -> float:
    """Area under the divergence frontier of both sets of texts (Pillutla et al. 2021, MAUVE), between 0 and 1.

    Own features: TF-IDF of character sequences, 50 components, 100 clusters; so compare only what was judged here.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(seed)
    chosen = [[texts[i] for i in rng.permutation(len(texts))[:FRONTIER_TEXTS]] for texts in (real, synthetic)]
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), max_features=5000, sublinear_tf=True)
    table = features.fit_transform([*chosen[0], *chosen[1]])
    points = TruncatedSVD(min(50, table.shape[1] - 1), random_state=seed).fit_transform(table)
    distinct = len(np.unique(points.round(6), axis=0))
    clusters = KMeans(min(CLUSTERS, len(points) // 10 + 1, max(distinct // 2, 1)), n_init=1,
                      random_state=seed).fit_predict(points)
    half = len(chosen[0])
    shares = [np.bincount(part, minlength=clusters.max() + 1) + 1e-9 for part in (clusters[:half], clusters[half:])]
    return _area(*(counts / counts.sum() for counts in shares))


def _area(p: NDArray[np.float64], q: NDArray[np.float64], scale: float = 5.0) -> float:
    mixes = np.linspace(1e-6, 1 - 1e-6, 50)
    points = [(math.exp(-scale * _kl(q, w * p + (1 - w) * q)), math.exp(-scale * _kl(p, w * p + (1 - w) * q)))
              for w in mixes]
    x, y = np.array([(0.0, 1.0), *sorted(points), (1.0, 0.0)]).T
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float((p * np.log(p / q)).sum())


def text_fidelity(real: Sequence[str], synthetic: Sequence[str], test: Sequence[str] | None, *,
                  seed: int) -> TextFidelity:
    """Every number of :class:`TextFidelity`."""
    floor = {}
    if test:
        floor = {f"js_{order}": jensen_shannon(sequences(real, order), sequences(test, order)) for order in ORDERS}
        floor["copies"] = copies(real, test)
    return TextFidelity(
        js_characters={n: jensen_shannon(sequences(real, n), sequences(synthetic, n)) for n in ORDERS},
        js_words={n: jensen_shannon(words(real, n), words(synthetic, n)) for n in (1, 2)},
        length_tvd=total_variation(Counter(map(len, real)), Counter(map(len, synthetic))),
        vocabulary_tvd=total_variation(words(real), words(synthetic)), copies=copies(real, synthetic),
        frontier=frontier(real, synthetic, seed=seed), floor=floor)


def classifier(texts: Sequence[str], labels: Sequence[str], *, seed: int) -> Any:
    """Logistic regression on TF-IDF of one to four characters within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2, sublinear_tf=True, max_features=50_000)
    return make_pipeline(features, LogisticRegression(C=5.0, max_iter=200, random_state=seed)).fit(texts, labels)


def text_utility(real: tuple[Sequence[str], Sequence[str]], synthetic: tuple[Sequence[str], Sequence[str]],
                 test: tuple[Sequence[str], Sequence[str]], label: str, *, seed: int) -> TextUtility:
    """Every number of :class:`TextUtility`; each argument is (texts, labels)."""
    from sklearn.metrics import roc_auc_score

    kinds = sorted(set(real[1]))
    held = np.array(test[1])
    scores: list[tuple[float, float | None]] = []
    for texts, labels in (synthetic, real):
        if len(set(labels)) < 2:
            scores.append((float(np.mean(held == labels[0])), 0.5 if len(kinds) == 2 else None))
            continue
        model = classifier(texts, labels, seed=seed)
        auc = None
        if len(kinds) == 2:
            column = list(model.classes_).index(kinds[1])
            auc = float(roc_auc_score(held == kinds[1], model.predict_proba(test[0])[:, column]))
        scores.append((float(np.mean(model.predict(test[0]) == held)), auc))
    common = Counter(real[1]).most_common(1)[0][0]
    return TextUtility(label, scores[0][0], scores[1][0], float(np.mean(held == common)), scores[0][1], scores[1][1])


@dataclass(frozen=True)
class TextEvaluation:
    """The judgement of a release of texts; ``utility`` is ``None`` without a label or test texts."""

    texts: dict[str, int]
    fidelity: TextFidelity
    utility: TextUtility | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"sealed": SEALED, **asdict(self)}

    def __str__(self) -> str:
        fit, lines = self.fidelity, [f"SEALED: {SEALED}", ""]
        lines += [", ".join(f"{count:,} {name} texts" for name, count in self.texts.items())]
        lines += [f"  {'Jensen-Shannon, ' + str(n) + ' characters':38}{value:8.4f}{_floor(fit.floor, f'js_{n}')}"
                  for n, value in fit.js_characters.items()]
        lines += [f"  {'Jensen-Shannon, ' + str(n) + ' words':38}{value:8.4f}" for n, value in fit.js_words.items()]
        lines += [f"  {words:38}{value:8.4f}" for words, value in (
            ("length, total variation", fit.length_tvd), ("vocabulary, total variation", fit.vocabulary_tvd),
            ("divergence frontier, area (1: alike)", fit.frontier))]
        lines += [f"  {'copies of a training text':38}{fit.copies:8.4f}{_floor(fit.floor, 'copies')}"]
        if self.utility is not None:
            use = self.utility
            lines += ["", f"predicting {use.label} on real test texts: accuracy {use.accuracy:.4f}, trained on real "
                      f"ones {use.ceiling:.4f}, majority {use.majority:.4f}"]
            lines += [] if use.auc is None else [f"  AUC {use.auc:.4f}, trained on real ones {use.auc_ceiling:.4f}"]
        return "\n".join(lines)


def _floor(floor: dict[str, float], name: str) -> str:
    return f"   real test texts: {floor[name]:.4f}" if name in floor else ""


def judge_texts(real: Texts, synthetic: Texts, test: Texts | None, *, label: str | None, seed: int) -> TextEvaluation:
    """The judgement; texts whose label is missing count in the sequences alone."""
    counts = {"train": len(real.texts), "synth": len(synthetic.texts)} | ({"test": len(test.texts)} if test else {})
    fit = text_fidelity(real.texts, synthetic.texts, test.texts if test else None, seed=seed)
    useful = None
    if label is not None and test is not None:
        useful = text_utility(_labelled(real), _labelled(synthetic), _labelled(test), label, seed=seed)
    return TextEvaluation(counts, fit, useful)


def _labelled(held: Texts) -> tuple[list[str], list[str]]:
    pairs = [(text, label) for text, label in zip(held.texts, held.labels or (), strict=False) if label is not None]
    return [text for text, _ in pairs], [label for _, label in pairs]


def synthetic_schema(place: str) -> dict[str, Any] | None:
    """The schema of a release of texts; ``None`` where ``place`` is none."""
    path = Path(place) / "schema.json"
    schema = json.loads(path.read_text()) if path.is_file() else {}
    return schema if isinstance(schema, dict) and schema.get("kind") == "text" else None


def evaluate_texts(config: EvaluateConfig, schema: Mapping[str, Any]) -> TextEvaluation:
    """``dpvae evaluate`` where ``config.synth`` is a release of texts."""
    text, label = schema["columns"][0]["name"], schema.get("target")
    parts = sorted(Path(config.synth).glob("data/*.parquet"))
    drawn = [read(part, text, label) for part in parts]
    labels = None if label is None else tuple(value for part in drawn for value in part.labels or ())
    held = tuple(value for part in drawn for value in part.texts)
    if not held:
        raise DataError(f"synth={config.synth}: no Parquet file there; expected a release folder")
    synthetic = Texts(held, labels, np.arange(len(held)))
    test = read(config.test, text, label) if config.test is not None else None
    return judge_texts(read(config.real, text, label), synthetic, test, label=label, seed=config.seed)
