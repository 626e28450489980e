#!/usr/bin/env python
"""Build what dpvae knows of English before it sees a private text, from two packages of PyPI: dpvae/data/texts/*.gz.

    pip download --no-deps wordfreq==3.1.1 symspellpy==6.10.1
    python scripts/make_language.py wordfreq-3.1.1-py3-none-any.whl symspellpy-6.10.1-py3-none-any.whl to=FOLDER

Nothing else is pre-trained: the public part of a decoder is these words with their shares and these pairs. The SHA-256
of both files stands on the certificate of every release that used them; LICENSE beside them says where they come from.
For another language no script is needed: data.public=FILE counts a file of public text, and the certificate names it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import msgpack

WORDS = "wordfreq/data/small_en.msgpack.gz"
PAIRS = "symspellpy/frequency_bigramdictionary_en_243_342.txt"
MOST_PAIRS = 60_000
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def words_of(wheel: Path) -> list[tuple[int, list[str]]]:
    """(minus 100 log10 of the share, words of that share), the most frequent first."""
    with zipfile.ZipFile(wheel) as held:
        groups = msgpack.unpackb(gzip.decompress(held.read(WORDS)), raw=False)[1:]
    kept = [(step, [word for word in group if WORD.fullmatch(word)]) for step, group in enumerate(groups)]
    return [(step, group) for step, group in kept if group]


def pairs_of(wheel: Path, words: set[str]) -> dict[str, list[tuple[str, int]]]:
    """By first word, (second word, minus 100 log10 of the count over the largest)."""
    with zipfile.ZipFile(wheel) as held:
        lines = held.read(PAIRS).decode("utf-8-sig").splitlines()
    found = [(first, second, int(count)) for first, second, count in (line.split() for line in lines)
             if first in words and second in words]
    found = sorted(found, key=lambda pair: -pair[2])[:MOST_PAIRS]
    by_first = defaultdict(list)
    for first, second, count in found:
        by_first[first].append((second, round(-100 * math.log10(count / found[0][2]))))
    return by_first


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    content = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    print(f"{path}: {len(lines):,} lines, {path.stat().st_size:,} bytes, sha256 of the content {content}")


def main() -> None:
    to = next((Path(argument[3:]) for argument in sys.argv[1:] if argument.startswith("to=")), Path("."))
    frequent, following = (Path(argument) for argument in sys.argv[1:] if not argument.startswith("to="))
    groups = words_of(frequent)
    order = [word for _, group in groups for word in group]
    pairs = pairs_of(following, set(order))
    write(to / "english_words.txt.gz", [f"{step} {' '.join(group)}" for step, group in groups])
    write(to / "english_pairs.txt.gz", [
        f"{first} {' '.join(f'{second}:{step}' for second, step in sorted(pairs[first]))}"
        for first in order if first in pairs])


if __name__ == "__main__":
    main()
