"""The certificate: derived from events, read strictly, never a traceback."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_run import EVENTS, make_run, table_writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpvae.errors import ConfigError, ReleaseError
from dpvae.privacy.accountant import crosscheck
from dpvae.release.bundle import write_release
from dpvae.release.certificate import Certificate, differences
from dpvae.release.certify import certify
from dpvae.report import records
from dpvae.report.source import read_events

SMALL = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return write_release(make_run(root), table_writer, rows=1000, to=root / "out", seed=0)


@pytest.fixture(scope="module")
def certificate(release: Path) -> Certificate:
    return Certificate.from_bytes((release / "certificate.json").read_bytes())


def schema(release: Path) -> dict[str, Any]:
    return dict(json.loads((release / "schema.json").read_text()))


def test_certificate_survives_its_own_bytes(certificate: Certificate) -> None:
    assert Certificate.from_bytes(certificate.to_bytes()) == certificate


def test_certificate_is_a_fixed_point_of_its_own_derivation(certificate: Certificate, release: Path) -> None:
    check = crosscheck(EVENTS, 1e-5)
    again = certify(certificate.facts, events=EVENTS, schema=schema(release), check=check,
                    found=certificate.consequences)
    assert differences(certificate.to_dict(), again.to_dict(), "c") == []


def test_every_event_is_listed_once_and_in_order(certificate: Certificate) -> None:
    assert [access.what for access in certificate.scope.accesses] == [event.what for event in EVENTS]


def test_what_was_declared_is_listed_as_public_input(certificate: Certificate) -> None:
    assert "row count 39074" in certificate.scope.public_inputs
    assert "age: kind, lower, upper" in certificate.scope.public_inputs
    assert not any(line.startswith("workclass") for line in certificate.scope.public_inputs)


def test_absent_evidence_is_written_as_the_word_none(certificate: Certificate) -> None:
    assert certificate.evidence.audit == "none"
    assert certificate.lineage.prior_certificates == "none"
    assert b"null" not in certificate.to_bytes()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return [path] if items is None else [leaf for key, item in items for leaf in leaves(item, (*path, key))]


def changed(document: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    copy = json.loads(json.dumps(document))
    place = copy
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return json.dumps(copy).encode()


def put(value: Any, place: Any, key: Any) -> None:
    place[key] = value


def test_every_field_is_required(certificate: Certificate) -> None:
    document = certificate.to_dict()
    for path in leaves(document):
        if isinstance(path[-1], str):
            with pytest.raises(ReleaseError, match=str(path[-1])):
                Certificate.from_bytes(changed(document, path, lambda place, key: place.pop(key)))


def test_no_field_may_be_null_or_a_list_or_of_another_type(certificate: Certificate) -> None:
    document = certificate.to_dict()
    for path in leaves(document):
        for wrong in (None, [["x"]], {"x": 1}):
            with pytest.raises(ReleaseError):
                Certificate.from_bytes(changed(document, path, partial(put, wrong)))


def test_an_unknown_field_is_refused_with_the_nearest_name(certificate: Certificate) -> None:
    document = certificate.to_dict()
    document["claim"]["epsilom"] = 0.1
    with pytest.raises(ReleaseError, match="did you mean 'epsilon'"):
        Certificate.from_bytes(json.dumps(document).encode())


def test_a_certificate_that_says_private_false_is_refused(certificate: Certificate) -> None:
    document = certificate.to_dict()
    document["claim"]["private"] = False
    with pytest.raises(ReleaseError, match=r"claim\.private"):
        Certificate.from_bytes(json.dumps(document).encode())


def test_delta_of_one_over_rows_or_more_is_refused(certificate: Certificate, release: Path) -> None:
    facts = dataclasses.replace(certificate.facts, rows=1e5)
    with pytest.raises(ReleaseError, match="less than 1/rows"):
        certify(facts, events=EVENTS, schema=schema(release), check=crosscheck(EVENTS, 1e-5))


def test_events_above_the_target_are_refused(certificate: Certificate, release: Path) -> None:
    facts = dataclasses.replace(certificate.facts, epsilon_target=0.5)
    with pytest.raises(ReleaseError, match=r"cost more than the 0\.5"):
        certify(facts, events=EVENTS, schema=schema(release), check=crosscheck(EVENTS, 1e-5))


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ReleaseError, match="stands twice"):
        Certificate.from_bytes(b'{"format": "x", "format": "dpvae-certificate/1"}')


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "[" * 100_000, '{"a": 1', "\xff", "1" * 5000, ""])
def test_what_is_not_plain_json_is_one_line(text: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        Certificate.from_bytes(text.encode("latin-1"))
    assert "\n" not in str(caught.value)


def refusal(action: Callable[[], object]) -> str:
    """The message of a deliberate refusal, empty where there was none; anything else is a failure."""
    try:
        action()
    except ReleaseError as error:
        return str(error)
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)


@SMALL
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_parsers_of_arbitrary_bytes_raise_only_their_own_error(data: bytes) -> None:
    for parser in (Certificate.from_bytes, lambda d: read_events(d + b"\n", "events.jsonl")):
        try:
            parser(data)
        except (ReleaseError, ConfigError):
            continue


@SMALL
@given(seed=st.integers(0, 2**32), value=JSON)
def test_a_certificate_with_any_leaf_replaced_parses_strictly_or_is_refused(
        certificate: Certificate, seed: int, value: Any) -> None:
    document = certificate.to_dict()
    path = random.Random(seed).choice(leaves(document))
    data = changed(document, path, partial(put, value))
    assert "\n" not in refusal(lambda: Certificate.from_bytes(data).to_bytes())


@SMALL
@given(seed=st.integers(0, 2**32), value=JSON)
def test_an_event_with_any_field_replaced_parses_strictly_or_is_refused(seed: int, value: Any, release: Path) -> None:
    lines = (release / "events.jsonl").read_text().splitlines()
    rng = random.Random(seed)
    event = json.loads(rng.choice(lines))
    event[rng.choice([*event, "extra"])] = value
    words = refusal(lambda: read_events(json.dumps(event).encode() + b"\n", "events.jsonl"))
    assert words == "" or words.startswith("events.jsonl line 1: ")


@SMALL
@given(value=JSON)
def test_canonical_json_is_read_back_as_the_same_value_or_refused(value: Any) -> None:
    try:
        data = records.canonical(value)
    except ReleaseError:
        return
    assert records.canonical(records.parse(data, "x")) == data


def test_large_integers_and_infinities_cannot_be_written() -> None:
    for value in (2**60, math.inf, math.nan, "\ud800"):
        with pytest.raises(ReleaseError):
            records.canonical(value)
