"""Planted records: what they prove about epsilon from below, and whether they leave the trace the claim predicts.

Four lower bounds from one instrumented run, loosest to tightest. Each is valid at its confidence, for more and more
specific claims; none can prove more than its number of canaries allows (all of m guesses right: log(q / (1 - q)),
q = 0.05^(1/m)).

    steinke      guesses of who was in, any (epsilon, delta)-DP mechanism     Steinke et al. 2023, arXiv 2305.08846
    f-dp         the same guesses against the run's own privacy loss curve    Mahloujifar et al. 2024, arXiv 2410.22235
    two-sided    error rates of one test, Clopper-Pearson                     Nasr et al. 2021, arXiv 2101.04535
    all-updates  error rates of every update, composed by the accountant      Nasr et al. 2023, arXiv 2302.07956

T7 turns the canaries round: with (sigma, rate, steps) as claimed, the scores have a known law, and scores that are too
*small* say as much as scores that are too large: the noise, the coins or the sum are not those that were priced.

>>> round(steinke(canaries=1000, guesses=1000, correct=700, delta=1e-5), 3)
0.732
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import linalg, stats

from dpvae.audit.instruments import Floats, seeded
from dpvae.audit.verdict import Bound, Finding
from dpvae.privacy import pld
from dpvae.privacy.accountant import open_
from dpvae.privacy.events import SampledGaussian
from dpvae.rng import stream

CONFIDENCE = 0.95  # of the bounds that are shown
ALARM = 1 - 1e-6  # of those that may fail an audit: never by chance
MOST_EPSILON = 60.0
OWN = 0.05  # of the clip norm: the part of a record that the others do not have, without which it cannot be read off
FEWEST = 24  # records that must have one; where there are not so many, all are kept, and what is read off is wrong
SIMULATED = 200  # runs under the claim
SAFETY = 5.0  # p-values against simulations are taken this much larger
Curve = Callable[[Floats], Floats]  # probability under one table -> least probability under its neighbour


def tail(z: Any) -> Any:
    """P(N(0, 1) > z)."""
    return stats.norm.sf(z)


# -- lower bounds ----------------------------------------------------------------------------------------------------


def steinke(*, canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Steinke, Nasr and Jagielski 2023, theorem 5.2: the least epsilon that ``correct`` of ``guesses`` allow."""
    def p(epsilon: float) -> float:
        right = 1 / (1 + math.exp(-epsilon))
        below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
        slope = float((below / np.arange(1, correct + 1)).max(initial=0.0))
        return min(1.0, float(stats.binom.sf(correct - 1, guesses, right)) + slope * delta * 2 * canaries)

    return _least(lambda epsilon: p(epsilon) > 1 - confidence, 0.0, MOST_EPSILON)


def allowed(curve: Curve, *, canaries: int, guesses: int, correct: int, confidence: float = CONFIDENCE) -> bool:
    """Whether a mechanism with this trade-off ``curve`` may have so many guesses right (Mahloujifar 2024, alg. 3)."""
    level = (1 - confidence) * guesses / canaries
    h, r = level * (guesses - correct) / guesses, level * correct / guesses
    for i in range(correct - 1, -1, -1):
        higher = max(h, float(curve(np.array(r))))
        r, h = r + i / (guesses - i) * (higher - h), higher
        if r + h > guesses / canaries:
            return False
    return True


def f_dp(family: Callable[[float], Curve], price: Callable[[float], float], *, canaries: int, guesses: int,
         correct: int, strongest: float, weakest: float, confidence: float = CONFIDENCE, rounds: int = 12) -> float:
    """The least epsilon in a family of curves, by noise: ``family(noise)``, ``price(noise)``; bisection on noise."""
    ask = partial(allowed, canaries=canaries, guesses=guesses, correct=correct, confidence=confidence)
    if ask(family(weakest)):
        return 0.0  # even that much noise would allow it
    low, high = math.log(strongest), math.log(weakest)
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if ask(family(math.exp(middle))) else (low, middle)
    return price(math.exp(high))


def profile_curve(epsilons: Floats, deltas: Floats) -> Curve:
    """The trade-off that a whole curve of (epsilon, delta) guarantees: Q(E) >= e^-eps (P(E) - delta), and for the
    complement Q(E) >= 1 - delta - e^eps (1 - P(E))."""
    def least(x: Floats) -> Floats:
        p = np.atleast_1d(x)[:, None]
        with np.errstate(over="ignore"):
            bounds = np.maximum(np.exp(-epsilons) * (p - deltas), 1 - deltas - np.exp(epsilons) * (1 - p))
        return np.asarray(np.maximum(bounds.max(1), 0.0).reshape(np.shape(x)))

    return least


def two_sided(scores_in: Floats, scores_out: Floats, *, delta: float, confidence: float = CONFIDENCE) -> float:
    """log((TPR - delta) / FPR) with Clopper-Pearson ends, at the threshold 0 that was fixed in advance."""
    level = (1 - confidence) / 4  # two ends, two directions
    best = 0.0
    for hit, miss in ((scores_in > 0, scores_out > 0), (scores_out <= 0, scores_in <= 0)):
        right, wrong = _lower(int(hit.sum()), hit.size, level), _upper(int(miss.sum()), miss.size, level)
        if right > delta and wrong > 0:
            best = max(best, math.log((right - delta) / wrong))
    return best


def all_updates(seen: Floats, took_part: Floats, *, rate: float, steps: int, delta: float,
                confidence: float = CONFIDENCE) -> float:
    """Every update of every canary is one guess of whether it took part, at the threshold half way.

    The error rates (Clopper-Pearson) bound the noise of one update from above; the accountant composes it at the
    sampling rate. Assumes what T2 and T3 test: that updates are independent and coins have that rate.

    Args:
        seen: (S, m) the part of each canary in each noisy update: 1 where it took part, 0 where not, plus noise.
        took_part: (S, m) of 0 and 1.
    """
    took, guess = took_part > 0.5, seen > 0.5
    level = (1 - confidence) / 2
    right, wrong = _lower(*_counted(guess & took, took), level), _upper(*_counted(guess & ~took, ~took), level)
    if not 0 < right < 1 or not 0 < wrong < 1:
        right, wrong = min(max(right, 1e-12), 1 - 1e-12), min(max(wrong, 1e-12), 1 - 1e-12)
    signal = float(stats.norm.ppf(right) - stats.norm.ppf(wrong))
    return epsilon_of(1 / signal, rate, steps, delta) if signal > 1e-3 else 0.0


def _counted(hit: Any, asked: Any) -> tuple[float, float]:
    """Hits and questions, both made fewer where the hits of one update depend on one another (design effect)."""
    k, n = float(hit.sum()), float(asked.sum())
    if not 0 < k < n:
        return k, n
    each = asked.sum(1)
    spread = float(((hit.sum(1) - each * k / n) ** 2).sum()) / (k * (1 - k / n))
    effect = max(1.0, spread)
    return k / effect, n / effect


def _lower(k: float, n: float, level: float) -> float:
    return float(stats.beta.ppf(level, k, n - k + 1)) if k else 0.0


def _upper(k: float, n: float, level: float) -> float:
    return float(stats.beta.ppf(1 - level, k + 1, n - k)) if k < n else 1.0


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least value that holds, of a property that stays once it does; 0 where it always does."""
    if holds(low):
        return low
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


def epsilon_of(noise: float, rate: float, steps: int, delta: float) -> float:
    """What DP-SGD with this noise costs, by the claim's own accountant."""
    composition, left = open_([SampledGaussian("dpsgd", "audit", noise, rate, steps)], delta, "add_remove")
    return pld.epsilon(composition, left)


def dp_sgd_curve(noise: float, rate: float, steps: int, delta: float) -> Curve:
    """The trade-off of a whole run of DP-SGD, from its privacy loss distribution."""
    composition, _ = open_([SampledGaussian("dpsgd", "audit", noise, rate, steps)], delta, "add_remove")
    top = max(epsilon_of(noise, rate, steps, delta), 0.05)
    epsilons = np.concatenate([[0.0], np.geomspace(top / 300, 1.3 * top, 120)])
    found = pld.composed(composition, max(top / 400, 1e-4)).get_delta_for_epsilon(list(epsilons))
    return profile_curve(epsilons, np.asarray(found, dtype=np.float64))


# -- reading records off sums ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What each canary gives alone, (m, P), and the least-squares decoder that reads participation off a sum."""

    alone: Floats
    decode: Floats  # (P, m)
    inverse: Floats  # (m, m): covariance of the decoded parts, per unit of noise
    clip: float
    kept: Any  # (m,): which of the records that were offered; the others' parts follow from these

    @property
    def spread(self) -> Floats:
        """Standard deviation of each decoded part, per unit of noise, (m,)."""
        return np.sqrt(np.maximum(np.diag(self.inverse), 1e-12))

    @property
    def largest(self) -> float:
        """The largest norm of one record's part, in C."""
        norms = np.linalg.norm(self.alone, axis=1) / self.clip
        return float(norms.max()) if np.isfinite(norms).all() else math.inf

    def participation(self, sums: Floats) -> tuple[Floats, float]:
        """How often each canary is in each sum, (T, m), and by how much (in C) the sum is not made of them."""
        clean = np.nan_to_num(sums, nan=1e30, posinf=1e30, neginf=-1e30)
        counts = clean @ self.decode
        gap = np.linalg.norm(clean - counts @ self.alone, axis=1)
        return counts, float(gap.max()) / self.clip / max(1.0, float(np.abs(counts).sum(1).max()) ** 0.5)


def probe(runner: Any, rows: Any, claim: Any) -> Probe:
    """One canary per batch, silent, weights still: what each of them contributes."""
    seen = runner.run(rows, seeded(1, silent=True, still=True, batch=one_by_one), steps=len(rows), freeze=True)
    alone = np.nan_to_num(seen.total if seen.total is not None else seen.released, nan=0.0, posinf=0.0, neginf=0.0)
    apart, order = linalg.qr(alone.T, mode="r", pivoting=True)
    own = np.abs(np.diag(apart)) > OWN * claim.clip_norm
    kept = np.sort(order[:len(own)][own]) if own.sum() >= FEWEST else np.arange(len(rows))
    alone = alone[kept]
    inverse = np.linalg.pinv(alone @ alone.T, rcond=1e-6, hermitian=True)
    return Probe(alone, alone.T @ inverse, inverse, claim.clip_norm, kept)


def one_by_one(step: int, rows: int) -> Any:
    """A script for batches: row after row, each alone."""
    return np.arange(rows) == step


# -- T4 and T7 -------------------------------------------------------------------------------------------------------


def attack(runner: Any, claim: Any, found: Probe, rows: Any, *, steps: int, where: str, key: int
           ) -> tuple[list[Finding], list[Bound]]:
    """Half of the canaries, by fair coins, join one run; who was it? Weights still, so that it is as easy as can be."""
    inside = stream(key, "canaries").random(len(rows)) < 0.5
    kept = np.flatnonzero(inside)
    script = {"steps": steps, "freeze": True}
    real = runner.run(np.asarray(rows)[kept], seeded(key, still=True), **script)
    quiet = runner.run(np.asarray(rows)[kept], seeded(key, silent=True, still=True), **script)
    seen = np.nan_to_num(real.released) @ found.decode
    took_part = np.rint(found.participation(quiet.total if quiet.total is not None else quiet.released)[0])
    spread = found.spread * claim.noise_multiplier * claim.clip_norm
    scores = likelihood_ratios(seen, spread, claim.sampling_rate)
    findings = _as_predicted(scores, inside, found, claim, steps, where, key)
    bounds = _bounds(scores, inside, seen[:, kept], took_part[:, kept], claim, steps)
    return findings + _never_above(bounds, where), [bound for bound, _ in bounds]


def likelihood_ratios(seen: Floats, spread: Floats, rate: float) -> Floats:
    """log P(updates | in) - log P(updates | out) of each canary under the claim, (m,): the best score there is."""
    with np.errstate(over="ignore"):
        exponent = np.clip((2 * seen - 1) / (2 * spread**2), -700, 700)
        return np.asarray(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent).sum(0))


def _as_predicted(scores: Floats, inside: Any, found: Probe, claim: Any, steps: int, where: str, key: int
                  ) -> list[Finding]:
    """Means, spreads and top tenths of the scores against ``SIMULATED`` runs of the claim, correlations included."""
    rng, scale = stream(key, "scores"), claim.noise_multiplier * claim.clip_norm
    spread = found.spread * scale
    root = np.linalg.cholesky(found.inverse + 1e-12 * np.eye(len(spread))).T * scale
    runs = []
    for _ in range(SIMULATED):
        coins = (rng.random((steps, len(spread))) < claim.sampling_rate) * inside
        updates = coins + rng.standard_normal((steps, len(spread))) @ root
        runs.append(_summary(likelihood_ratios(updates, spread, claim.sampling_rate), inside))
    expected, seen = np.array(runs), _summary(scores, inside)
    p = SAFETY * 2 * stats.t.sf(np.abs(seen - expected.mean(0)) / np.maximum(expected.std(0, ddof=1), 1e-9), 30)
    words = [f"{name} of those {who}" for who in ("in the run", "left out")
             for name in ("mean score", "spread of the scores", "top tenth")]
    return [Finding("T7", f"planted records score as the claim predicts: {word}", float(min(1.0, each)),
                    f"{value:.3f} for {mean:.3f}", where)
            for word, each, value, mean in zip(words, p, seen, expected.mean(0), strict=True)]


def _summary(scores: Floats, inside: Any) -> Floats:
    found = []
    for chosen in (np.sort(scores[inside]), np.sort(scores[~inside])):
        found += [chosen.mean(), chosen.std(), chosen[-max(len(chosen) // 10, 1):].mean()]
    return np.array(found)


def _bounds(scores: Floats, inside: Any, seen: Floats, took_part: Floats, claim: Any, steps: int
            ) -> list[tuple[Bound, float]]:
    """Each lower bound at 95 %, beside the one that may raise an alarm."""
    rate, delta, m = claim.sampling_rate, claim.delta, len(scores)
    true = epsilon_of(claim.noise_multiplier, rate, steps, delta)
    order = np.argsort(scores)
    third = max(m // 3, 1)
    correct = int((~inside[order[:third]]).sum() + inside[order[-third:]].sum())
    count = {"canaries": m, "guesses": 2 * third, "correct": correct}
    price = partial(epsilon_of, rate=rate, steps=steps, delta=delta)
    curve = partial(dp_sgd_curve, rate=rate, steps=steps, delta=delta)
    methods: Sequence[tuple[str, Callable[[float], float], str]] = (
        ("steinke", lambda c: steinke(**count, delta=delta, confidence=c), "any mechanism"),
        ("f-dp", lambda c: _f_dp(curve, price, claim, count, c), "DP-SGD at this rate, any noise"),
        ("two-sided", lambda c: two_sided(scores[inside], scores[~inside], delta=delta, confidence=c), "any mechanism"),
        ("all-updates", lambda c: all_updates(seen, took_part, rate=rate, steps=steps, delta=delta, confidence=c),
         "DP-SGD at this rate, any noise"))
    return [(Bound(name, bound(CONFIDENCE), CONFIDENCE, m, true, note), bound(ALARM)) for name, bound, note in methods]


def _f_dp(curve: Callable[[float], Curve], price: Callable[[float], float], claim: Any, count: dict[str, int],
          confidence: float) -> float:
    """Cheap where nothing can be proved: one curve, that of the claim, decides whether an alarm is possible."""
    noise = claim.noise_multiplier
    if confidence == ALARM and allowed(curve(noise), **count, confidence=confidence):
        return 0.0
    return f_dp(curve, price, **count, strongest=noise / 8, weakest=noise * 16, confidence=confidence, rounds=5)


def _never_above(bounds: list[tuple[Bound, float]], where: str) -> list[Finding]:
    return [Finding("T4", f"the {bound.method} lower bound stays below the claim",
                    float(not sure > bound.claim * 1.001), f"{bound.epsilon:.3f} of {bound.claim:.3f} (95 %)", where)
            for bound, sure in bounds]
