"""The certificate's JSON Schema forbids what the parser forbids, and the registry record knows no field of its own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_run import make_run, table_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.config import CURATORS, SECTORS, ReleaseConfig, build
from dpvae.errors import ConfigError, DPVAEError, ReleaseError
from dpvae.privacy.events import from_dict, to_dict
from dpvae.release import schemas
from dpvae.release.bundle import write_release
from dpvae.release.certificate import Certificate
from dpvae.report import records
from dpvae.report.source import read_events

EXAMPLES = int(os.environ.get("DPVAE_FUZZ", "60"))  # run once with 10,000 each: reports/ledger.md
ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(schemas.json_schema())
REGISTRY = jsonschema.Draft202012Validator(json.loads(schemas.REGISTRY.read_text()),
                                           format_checker=jsonschema.FormatChecker())
OFFICE = schemas.Deployment(curator="Statistics Office", curator_kind="Government", intended_use="research",
                            region="DE")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("schemas")
    return write_release(make_run(root / "runs"), table_writer, rows=1000, to=root / "release", seed=0)


@pytest.fixture(scope="module")
def document(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "certificate.json").read_bytes())
    return found


def test_the_schema_that_ships_is_the_one_the_dataclasses_give() -> None:
    assert schemas.FILE.read_text() == schemas.text(), "run: python -m dpvae.release.schemas"
    jsonschema.Draft202012Validator.check_schema(schemas.json_schema())


def test_a_real_certificate_is_valid_and_states_its_curve_and_its_groups(document: dict[str, Any]) -> None:
    VALIDATOR.validate(document)
    assert [group["records"] for group in document["claim"]["groups"]] == [2, 5, 10]
    assert len(document["claim"]["profile"]) == 7


@pytest.mark.parametrize("path", ["claim", "claim.epsilon", "claim.groups", "scope.accesses", "lineage.dataset"])
def test_a_missing_an_unknown_and_a_mistyped_field_are_forbidden_by_both(document: dict[str, Any], path: str) -> None:
    *parents, last = path.split(".")
    for change in ("drop", "add", "mistype"):
        edited = copy.deepcopy(document)
        place = edited
        for name in parents:
            place = place[name]
        if change == "drop":
            del place[last]
        elif change == "add":
            place["surprise"] = 1
        else:
            place[last] = True
        assert not VALIDATOR.is_valid(edited)
        with pytest.raises(ReleaseError):
            Certificate.from_bytes(records.canonical(edited))


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2**60, 2**60), st.floats(), st.text(max_size=5),
                   st.sampled_from(["none", "poisson", "row", "add_remove", [], {}, [1], {"a": 1}]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, inner in items for place in places(inner, (*path, key))]


def edit(document: Any, path: tuple[Any, ...], leaf: Any, how: str) -> Any:
    edited = copy.deepcopy(document)
    place = edited
    for key in path[:-1]:
        place = place[key]
    if how == "drop":
        del place[path[-1]]
    elif how == "add" and isinstance(place, dict):
        place["surprise"] = leaf
    else:
        place[path[-1]] = leaf
    return edited


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_the_certificate_parser_never_fails_otherwise_nor_accepts_what_the_schema_forbids(
    document: dict[str, Any], data: st.DataObject
) -> None:
    how = data.draw(st.sampled_from(["set", "drop", "add", "bytes"]))
    if how == "bytes":
        raw = bytearray(records.canonical(document))
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        body = bytes(raw)
    else:
        edited = edit(document, data.draw(st.sampled_from(places(document))), data.draw(LEAVES), how)
        body = json.dumps(edited).encode()
    try:
        accepted = Certificate.from_bytes(body)
    except ReleaseError:
        return
    VALIDATOR.validate(accepted.to_dict())
    assert Certificate.from_bytes(accepted.to_bytes()) == accepted


EVENT = {"type": "Gaussian", "phase": "a", "what": "x", "noise_multiplier": 2.0, "count": 1}
SELECT = {"type": "RepeatAndSelect", "phase": "tuning", "what": "x", "trial": [EVENT], "runs": 3.0, "shape": 0.0}
SAMPLED = {"type": "SampledGaussian", "phase": "d", "what": "x", "noise_multiplier": 1.0, "sampling_rate": 0.1,
           "steps": 3}


@settings(max_examples=EXAMPLES)
@given(st.sampled_from([EVENT, SELECT, SAMPLED]), st.data())
def test_the_event_parser_never_fails_otherwise_and_what_it_accepts_it_writes_back(
    event: dict[str, Any], data: st.DataObject
) -> None:
    edited = edit(event, data.draw(st.sampled_from(places(event))), data.draw(LEAVES),
                  data.draw(st.sampled_from(["set", "drop", "add"])))
    try:
        accepted = from_dict(edited)
    except DPVAEError:
        return
    assert from_dict(to_dict(accepted)) == accepted


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200))
def test_no_bytes_at_all_crash_the_reader_of_events(raw: bytes) -> None:
    with contextlib.suppress(ReleaseError):
        assert all(from_dict(to_dict(event)) == event for event in read_events(raw, "events.jsonl"))


def test_the_registry_record_is_one_that_the_registry_takes(document: dict[str, Any]) -> None:
    certificate = Certificate.from_bytes(records.canonical(document))
    record = schemas.registry(certificate, OFFICE)
    REGISTRY.validate(record)
    loss = record["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": certificate.claim.epsilon.upper, "delta": 1e-5}
    assert loss["number_of_privacy_units"] == 39074
    assert "2 rows: " in loss["privacy_unit_details"]


def test_the_registry_schema_is_whole_and_knows_what_the_configuration_offers() -> None:
    schema = json.loads(schemas.REGISTRY.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    basic = schema["properties"]["deployment"]["properties"]["basic"]["properties"]
    assert tuple(basic["data_product_sector"]["enum"]) == SECTORS
    assert tuple(basic["data_curators"]["items"]["properties"]["data_curator_type"]["enum"]) == CURATORS


@pytest.mark.parametrize("path", ["url_slug", "deployment.basic", "deployment.basic.intended_use",
                                  "deployment.administrative.tier", "deployment.administrative.registry_authors"])
def test_a_record_without_a_required_field_is_none(document: dict[str, Any], path: str) -> None:
    record = schemas.registry(Certificate.from_bytes(records.canonical(document)), OFFICE)
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[name]
    del place[last]
    assert not REGISTRY.is_valid(record)


@pytest.mark.parametrize("change", [{"curator_kind": "Bank"}, {"sector": "Space"}, {"region": 7}])
def test_what_the_registry_would_not_take_is_refused_at_the_export(
    release: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ReleaseError, match=r"registry: deployment\.basic\."):
        schemas.export(release, tmp_path / "x.json", dataclasses.replace(OFFICE, **change))
    assert not (tmp_path / "x.json").exists()


def test_an_export_is_written_once(release: Path, tmp_path: Path) -> None:
    schemas.export(release, tmp_path / "x.json", OFFICE)
    REGISTRY.validate(json.loads((tmp_path / "x.json").read_text()))
    with pytest.raises(ReleaseError, match="never overwritten"):
        schemas.export(release, tmp_path / "x.json", OFFICE)


def test_a_curator_without_what_the_registry_requires_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ConfigError, match=r"registry\.use=null"):
        build(ReleaseConfig, {"registry": {"curator": "Statistics Office", "region": "DE"}})
