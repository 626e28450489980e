"""From events to a certificate: the one way in which its derived fields come about.

    certificate = certify(facts, events=events, schema=schema, check=crosscheck(events, delta, "add_remove"))

``dpvae verify`` calls the same function with the facts that a certificate states, and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpvae.config import RECORDS
from dpvae.errors import ReleaseError
from dpvae.privacy import events as facts_of_access
from dpvae.privacy.accountant import CrossCheck
from dpvae.privacy.consequences import Consequences
from dpvae.privacy.events import Event
from dpvae.release.certificate import (
    Access,
    Accountants,
    Certificate,
    Claim,
    Facts,
    GroupEpsilon,
    Interval,
    Mechanism,
    Pair,
    Scope,
    Training,
)
from dpvae.report import meaning
from dpvae.report.source import NONE, schema_columns

FIXED = "none: the plan was fixed before the data was opened"
CHOSEN = ("one: of a secret number of runs, whose plan was fixed before the data was opened, the one with the best "
          "noisy score is released; the claim prices that choice as a private selection (Papernot and Steinke 2022)")
UNKNOWN = Consequences((), ())  # then the odds follow from (epsilon, delta) alone


def certify(facts: Facts, *, events: Sequence[Event], schema: Mapping[str, Any], check: CrossCheck,
            found: Consequences = UNKNOWN) -> Certificate:
    """The certificate that follows from these facts and events; refuses (``ReleaseError``) what must not be claimed.

    ``found`` (:func:`dpvae.privacy.consequences.consequences`) is the curve that the odds follow from; without it they
    follow from the one pair (epsilon, delta), which is looser.
    """
    upper = check.epsilon.upper
    if not facts.delta * facts.rows < 1:
        raise ReleaseError(f"delta={facts.delta:g}: expected less than 1/rows = {1 / facts.rows:g}; "
                           "a larger delta would permit publishing somebody's row")
    if upper > facts.epsilon_target * (1 + 1e-9):
        raise ReleaseError(f"epsilon={upper:g}: the events cost more than the {facts.epsilon_target:g} they were "
                           "set to; nothing may be certified")
    return Certificate(
        format="dpvae-certificate/1",
        sentence=meaning.sentence(lower=check.epsilon.lower, upper=upper, delta=facts.delta, unit=facts.unit,
                                  neighbouring=facts.neighbouring, subject="This release",
                                  pairs=_pairs(facts, check, found)),
        claim=_claim(facts, check, found), scope=_scope(facts, events, schema), mechanism=_mechanism(facts, events),
        evidence=facts.evidence, not_covered=meaning.NOT_COVERED, lineage=facts.lineage,
    )


def _pairs(facts: Facts, check: CrossCheck, found: Consequences) -> tuple[tuple[float, float], ...]:
    return (*found.profile, (check.epsilon.upper, facts.delta))


def _claim(facts: Facts, check: CrossCheck, found: Consequences) -> Claim:
    epsilon = check.epsilon
    return Claim(
        epsilon=Interval(lower=epsilon.lower, estimate=epsilon.estimate, upper=epsilon.upper),
        epsilon_target=facts.epsilon_target, delta=facts.delta, delta_times_rows=facts.delta * facts.rows,
        unit=facts.unit, neighbouring=facts.neighbouring, private=True,
        accountants=Accountants(pld=check.pld, prv_lower=check.prv_lower, prv_upper=check.prv_upper, rdp=check.rdp),
        profile=tuple(Pair(epsilon=e, delta=d) for e, d in found.profile),
        groups=tuple(GroupEpsilon(records=group.records, epsilon=NONE if group.epsilon is None else group.epsilon,
                                  how=group.how) for group in found.groups),
        risk=meaning.risk(_pairs(facts, check, found)),
    )


def _scope(facts: Facts, events: Sequence[Event], schema: Mapping[str, Any]) -> Scope:
    return Scope(
        rows=facts.rows, rows_source=facts.rows_source, rows_released=facts.rows_released,
        records_per_unit=_per_unit(facts.unit, schema),
        threat_model="sees every file of the release; knows the code, all public inputs and every other record",
        accesses=tuple(Access(phase=event.phase, what=event.what, how=how(event),
                              event=facts_of_access.digest(event)) for event in events),
        public_inputs=public_inputs(schema, facts),
    )


def _per_unit(unit: str, schema: Mapping[str, Any]) -> str:
    """How many records of one unit take part; refuses a unit that nothing bounded."""
    bounded, most = schema.get("unit"), schema.get("per_unit")
    if unit != bounded and (bounded is not None or unit not in RECORDS.values()):
        raise ReleaseError(f"unit={unit}: expected {bounded or 'one record'}, whose share in what was measured was "
                           "bounded; nothing may be certified for another unit")
    if isinstance(most, int) and not isinstance(most, bool):
        return f"{most}: records of one {unit} beyond that take no part"
    where = schema.get("where")
    some = f" of those where {where}, and any other takes no part" if isinstance(where, str) else ""
    return f"1: one {unit} is one record{some}; how many records a person has is not enforced"


def _mechanism(facts: Facts, events: Sequence[Event]) -> Mechanism:
    selections = [event for event in events if isinstance(event, facts_of_access.RepeatAndSelect)]
    drawn = [*events, *(part for event in selections for part in event.trial)]
    training = tuple(
        Training(sampler="poisson", sampling_rate=event.sampling_rate, steps=event.steps,
                 noise_multiplier=event.noise_multiplier)
        for event in drawn if isinstance(event, facts_of_access.SampledGaussian))
    return Mechanism(training=training or NONE, clip_norm=facts.clip_norm, divisor=facts.divisor, noise=facts.noise,
                     replay=facts.replay, adaptive_decisions=CHOSEN if selections else FIXED)


def how(event: Event) -> str:
    """The mechanism of one event in words."""
    match event:
        case facts_of_access.Gaussian():
            return f"Gaussian noise, multiplier {event.noise_multiplier:.6g}, released {event.count} time(s)"
        case facts_of_access.SampledGaussian():
            return (f"DP-SGD: Poisson sampling at rate {event.sampling_rate:.6g}, {event.steps} steps, Gaussian "
                    f"noise, multiplier {event.noise_multiplier:.6g}")
        case facts_of_access.PureDP():
            return f"pure DP, epsilon {event.epsilon:.6g}, {event.count} time(s)"
        case facts_of_access.RepeatAndSelect():
            return (f"the best of a random number of runs (mean {event.runs:.6g}, shape {event.shape:.6g}), each: "
                    + "; ".join(how(part) for part in event.trial))
        case facts_of_access.Threshold():
            return (f"Gaussian noise, multiplier {event.noise_multiplier:.6g}, published above a threshold "
                    f"that costs delta {event.delta:.3g}")


def public_inputs(schema: Mapping[str, Any], facts: Facts) -> tuple[str, ...]:
    """Every fact that was taken from outside the private data, one line each."""
    lines = ["column names, types and order"]
    if facts.rows_source == "declared":
        lines.append(f"row count {facts.rows:.15g}")
    if isinstance(where := schema.get("where"), str):
        lines.append(f"the condition on rows: {where}")
    if schema.get("chosen") is True:
        lines.append("the choice of columns: the table has others, which were not read")
    if isinstance(target := schema.get("target"), str):
        lines.append(f"target column {target}")
    for name, column in schema_columns(schema):
        declared = column.get("declared")
        if isinstance(declared, (list, tuple)) and declared:
            lines.append(f"{name}: {', '.join(map(str, declared))}")
    if facts.lineage.unlike != NONE:
        lines.append(f"what the release was kept away from: {facts.lineage.unlike}")
    return tuple(lines)
