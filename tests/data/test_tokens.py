"""Every text comes back as it was; whatever the grammar allows is valid UTF-8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpvae.data.grammar import Grammar
from dpvae.data.language import Language
from dpvae.data.tokens import BYTES, CAPITAL, WORDS, Vocabulary, cut

ENGLISH = Vocabulary(Language.of(None).words)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
AWKWARD = ["", " ", "  a", " hello", "a  b", "Hello WORLD", "hELLO", "don't", "(free)call", "\x00nul\x00", "שלום עולם",
           "e\u0301a\u0301", "İstanbul", "ß SS", "🧭 go", "A(A(A(A(", "I", "x" * 300, "new\nline\ttab"]


@pytest.mark.parametrize("vocabulary", [Vocabulary(), ENGLISH], ids=["bytes", "words"])
@pytest.mark.parametrize("text", AWKWARD)
def test_an_awkward_text_comes_back_as_it_was(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert len(tokens) <= len(text.encode())


@given(TEXTS)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    assert ENGLISH.decode(ENGLISH.encode(text)) == text


@given(st.lists(st.sampled_from(["the", "Money", "FREE", "?", " ", "zzqx", "I", "don't"]), max_size=12))
def test_words_of_the_list_are_one_token_and_their_capitals_a_mark(parts: list[str]) -> None:
    text = "".join(parts)
    assert ENGLISH.decode(ENGLISH.encode(text)) == text
    assert len(ENGLISH.encode("the money")) == 2
    assert ENGLISH.encode("Money")[0] == CAPITAL


@given(TEXTS, st.integers(1, 40))
def test_a_cut_text_is_a_beginning_that_fits(text: str, cap: int) -> None:
    short = cut(text, cap)
    assert text.startswith(short)
    assert len(short.encode()) <= cap
    assert short == text or len(short.encode()) > cap - 4


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_a_walk_that_the_grammar_allows_is_valid_utf8(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.concatenate([[0, 0], BYTES + rng.permutation(256)[:200], [WORDS, WORDS + 1], [1, 2, 3]])
    grammar = Grammar.of(active, words=True)
    state, tokens = 0, []
    for left in range(length - 1, -1, -1):
        fits = grammar.allowed[state] & (grammar.missing[grammar.after[state]] <= left)
        fits[1] = False
        if not fits.any():
            return
        token = rng.choice(np.flatnonzero(fits))
        tokens.append(int(active[token]))
        state = grammar.after[state, token]
    raw = b"".join(bytes([t - BYTES]) for t in tokens if BYTES <= t < WORDS)
    raw.decode()  # no replacement needed: it would raise
    assert "\ufffd" not in Vocabulary(("ab", "cd")).decode(tokens)


def test_a_byte_that_could_never_be_completed_is_never_allowed() -> None:
    grammar = Grammar.of(np.array([0, 0, BYTES + ord("a"), BYTES + 0xE2, BYTES + 0x82]), words=False)
    assert grammar.allowed[0].tolist() == [False, False, True, True, False]  # E2 82 82 is a character
    alone = Grammar.of(np.array([0, 0, BYTES + ord("a"), BYTES + 0xE2]), words=False)
    assert alone.allowed[0].tolist() == [False, False, True, False]
