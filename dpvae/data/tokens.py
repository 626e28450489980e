"""Texts as numbers and back, without loss: bytes, and words of a public list.

A vocabulary that is counted on private texts publishes their words, so this one is public: the 256 bytes, three marks and,
for texts of several words, a list that ships with the package or that the user names. What is not on the list is spelled
byte by byte, so every text is encoded and comes back as it was.

    0 END    1 GLUE: the next word follows without a blank    2 CAPITAL    3 UPPER: of the next word
    4 .. 259 bytes    260 .. words, in small letters; a blank before each is understood

>>> words = Vocabulary(("hello", "world"))
>>> words.decode(words.encode("Hello WORLD, Åsa!"))
'Hello WORLD, Åsa!'
>>> len(words.encode("Hello WORLD"))
4
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

END, GLUE, CAPITAL, UPPER, BYTES, WORDS = 0, 1, 2, 3, 4, 260
MARKS = (GLUE, CAPITAL, UPPER)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001 (a typeset apostrophe)


@dataclass(frozen=True)
class Vocabulary:
    """Public tokens; ``words`` empty: bytes alone."""

    words: tuple[str, ...] = ()

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: WORDS + i for i, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        """Number of tokens, END included."""
        return WORDS + len(self.words)

    def encode(self, text: str) -> list[int]:
        """The tokens of one text, without END; never more of them than it has bytes."""
        if not self.words:
            return [BYTES + byte for byte in text.encode()]
        tokens: list[int] = []
        done = 0
        for match in _WORD.finditer(text):
            start, end = match.span()
            marked = self._marked(match[0])
            if marked is None:
                continue
            blank = start > max(done, 1) and text[start - 1] == " "
            tokens += [BYTES + byte for byte in text[done:start - blank].encode()]
            if not blank and start > 0:
                tokens.append(GLUE)
            tokens += marked
            done = end
        tokens += [BYTES + byte for byte in text[done:].encode()]
        spelled = text.encode()
        return tokens if len(tokens) <= len(spelled) else [BYTES + byte for byte in spelled]

    def _marked(self, word: str) -> list[int] | None:
        """The tokens of a word of the list, however it is capitalised; ``None`` for another."""
        small = word.lower()
        number = self._number.get(small)
        if number is None:
            return None
        if word == small:
            return [number]
        if word == small[:1].upper() + small[1:]:
            return [CAPITAL, number]
        return [UPPER, number] if word == small.upper() else None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, up to the first END; bytes that are no UTF-8 become a replacement character."""
        parts: list[bytes] = []
        glued, shape = True, 0
        for token in tokens:
            if token == END:
                break
            if token == GLUE:
                glued = True
            elif token in (CAPITAL, UPPER):
                shape = token
            elif token < WORDS:
                parts.append(bytes([token - BYTES]))
                glued, shape = False, 0
            else:
                word = self.words[token - WORDS]
                word = word[:1].upper() + word[1:] if shape == CAPITAL else word.upper() if shape == UPPER else word
                parts.append(word.encode() if glued else b" " + word.encode())
                glued, shape = False, 0
        return b"".join(parts).decode("utf-8", "replace")

    def table(self, texts: Sequence[str], cap: int) -> NDArray[np.int32]:
        """The tokens of texts of at most ``cap`` bytes, (texts, cap + 1), filled up with END."""
        codes = np.zeros((len(texts), cap + 1), dtype=np.int32)
        for i, text in enumerate(texts):
            tokens = self.encode(text)
            codes[i, :len(tokens)] = tokens
        return codes


def cut(text: str, cap: int) -> str:
    """``text``, or as many of its first characters as fit into ``cap`` bytes of UTF-8.

    >>> cut("naïve", 3), cut("naïve", 4)
    ('na', 'naï')
    """
    raw = text.encode()
    return text if len(raw) <= cap else raw[:cap].decode("utf-8", "ignore")
