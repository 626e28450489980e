"""Where chance comes from: keys that nobody guesses, streams that share nothing, and noise that is what they gave.

A law of noise can be tested on some ten thousand numbers, and a fault can hide below that: a cut at four standard
deviations, one direction of a thousand without noise, a rate two per cent too high. So it is also asked what does not
need numbers. Every bit of the operating system's chance moves the key; no two streams hold a word in common; what is
added has the length of what was drawn, and eight times as much of it where eight times as much was drawn; the coins
are tossed at the booked rate. What is left is the source itself, and of that millions of numbers are cheap.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from unittest import mock

import numpy as np
from scipy import stats
from scipy.special import ndtr

from dpvae.audit.instruments import NORMALS, Draw, Floats, Names
from dpvae.audit.laws import SAFETY, sampling_law, smallest, two_sided
from dpvae.audit.runner import Claim, Seen
from dpvae.audit.verdict import Finding
from dpvae.privacy.noise import KEY_BYTES, SecretKey
from dpvae.train import sampling

MANY_KEYS = 2000  # two of a million would meet
WORDS = 64  # of sixteen bytes, at the front of each stream
BULK = 1 << 21
FAR = (2.0, 3.0, 4.0, 4.6)  # standard deviations; beyond the last, nine of ``BULK`` are expected
LOUD = 8.0
SHORTER, LONGER = 1e-6, 2e-2  # squared length of noise against what was drawn; a little more hides a rounded sum
BATCHES, RECORDS = 150, 160
LINEAR = 1e-3  # of a standard deviation


def keys(where: str = "") -> list[Finding]:
    """T5: a key is as hard to guess as 32 bytes of the operating system: each of their bits moves it."""
    scripts = [0, *(1 << bit for bit in range(8 * KEY_BYTES))]
    moved = {_key_from(script.to_bytes(KEY_BYTES, "big")) for script in scripts}
    drawn = {SecretKey.generate().tag(b"audit") for _ in range(MANY_KEYS)}
    return [Finding("T5", "every bit of the operating system's chance moves the key", float(len(moved) == len(scripts)),
                    f"{len(moved) - 1} of {8 * KEY_BYTES} bits", where),
            Finding("T5", "no two keys are alike", float(len(drawn) == MANY_KEYS), f"{len(drawn)} of {MANY_KEYS}",
                    where)]


def _key_from(script: bytes) -> str:
    """Of the key that is made where the operating system says ``script``, and then zeros."""
    left = [script]

    def said(count: int) -> bytes:
        found, left[0] = left[0][:count].ljust(count, b"\0"), left[0][count:]
        return found

    with mock.patch.object(os, "urandom", said), mock.patch.object(random, "_urandom", said):
        return SecretKey.generate().tag(b"audit")


def apart(key: SecretKey, opened: Iterable[Names], where: str = "") -> Finding:
    """T5: streams of different names share no word, wherever it stands; nor does one repeat its own."""
    seen: dict[bytes, Names] = {}
    shared: dict[str, None] = {}
    for names in dict.fromkeys(opened):
        drawn = key.stream(*names).bytes(16 * WORDS)
        for word in (drawn[start:start + 16] for start in range(0, len(drawn), 16)):
            if word in seen:
                shared[f"{'/'.join(map(str, seen[word]))} and {'/'.join(map(str, names))}"] = None
            seen[word] = names
    return Finding("T5", "no two secret streams hold the same words", float(not shared), ", ".join([*shared][:2]),
                   where)


def source(key: SecretKey, kinds: Iterable[str], where: str = "") -> list[Finding]:
    """T2: the streams themselves, millions of numbers of them: scale, shape, and tails that no shorter look shows."""
    found = []
    for kind in sorted(kinds):
        z = np.asarray(getattr(key.stream("audit", kind), kind)(BULK), dtype=np.float64)
        cells = np.bincount((ndtr(z) * 64).astype(np.int64).clip(0, 63), minlength=64)
        tails = [stats.binomtest(int((np.abs(z) > far).sum()), BULK, 2 * stats.norm.sf(far)).pvalue for far in FAR]
        counted = f"{int((np.abs(z) > FAR[-1]).sum())} of {BULK} beyond {FAR[-1]} sd"
        found += [Finding("T2", f"{law}, in bulk", float(p), seen, f"{where} {kind}".strip()) for law, p, seen in (
            ("its source has the scale of a standard normal", two_sided(np.square(z).sum(), BULK), ""),
            ("its source has the shape of a normal", min(1.0, SAFETY * stats.chisquare(cells).pvalue), ""),
            ("its source has the tails of a normal", smallest(tails), counted))]
    return found


def as_drawn(quiet: Seen, loud: Seen, claim: Claim, where: str = "") -> list[Finding]:
    """T2, T3: what the streams gave is what was used. ``quiet`` shows steps of empty batches, so nothing but noise;
    ``loud`` their first ones, with normals that are :data:`LOUD` times as large."""
    noise = quiet.released / (claim.noise_multiplier * claim.clip_norm)
    found = []
    sizes, energies = _by_step(quiet.draws, noise.shape[0])
    if (sizes == noise.shape[1]).all():  # or it is made of more numbers than there are coordinates
        short = 1 - np.square(noise).sum(1) / np.maximum(energies, 1e-300)
        held = short.min() >= -LONGER and short.max() <= SHORTER
        found.append(Finding("T2", "at every step of a run the noise has the length of what was drawn", float(held),
                             f"{short.min():.2g} to {short.max():.2g} missing, {len(short)} steps", where))
    if sizes.all():
        some = len(loud.released)
        gap = np.abs(loud.released - LOUD * quiet.released[:some]).max() / (claim.noise_multiplier * claim.clip_norm)
        found.append(Finding("T2", "draws of any size are added as they are", float(gap <= LINEAR),
                             f"off by {gap:.2g} sd where draws are {LOUD:g} times as large", where))
    return found


def _by_step(draws: Sequence[Draw], steps: int) -> tuple[Floats, Floats]:
    """Normals drawn at each step, and the sum of their squares, (steps,) each."""
    sizes, energies = np.zeros(steps), np.zeros(steps)
    for draw in draws:
        step = next((name for name in draw.names if isinstance(name, int)), -1)
        if draw.kind in NORMALS and 0 <= step < steps:
            sizes[step] += draw.size
            energies[step] += draw.energy
    return sizes, energies


def of_large_tables(key: SecretKey, rate: float, where: str = "") -> list[Finding]:
    """T3: tables of more rows than twins have get their batches in another way, which is the same coins."""
    taken = np.zeros((BATCHES, RECORDS))
    for step, batch in enumerate(taken):
        batch[sampling.draw_batch(key, step, RECORDS, rate, public_rows=sampling.COINS_UP_TO + 1)] = 1
    return sampling_law(taken, rate, where=f"{where} large tables".strip())


def tossed(several: Sequence[Seen], claim: Claim, where: str = "") -> Iterator[Finding]:
    """T3: one toss a step, whoever it leaves in the batch, of coins of the booked rate."""
    tosses = [[draw.rate for draw in seen.draws if draw.kind == "mask"] for seen in several]
    if len(tosses[0]) != len(several[0].released):
        return  # coins are made of more than one toss, or of none
    rates = {rate for each in tosses for rate in each}
    yield Finding("T3", "coins are tossed at the booked rate", float(
        all(abs(rate / claim.sampling_rate - 1) <= 1e-9 for rate in rates)),
        f"{min(rates):.6g} to {max(rates):.6g} for {claim.sampling_rate:.6g}", where)
    yield Finding("T3", "once a step, whoever is in the batch", float(
        all(len(each) == len(seen.released) for each, seen in zip(tosses, several, strict=True))), "", where)
