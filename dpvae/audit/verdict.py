"""What an audit found: p-values with a sentence each, judged together so that the whole battery keeps its level.

A :class:`Finding` is one question asked once. Exact questions (did one record move the sum by more than C?) have the
p-value 0 or 1; questions about randomness have a real one. :func:`judge` rejects by Holm's step-down rule, so the
chance that a *correct* trainer fails anything at all is at most ``ALPHA``, whatever depends on what (Holm 1979).

>>> report = judge([Finding("T2", "noise has the booked variance", 0.4), Finding("T1", "sums move by at most C", 0.0)])
>>> report.passed, [finding.test for finding in report.failed]
(False, ['T1'])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ALPHA = 1e-3  # of a whole battery: one false alarm in a thousand audits of correct trainers

TESTS = {
    "A1": "Three accountants price the booked events, and they cost what is claimed",
    "T1": "One record moves what is summed by at most the clip norm",
    "T2": "The noise is the one that was priced",
    "T3": "Who takes part is decided by the coins that were priced",
    "T4": "No attack on planted records succeeds beyond the claim",
    "T5": "Everything that was drawn is booked, and nothing else is",
    "T6": "One row more changes no step, no rate, no divisor, no shape",
    "T7": "Planted records leave the trace that the claim predicts, no more and no less",
    "P1": "Everything public follows from what was released",
    "M1": "Each one-shot statistic moves by at most what its noise was set for",
    "M2": "The noise of each one-shot statistic is the one that was priced",
    "A2": "No attack on the released table proves more than the claim",
}


@dataclass(frozen=True)
class Finding:
    """One question: which test asks it, in words, its p-value under a correct trainer, and what was seen."""

    test: str
    law: str
    p: float
    seen: str = ""
    where: str = ""  # trainer, clipping mode, record, ...

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.test}: {self.law}{place}: {self.seen or f'p={self.p:.2g}'}"


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon from planted records."""

    method: str
    epsilon: float
    confidence: float
    canaries: int
    claim: float  # epsilon that the audited steps cost by the claim
    note: str = ""


@dataclass(frozen=True)
class Battery:
    """All findings of an audit, and which of them a correct trainer would not have shown."""

    findings: tuple[Finding, ...]
    failed: tuple[Finding, ...]
    alpha: float
    bounds: tuple[Bound, ...] = ()
    left_out: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def tests(self) -> dict[str, list[Finding]]:
        """Findings by test, in the order of :data:`TESTS`."""
        return {test: found for test in TESTS if (found := [f for f in self.findings if f.test == test])}

    @property
    def caught_by(self) -> tuple[str, ...]:
        """The tests that failed, in order."""
        failed = {finding.test for finding in self.failed}
        return tuple(test for test in TESTS if test in failed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"passed": self.passed, "alpha": self.alpha, "caught_by": list(self.caught_by),
                "findings": [dataclasses.asdict(f) for f in self.findings],
                "failed": [dataclasses.asdict(f) for f in self.failed],
                "bounds": [dataclasses.asdict(b) for b in self.bounds], "left_out": list(self.left_out)}


def judge(findings: Iterable[Finding], *, alpha: float = ALPHA, bounds: Sequence[Bound] = (),
          left_out: Sequence[str] = ()) -> Battery:
    """Holm's rule over all findings that have a p-value strictly between 0 and 1; exact ones fail at 0."""
    found = tuple(findings)
    open_ = sorted((f for f in found if 0 < f.p < 1), key=lambda f: f.p)
    failed = {id(f) for f in found if not f.p > 0}  # nan fails
    for rank, finding in enumerate(open_):
        if finding.p > alpha / (len(open_) - rank):
            break
        failed.add(id(finding))
    return Battery(found, tuple(f for f in found if id(f) in failed), alpha, tuple(bounds), tuple(left_out))


def merge(batteries: Iterable[Battery], *, alpha: float = ALPHA) -> Battery:
    """Several audits judged as one family."""
    several = list(batteries)
    merged = judge([f for b in several for f in b.findings], alpha=alpha, bounds=[x for b in several for x in b.bounds],
                   left_out=list(dict.fromkeys(x for b in several for x in b.left_out)))
    for battery in several:
        merged.extra.update(battery.extra)
    return merged
