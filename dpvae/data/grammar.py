"""Which token may follow which, so that whatever is drawn is valid UTF-8: an automaton over the active tokens.

A byte that opens a character of several bytes must be followed by the bytes that complete it; a mark (glue, capital, upper)
by a word. A token after which no active token could complete the text is never allowed.

>>> grammar = Grammar.of(np.array([0, 0, 4 + ord("a"), 4 + 0xC3, 4 + 0xA9]), words=False)
>>> grammar.allowed[0].tolist()     # end, rare, "a", the first byte of "é", its second
[False, False, True, True, False]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpvae.data.tokens import BYTES, CAPITAL, GLUE, UPPER, WORDS

FREE, ONE, TWO, THREE, E0, ED, F0, F4, GLUED, SHAPED = range(10)
_MISSING = np.array([0, 1, 2, 3, 2, 2, 3, 3, 1, 1])  # tokens until a text may end
_LEADS = ((0x00, 0x80, FREE), (0xC2, 0xE0, ONE), (0xE0, 0xE1, E0), (0xE1, 0xED, TWO), (0xED, 0xEE, ED),
          (0xEE, 0xF0, TWO), (0xF0, 0xF1, F0), (0xF1, 0xF4, THREE), (0xF4, 0xF5, F4))
_CONTINUED = ((ONE, 0x80, 0xC0, FREE), (TWO, 0x80, 0xC0, ONE), (THREE, 0x80, 0xC0, TWO), (E0, 0xA0, 0xC0, ONE),
              (ED, 0x80, 0xA0, ONE), (F0, 0x90, 0xC0, TWO), (F4, 0x80, 0x90, TWO))


@dataclass(frozen=True)
class Grammar:
    """States by tokens: ``allowed`` (S, A), the state ``after`` (S, A), and tokens ``missing`` to a complete text (S,)."""

    allowed: NDArray[np.bool_]
    after: NDArray[np.int64]
    missing: NDArray[np.int64]

    @classmethod
    def of(cls, active: NDArray[np.int64], *, words: bool) -> Grammar:
        """Over ``active`` tokens, of which the first two stand for END and for rare words."""
        size = int(max(active.max() + 1, WORDS))
        allowed = np.zeros((len(_MISSING), size), dtype=bool)
        after = np.zeros((len(_MISSING), size), dtype=np.int64)
        for low, high, state in _LEADS:
            allowed[FREE, BYTES + low:BYTES + high] = True
            after[FREE, BYTES + low:BYTES + high] = state
        for state, low, high, following in _CONTINUED:
            allowed[state, BYTES + low:BYTES + high] = True
            after[state, BYTES + low:BYTES + high] = following
        allowed[[FREE, GLUED, SHAPED], WORDS:] = True
        for state, mark, following in ((FREE, GLUE, GLUED), (FREE, CAPITAL, SHAPED), (FREE, UPPER, SHAPED),
                                       (GLUED, CAPITAL, SHAPED), (GLUED, UPPER, SHAPED)):
            allowed[state, mark], after[state, mark] = True, following
        allowed, after = allowed[:, active], after[:, active]
        allowed[:, 0] = False
        allowed[:, 1] = False
        if words:
            allowed[[FREE, GLUED, SHAPED], 1], after[:, 1] = True, FREE
        useful = np.arange(len(_MISSING)) == FREE
        for _ in _MISSING:
            useful |= (allowed & useful[after]).any(1)
        return cls(allowed & useful[after], after, _MISSING)
