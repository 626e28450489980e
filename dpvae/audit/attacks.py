"""Attacks on a released table: what an outsider with the rows, and with the model, can find out about one person.

Each attack is made on *members* (rows the model was trained on) and on a *control* group from the same population that
it never saw: what works on both is knowledge about people in general, what works better on members is a leak. Success
comes with its interval (Wilson, 95 %), and the difference between the groups with its own.

    singling out, linkability, inference    the three risks of Article 29 WP 216, as Anonymeter measures them
                                            (Giomi et al. 2023, arXiv 2211.10459)
    membership                              the largest of six attacks: distance, density, density ratio (DOMIAS, van
                                            Breugel et al. 2023, arXiv 2302.12580), classifier, model likelihood, and
                                            its ratio to a population model

The distance to the closest record is returned because people ask for it. **It is no evidence of privacy**: tables pass
it while the attacks above succeed (Yao et al. 2025, arXiv 2505.01524).

Members are private rows: what these functions return about real ones is sealed, never published. ``dpvae audit`` calls
them on a twin made of synthetic rows.

Shapes: n rows, D columns of integer codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpvae.audit.canaries import two_sided
from dpvae.audit.instruments import Floats
from dpvae.rng import stream

Codes = NDArray[np.int64]
GUESSES = 300  # predicates of singling out
NEAREST = 5
DELTA = 1e-5  # of the epsilon that a membership attack proves
DCR_WARNING = "not evidence of privacy: tables pass this while membership attacks succeed (arXiv 2505.01524)"


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, tries: int) -> Rate:
        """Wilson's interval."""
        if not tries:
            return cls(0.0, 0.0, 1.0)
        z, p = 1.959964, hits / tries
        middle = (p + z**2 / 2 / tries) / (1 + z**2 / tries)
        half = z * math.sqrt(p * (1 - p) / tries + z**2 / 4 / tries**2) / (1 + z**2 / tries)
        return cls(p, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class Risk:
    """One attack: its success on members, on controls, and what it gains on members beyond controls (Anonymeter's
    normalised risk, with an interval)."""

    attack: str
    members: Rate
    control: Rate
    risk: Rate
    says: str = ""


@dataclass(frozen=True)
class Membership:
    """One membership attack: area under the ROC, true positives at 10 % false ones, epsilon it proves."""

    attack: str
    auc: Rate
    found: Rate  # of members, where a tenth of controls is accused
    epsilon: float  # lower bound at 95 %, over all attacks (Bonferroni)


@dataclass(frozen=True)
class Attacked:
    """All attacks on one release."""

    risks: tuple[Risk, ...]
    membership: tuple[Membership, ...]
    canaries: Rate  # planted members found by the strongest attack, where a tenth of planted controls is accused
    closest: tuple[float, float]  # median distance to the closest released row: members, controls
    warning: str = DCR_WARNING

    @property
    def strongest(self) -> Membership:
        """The attack that proves the largest epsilon."""
        return max(self.membership, key=lambda each: each.auc.value)


def attack_release(members: Codes, control: Codes, released: Codes, *, planted: tuple[Codes, Codes] | None = None,
                   log_prob: Callable[[Codes], Floats] | None = None, seed: int = 0) -> Attacked:
    """Every attack; ``planted``: unusual rows that were in, and such that were not; ``log_prob``: the released model's.

    A third of the control group becomes the attacker's reference population, and is not attacked itself.
    """
    third = len(control) // 3
    reference, control = control[:third], control[third:]
    size = min(len(members), len(control))
    members, control = members[:size], control[:size]
    risks = (_singling_out(members, control, released, seed), _linkability(members, control, released),
             _inference(members, control, released))
    scorers = dict(_scorers(released, reference, log_prob))
    found = []
    for name, score in scorers.items():
        found.append(_membership(name, score(members), score(control), len(scorers)))
    best = max(found, key=lambda each: each.auc.value).attack
    canaries = Rate(0.0, 0.0, 1.0)
    if planted is not None and len(planted[0]) and len(planted[1]):
        canaries = _found(scorers[best](planted[0]), scorers[best](planted[1]))
    closest = tuple(float(np.median(distances(group, released).min(1))) for group in (members, control))
    return Attacked(risks, tuple(found), canaries, (closest[0], closest[1]))


def distances(one: Codes, two: Codes) -> Floats:
    """Share of columns in which rows differ, (n, m)."""
    found = np.zeros((len(one), len(two)))
    for j in range(one.shape[1]):
        found += one[:, j, None] != two[None, :, j]
    found /= one.shape[1]
    return found


# -- membership ------------------------------------------------------------------------------------------------------


def _scorers(released: Codes, reference: Codes, log_prob: Callable[[Codes], Floats] | None
             ) -> Iterator[tuple[str, Callable[[Codes], Floats]]]:
    """Scores that are higher for rows that look like members."""
    width = 0.5 / released.shape[1] ** 0.5

    def density(rows: Codes, table: Codes) -> Floats:
        return np.asarray(np.log(np.exp(-distances(rows, table) / width).mean(1) + 1e-300))

    yield "distance", lambda rows: -distances(rows, released).min(1)
    yield "density", lambda rows: density(rows, released)
    yield "density ratio", lambda rows: density(rows, released) - density(rows, reference)
    yield "classifier", _classifier(released, reference)
    if log_prob is not None:
        yield "model likelihood", log_prob
        yield "likelihood ratio", lambda rows: log_prob(rows) - density(rows, reference)
    else:
        yield "marginal ratio", lambda rows: _marginals(rows, released) - _marginals(rows, reference)


def _marginals(rows: Codes, table: Codes) -> Floats:
    """Log probability of each row were columns independent, with frequencies of ``table``."""
    total = np.zeros(len(rows))
    for j in range(rows.shape[1]):
        top = int(max(rows[:, j].max(initial=0), table[:, j].max(initial=0))) + 1
        total += np.log((np.bincount(table[:, j], minlength=top) + 0.5) / (len(table) + 0.5 * top))[rows[:, j]]
    return total


def _classifier(released: Codes, reference: Codes) -> Callable[[Codes], Floats]:
    """How surely a logistic regression takes a row for a released one rather than for one of the population."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore").fit(np.concatenate([released, reference]))
    both = np.concatenate([released[:5 * len(reference)], reference])
    label = np.arange(len(both)) < len(both) - len(reference)
    model = LogisticRegression(C=0.3, max_iter=300).fit(encoder.transform(both), label)
    return lambda rows: np.asarray(model.decision_function(encoder.transform(rows)))


def _membership(name: str, inside: Floats, outside: Floats, attacks: int) -> Membership:
    clean = [np.nan_to_num(values, nan=-1e300) for values in (inside, outside)]
    ranks = stats.rankdata(np.concatenate(clean))
    n, m = len(inside), len(outside)
    auc = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
    half = 1.96 * math.sqrt((n + m + 1) / (12 * n * m))
    split = n // 2, m // 2  # the threshold is chosen on one half and judged on the other
    cut = float(np.quantile(clean[1][:split[1]], 0.9))
    proved = two_sided(clean[0][split[0]:] - cut, clean[1][split[1]:] - cut, delta=DELTA,
                       confidence=1 - 0.05 / attacks)
    return Membership(name, Rate(auc, max(auc - half, 0.0), min(auc + half, 1.0)), _found(*clean), proved)


def _found(inside: Floats, outside: Floats) -> Rate:
    return Rate.of(int((inside > np.quantile(outside, 0.9)).sum()), len(inside))


# -- Anonymeter's trio -----------------------------------------------------------------------------------------------


def _risk(name: str, hits: Sequence[int], tries: Sequence[int], says: str) -> Risk:
    """(members - control) / (1 - control), its interval from both groups' (Giomi et al. 2023, section 3.2)."""
    members, control = (Rate.of(h, t) for h, t in zip(hits, tries, strict=True))
    room = max(1 - control.value, 1e-9)
    gain = (members.value - control.value) / room
    spread = math.hypot((members.high - members.low) / 2, (control.high - control.low) / 2) / room
    risk = Rate(max(gain, 0.0), max(gain - spread, 0.0), min(max(gain + spread, 0.0), 1.0))
    return Risk(name, members, control, risk, says)


def _singling_out(members: Codes, control: Codes, released: Codes, seed: int) -> Risk:
    """Predicates that single out one released row, tried on both groups: does exactly one person answer to it?"""
    rng = stream(seed, "singling out")
    hits, tries = [0, 0], 0
    for _ in range(GUESSES * 4):
        row = released[rng.integers(len(released))]
        columns = rng.choice(released.shape[1], min(3, released.shape[1]), replace=False)
        if (released[:, columns] == row[columns]).all(1).sum() != 1:
            continue
        tries += 1
        for which, group in enumerate((members, control)):
            hits[which] += int((group[:, columns] == row[columns]).all(1).sum() == 1)
        if tries == GUESSES:
            break
    return _risk("singling out", hits, (tries, tries), "a description taken from the release fits exactly one person")


def _linkability(members: Codes, control: Codes, released: Codes) -> Risk:
    """Two halves of a person's columns: do their nearest released rows agree on one?"""
    half = released.shape[1] // 2
    hits = []
    for group in (members, control):
        near = [np.argsort(distances(group[:, part], released[:, part]), axis=1, kind="stable")[:, :NEAREST]
                for part in (slice(0, max(half, 1)), slice(half, None))]
        hits.append(sum(bool(set(a) & set(b)) for a, b in zip(near[0].tolist(), near[1].tolist(), strict=True)))
    return _risk("linkability", hits, (len(members), len(control)),
                 "two files about a person are joined by the release")


def _inference(members: Codes, control: Codes, released: Codes) -> Risk:
    """The last column is guessed from all others by the nearest released row."""
    hits = []
    for group in (members, control):
        nearest = distances(group[:, :-1], released[:, :-1]).argmin(1)
        hits.append(int((released[nearest, -1] == group[:, -1]).sum()))
    return _risk("inference", hits, (len(members), len(control)), "a hidden value is guessed from the released rows")


def to_dict(attacked: Attacked) -> Mapping[str, Any]:
    """As JSON."""
    return dataclasses.asdict(attacked) | {"strongest": attacked.strongest.attack}
