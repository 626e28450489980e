"""card.md: the data card of a release, for people and for the Hugging Face hub.

Every line follows from the certificate and the schema, both of which are published anyway: a profile of the
private table (its true means, its true categories) has no way in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dpvae.data import guess
from dpvae.release.certificate import Certificate
from dpvae.report.meaning import percent
from dpvae.report.source import NONE, schema_columns

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"))
TASKS = {"table": ("tabular-classification", "tabular"), "images": ("image-classification", "image"),
         "text": ("text-classification", "text")}  # the hub's task where there is a target, and its tag
NOUNS = {"table": ("table of {} rows", "row", "the table's shape"),
         "images": ("set of {} images", "image", "the pictures"),
         "text": ("set of {} texts", "text", "what the texts are like")}  # the data, one of it, what one looks at


def card(certificate: Certificate, schema: Mapping[str, Any]) -> str:
    """The card as Markdown with the hub's YAML block on top."""
    parts = [_metadata(certificate, schema), _guarantee(certificate, schema), _columns(schema), _accesses(certificate),
             _use(certificate, nouns(schema)), _gaps(certificate), _check()]
    return "\n\n".join(parts) + "\n"


def nouns(schema: Mapping[str, Any]) -> tuple[str, str, str]:
    """What to call the data, one record of it, and what is explored, by its kind."""
    return NOUNS.get(str(schema.get("kind", "table")), NOUNS["table"])


def _metadata(certificate: Certificate, schema: Mapping[str, Any]) -> str:
    """JSON strings are YAML strings, so nothing a user named can break the block."""
    kind, target = str(schema.get("kind", "table")), isinstance(schema.get("target"), str)
    task, tag = TASKS.get(kind, ("other", kind))
    files = ["configs:", "- config_name: default", "  data_files: data/*.parquet"] if kind != "images" else []
    lines = ["---", f"pretty_name: {json.dumps(certificate.lineage.run + ' (synthetic)', ensure_ascii=False)}",
             "license: unknown", "task_categories:",
             f"- {task if target else 'other'}",
             "tags:", "- synthetic", "- differential-privacy", f"- {tag}", "- dpvae",
             "size_categories:", f"- {_size(certificate.scope.rows_released)}",
             *files, "---"]
    return "\n".join(lines)


def _size(rows: int) -> str:
    return next((name for most, name in SIZES if rows < most), "n>10M")


def _guarantee(certificate: Certificate, schema: Mapping[str, Any]) -> str:
    claim, scope, unlike, where = certificate.claim, certificate.scope, certificate.lineage.unlike, schema.get("where")
    some = f" Only rows where {escape(where)} took part." if isinstance(where, str) else ""
    risk = claim.risk
    table = _table(("An attacker who knows every other record", "can reach at most"), [
        ("share of right guesses about membership, at even odds", percent(risk.right_guesses_at_even_odds, 2)),
        ("true accusations (TPR) with 1 % false ones", percent(risk.true_positive_rate_at_1_percent, 2)),
        ("true accusations (TPR) with 0.1 % false ones", percent(risk.true_positive_rate_at_0_1_percent, 2)),
        ("belief that began at 0.5", percent(risk.posterior_from_prior_0_5, 2)),
        ("belief that began at 0.1", percent(risk.posterior_from_prior_0_1, 2)),
        ("belief that began at 0.01", percent(risk.posterior_from_prior_0_01, 2)),
    ])
    source, one, _ = nouns(schema)
    kept = "" if unlike == NONE else f" Kept away from public text, at no cost: {escape(unlike)}."
    return (f"# {escape(certificate.lineage.run)}: synthetic {one}s\n\n**{escape(certificate.sentence)}**\n\n"
            f"{scope.rows_released} {one}s drawn from a variational autoencoder trained under differential "
            f"privacy on a {source.format(f'{scope.rows:.15g}')} ({scope.rows_source}).{some} "
            f"Each {one} is drawn from the model; none is copied from the data.{kept}\n\n{table}")


def _columns(schema: Mapping[str, Any]) -> str:
    rows = [(name, column.get("kind"), column.get("dtype"), "yes" if column.get("nullable") else "no",
             ", ".join(map(str, column.get("declared") or ())) or "nothing: measured with noise")
            for name, column in schema_columns(schema)]
    said = guess.said(schema_columns(schema))
    return ("## Columns\n\n" + _table(("column", "kind", "type", "may be missing", "declared as public"), rows)
            + (f"\n\n{escape(said[0].upper() + said[1:])}." if said else ""))


def _accesses(certificate: Certificate) -> str:
    rows = [(access.phase, access.what, access.how) for access in certificate.scope.accesses]
    return ("## Every access to private data\n\n" + _table(("phase", "what was released", "mechanism"), rows)
            + f"\n\nNoise: {escape(certificate.mechanism.noise)}. Resume: {escape(certificate.mechanism.replay)}.")


def _use(certificate: Certificate, words: tuple[str, str, str]) -> str:
    _, one, shape = words
    return (f"## Use\n\nFit for: exploring {shape}, developing and testing code and queries, training models "
            "whose results are confirmed on real data. Not fit for: decisions about single people, statements about "
            "rare groups, and as the only evidence for a finding. Accuracy is not guaranteed: "
            f"report.html compares the {one}s with the noisy counts they were made from.\n\n"
            f"Audit: {escape(_audit(certificate))} Data set: {escape(certificate.lineage.dataset)}. "
            "Licence: whoever owns the data decides.")


def _audit(certificate: Certificate) -> str:
    audit = certificate.evidence.audit
    return "none." if audit == NONE else audit.verdict


def _gaps(certificate: Certificate) -> str:
    lines = [f"- **{escape(gap.topic)}.** {escape(gap.statement)}" for gap in certificate.not_covered]
    return "## What the guarantee does not cover\n\n" + "\n".join(lines)


def _check() -> str:
    return "## Check it\n\n```\ndpvae verify .\nsha256sum --check SHA256SUMS\n```"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines)


def escape(value: object) -> str:
    """Text that cannot leave its table cell nor start markup of its own."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    for mark in ("\\", "|", "<", "[", "`", "*", "_"):
        text = text.replace(mark, "\\" + mark)
    return text
