"""The numbers of a report, gathered once: what ``report.json`` holds and ``report.html`` draws.

Only released facts come in (a :class:`~dpvae.report.source.Source` reads ``public/`` alone) and rows that were
decoded from the released model, so the report spends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpvae.data import guess
from dpvae.errors import ReleaseError
from dpvae.privacy.accountant import CrossCheck, price
from dpvae.privacy.events import Event, to_dict
from dpvae.report import meaning, records
from dpvae.report.source import NONE, Anchor, RunClaim, Source, schema_columns

SAMPLE_ROWS = 10


def gather(source: Source, check: CrossCheck, *, subject: str, sentence: str | None = None, pairs: meaning.Pairs = (),
           released: Mapping[str, Any] | None = None, reproduce: Sequence[str] = ()) -> dict[str, Any]:
    """Everything a report says, as JSON.

    ``pairs`` are more (epsilon, delta) that hold: odds follow from all of them. ``released`` is what a table writer
    tells of the rows that it wrote (``rows``, ``histograms`` per label of each anchor, ``sample``, ``texts``,
    ``gallery``: ``{title, caption, png, alt}``, each ``png`` a data URI); without it the run's own preview is shown.
    """
    claim, epsilon = source.claim, check.epsilon
    shown = {**source.preview, **(released or {})}
    return {
        "format": "dpvae-report/1", "title": f"{source.name}: {subject.removeprefix('This ').lower()} report",
        "private": claim.private,
        "sentence": sentence or plain_sentence(claim, check, subject, pairs),
        "claim": {"lower": epsilon.lower, "estimate": epsilon.estimate, "upper": epsilon.upper,
                  "target": claim.epsilon_target, "delta": claim.delta, "unit": claim.unit,
                  "neighbouring": claim.neighbouring, "rows": claim.n_ref, "rows_source": claim.n_ref_source,
                  **({"where": where} if isinstance(where := source.schema.get("where"), str) else {})},
        "accountants": {"pld": check.pld, "prv_lower": check.prv_lower, "prv_upper": check.prv_upper,
                        "rdp": check.rdp},
        "risk": records.plain(meaning.risk([*pairs, (epsilon.upper, claim.delta)])),
        "phases": phases(source.events, claim, epsilon.upper),
        "cumulative": cumulative(claim),
        "accesses": [to_dict(event) for event in source.events],
        "audit": audited(source),
        "metrics": records.plain(source.metrics),
        "diagnostics": records.plain(source.diagnostics) if source.diagnostics else None,
        "marginals": marginals(source, shown.get("histograms"), shown.get("rows")),
        "guessed": guess.said(schema_columns(source.schema)),
        "pairs": shown.get("pairs"),
        "map": source.map or None,
        "rows_released": released["rows"] if released is not None else None,
        "sample": [{str(key): cell(value) for key, value in row.items()}
                   for row in list(shown.get("sample") or ())[:SAMPLE_ROWS]],
        "gallery": [dict(item) for item in shown.get("gallery") or ()],
        "texts": list(shown.get("texts") or ())[:SAMPLE_ROWS],
        "lines": [{"title": str(item["title"]), "texts": list(map(str, item["texts"]))}
                  for item in shown.get("lines") or ()],
        "not_covered": records.plain(meaning.NOT_COVERED),
        "reproduce": list(reproduce),
    }


def cumulative(claim: RunClaim) -> dict[str, Any] | None:
    """What the data set had spent in all when the run ended, where the ledger could bound it."""
    if not isinstance(claim.cumulative_epsilon, float) or claim.dataset == NONE:
        return None
    return {"dataset": claim.dataset, "epsilon": claim.cumulative_epsilon}


def audited(source: Source) -> dict[str, Any] | None:
    """The audit as a report shows it: verdict, lights, bounds; ``None`` where nobody audited this model."""
    found = source.audit
    if not found:
        return None
    try:
        return {
            "sentence": str(found["sentence"]), "passed": found["passed"] is True, "quick": bool(found["quick"]),
            "tests": [{name: test[name] for name in ("test", "says", "passed", "asked")} for test in found["tests"]],
            "bounds": [{name: bound[name] for name in ("method", "epsilon", "claim", "canaries", "note")}
                       for bound in found["bounds"]],
            "self_test": {name: found["self_test"][name] for name in ("tried", "caught")},
            "left_out": list(map(str, found["left_out"])), "page": False}
    except (KeyError, TypeError) as error:
        raise ReleaseError(f"public/audit.json: does not parse ({error}); run dpvae audit again") from None


def plain_sentence(claim: RunClaim, check: CrossCheck, subject: str, pairs: meaning.Pairs = ()) -> str:
    """The guarantee in words, or its plain absence."""
    if not claim.private:
        return (f"{subject} is NOT PRIVATE: its secret randomness was fixed (privacy.secret_seed), so whoever knows "
                "the seed can undo the noise, or there was none (privacy=off). It is for tests and must not be "
                "published.")
    return meaning.sentence(lower=check.epsilon.lower, upper=check.epsilon.upper, delta=claim.delta, unit=claim.unit,
                            neighbouring=claim.neighbouring, subject=subject, pairs=pairs)


def phases(events: Sequence[Event], claim: RunClaim, total: float) -> list[dict[str, Any]]:
    """Epsilon after each phase and what the phase added; the additions sum to the total.

    Composition is not additive (alone each phase would cost more than it adds), so the order matters: phases stand
    in the order of their first event.
    """
    names = list(dict.fromkeys(event.phase for event in events))
    found, before = [], 0.0
    for i, name in enumerate(names):
        so_far = [event for event in events if event.phase in names[: i + 1]]
        last = i == len(names) - 1
        after = total if last else price(so_far, delta=claim.delta, neighbouring=claim.neighbouring).upper
        after = min(max(after, before), total)  # a mesh rounds each price up on its own
        found.append({"phase": name, "added": after - before, "after": after,
                      "accesses": sum(event.phase == name for event in events)})
        before = after
    return found


def marginals(source: Source, histograms: Mapping[str, Sequence[int]] | None, rows: int | None) -> list[dict[str, Any]]:
    """Per column: noisy and synthetic shares, their distance, and the distance that noise alone would show.

    Noise is the privacy noise of the counts and the sampling error of so many synthetic rows.
    """
    kinds = {name: str(column.get("kind")) for name, column in schema_columns(source.schema)}
    found = []
    for column, anchor in source.anchors.items():
        total = max(sum(anchor.noisy), 1.0)
        item: dict[str, Any] = {
            "column": column, "kind": kinds.get(column, "categorical"), "labels": list(anchor.labels),
            "noisy": [value / total for value in anchor.noisy], "sd": anchor.sd / total, "synthetic": None,
            "distance": None, "distance_of_noise_alone": 0.5 * len(anchor.labels) * _mean_absolute(anchor.sd / total),
        }
        if histograms is not None and column in histograms:
            item["synthetic"] = _shares(column, anchor, histograms[column], rows)
            pairs = zip(item["noisy"], item["synthetic"], strict=True)
            item["distance"] = 0.5 * sum(abs(a - b) for a, b in pairs)
            item["distance_of_noise_alone"] = 0.5 * sum(
                _mean_absolute(math.hypot(item["sd"], math.sqrt(p * (1 - p) / max(rows or 1, 1))))
                for p in item["synthetic"])
        found.append(item)
    return found


def cell(value: Any) -> Any:
    """A cell of a synthetic row as JSON: numpy scalars unpacked, missing as null, the rest as text."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        whole = isinstance(value, int)
        return value if (abs(value) <= 2**53 if whole else math.isfinite(value)) else (str(value) if whole else None)
    return str(value)


def _shares(column: str, anchor: Anchor, counts: Sequence[int], rows: int | None) -> list[float]:
    if len(counts) != len(anchor.labels):
        raise ReleaseError(f"histograms.{column}: {len(counts)} counts for {len(anchor.labels)} labels of the "
                           "reference; count the released rows in the reference's order")
    total = max(float(rows or sum(counts)), 1.0)
    return [float(count) / total for count in counts]


def _mean_absolute(sd: float) -> float:
    return sd * math.sqrt(2 / math.pi)
