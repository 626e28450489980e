"""The plan of images: shares of one budget, from public facts alone, and never more than epsilon."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpvae.config import ModelConfig, PrivacyConfig, TrainConfig, TrainerConfig
from dpvae.errors import ConfigError
from dpvae.modalities.images import Public
from dpvae.privacy.accountant import price
from dpvae.privacy.image_plan import BATCH, ImageRule
from dpvae.privacy.plan import default_delta


def config(epsilon: float = 1.0, **trainer: object) -> TrainConfig:
    return TrainConfig(trainer=TrainerConfig(**trainer), privacy=PrivacyConfig(epsilon=epsilon, delta=1e-5))


def facts(rows: int | None, classes: tuple[str, ...] = ("0", "1")) -> Public:
    return Public((1, 28, 28), rows, classes)


@pytest.mark.parametrize("rows", [None, 500, 7_000, 60_000])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("trainer", ["anchored", "joint"])
def test_the_shares_of_a_budget_add_up_to_one(rows: int | None, epsilon: float, trainer: str) -> None:
    draft = ImageRule(28).draft(config(epsilon, name=trainer), facts(rows).facts, default_delta(rows))
    assert sum(draft.shares.values()) == pytest.approx(1.0)
    assert min(draft.shares.values()) > 0


@pytest.mark.parametrize(("rows", "classes"), [(60_000, ()), (None, ("a", "b"))])
def test_a_plan_costs_at_most_its_epsilon_and_a_batch_is_what_the_rule_says(rows: int | None,
                                                                            classes: tuple[str, ...]) -> None:
    plan = facts(rows, classes).plan(config())
    assert price(plan.events(), delta=1e-5, neighbouring="add_remove").upper <= 1.0
    assert plan.sgd is not None
    assert plan.sgd.sampling_rate * plan.rows == pytest.approx(BATCH)
    assert ("values" in plan.survey_noise) is not bool(classes)


def test_few_images_are_measured_and_not_trained_on() -> None:
    assert "dpsgd" not in ImageRule(28).draft(config(), facts(1797).facts, 1e-5).shares
    assert "dpsgd" in ImageRule(28).draft(config(), facts(7_000).facts, 1e-5).shares
    assert "dpsgd" in ImageRule(28).draft(config(3.0), facts(1797).facts, 1e-5).shares


def test_clusters_have_shapes_of_their_own_where_there_is_much_signal() -> None:
    shaped = [(rows, epsilon) for rows in (7_500, 60_000) for epsilon in (1.0, 3.0, 10.0)
              if "anchor/shape" in ImageRule(28).draft(config(epsilon), facts(rows).facts, 1e-5).shares]
    assert shaped == [(60_000, 3.0), (60_000, 10.0)]


@pytest.mark.parametrize(("side", "posed"), [(8, False), (15, False), (16, True), (28, True)])
def test_poses_are_measured_of_images_that_can_be_redrawn(side: int, posed: bool) -> None:
    shares = ImageRule(side).draft(config(), facts(60_000).facts, 1e-5).shares
    assert ("anchor/pose" in shares) is posed
    assert sum(shares.values()) == pytest.approx(1.0)
    assert "anchor/pose" not in ImageRule(side).draft(config(name="joint"), facts(60_000).facts, 1e-5).shares


@pytest.mark.parametrize(("trainer", "says"), [
    ({"name": "decoder_only"}, "expected trainer=anchored or trainer=joint"),
    ({"name": "joint", "anchor_share": 0.5}, "measures nothing but the classes"),
    ({"survey_share": 0.0}, "a share for the counts of the classes"),
    ({"survey_share": 1.0}, "a sum below 1"),
])
def test_what_no_plan_can_follow_is_refused(trainer: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ImageRule(28).draft(config(**trainer), facts(1000).facts, 1e-5)


@pytest.mark.parametrize("trainer", ["anchored", "joint"])
def test_a_knob_that_images_have_no_use_for_is_refused_and_not_ignored(trainer: str) -> None:
    asked = replace(config(name=trainer), model=ModelConfig(layers=2))
    with pytest.raises(ConfigError, match=r"model\.layers=2: the decoder of images is three convolutions"):
        ImageRule(28).draft(asked, facts(1000).facts, 1e-5)
