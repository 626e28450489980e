"""What is publicly known of a language before any private text is read: its words, how frequent they are, which follow
which.

English ships with the package (see ``texts/LICENSE``; ``scripts/make_language.py`` builds it anew); for anything else
``data.public`` names a file of public text, a line each, whose words are counted here. Either way the SHA-256 of what
was counted is among the public inputs of the certificate.

>>> english = Language.of(None)
>>> english.words[:3], len(english.words)
(('the', 'to', 'and'), 28511)
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpvae.errors import DataError

FOLDER = Path(__file__).parent / "texts"
MOST_WORDS = 30_000
MOST_PAIRS = 60_000
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001 (a typeset apostrophe)


@dataclass(frozen=True)
class Language:
    """Public words, most frequent first, with their shares; pairs (first, second) by word number, with weights."""

    words: tuple[str, ...]
    shares: NDArray[np.float64]
    pairs: NDArray[np.int64]  # (pairs, 2)
    weights: NDArray[np.float64]  # (pairs,): proportional to how often a pair occurs
    source: str  # one line for the certificate

    @classmethod
    def of(cls, path: str | None) -> Language:
        """English, or what a file of public text shows; :class:`DataError` where that cannot be read."""
        return _english() if path is None else _counted(path)


def _lines(name: str) -> tuple[list[list[str]], str]:
    """A file that ships with the package as fields by line, and the SHA-256 of its content."""
    raw = gzip.decompress((FOLDER / name).read_bytes())
    return [line.split(" ") for line in raw.decode().splitlines()], hashlib.sha256(raw).hexdigest()


@cache
def _english() -> Language:
    words, shares = [], []
    (groups, first_digest), (followed, second_digest) = _lines("english_words.txt.gz"), _lines("english_pairs.txt.gz")
    for step, *group in groups:
        words += group
        shares += [10 ** (-int(step) / 100)] * len(group)
    number = {word: i for i, word in enumerate(words)}
    pairs = [(number[first], number[word], 10 ** (-int(step) / 100)) for first, *followers in
             followed for word, _, step in (item.rpartition(":") for item in followers)]
    return Language(tuple(words), np.array(shares) / sum(shares), np.array([pair[:2] for pair in pairs]),
                    np.array([pair[2] for pair in pairs]),
                    f"{len(words):,} English words (wordfreq 3.1.1, sha256 {first_digest}) and {len(pairs):,} pairs "
                    f"(symspellpy 6.10.1, sha256 {second_digest}) that ship with dpvae")


def _counted(path: str) -> Language:
    try:
        raw = Path(path).read_bytes()
        lines = raw.decode().splitlines()
    except OSError as error:
        raise DataError(f"data.public={path}: cannot be read ({error.strerror}); expected a file of public text"
                        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"data.public={path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    found = [_WORD.findall(line.lower()) for line in lines]
    counts = Counter(word for line in found for word in line).most_common(MOST_WORDS)
    if not counts:
        raise DataError(f"data.public={path}: holds no word; expected public text, a line each")
    number = {word: i for i, (word, _) in enumerate(counts)}
    following = Counter((number[a], number[b]) for line in found for a, b in pairwise(line)
                        if a in number and b in number).most_common(MOST_PAIRS)
    shares = np.array([count for _, count in counts], dtype=float)
    digest = hashlib.sha256(raw).hexdigest()
    return Language(tuple(word for word, _ in counts), shares / shares.sum(),
                    np.array([pair for pair, _ in following], dtype=np.int64).reshape(-1, 2),
                    np.array([count for _, count in following], dtype=float),
                    f"{len(counts):,} words of a public text, sha256 {digest}")
