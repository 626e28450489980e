"""The certificate: what is claimed of a release, as frozen fields that a machine can check.

Six parts (``claim, scope, mechanism, evidence, not_covered, lineage``), every field required, what is absent
written as the word ``none``. Most fields are *derived*: from the events (what touched the data, epsilon, the
sampler), from the schema (what was public input) and from (epsilon, delta) (the plain sentence, the odds).
:func:`dpvae.release.certify.certify` is the only way to derive them, and ``dpvae verify`` calls it again with the
facts a certificate states and the events beside it: a field edited by hand then differs from what follows, and is
named.

    Certificate.from_bytes(certificate.to_bytes()) == certificate
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dpvae.errors import ReleaseError
from dpvae.privacy.consequences import Consequences, Group
from dpvae.release.audited import Audit
from dpvae.report import meaning, records
from dpvae.report.source import NONE, Absent

EXACT = 1e-6  # what follows from stated numbers by arithmetic; leaves room for another machine's exp()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Epsilon with its doubt; ``upper`` is the claim."""

    lower: float
    estimate: float
    upper: float

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.estimate <= self.upper or not math.isfinite(self.upper):
            raise ReleaseError(f"claim.epsilon: expected 0 <= lower <= estimate <= upper, got {self.lower!r}, "
                               f"{self.estimate!r}, {self.upper!r}")


@dataclass(frozen=True, kw_only=True)
class Accountants:
    """The same events priced three ways; they must stand in the order prv_lower <= pld <= rdp."""

    pld: float
    prv_lower: float
    prv_upper: float
    rdp: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One more (epsilon, delta) that the same events guarantee."""

    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class GroupEpsilon:
    """Epsilon at the claim's delta for a person who has this many records."""

    records: int
    epsilon: float | Absent
    how: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The guarantee, and what it means in odds."""

    epsilon: Interval
    epsilon_target: float
    delta: float
    delta_times_rows: float
    unit: str
    neighbouring: Literal["add_remove", "replace_one"]
    private: Literal[True]
    accountants: Accountants
    profile: tuple[Pair, ...]
    groups: tuple[GroupEpsilon, ...]
    risk: meaning.Risk

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ReleaseError(f"claim.delta={self.delta!r}: expected a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Access:
    """One access to private data, as the event file has it."""

    phase: str
    what: str
    how: str
    event: str  # SHA-256 of the event


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose data, which accesses, and what was taken as public input."""

    rows: float
    rows_source: Literal["declared", "measured"]
    rows_released: int
    records_per_unit: str
    threat_model: str
    accesses: tuple[Access, ...]
    public_inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.rows > 0:
            raise ReleaseError(f"scope.rows={self.rows!r}: expected a number > 0")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One DP-SGD phase as it is accounted."""

    sampler: Literal["poisson"]
    sampling_rate: float
    steps: int
    noise_multiplier: float


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """How the noise was made."""

    training: tuple[Training, ...] | Absent
    clip_norm: float | Absent
    divisor: float | Absent
    noise: str
    replay: str
    adaptive_decisions: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """A program that took part."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Signer:
    """The public half of the signing key; ``key`` is base64 of its 32 bytes, ``keyid`` its SHA-256."""

    algorithm: Literal["ed25519"]
    key: str
    keyid: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What stands behind the claim besides the events themselves."""

    ledger_head: str
    ledger_rows: float | Absent
    audit: Audit | Absent
    audit_lower_bound: float | Absent
    model_sha256: str
    signer: Signer
    versions: tuple[Version, ...]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where the release comes from, and what else was spent on the same data."""

    run: str
    run_created: str
    dataset: str
    dataset_digest: str
    prior_certificates: tuple[str, ...] | Absent
    cumulative_epsilon: float | Absent
    decoding_seed: int
    unlike: str | Absent  # what drawn texts were kept away from
    issued: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a certificate states that nothing else in the release can be asked for."""

    epsilon_target: float
    delta: float
    unit: str
    neighbouring: Literal["add_remove", "replace_one"]
    rows: float
    rows_source: Literal["declared", "measured"]
    rows_released: int
    clip_norm: float | Absent
    divisor: float | Absent
    noise: str
    replay: str
    evidence: Evidence
    lineage: Lineage


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The whole of it; :meth:`to_bytes` is what is digested and signed."""

    format: Literal["dpvae-certificate/1"]
    sentence: str
    claim: Claim
    scope: Scope
    mechanism: Mechanism
    evidence: Evidence
    not_covered: tuple[meaning.Gap, ...]
    lineage: Lineage

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "certificate.json") -> Certificate:
        """Parsed strictly: any unknown, missing or mistyped field is a :class:`ReleaseError` that names it."""
        return records.read(cls, records.parse(data, name), name)

    def to_bytes(self) -> bytes:
        """RFC 8785 canonical JSON and a newline."""
        return records.canonical(self.to_dict()) + b"\n"

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON objects and lists."""
        result: dict[str, Any] = records.plain(self)
        return result

    @property
    def consequences(self) -> Consequences:
        """The curve and the groups as they are stated."""
        return Consequences(
            tuple((pair.epsilon, pair.delta) for pair in self.claim.profile),
            tuple(Group(g.records, None if g.epsilon == NONE else float(g.epsilon), g.how) for g in self.claim.groups))

    @property
    def facts(self) -> Facts:
        """What :func:`dpvae.release.certify.certify` needs to derive this certificate again."""
        return Facts(
            epsilon_target=self.claim.epsilon_target, delta=self.claim.delta, unit=self.claim.unit,
            neighbouring=self.claim.neighbouring, rows=self.scope.rows, rows_source=self.scope.rows_source,
            rows_released=self.scope.rows_released, clip_norm=self.mechanism.clip_norm,
            divisor=self.mechanism.divisor, noise=self.mechanism.noise, replay=self.mechanism.replay,
            evidence=self.evidence, lineage=self.lineage,
        )


def differences(stated: Any, derived: Any, where: str) -> list[str]:
    """Where two certificates in JSON differ, as dotted paths; numbers may differ by :data:`EXACT`."""
    if isinstance(stated, dict) and isinstance(derived, dict):
        return [line for key in derived for line in differences(stated.get(key), derived[key], f"{where}.{key}")]
    if isinstance(stated, list) and isinstance(derived, list) and len(stated) == len(derived):
        return [line for i, (a, b) in enumerate(zip(stated, derived, strict=True))
                for line in differences(a, b, f"{where}[{i}]")]
    if isinstance(stated, float) and isinstance(derived, float):
        same = math.isclose(stated, derived, rel_tol=EXACT, abs_tol=1e-12)
    else:
        same = stated == derived and type(stated) is type(derived)
    if same:
        return []
    shown = (f"holds {len(stated)} entries" if isinstance(stated, list) else f"says {records.clip(stated)}",
             f"{len(derived)} entries" if isinstance(derived, list) else records.clip(derived))
    return [f"{where} {shown[0]}, but {shown[1]} follows from the events"]
