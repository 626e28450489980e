"""What is measured of texts: no record moves a release by more than is booked, given what was released before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpvae.data.language import Language
from dpvae.data.tokens import MARKS, Vocabulary
from dpvae.privacy.mechanisms import noisy_sparse_sums
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.silence import Silence
from dpvae.train import ngrams
from dpvae.train.ngrams import Source, length_edges, measure
from dpvae.train.shrink import shrink

CAP = 40
WORDS = ("the", "my", "is", "what", "a", "i", "pay", "card", "balance", "song", "bill", "play", "next", "please", "to")
ENGLISH = Language(WORDS, np.full(len(WORDS), 1 / len(WORDS)), np.array([[11, 0], [6, 1]]), np.ones(2), "a few words")
NOISE = {"bytes": {"length": 2.0, "unigram": 2.0, "bigram": 2.0, "trigram": 2.0, "fourgram": 2.0},
         "words": {"length": 2.0, "unigram": 2.0, "bigram": 2.0}}
VOCABULARY = {"bytes": Vocabulary(), "words": Vocabulary(ENGLISH.words)}
TEXTS = ["pay my card", "what is my balance", "Play a song", "play the next song please", "pay the bill"] * 40
ABOUT = [0, 0, 1, 1, 0] * 40
JOINING = {"empty": "", "long": "pay the " * 5, "repeated": "a" * CAP, "foreign": "שלום \x00", "unusual": "zq!" * 9,
           "a duplicate": TEXTS[0], "capitals": "PAY MY CARD"}


def source(texts: list[str], labels: list[int], kind: str, owners: list[int] | None = None) -> Source:
    held = np.arange(len(texts)) if owners is None else np.array(owners)
    return Source(VOCABULARY[kind].table(texts, CAP), held, np.array(labels))


class Releases:
    """Exact sums of every release, with the past fixed to what it was the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, clip: bool = True) -> None:
        self.past: list[np.ndarray] = []
        self.sums: list[np.ndarray] = []
        self.clip = clip
        monkeypatch.setattr(ngrams, "noisy_sparse_sums", self)

    def __call__(self, parts: Any, size: int, **facts: Any) -> Any:
        parts = list(parts)
        silent = {**facts, "stream": Silence(SecretKey.from_seed(0)).stream("x")}
        exact, event = noisy_sparse_sums(parts, size, **silent)
        if not self.clip:
            exact = sum(np.bincount(cell, weight, size) for _, cell, weight in parts)
        self.sums.append(exact)
        if len(self.past) < len(self.sums):
            self.past.append(noisy_sparse_sums(parts, size, **facts)[0])
        return self.past[len(self.sums) - 1], event

    def of(self, held: Source, kind: str, **more: Any) -> list[np.ndarray]:
        self.sums = []
        measure(held, ("bank", "music"), VOCABULARY[kind], ENGLISH, noise=NOISE[kind], key=SecretKey.from_seed(1),
                **more)
        return self.sums


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_one_text_moves_no_release_by_more_than_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = Releases(monkeypatch)
    before = releases.of(source(TEXTS, ABOUT, kind), kind)
    assert len(before) == len(NOISE[kind])
    for name, text in JOINING.items():
        for label in (1, -1):
            after = releases.of(source([*TEXTS, text], [*ABOUT, label], kind), kind)
            moved = [float(np.linalg.norm(a - b)) for a, b in zip(after, before, strict=True)]
            assert max(moved) <= 1.0 + 1e-9, (name, label, moved)
            assert name == "empty" or label < 0 or max(moved) > 0.2


def test_a_program_that_does_not_clip_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = Releases(monkeypatch, clip=False)
    before = releases.of(source(TEXTS, ABOUT, "bytes"), "bytes")
    after = releases.of(source([*TEXTS, JOINING["repeated"]], [*ABOUT, 0], "bytes"), "bytes")
    assert max(float(np.linalg.norm(a - b)) for a, b in zip(after, before, strict=True)) > 1.5


def test_a_person_with_several_texts_moves_no_release_by_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    releases, count = Releases(monkeypatch), len(TEXTS)
    owners = [i // 2 for i in range(count)]
    before = releases.of(source(TEXTS, ABOUT, "words", owners), "words", texts_per_unit=4)
    more = ["pay my card"] * 4
    after = releases.of(source([*TEXTS, *more], [*ABOUT, 0, 0, 0, 0], "words", [*owners, *[count] * 4]), "words",
                        texts_per_unit=4)
    moved = [float(np.linalg.norm(a - b)) for a, b in zip(after, before, strict=True)]
    assert max(moved) <= 1.0 + 1e-9
    apart = releases.of(source([*TEXTS, *more], [*ABOUT, 0, 0, 0, 0], "words", [*owners, *range(count, count + 4)]),
                        "words", texts_per_unit=4)  # a program that forgets whose they are
    assert max(float(np.linalg.norm(a - b)) for a, b in zip(apart, before, strict=True)) > 1.0


def test_a_unit_is_never_torn_between_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "PART", 3)
    held = source(["a"] * 10, [0] * 10, "bytes", [0, 0, 1, 1, 1, 1, 2, 3, 3, 3])
    parts = [owners.tolist() for _, owners, _ in held.parts()]
    assert parts == [[0, 0, 1, 1, 1, 1], [2, 3, 3, 3]]


def test_a_program_that_tears_a_unit_between_parts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(self: Source) -> Any:
        for start in range(0, len(self.owners_N), 2):
            part = slice(start, start + 2)
            yield self.codes_NT[part], self.owners_N[part], self.labels_N[part]

    monkeypatch.setattr(Source, "parts", torn)
    releases, count = Releases(monkeypatch), len(TEXTS)
    owners = list(range(count))
    before = releases.of(source(TEXTS, ABOUT, "words", owners), "words", texts_per_unit=4)
    after = releases.of(source([*TEXTS, *["pay my card"] * 8], [*ABOUT, *[0] * 8], "words", [*owners, *[count] * 8]),
                        "words", texts_per_unit=4)
    assert max(float(np.linalg.norm(a - b)) for a, b in zip(after, before, strict=True)) > 1.5


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_without_noise_texts_of_one_kind_give_their_own_statistics(kind: str) -> None:
    noise = dict.fromkeys(NOISE[kind], 1e-06)
    found, events = measure(source(TEXTS, ABOUT, kind), ("bank", "music"), VOCABULARY[kind], ENGLISH, noise=noise,
                            key=SecretKey.from_seed(1))
    assert [event.what for event in events] == [f"noisy {name} tables" for name in noise]
    assert found.label_counts == pytest.approx([120, 80], abs=0.01)
    lengths = [len(VOCABULARY[kind].encode(text)) for text in TEXTS[:5]]
    assert found.lengths[1, lengths[2]] == pytest.approx(0.5, abs=0.02)
    assert found.rows.sum(1) == pytest.approx(np.ones(len(found.rows)), abs=1e-6)
    assert found.shares.sum(1) == pytest.approx([1, 1], abs=1e-6)
    marks = np.isin(found.active, MARKS)
    assert not marks[found.contexts[:, :2].clip(0)].any()


def test_a_run_without_noise_shrinks_nothing() -> None:
    noise = dict.fromkeys(NOISE["words"], 50.0)
    key = Silence(SecretKey.from_seed(1))
    found, events = measure(source(TEXTS, ABOUT, "words"), ("bank", "music"), VOCABULARY["words"], ENGLISH, noise=noise,
                            key=key, silent=True)
    assert [event.noise_multiplier for event in events] == [50.0] * 3  # type: ignore[union-attr]
    assert found.label_counts == pytest.approx([120, 80], abs=0.01)
    assert {VOCABULARY["words"].decode([token]) for token in found.active[2:]} >= {"pay", "song", "please", "balance"}


def test_marks_stand_in_no_context() -> None:
    noise = dict.fromkeys(NOISE["words"], 1e-06)
    found, _ = measure(source(["Play the song"] * 50, [0] * 50, "words"), ("bank",), VOCABULARY["words"], ENGLISH,
                       noise=noise, key=SecretKey.from_seed(1))
    number = {VOCABULARY["words"].decode([token]): i for i, token in enumerate(found.active) if i > 1}
    after_play = found.rows[found.contexts[:, 2].tolist().index(number["play"])]
    assert after_play[number["the"]] > 0.9


def test_bins_of_lengths_cover_every_length_once() -> None:
    for most in (1, 16, 40, 256, 4096):
        edges = length_edges(most)
        assert edges[0] == 0
        assert (np.diff(edges) >= 1).all()
        assert edges[-1] <= most


def test_shrinking_never_invents_more_than_was_counted() -> None:
    rng = np.random.default_rng(0)
    found = shrink(10 * rng.normal(size=300_000), np.full(300_000, 1e-3), 10.0)
    assert 0 <= found.sum() < 20_000  # of noise alone, whose positive half adds up to 1.2 million


def test_shrinking_keeps_what_stands_out() -> None:
    truth = np.r_[np.zeros(5000), np.full(50, 300.0)]
    noisy = truth + 10 * np.random.default_rng(1).normal(size=len(truth))
    found = shrink(noisy, np.full(len(truth), 0.5), 10.0)
    assert np.abs(found[5000:] - 300).mean() < 12
    assert found[:5000].mean() < 1.5
