"""The plan: what it promises is what its events cost, and nothing private can steer it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.config import TrainConfig, build
from dpvae.errors import AccountingError, ConfigError
from dpvae.privacy import plan as module
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Gaussian, PureDP, SampledGaussian, Threshold
from dpvae.privacy.plan import (
    CHOSEN_WHAT,
    WIDE,
    Plan,
    PublicFacts,
    check_delta,
    default_delta,
    make_plan,
)
from dpvae.privacy.table_plan import FEW, FOUND, SURVEY_WEIGHTS, TRIPLES, TableRule, split, survey_shares

STEPS = tuple(SURVEY_WEIGHTS)
TRAINERS = ("anchored", "decoder_only", "joint")


def plan(facts: PublicFacts, **groups: dict[str, Any]) -> Plan:
    return make_plan(build(TrainConfig, groups), facts, TableRule())


def facts(rows: int | None = 40_000, steps: tuple[str, ...] = (), target: bool = True,
          columns: int = 15) -> PublicFacts:
    return PublicFacts(columns=columns, survey_steps=steps, rows=rows, has_target=target)


@settings(max_examples=40)
@given(st.sampled_from(TRAINERS), st.sets(st.sampled_from(STEPS)), st.booleans(), st.integers(1, 200),
       st.floats(0.01, 1.0))
def test_shares_are_positive_and_add_up_to_one(trainer: str, steps: set[str], target: bool, columns: int,
                                               anchor: float) -> None:
    config = build(TrainConfig, {"trainer": {"name": trainer, "anchor_share": anchor}})
    shares = split(config.trainer, facts(steps=tuple(s for s in STEPS if s in steps), target=target, columns=columns),
                   epsilon=1.0)
    assert math.isclose(sum(shares.values()), 1.0)
    assert min(shares.values()) > 0


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("steps", [(), ("bins",), STEPS])
def test_a_plan_costs_its_target_and_not_more(trainer: str, epsilon: float, steps: tuple[str, ...]) -> None:
    made = plan(facts(steps=steps), privacy={"epsilon": epsilon, "delta": 1e-5}, trainer={"name": trainer})
    spent = price(made.events(), delta=1e-5).upper
    assert made.epsilon is not None
    assert 0.99 * epsilon <= spent <= epsilon
    assert spent == made.epsilon.upper


def test_squared_signals_of_a_plan_without_dpsgd_add_up_to_one_gaussian() -> None:
    made = plan(facts(), trainer={"anchor_share": 1.0}, privacy={"delta": 1e-5})
    events = made.events()
    assert all(isinstance(event, Gaussian) for event in events)
    signal = math.sqrt(sum(event.count / event.noise_multiplier**2 for event in events if isinstance(event, Gaussian)))
    at_once = price([Gaussian("x", "all at once", 1 / signal)], delta=1e-5)
    assert at_once.upper == pytest.approx(price(events, delta=1e-5).upper, rel=1e-3)
    for event, (_, share) in zip(events, made.shares.items(), strict=True):
        assert isinstance(event, Gaussian)
        assert event.count / event.noise_multiplier**2 == pytest.approx(share * signal**2)


def test_a_plan_with_five_percent_less_noise_would_break_its_promise() -> None:
    """The mutant: scale every noise down a little, and the price is over the target."""
    made = plan(facts(), privacy={"epsilon": 1.0, "delta": 1e-5})

    def quieter(event: Any) -> Any:
        if isinstance(event, PureDP):
            return PureDP(event.phase, event.what, event.epsilon / 0.95, event.count)
        return type(event)(**{**vars(event), "noise_multiplier": event.noise_multiplier * 0.95})

    assert price([quieter(event) for event in made.events()], delta=1e-5).upper > 1.0


def test_the_threshold_pays_with_a_twentieth_of_delta() -> None:
    made = plan(facts(steps=("values",)), privacy={"delta": 1e-5})
    (threshold,) = [event for event in made.events() if isinstance(event, Threshold)]
    assert threshold.delta == pytest.approx(5e-7)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_drawn_grows_with_every_step_up_to_the_whole_plan(trainer: str) -> None:
    made = plan(facts(), trainer={"name": trainer}, privacy={"delta": 1e-5})
    assert made.sgd is not None
    costs = [price(made.events_until(done, number), delta=1e-5).upper
             for done, number in ((0, 0), (1, 1), (made.sgd.steps // 2, 2), (made.sgd.steps, made.metric_releases))]
    assert costs == sorted(costs)
    assert made.events_until(made.sgd.steps, made.metric_releases) == made.events()


def test_steps_and_rate_follow_from_public_rows_or_from_nothing() -> None:
    known, unknown = plan(facts(rows=100_000)).sgd, plan(facts(rows=None, steps=("rows",))).sgd
    assert known is not None
    assert unknown is not None
    assert known.sampling_rate == unknown.sampling_rate == 1 / 16
    assert known.steps == unknown.steps
    small = plan(facts(rows=1000)).sgd
    assert small is not None
    assert small.sampling_rate == 0.25


def test_a_wide_table_gets_a_latent_code_and_a_narrow_one_all_pairs_and_the_plan_says_why() -> None:
    narrow, wide = plan(facts(columns=WIDE)), plan(facts(columns=WIDE + 1))
    assert narrow.latent is None
    assert wide.latent is not None
    assert wide.sgd is None
    assert set(wide.anchor_noise) == {"one-way"}
    assert "route all pairs: 60 columns, 40,000 rows, epsilon 1" in str(narrow)
    assert "route latent code (64 codes, 14 directions): 61 columns, 40,000 rows, epsilon 1" in str(wide)
    assert price(wide.events(), delta=wide.delta).upper <= 1.0


@pytest.mark.parametrize(("epsilon", "public", "groups"), [
    (1.0, {}, 3), (0.5, {}, 2), (10.0, {}, 4), (1.0, {"rows": 1000}, 0), (1.0, {"columns": TRIPLES, "rows": 90_000}, 4),
    (10.0, {"columns": TRIPLES + 1}, 0), (10.0, {"columns": FEW - 1}, 0), (10.0, {"target": False}, 0)])
def test_three_columns_are_counted_by_the_target_where_a_cell_holds_more_than_its_noise(
        epsilon: float, public: dict[str, Any], groups: int) -> None:
    made = plan(facts(**public), privacy={"epsilon": epsilon, "delta": 1e-5})
    assert made.groups == groups
    asked = [event.what for event in made.events() if isinstance(event, Gaussian) and event.phase == "anchor"]
    assert ("noisy triples tables" in asked) == (groups > 0)
    assert (f"triples over {groups} groups" in str(made)) == (groups > 0)
    if groups:
        sd = made.anchor_noise["triples"] * math.sqrt(math.comb(made.facts.columns - 1, 3))
        assert made.expected_noise()["anchor/triples"] == pytest.approx(sd)
        assert made.rows / (2 * groups**3) > 1.5 * sd


@pytest.mark.parametrize(("epsilon", "public"), [(1.0, {}), (10.0, {}), (1.0, {"columns": TRIPLES, "rows": 90_000})])
def test_half_of_what_pairs_get_is_for_counting_them_once_more_without_the_target(
        epsilon: float, public: dict[str, Any]) -> None:
    made = plan(facts(**public), privacy={"epsilon": epsilon, "delta": 1e-5})
    anchors = {name: share for name, share in made.shares.items() if name.startswith("anchor/")}
    both = anchors["anchor/pairs"] + anchors["anchor/whole-pairs"]
    assert anchors["anchor/pairs"] == pytest.approx(both / 2)
    assert both == pytest.approx(0.8 * (sum(anchors.values()) - anchors["anchor/triples"]), rel=0.01)
    assert made.expected_noise()["anchor/whole-pairs"] == pytest.approx(
        made.anchor_noise["whole-pairs"] * math.sqrt(math.comb(made.facts.columns - 1, 2)))
    assert Gaussian("anchor", "noisy whole-pairs tables", made.anchor_noise["whole-pairs"]) in made.events()


@pytest.mark.parametrize("public", [{"rows": 1000}, {"columns": TRIPLES + 1}, {"columns": FEW - 1}, {"target": False}])
def test_pairs_are_counted_once_where_no_triples_hold_what_they_would_lose_of_the_target(
        public: dict[str, Any]) -> None:
    assert "whole-pairs" not in plan(facts(**public), privacy={"delta": 1e-5}).anchor_noise


@pytest.mark.parametrize("groups", [{"trainer": {"anchor_share": 0.9}}, {"trainer": {"name": "joint"}},
                                    {"model": {"layers": 1}}])
def test_who_asks_for_another_way_gets_it_on_a_wide_table_too(groups: dict[str, Any]) -> None:
    assert plan(facts(columns=200), **groups).latent is None


def test_interactions_are_asked_about_from_five_columns_on() -> None:
    assert plan(facts(columns=4)).interactions is None
    asked = plan(facts(columns=5)).interactions
    assert asked is not None
    assert [event for event in plan(facts(columns=5)).events() if isinstance(event, PureDP)] == [
        PureDP("interactions", CHOSEN_WHAT, asked.epsilon, FOUND)]


def test_the_anchors_of_a_narrow_table_keep_their_share_beside_interactions() -> None:
    with_them, without = (split(build(TrainConfig, {}).trainer, facts(columns=columns), 1.0) for columns in (5, 4))
    assert {k: v for k, v in with_them.items() if k.startswith("anchor")} == {
        k: v for k, v in without.items() if k.startswith("anchor")}


def test_dpsgd_gets_the_share_the_plan_names() -> None:
    events = plan(facts(), trainer={"name": "joint"}).events()
    (sampled,) = [event for event in events if isinstance(event, SampledGaussian)]
    assert sampled.steps == 400
    assert sampled.noise_multiplier > 0


@given(st.integers(2, 10**10))
def test_the_default_delta_is_below_one_over_the_rows(rows: int) -> None:
    assert 0 < default_delta(rows) < 1 / rows


@pytest.mark.parametrize("rows", [100, 40_000])
def test_a_delta_that_would_allow_publishing_a_row_is_refused(rows: int) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        plan(facts(rows=rows), privacy={"delta": 1 / rows})


def test_a_survey_and_metrics_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="survey_share"):
        plan(facts(steps=("bins",)), trainer={"survey_share": 0.995, "metric_share": 0.01})


def test_the_printed_plan_names_every_release_and_says_that_nothing_was_opened() -> None:
    text = str(plan(facts(steps=("bins",))))
    assert all(name in text for name in ("survey/bins", "anchor/pairs", "metric/elbo", "dpsgd", "sampling rate"))
    assert "Nothing was opened" in text


@settings(max_examples=12)
@given(st.sampled_from(TRAINERS), st.sets(st.sampled_from(STEPS)), st.booleans(), st.integers(1, 120),
       st.one_of(st.none(), st.integers(200, 10**7)), st.floats(-2, 1.2), st.floats(-9.5, -7.5), st.floats(0.01, 1.0),
       st.sampled_from(["add_remove", "replace_one"]))
def test_no_plan_ever_costs_more_than_its_target(
    trainer: str, steps: set[str], target: bool, columns: int, rows: int | None, epsilon: float, delta: float,
    anchor: float, relation: str,
) -> None:
    asked = {"epsilon": 10**epsilon, "delta": 10**delta, "neighbouring": relation}
    try:
        made = plan(facts(rows, tuple(s for s in STEPS if s in steps), target, columns), privacy=asked,
                    trainer={"name": trainer, "anchor_share": anchor})
    except ConfigError:
        return
    assert price(made.events(), delta=10**delta, neighbouring=relation).upper <= 10**epsilon


def test_a_search_that_returns_too_little_noise_is_refused_by_the_plan_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """opacus#346: a bisection that returned a sigma with epsilon above the target."""
    real = module.calibrate
    monkeypatch.setattr(module, "calibrate", lambda *args, **kwargs: 1.01 * real(*args, **kwargs))
    with pytest.raises(AccountingError, match=r"privacy\.epsilon=1: the plan costs"):
        plan(facts(), privacy={"epsilon": 1.0, "delta": 1e-5})


def test_a_delta_is_held_against_a_counted_number_of_rows_as_against_a_declared_one() -> None:
    check_delta(1e-6, 999_000.0)
    with pytest.raises(ConfigError, match=r"less than 1/rows = 9\.99e-07; .* \(x\)\. Try privacy\.delta=2\.5e"):
        check_delta(1e-6, 1_001_000.0, " (x)")


@pytest.mark.parametrize(("rows", "epsilon", "share"), [(40_000, 1.0, 0.14), (3000, 1.0, 0.12), (569, 1.0, 0.53),
                                                        (178, 1.0, 0.60), (178, 10.0, 0.13), (None, 1.0, 0.164)])
def test_the_survey_of_few_rows_gets_what_it_takes_to_see_them(rows: int | None, epsilon: float, share: float) -> None:
    shares = survey_shares(build(TrainConfig, {}).trainer, facts(rows=rows, steps=STEPS[1:], columns=30), epsilon)
    assert sum(shares.values()) == pytest.approx(share, abs=0.006)


def test_a_share_that_was_asked_for_stays_as_it_is() -> None:
    trainer = build(TrainConfig, {"trainer": {"survey_share": 0.2}}).trainer
    assert sum(survey_shares(trainer, facts(rows=178, steps=STEPS), 1.0).values()) == pytest.approx(0.2)


def test_a_plan_says_when_there_are_too_few_rows_to_see_columns() -> None:
    text = str(plan(facts(rows=150, columns=30, steps=STEPS[1:])))
    assert "the kind and the range of many columns will be guessed" in " ".join(text.split())
    assert "guessed" not in str(plan(facts(rows=4000, columns=30, steps=STEPS[1:])))
    assert "guessed" not in str(plan(facts(rows=150, columns=30)))
