"""The certificate's form for other programs: JSON Schema, and the fields of a public registry of deployments.

``certificate.schema.json`` beside this file is :func:`json_schema`, written out; a test keeps the two equal. It is made
from the same dataclasses that :func:`dpvae.report.records.read` parses with, so that it forbids what the parser does:
unknown, missing and mistyped fields. ``registry.schema.json`` holds what a record of the OpenDP deployments registry
may say; :func:`registry` makes one and checks it.

>>> json_schema()["required"][:3]
['format', 'sentence', 'claim']
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvae.config import RECORDS
from dpvae.errors import ReleaseError
from dpvae.release.certificate import Certificate
from dpvae.release.certify import CHOSEN
from dpvae.report import records
from dpvae.report.source import NONE

FILE = Path(__file__).with_name("certificate.schema.json")
REGISTRY = Path(__file__).with_name("registry.schema.json")  # of the OpenDP deployments registry: facts, our words
_SCALARS = {float: "number", int: "integer", str: "string", bool: "boolean"}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a certificate."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:dpvae:certificate:1",
            "title": "dpvae certificate", **_of(Certificate)}


def text() -> str:
    """What :data:`FILE` holds."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _of(kind: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {"type": "object", "description": (kind.__doc__ or "").strip().splitlines()[0],
                "properties": {name: _of(hint) for name, hint in hints.items()}, "required": list(hints),
                "additionalProperties": False}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(each) for each in arguments]}
    return {"type": _SCALARS[kind]}


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a registry asks and no certificate knows."""

    curator: str
    curator_kind: str
    intended_use: str
    region: str
    sector: str | None = None
    authors: tuple[str, ...] = ()


def export(folder: Path, file: Path, about: Deployment) -> None:
    """The registry's record of a release folder, as JSON (which is YAML), into a new file."""
    certificate = Certificate.from_bytes(records.read_bytes(folder / "certificate.json", "certificate.json"))
    record = registry(certificate, about)
    try:
        with file.open("x") as out:
            out.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except FileExistsError:
        raise ReleaseError(f"{file}: is there already; a record is never overwritten, move it away") from None


def registry(certificate: Certificate, about: Deployment) -> dict[str, Any]:
    """A record for the OpenDP deployments registry, checked against :data:`REGISTRY`.

    :class:`ReleaseError` names the field that the registry would not take.
    """
    record = {"url_slug": _slug(certificate), "deployment": {
        "basic": _basic(certificate, about), **_privacy(certificate),
        "deployment_model": {
            "model_name": "Central", "trust_assumptions": certificate.scope.threat_model, "data_source_type": "Static",
            "actors": f"- {about.curator} -- holds the data, trains, releases",
            "release_type": "One release", "release_type_details": f"{certificate.scope.rows_released} synthetic rows",
            "access_type": "Non-interactive"},
        "implementation": _implementation(certificate), "administrative": _administrative(certificate, about)}}
    from jsonschema import Draft202012Validator, FormatChecker

    checker = Draft202012Validator(json.loads(REGISTRY.read_text()), format_checker=FormatChecker())
    for error in checker.iter_errors(record):
        raise ReleaseError(f"registry: {'.'.join(map(str, error.absolute_path))}: {records.clip(error.message)}")
    return record


def _slug(certificate: Certificate) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{certificate.lineage.dataset} {certificate.lineage.run}".lower()).strip("-")


def _basic(certificate: Certificate, about: Deployment) -> dict[str, Any]:
    return {
        "name": f"Synthetic table of {certificate.lineage.dataset}, run {certificate.lineage.run}",
        "data_curators": [{"data_curator_name": about.curator, "data_curator_type": about.curator_kind}],
        "description": certificate.sentence, "intended_use": about.intended_use, "data_product_type": "Synthetic data",
        "data_product_region": about.region, "publication_date": certificate.lineage.issued[:10],
        **({} if about.sector is None else {"data_product_sector": about.sector})}


def _privacy(certificate: Certificate) -> dict[str, Any]:
    claim, scope = certificate.claim, certificate.scope
    relation = {"add_remove": "addition or removal of one row", "replace_one": "replacement of one row"}
    groups = "; ".join(f"{group.records} rows: {group.epsilon}" for group in claim.groups) or NONE
    return {
        "dp_variant": {
            "variant_name": "Approximate DP",
            "data_domain": f"one table, {scope.rows:.15g} rows ({scope.rows_source})",
            "unprotected_quantities": "\n".join(f"- {line}" for line in scope.public_inputs)},
        "privacy_loss": {
            "privacy_unit": "Record-level" if claim.unit in RECORDS.values() else f"{claim.unit}-level",
            "privacy_unit_details": f"Neighbouring tables differ by the {relation[claim.neighbouring]}. "
                                    f"{scope.records_per_unit}. Epsilon for several rows of one person: {groups}",
            "number_of_privacy_units": round(scope.rows),
            "privacy_parameters": {"epsilon": claim.epsilon.upper, "delta": claim.delta},
            "privacy_parameters_details": f"An upper bound; the true value is at least {claim.epsilon.lower:.6g}."}}


def _implementation(certificate: Certificate) -> dict[str, Any]:
    mechanism, accesses = certificate.mechanism, certificate.scope.accesses
    chosen = mechanism.adaptive_decisions == CHOSEN
    return {
        "preprocessing_and_hyperparameter_tuning": mechanism.adaptive_decisions,
        "mechanisms": "\n".join(f"- {access.phase}: {access.what}; {access.how}" for access in accesses)
                      + f"\n- noise: {mechanism.noise}",
        "composition": "A private selection, priced by Renyi divergences." if chosen
                       else "All accesses are composed in one privacy loss distribution.",
        "post_processing": "Rows are drawn from a model that was fitted to the noisy numbers.", "justification": NONE}


def _administrative(certificate: Certificate, about: Deployment) -> dict[str, Any]:
    evidence = certificate.evidence
    return {
        "evidence_sources": {"certificate": {
            "evidence_source_type": "Authorized organizational attestation",
            "misc": {"title": "dpvae certificate",
                     "note": f"ledger head {evidence.ledger_head}, signing key {evidence.signer.keyid}"}}},
        "status": "Draft", "registry_authors": list(about.authors) or [about.curator], "tier": 3}


if __name__ == "__main__":
    FILE.write_text(text())
