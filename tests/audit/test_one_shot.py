"""The law of private choices, as an audit asks for it: closed form, correct mechanism, broken ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpvae.audit.choices import places_of
from dpvae.audit.instruments import Release
from dpvae.audit.one_shot import one_shot
from dpvae.audit.verdict import Finding
from dpvae.privacy import mechanisms
from dpvae.privacy.events import Gaussian, PureDP, Threshold
from dpvae.privacy.noise import SecretKey

PHASE, WHAT, EPSILON, CHOICES = "interactions", "a choice", 0.5, 3
SCORES = [np.linspace(0.0, 30.0, 20), np.array([31.0, -7.0])]


def chosen(again: Any = mechanisms.noisy_choice, *, moved: float = 1.0, booked: int = CHOICES) -> dict[str, Finding]:
    """What is found of one run that chose ``CHOICES`` by ``again``; one person more moves scores by ``moved``."""
    settings: dict[str, Any] = {"choices": CHOICES, "epsilon": EPSILON, "phase": PHASE, "what": WHAT}
    call = Release("noisy_choice", (SCORES,), settings, ([0] * CHOICES, None), ("interactions", "choice"), again)
    more = Release("noisy_choice", ([SCORES[0] + moved, SCORES[1]],), settings, ([0], None), call.names, again)
    found, left_out = one_shot([call], {"a newcomer": [more]}, [PureDP(PHASE, WHAT, EPSILON, booked)])
    assert left_out == []
    return {finding.law: finding for finding in found}


def test_the_place_of_a_winner_is_its_share_of_the_law() -> None:
    logits = np.array([0.0, math.log(3.0), -math.inf])  # chances 1/4, 3/4, 0
    first, second, rest = places_of(logits, [[1], [0], [1, 0]], seed=0)[0][[0, 1, 3]]
    assert 0 <= first <= 0.75 <= second <= 1
    assert 0 <= rest <= 1  # the only one that is left: anywhere
    assert places_of(logits, [[]], seed=0)[0].shape == (0,)


def test_a_choice_by_the_exponential_mechanism_passes() -> None:
    assert {law: finding.p for law, finding in chosen().items() if finding.p < 0.01} == {}


@pytest.mark.parametrize(("factor", "worst"), [(1.5, 1e-6), (2.0, 1e-9), (0.5, 1e-9)])
def test_another_scale_of_noise_than_the_booked_one_is_found(factor: float, worst: float) -> None:
    """Less noise is a broken promise; more is not what the ledger says either."""
    def scaled(blocks: Any, *, epsilon: float, **rest: Any) -> Any:
        return mechanisms.noisy_choice(blocks, epsilon=factor * epsilon, **rest)

    assert chosen(scaled)["so it has for any scores"].p <= worst


def test_noise_that_all_candidates_share_names_the_best_and_is_found() -> None:
    def best(blocks: Any, *, choices: int, stream: Any, **rest: Any) -> Any:
        stream.uniform(1)
        return np.argsort(-np.concatenate(blocks))[:choices].tolist(), None

    assert chosen(best)["its noise has the law that the ledger priced"].p < 1e-9


def test_a_score_that_moves_by_two_and_a_choice_too_many_are_found() -> None:
    assert chosen(booked=CHOICES - 1)["no more is chosen than was booked"].p == 0
    law = "one record moves no score by more than its noise was set for"
    assert [chosen(moved=moved)[law].p for moved in (1.0, 2.0, math.nan)] == [1, 0, 0]


# -- counts ----------------------------------------------------------------------------------------------------------


def counted(again: Any = mechanisms.noisy_counts) -> dict[str, Finding]:
    """What is found of one run that counted two full tables by ``again``: none of their cells happens to be empty."""
    settings: dict[str, Any] = {"noise_multiplier": 5.0, "phase": "anchor", "what": "noisy tables"}
    tables = [np.arange(1, 41), np.arange(1, 31).reshape(5, 6)]
    real, _ = mechanisms.noisy_counts(tables, stream=SecretKey.from_seed(0).stream("anchor", "pairs"), **settings)
    call = Release("noisy_counts", (tables,), settings, (real, None), ("anchor", "pairs"), again)
    found, left_out = one_shot([call], {}, [Gaussian("anchor", "noisy tables", 5.0)])
    assert left_out == []
    return {finding.law: finding for finding in found}


def test_cells_that_would_stay_empty_are_found_where_none_is_empty() -> None:
    def skip(tables: Any, **rest: Any) -> Any:
        noisy, event = mechanisms.noisy_counts(tables, **rest)
        return [np.where(table == 0, 0, found) for table, found in zip(tables, noisy, strict=True)], event

    assert {law for law, finding in counted().items() if finding.p < 1e-4} == set()
    assert {law for law, finding in counted(skip).items() if finding.p < 1e-4} == {
        "an empty cell has the noise of any other"}


# -- thresholds ------------------------------------------------------------------------------------------------------


def published(again: Any = mechanisms.frequent_values, floor: float = 0) -> dict[str, Finding]:
    """What is found of one run that published the frequent values of two columns by ``again``."""
    settings: dict[str, Any] = {"noise_multiplier": 2.0, "delta": 1e-6, "phase": "survey", "what": "values",
                                "floor": floor}
    held = [{"a": 70, "b": 1}, {"x": 71}]
    call = Release("frequent_values", (held,), settings, ([{}, {}], None), ("survey", "values"), again)
    found, left_out = one_shot([call], {}, [Threshold("survey", "values", 2.0, 1e-6)])
    assert left_out == []
    return {finding.law: finding for finding in found}


@pytest.mark.parametrize("floor", [0, 200])
def test_a_threshold_that_is_public_passes_wherever_it_is(floor: float) -> None:
    assert {law for law, finding in published(floor=floor).items() if finding.p < 1e-4} == set()


@pytest.mark.parametrize("share", [0.1, 0.001])
def test_a_threshold_that_follows_the_rows_is_found(share: float) -> None:
    def adaptive(histograms: Any, *, floor: float, **rest: Any) -> Any:
        rows = max(sum(histogram.values()) for histogram in histograms)
        return mechanisms.frequent_values(histograms, floor=max(floor, share * rows), **rest)

    assert published(adaptive)["a value is published by its own count alone"].p == 0


HELD = [{"a": 5000, "b": 4000, "alone": 1}, {"c": 9000, "d": 900}]


def shared(again: Any = mechanisms.frequent_values) -> dict[str, Finding]:
    """What is found of one look at the values of two columns that have shares of their own."""
    settings: dict[str, Any] = {"noise_multiplier": 8.0, "delta": 1e-6, "shares": [0.9, 0.1], "phase": "survey",
                                "what": "rarer values"}
    more = [{**HELD[0], "new": 1}, {**HELD[1], "c": 9001}]
    calls = [Release("frequent_values", (held,), settings, ([{}, {}], None), ("survey", "rare"), again)
             for held in (HELD, more)]
    found, _ = one_shot(calls[:1], {"a newcomer": calls[1:]}, [Threshold("survey", "rarer values", 8.0, 1e-6)])
    return {finding.law: finding for finding in found}


def test_shares_that_follow_the_rows_are_found() -> None:
    settings: dict[str, Any] = {"noise_multiplier": 8.0, "delta": 1e-6, "phase": "survey", "what": "rarer values"}
    run, other = (Release("frequent_values", (HELD,), settings | {"shares": [share, 1 - share]}, ([{}, {}], None),
                          ("survey", "rare"), mechanisms.frequent_values) for share in (0.9, 0.899))
    found, _ = one_shot([run], {"a newcomer": [other]}, [Threshold("survey", "rarer values", 8.0, 1e-6)])
    assert {f.p for f in found if f.law == "its scale and its price do not depend on the rows"} == {0}


def test_values_of_columns_with_shares_of_their_own_pass_and_others_than_stated_are_found() -> None:
    """The mutants: shares that are asked for and not kept to, and half of the noise."""
    assert {law: finding.p for law, finding in shared().items() if finding.p < 0.001} == {}

    def equal(histograms: Any, *, shares: Any, **rest: Any) -> Any:
        return mechanisms.frequent_values(histograms, **rest)

    def greedy(histograms: Any, *, shares: Any, noise_multiplier: float, **rest: Any) -> Any:
        return mechanisms.frequent_values(histograms, noise_multiplier=noise_multiplier / 2, shares=shares, **rest)

    assert shared(equal)["every value gets noise of that scale"].p == 0
    assert shared(greedy)["its noise has the scale that the ledger priced"].p < 1e-9
