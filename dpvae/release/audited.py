"""What an audit said of a run, for its certificate; and the refusal to sign where it failed.

    found = read_audit(run / "public")       # None where nobody audited
    found.evidence.verdict, found.evidence.tests

The audit wrote ``public/audit.json``; the fields below go into the certificate, under its signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpvae.errors import ReleaseError
from dpvae.report import records
from dpvae.report.source import NONE, Absent

FILE = "audit.json"


@dataclass(frozen=True, kw_only=True)
class AuditTest:
    """One test of the audit: how many questions it asked, and the smallest p-value among those that have one."""

    test: str
    passed: Literal[True]
    asked: float
    smallest_p: float


@dataclass(frozen=True, kw_only=True)
class AuditBound:
    """A lower bound on epsilon for the steps of a twin, and what the claim says of the same steps."""

    method: str
    proved: float
    claimed: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was asked, with which power; ``self_test`` counts programs that were broken on purpose."""

    verdict: str
    quick: bool
    false_alarms: float  # chance that a correct program fails
    tests: tuple[AuditTest, ...]
    bounds: tuple[AuditBound, ...]
    self_test_tried: float
    self_test_caught: float
    left_out: tuple[str, ...]
    audit_sha256: str


def read_audit(public: Path, model_sha256: str) -> Audit | None:
    """The audit of this run, or ``None``; :class:`ReleaseError` where it failed or is of another model."""
    path = public / FILE
    if not path.is_file():
        return None
    data = records.read_bytes(path, f"public/{FILE}")
    found = records.parse(data, f"public/{FILE}")
    if not isinstance(found, dict) or found.get("format") != "dpvae-audit/1":
        raise ReleaseError(f"public/{FILE}: expected what dpvae audit wrote; run dpvae audit again")
    if found.get("model_sha256") != model_sha256:
        raise ReleaseError(f"public/{FILE}: is of another model than the one in this run; run dpvae audit again")
    if found.get("passed") is not True:
        raise ReleaseError(f"public/{FILE}: the audit of this run failed, so nothing of it is signed: "
                           f"{records.clip(found.get('sentence'), quote=False)}")
    return _audit(found, hashlib.sha256(data).hexdigest())


def lower_bound(audit: Audit | None) -> float | Absent:
    """The largest epsilon that planted records proved of the twin's steps."""
    return max((bound.proved for bound in audit.bounds), default=0.0) if audit is not None else NONE


def _audit(found: dict[str, Any], digest: str) -> Audit:
    try:
        tests = tuple(AuditTest(test=str(t["test"]), passed=_true(t["passed"]), asked=float(t["asked"]),
                                smallest_p=float(t["smallest_p"])) for t in found["tests"])
        bounds = tuple(AuditBound(method=str(b["method"]), proved=float(b["epsilon"]), claimed=float(b["claim"]),
                                  confidence=float(b["confidence"])) for b in found["bounds"])
        test = found["self_test"]
        if test["tried"] != test["caught"]:
            raise ReleaseError(f"public/{FILE}: the audit missed a broken program, so it may not sign")
        return Audit(verdict=str(found["sentence"]), quick=bool(found["quick"]), false_alarms=float(found["alpha"]),
                     tests=tests, bounds=bounds, self_test_tried=float(test["tried"]),
                     self_test_caught=float(test["caught"]), left_out=tuple(map(str, found["left_out"])),
                     audit_sha256=digest)
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(f"public/{FILE}: does not parse ({type(error).__name__}: {error}); "
                           "run dpvae audit again") from None


def _true(value: object) -> Literal[True]:
    if value is not True:
        raise ReleaseError(f"public/{FILE}: a test failed, so nothing of this run is signed")
    return True
