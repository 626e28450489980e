"""The certificate's form for other programs: JSON Schema, and the fields of a public registry of deployments.

``certificate.schema.json`` beside this file is :func:`json_schema`, written out; a test keeps the two equal. It is made
from the same dataclasses that :func:`dpvae.report.records.read` parses with, so that it forbids what the parser does:
unknown, missing and mistyped fields.

>>> json_schema()["required"][:3]
['format', 'sentence', 'claim']
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from dpvae.release.certificate import Certificate
from dpvae.release.certify import CHOSEN
from dpvae.report.source import NONE

FILE = Path(__file__).with_name("certificate.schema.json")
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


def registry(certificate: Certificate, *, curator: str, kind: str = "Industry", intended_use: str = NONE,
             region: str = NONE, sector: str = NONE, authors: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record for the OpenDP deployments registry; what no certificate knows is the caller's to say.

    It uses only fields of the registry's template (opendp/deployments-registry-data, 2026-07).
    """
    claim, scope, mechanism = certificate.claim, certificate.scope, certificate.mechanism
    accesses = "\n".join(f"- {access.phase}: {access.what}; {access.how}" for access in scope.accesses)
    relation = {"add_remove": "addition or removal of one row", "replace_one": "replacement of one row"}
    groups = "; ".join(f"{group.records} rows: {group.epsilon}" for group in claim.groups) or NONE
    evidence = f"ledger head {certificate.evidence.ledger_head}, signing key {certificate.evidence.signer.keyid}"
    return {"url_slug": re.sub(r"[^a-z0-9]+", "-", f"{certificate.lineage.dataset} {certificate.lineage.run}".lower()),
            "deployment": {
        "basic": {
            "name": f"Synthetic table of {certificate.lineage.dataset}, run {certificate.lineage.run}",
            "data_curators": [{"data_curator_name": curator, "data_curator_type": kind}],
            "description": certificate.sentence, "intended_use": intended_use, "data_product_type": "Synthetic data",
            "data_product_region": region, "data_product_sector": sector,
            "publication_date": certificate.lineage.issued[:10]},
        "dp_variant": {
            "variant_name": "Approximate DP",
            "data_domain": f"one table, {scope.rows:.15g} rows ({scope.rows_source})",
            "unprotected_quantities": "\n".join(f"- {line}" for line in scope.public_inputs)},
        "privacy_loss": {
            "privacy_unit": "Record-level" if claim.unit == "row" else f"{claim.unit}-level",
            "privacy_unit_details": f"Neighbouring tables differ by the {relation[claim.neighbouring]}. "
                                    f"{scope.records_per_unit}. Epsilon for several rows of one person: {groups}",
            "privacy_parameters": {"epsilon": claim.epsilon.upper, "delta": claim.delta},
            "privacy_parameters_details": "Priced by privacy loss distributions; between "
                                          f"{claim.epsilon.lower:.6g} and {claim.epsilon.upper:.6g}."},
        "deployment_model": {
            "model_name": "Central", "trust_assumptions": scope.threat_model, "data_source_type": "Static",
            "actors": f"- {curator} -- holds the data, trains, releases",
            "release_type": "One release", "release_type_details": f"{scope.rows_released} synthetic rows",
            "access_type": "Non-interactive"},
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": mechanism.adaptive_decisions, "mechanisms": accesses,
            "composition": "A private selection, priced by Renyi divergences." if mechanism.adaptive_decisions == CHOSEN
            else "All accesses are composed in one privacy loss distribution.",
            "post_processing": "Rows are drawn from a model that was fitted to the noisy numbers.",
            "justification": NONE},
        "administrative": {"evidence_sources": {"certificate": {
            "evidence_source_type": "Formal publication by the deploying organization",
            "misc": {"title": "dpvae certificate", "note": evidence}}},
            "status": "Pending", "registry_authors": list(authors) or [curator], "tier": 2}}}


if __name__ == "__main__":
    FILE.write_text(text())
