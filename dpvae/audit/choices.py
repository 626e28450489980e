"""Private choices (the exponential mechanism, :func:`~dpvae.privacy.mechanisms.noisy_choice`), made many times over.

M1: one record moves no score by more than 1. M2: winners are drawn from the law of the booked epsilon, which their
places in it show, and how good they are on a ladder of the auditor's own scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from dpvae.audit.instruments import Floats, Release, seeded
from dpvae.audit.laws import REPEATS, SAFETY
from dpvae.audit.verdict import Finding
from dpvae.privacy.events import PureDP
from dpvae.rng import stream

LADDER = 40, 24  # candidates of the auditor's own, in two blocks, from which a private choice is made again
CHOICES = 1000  # times
SCORES = 4_000_000  # that are drawn for again at most, where a run has very many candidates


def choice(release: Release, event: PureDP, where: str, seed: int) -> Iterator[Finding]:
    """A private choice: the winners are those of the exponential mechanism, peeled, at the booked epsilon: from the
    run's own scores, and from a ladder of scores whose ends differ by 8 / epsilon, on which half of the noise would be
    plain to see."""
    own = scores_of(release)
    yield Finding("M1", "no more is chosen than was booked", float(len(release.result[0]) <= event.count),
                  f"{len(release.result[0])} of {event.count}", where)
    rungs = stream(5, "ladder").permutation(np.linspace(0.0, 8.0 / event.epsilon, sum(LADDER)))
    few = max(4, min(REPEATS, SCORES // max(len(own), 1)))
    for scores, times, says in ((own, few, "its noise has the law that the ledger priced"),
                                (rungs, CHOICES, "so it has for any scores")):
        call = release.on(np.split(scores, LADDER[:1]))
        chosen = [call.repeat(seeded(100 + i + 1000 * seed))[0] for i in range(times)]
        places, surer = places_of(scores * (event.epsilon / 2), chosen, seed)
        yield Finding("M2", says, float(stats.kstest(places, "uniform").pvalue) if len(places) else 1.0,
                      f"winners at {places.mean():.3f} of the law, 0.5 expected" if len(places) else "nothing chosen",
                      where)
    p = min(1.0, SAFETY * 2 * float(stats.norm.sf(abs(surer))))
    yield Finding("M2", "and no winner is surer than was booked", p, f"{surer:.1f} sd, on a ladder of scores", where)


def choice_moved(release: Release, other: Release, where: str) -> Finding:
    """M1: what one person more moves."""
    own, theirs = scores_of(release), scores_of(other)
    moved = float(np.abs(theirs - own).max(initial=0.0)) if own.shape == theirs.shape else math.inf
    return Finding("M1", "one record moves no score by more than its noise was set for", float(moved <= 1 + 1e-6),
                   f"{moved:.4g}", where)


def scores_of(call: Release) -> Floats:
    """The scores of all candidates."""
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(block, dtype=np.float64)) for block in call.rows)])


def places_of(logits: Floats, chosen: Sequence[Sequence[int]], seed: int) -> tuple[Floats, float]:
    """Where every winner lies in the law it was drawn from, the best candidates first: independent and uniform, if the
    next of those that are left is i with probability exp(logits_i) over their sum (Plackett-Luce). And how much better
    winners are than that law's, in standard deviations: what tells best whether epsilon is another."""
    weight = np.exp(logits - logits.max(initial=0.0))
    above = np.empty_like(weight)
    order = np.argsort(-weight, kind="stable")
    above[order] = np.cumsum(weight[order]) - weight[order]
    logits = np.where(weight > 0, logits, 0.0)  # or nothing times infinity
    first, second = weight @ logits, weight @ logits**2
    jitter, places, better, spread = stream(seed, "places"), [], 0.0, 0.0
    for winners in chosen:
        for rank, winner in enumerate(winners):
            gone = np.asarray(winners[:rank], dtype=np.int64)
            before = float(above[winner] - weight[gone[above[gone] < above[winner]]].sum())
            left = float(weight.sum() - weight[gone].sum())
            places.append((before + jitter.random() * weight[winner]) / left)
            mean = float(first - weight[gone] @ logits[gone]) / left
            better += float(logits[winner]) - mean
            spread += float(second - weight[gone] @ logits[gone] ** 2) / left - mean**2
    return np.asarray(places), better / math.sqrt(spread) if spread > 0 else 0.0
