"""The anchors of texts: noisy lengths by label, noisy tokens by label, noisy sequences of two, three and four tokens.

Each is one Gaussian release. A text's contribution is the vector of its counts, scaled down to a length ``bound`` that
follows from what is released already, so a text of any length moves a release by at most its sensitivity. Which
sequences of three are counted depends on the noisy pairs, and so on: what is rare is never looked at, and costs no
noise. All that follows (shrinking to what shorter sequences and public English say) is post-processing.

The result is an automaton: a state is a context of up to three tokens, and holds the probability of each token after
it.

Shapes: N texts, T token places, A active tokens (0: start and end, 1: any rare one), L labels, R states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvae.data.language import Language
from dpvae.data.tokens import BYTES, CAPITAL, END, MARKS, UPPER, WORDS, Vocabulary
from dpvae.privacy.events import Event
from dpvae.privacy.mechanisms import noisy_sparse_sums
from dpvae.train.shrink import shrink

SILENT = 0.1  # noise that is assumed where there is none: a tenth of a text
RARE = 1  # among active tokens
MOST_ACTIVE = 1500
MOST_CELLS = 3_000_000  # of one release
TIGHT = 0.7  # bound of a text's vector, in lengths of a typical text's
SEEN = 3.0  # standard deviations of its noise above which a context is followed up
EMPHASIS = 1e-4  # share of a word above which it is weighed down, see `word_weights`
ORDERS = {"bigram": 1, "trigram": 2, "fourgram": 3}  # tokens of the context
PART = 20_000  # texts at once

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Released:
    """What was measured, and what follows from it for free."""

    labels: tuple[str, ...]  # () where texts have none
    label_counts: Floats  # (max(L, 1),)
    lengths: Floats  # (max(L, 1), T + 1): of token places, given the label
    active: Ints  # (A,): tokens by active number; the first two stand for END and for rare ones
    contexts: Ints  # (R, 3): active numbers, -1 before the first; state 0 is the start of a text
    rows: Floats  # (R, A): probabilities
    shares: Floats  # (max(L, 1), A): of tokens, given the label
    tilt: Floats  # (max(L, 1), A): logarithm of how much more often a label has a token
    rare: Floats  # (max(L, 1), words): shares of the words that are not active, given the label
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Private texts as tokens, and who they belong to."""

    codes_NT: NDArray[np.int32]  # END fills up
    owners_N: Ints  # ascending
    labels_N: Ints  # -1: none that counts

    def parts(self) -> Iterator[tuple[NDArray[np.int32], Ints, Ints]]:
        """(codes, owners, labels) of whole units."""
        start, count = 0, len(self.owners_N)
        while start < count:
            stop = min(start + PART, count)
            while stop < count and self.owners_N[stop] == self.owners_N[stop - 1]:
                stop += 1
            yield self.codes_NT[start:stop], self.owners_N[start:stop], self.labels_N[start:stop]
            start = stop


def length_edges(most: int) -> Ints:
    """Lower edges of the bins of lengths 0..most: single ones up to 32, then a twelfth wider each.

    >>> length_edges(40).tolist()[-4:]
    [32, 34, 36, 39]
    """
    edges = [0]
    while (step := edges[-1] + max(1, edges[-1] // 12 if edges[-1] >= 32 else 1)) <= most:
        edges.append(step)
    return np.array(edges)


def word_weights(vocabulary: Vocabulary, language: Language) -> Floats:
    """Public weights of tokens, at most 1: a word that everybody uses is counted with less, since its count is large
    anyway and would crowd out the words that tell labels apart."""
    weights = np.ones(vocabulary.size)
    if vocabulary.words:
        weights[WORDS:] = np.minimum(1.0, (language.shares / EMPHASIS) ** -0.25)
        weights[:WORDS] = 0.5
    weights[END] = 0.0
    return weights


def measure(source: Source, labels: tuple[str, ...], vocabulary: Vocabulary, language: Language, *,
            noise: Mapping[str, float], key: Any, texts_per_unit: int = 1, silent: bool = False,
            progress: Callable[[int], None] = lambda done: None) -> tuple[Released, tuple[Event, ...]]:
    """All releases of ``noise`` (noise multiplier by name), and what follows from them; ``silent``: the key draws none
    (``privacy=off``), so nothing needs to be shrunk."""
    measuring = _Measuring(source, labels, vocabulary, language, noise, key, math.sqrt(texts_per_unit), silent)
    for done, name in enumerate(noise, start=1):
        getattr(measuring, f"_{name}")()
        progress(done)
    return measuring.released(), tuple(measuring.events)


class _Measuring:
    def __init__(self, source: Source, labels: tuple[str, ...], vocabulary: Vocabulary, language: Language,
                 noise: Mapping[str, float], key: Any, several: float, silent: bool) -> None:
        self.source, self.labels, self.vocabulary, self.language = source, labels, vocabulary, language
        self.noise, self.key, self.several = noise, key, several
        self.sd = {name: SILENT if silent else multiplier for name, multiplier in noise.items()}
        self.kinds = max(len(labels), 1)
        self.events: list[Event] = []
        self.most = source.codes_NT.shape[1] - 1
        self.marks = np.zeros(vocabulary.size, dtype=bool)
        self.marks[list(MARKS)] = True
        self.levels: dict[int, _Level] = {}

    def _sums(self, name: str, size: int, bound: float, entries: Callable[..., Any]) -> tuple[Floats, float]:
        """One release: counts of ``size`` cells and their noise; a unit's vector is scaled to at most ``bound``."""
        parts = ((record, cell, weight / bound) for record, cell, weight in
                 (entries(*part) for part in self.source.parts()))
        found, event = noisy_sparse_sums(parts, size, noise_multiplier=self.noise[name],
                                         stream=self.key.stream("anchor", name), phase="anchor",
                                         what=f"noisy {name} tables")
        self.events.append(event)
        return found * bound, self.sd[name] * bound

    # -- lengths -----------------------------------------------------------------------------------------------------

    def _length(self) -> None:
        edges = length_edges(self.most)
        wide = len(edges)

        def entries(codes: Any, owners: Ints, labels: Ints) -> Any:
            length = (codes != END).sum(1)
            cell = np.maximum(labels, 0) * wide + np.searchsorted(edges, length, side="right") - 1
            counts = (labels >= 0) | (not self.labels)
            return owners[counts], cell[counts], np.ones(int(counts.sum()))

        noisy, sd = self._sums("length", self.kinds * wide, self.several, entries)
        table = noisy.reshape(self.kinds, wide)
        self.label_counts = np.maximum(table.sum(1), 1.0)
        pooled = _smooth(table.sum(0), sd * math.sqrt(self.kinds))
        found = shrink(table, self.label_counts[:, None] * pooled, sd) * (pooled > 0) + 1e-9 * pooled
        widths = np.diff(np.r_[edges, self.most + 1])
        shares = found / found.sum(1, keepdims=True) / widths
        self.lengths = np.repeat(shares, widths, axis=1)
        self.tokens = np.maximum(self.label_counts * (self.lengths @ np.arange(self.most + 1)), 1e-3)
        self.typical = float(self.tokens.sum() / self.label_counts.sum())
        self.reference = {"length": {"labels": [str(edge) for edge in edges], "noisy": table.sum(0).tolist(),
                                     "sd": sd * math.sqrt(self.kinds)}}
        if self.labels:
            self.reference["label"] = {"labels": list(self.labels), "noisy": table.sum(1).tolist(),
                                       "sd": sd * math.sqrt(wide)}

    # -- tokens by label ---------------------------------------------------------------------------------------------

    def _unigram(self) -> None:
        size, weights = self.vocabulary.size, word_weights(self.vocabulary, self.language)
        public = self._public_shares()
        heavy = max(float(public @ weights**2), 0.1) if self.vocabulary.words else 1.0
        bound = TIGHT * math.sqrt(max(self.typical, 1.0) * heavy) * self.several

        def entries(codes: Any, owners: Ints, labels: Ints) -> Any:
            row, place = np.nonzero((codes != END) & ((labels >= 0) | (not self.labels))[:, None])
            token = codes[row, place].astype(np.int64)
            return owners[row], np.maximum(labels[row], 0) * size + token, weights[token]

        noisy, sd = self._sums("unigram", self.kinds * size, bound, entries)
        by_token = np.where(weights > 0, weights, 1.0)
        table, noise = noisy.reshape(self.kinds, size) / by_token, sd / by_token
        table[:, END] = 0.0
        self._denoise(table, noise, public)

    def _denoise(self, table: Floats, noise: Floats, public: Floats) -> None:
        """Counts by label from noisy ones: all labels together pulled to public shares, each label to all."""
        total = self.tokens.sum()
        pooled, spread = table.sum(0), noise * math.sqrt(self.kinds)
        expected = total * 0.1 * public
        for _ in range(3):  # how much of the text is words that do not stand out one by one
            found = shrink(pooled, expected, spread)
            hidden = (found < SEEN * spread) & (public > 0)
            mass = min(max(float(pooled[hidden].sum()), 0.001 * total), total)
            expected = mass * public / max(float(public[hidden].sum()), 1e-12)
        found = found + 1e-6 * public
        overall = found / found.sum()
        self.counts = shrink(table, self.tokens[:, None] * overall, noise) + 1e-9 * overall
        self.counts *= (self.tokens / np.maximum(self.counts.sum(1), 1e-9))[:, None]
        self._activate(noise)

    def _activate(self, noise: Floats) -> None:
        """The tokens that have a number of their own; the others are rare ones."""
        overall = self.counts.sum(0)
        order = np.argsort(-overall, kind="stable")[:MOST_ACTIVE]
        least = np.where(np.arange(len(noise)) >= WORDS, 1.0, 4.0)  # a word may be one label's, bytes are everybody's
        chosen = np.sort(order[overall[order] > (least * noise)[order]])
        if not len(chosen):  # nothing stands out: the letters, which are public
            chosen = BYTES + np.arange(ord("a"), ord("z") + 1)
        self.active = np.concatenate([[END, END], chosen])  # the second stands for rare ones
        self.number = np.full(self.vocabulary.size, RARE)
        self.number[chosen] = np.arange(2, len(self.active))
        self.number[END] = 0
        gathered = np.full((self.kinds, len(self.active)), 1e-9)  # where noise hid everything: any token
        np.add.at(gathered.T, self.number, self.counts.T)
        self.by_label = gathered / np.maximum(gathered.sum(1, keepdims=True), 1e-12)
        self.overall = gathered.sum(0)
        self.overall[0] = self.label_counts.sum()
        rare = np.where(self.number[WORDS:] == RARE, self.counts[:, WORDS:] + 1e-9, 0.0)
        self.rare = rare / np.maximum(rare.sum(1, keepdims=True), 1e-300)

    def _public_shares(self) -> Floats:
        """What public facts alone say of the tokens."""
        shares = np.zeros(self.vocabulary.size)
        if not self.vocabulary.words:
            shares[BYTES:WORDS] = 1 / 256
            return shares
        shares[WORDS:] = 0.75 * self.language.shares
        shares[BYTES:WORDS] = 0.20 / 256
        shares[[CAPITAL, UPPER]] = 0.025
        return shares

    # -- sequences ---------------------------------------------------------------------------------------------------

    def _bigram(self) -> None:
        size = len(self.active)
        contexts = np.full((size, 3), -1)
        contexts[:, 2] = np.arange(size)
        level = _Level(contexts, np.arange(size), self._pair_prior(), self.overall)
        self._count("bigram", level)

    def _trigram(self) -> None:
        self._follow("trigram")

    def _fourgram(self) -> None:
        self._follow("fourgram")

    def _follow(self, name: str) -> None:
        """Contexts one token longer, where they stand out of the noise that their own row will have."""
        order, size = ORDERS[name], len(self.active)
        shorter, bound = self.levels[order - 1], self._bound()
        strong = shorter.estimates.copy()
        strong[:, :2] = 0.0
        strong[shorter.contexts[:, 2] == RARE] = 0.0
        strong[:, self.marks[self.active]] = 0.0
        flat = np.flatnonzero(strong > SEEN * self.sd[name] * bound)
        flat = flat[np.argsort(-strong.ravel()[flat], kind="stable")][:MOST_CELLS // size]
        row, token = np.sort(flat) // size, np.sort(flat) % size
        contexts = np.concatenate([shorter.contexts[row][:, 1:], token[:, None]], 1)
        prior = self._rows_of(contexts[:, 4 - order:]) if len(row) else np.zeros((0, size))
        key = np.full(max(len(shorter.contexts), 1) * size, -1)
        key[row * size + token] = np.arange(len(row))
        self._count(name, _Level(contexts, key, prior, shorter.estimates[row, token]))

    def _rows_of(self, contexts: Ints) -> Floats:
        """The row of the longest known end of each context."""
        best = self.levels[1].rows[contexts[:, -1]]
        if contexts.shape[1] > 1 and 2 in self.levels:
            number = self.levels[2].keys[contexts[:, -2] * len(self.active) + contexts[:, -1]]
            best = np.where((number >= 0)[:, None], self.levels[2].rows[number], best) if len(
                self.levels[2].rows) else best
        return best

    def _bound(self) -> float:
        return TIGHT * math.sqrt(self.typical + 1) * self.several

    def _count(self, name: str, level: _Level) -> None:
        order, size = ORDERS[name], len(self.active)

        def entries(codes: Any, owners: Ints, labels: Ints) -> Any:
            row, state, token = self._places(codes, order, level)
            return owners[row], state * size + token, np.ones(len(row))

        cells = max(len(level.contexts), 1) * size
        noisy, sd = self._sums(name, cells, self._bound(), entries)
        table = noisy.reshape(-1, size)[:len(level.contexts)]
        level.estimates = shrink(table, level.totals[:, None] * level.prior, sd)
        level.rows = (level.estimates + 1e-6 * level.prior) / np.maximum(
            (level.estimates + 1e-6 * level.prior).sum(1, keepdims=True), 1e-30)
        self.levels[order] = level

    def _places(self, codes: Any, order: int, level: _Level) -> tuple[Ints, Ints, Ints]:
        """(text, state, token) of every place whose context of ``order`` tokens is a state of ``level``. Marks stand in
        no context."""
        size, count = len(self.active), len(codes)
        states = np.zeros((order + 1, count), dtype=np.int64)  # of the last 1, 2, .. tokens; -1: none
        states[2:] = -1
        found = []
        alive = np.ones(count, dtype=bool)
        for place in range(codes.shape[1]):
            token = self.number[codes[:, place]]
            here = np.flatnonzero(alive & (states[order] >= 0))
            found.append(np.stack([here, states[order][here], token[here]]))
            for longer in range(order, 1, -1):
                known = self.levels.get(longer) if longer < order else level
                assert known is not None
                before = states[longer - 1]
                following = np.where(before >= 0, known.keys[np.maximum(before, 0) * size + token], -1)
                states[longer] = np.where(self.marks[codes[:, place]], states[longer], following)
            states[1] = np.where(self.marks[codes[:, place]], states[1], token)
            alive &= codes[:, place] != END
            if not alive.any():
                break
        row, state, token = np.concatenate(found, axis=1)
        return row, state, token

    def _pair_prior(self) -> Floats:
        """What is expected after each token: half public pairs, moved to the private words; half the words alone."""
        size = len(self.active)
        alone = self.overall / self.overall.sum()
        prior = np.tile(alone, (size, 1))
        if not self.vocabulary.words or not len(self.language.pairs):
            return prior
        first, second = self.number[WORDS + self.language.pairs].T
        known = (first > RARE) & (second > RARE)
        table = np.zeros((size, size))
        np.add.at(table, (first[known], second[known]), self.language.weights[known])
        seen = table.sum(1) > 0
        public = np.maximum(self._public_shares()[self.active], 1e-9)
        lifted = table[seen] / table[seen].sum(1, keepdims=True) / public * alone
        lifted /= np.maximum(lifted.sum(1, keepdims=True), 1e-30)
        prior[seen] = 0.5 * prior[seen] + 0.5 * lifted
        return prior

    def released(self) -> Released:
        """Everything, as the model holds it."""
        levels = [self.levels[order] for order in sorted(self.levels)]
        alone = self.overall / self.overall[1:].sum()
        tilt = np.log((self.by_label + 1e-9) / (alone + 1e-9)).clip(-8, 8)
        tilt[:, 0] = 0.0
        return Released(
            labels=self.labels, label_counts=self.label_counts, lengths=self.lengths, active=self.active,
            contexts=np.concatenate([level.contexts for level in levels]),
            rows=np.concatenate([level.rows for level in levels]), shares=self.by_label, tilt=tilt,
            rare=self.rare,
            reference=self.reference)


@dataclass
class _Level:
    """Contexts of one length: ``keys`` is the state after (state of the context without its last token, last token)."""

    contexts: Ints
    keys: Ints
    prior: Floats
    totals: Floats
    estimates: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    rows: Floats = field(default_factory=lambda: np.zeros((0, 0)))


def _smooth(counts: Floats, sd: float) -> Floats:
    """Shares of noisy counts of neighbouring lengths: each pulled to the mean of its neighbours; none beyond the length
    from which on all counts together are no more than noise."""
    beyond = counts[::-1].cumsum()[::-1] < SEEN * sd * np.sqrt(np.arange(len(counts), 0, -1))
    last = len(counts) - int(np.argmin(beyond[::-1])) if not beyond.all() else 1
    padded = np.pad(counts[:last], 2, mode="edge")
    around = np.maximum(sum(padded[i:i + last] for i in range(5)) / 5, 0.0)
    found = np.zeros(len(counts))
    found[:last] = shrink(counts[:last], around, sd) + 1e-9
    return found / found.sum()
