"""Texts that come near a public text are not released: they are drawn again. Post-processing: costs nothing.

What is compared with is public, and a model is all that is drawn from, so nothing about the private texts can show. The
same against *private* texts would tell which of them exist: a rejection filter of that kind is a leak, and not offered.

A text comes near where all its words are one line of the file, or :data:`IN_A_ROW` of them stand in a line in that
order; capitals and all that is no word are ignored.

>>> public = Unlike(frozenset({("to", "be", "or", "not")}), frozenset(), "a line of Hamlet")
>>> public.near("To be, or NOT?"), public.near("to be or not to be")
(True, False)
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from dpvae.errors import DataError

IN_A_ROW = 8  # words
TRIES = 20
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Unlike:
    """The lines of a public file as words, and every run of :data:`IN_A_ROW` of them."""

    lines: frozenset[tuple[str, ...]]
    runs: frozenset[tuple[str, ...]]
    statement: str  # for certificate and card

    @classmethod
    def of(cls, path: str) -> Unlike:
        """From a file of public text, a line each; :class:`DataError` where that cannot be read."""
        try:
            raw = Path(path).read_bytes()
            lines = {words_of(line) for line in raw.decode().splitlines()} - {()}
        except OSError as error:
            raise DataError(f"unlike={path}: cannot be read ({error.strerror}); expected a file of public text, a line "
                            "each") from None
        except UnicodeDecodeError as error:
            raise DataError(f"unlike={path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
        if not lines:
            raise DataError(f"unlike={path}: holds no word; expected public text, a line each")
        return cls(frozenset(lines), frozenset(run for words in lines for run in _runs(words)),
                   f"drawn again where all words of a text were one of {len(lines):,} lines of a public text, or "
                   f"{IN_A_ROW} of them in a row stood in one; its sha256 {hashlib.sha256(raw).hexdigest()}")

    def near(self, text: str) -> bool:
        """Whether ``text`` is not to be released."""
        words = words_of(text)
        return words in self.lines or any(run in self.runs for run in _runs(words))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, in small letters."""
    return tuple(_WORD.findall(text.lower()))


def _runs(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words[i:i + IN_A_ROW] for i in range(len(words) - IN_A_ROW + 1)]
