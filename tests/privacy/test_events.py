"""Events are facts: they check themselves, survive JSON exactly, and never change."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.errors import ConfigError
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold, digest, from_dict, to_dict

EXAMPLES: list[Event] = [
    Gaussian("anchor", "marginals", 40.0, 2),
    SampledGaussian("dpsgd", "gradients", 1.2, 0.0625, 300),
    PureDP("select", "choice of tables", 0.02, 6),
    Threshold("survey", "frequent values", 25.0, 1e-7),
]
noises = st.floats(1e-3, 1e6)
repeats = st.integers(1, 10**6)
texts = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=20)
events = st.one_of(
    st.builds(Gaussian, texts, texts, noises, repeats),
    st.builds(SampledGaussian, texts, texts, noises, st.floats(1e-6, 1.0), repeats),
    st.builds(PureDP, texts, texts, noises, repeats),
    st.builds(Threshold, texts, texts, noises, st.floats(1e-12, 0.5)),
)


@settings(deadline=None, max_examples=60)
@given(events)
def test_an_event_survives_json_exactly_and_keeps_its_digest(event: Event) -> None:
    again = from_dict(json.loads(json.dumps(to_dict(event))))
    assert again == event
    assert type(again) is type(event)
    assert digest(again) == digest(event)


@pytest.mark.parametrize("event", EXAMPLES)
def test_an_event_cannot_be_changed(event: Event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.phase = "free"  # type: ignore[misc]


@pytest.mark.parametrize("event", EXAMPLES)
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "1", None, True, 10**400])
def test_every_number_of_an_event_refuses_what_is_not_a_positive_number(event: Event, bad: object) -> None:
    for name, value in to_dict(event).items():
        if isinstance(value, (int, float)):
            with pytest.raises(ConfigError, match=name):
                from_dict({**to_dict(event), name: bad})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 1.0}, "Gaussian.noise: no such key"),
        ({"noise_multiplyer": 1.0}, "did you mean 'noise_multiplier'"),
        ({"type": "Gausian"}, "did you mean 'Gaussian'"),
        ({"type": None}, "expected one of Gaussian"),
        ({"type": ["Gaussian"]}, "expected one of Gaussian"),
        ({"count": 1.5}, "count=1.5: expected a whole number"),
        ({"count": 10**10}, "expected at most"),
        ({"phase": ""}, "expected one line"),
        ({"what": "two\nlines"}, "expected one line"),
        ({"what": "\x1b[2Jepsilon = 0"}, "expected one line"),
        ({"what": "\ud800"}, "expected one line"),
        ({"what": "x" * 2000}, "expected one line"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_dict({**to_dict(EXAMPLES[0]), **change})
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SampledGaussian\.steps: missing"):
        from_dict({key: value for key, value in to_dict(EXAMPLES[1]).items() if key != "steps"})
    with pytest.raises(ConfigError, match="expected an object"):
        from_dict(["Gaussian"])  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [1.0000001, 2.0])
def test_a_sampling_rate_above_one_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sampling_rate"):
        SampledGaussian("dpsgd", "x", 1.0, rate, 10)


def test_a_delta_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta=1"):
        Threshold("survey", "x", 1.0, 1.0)


def test_whole_and_floating_numbers_of_equal_value_are_one_fact() -> None:
    assert digest(Gaussian("a", "x", 2)) == digest(Gaussian("a", "x", 2.0))


def test_any_changed_field_changes_the_digest() -> None:
    for event in EXAMPLES:
        for name, value in to_dict(event).items():
            if name != "type":
                other = {**to_dict(event), name: value + "!" if isinstance(value, str) else value * 0.5 if isinstance(
                    value, float) else value + 1}
                assert digest(from_dict(other)) != digest(event), name
