"""Attacks on a table: nothing on a table drawn from the population, everything on one that is the members."""

from __future__ import annotations

import numpy as np
import pytest

from dpvae.audit import attacks
from dpvae.audit.attacks import Attacked, Rate


def population(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 6, rows)
    return np.stack([first, *((first + rng.integers(0, 4, rows)) % 6 for _ in range(7))], 1)


MEMBERS, CONTROL, OTHERS = population(300, 1), population(450, 2), population(300, 3)
STRANGE = np.random.default_rng(4).integers(0, 6, (30, 8))


@pytest.fixture(scope="module")
def honest() -> Attacked:
    return attacks.attack_release(MEMBERS, CONTROL, OTHERS, planted=(STRANGE[:15], STRANGE[15:]))


@pytest.fixture(scope="module")
def copied() -> Attacked:
    return attacks.attack_release(MEMBERS, CONTROL, np.concatenate([MEMBERS, STRANGE[:15]]),
                                  planted=(STRANGE[:15], STRANGE[15:]))


def test_a_table_of_other_people_gives_nobody_away(honest: Attacked) -> None:
    assert not any(risk.risk.low > 0 for risk in honest.risks)
    assert all(each.auc.low < 0.5 + 0.02 for each in honest.membership)
    assert max(each.epsilon for each in honest.membership) == 0


def test_a_table_that_is_its_members_gives_them_away(copied: Attacked) -> None:
    assert all(risk.risk.low > 0 for risk in copied.risks)
    assert copied.strongest.auc.low > 0.9
    assert max(each.epsilon for each in copied.membership) > 2
    assert copied.canaries.low > 0.5


def test_there_are_three_risks_and_at_least_five_membership_attacks(honest: Attacked) -> None:
    assert [risk.attack for risk in honest.risks] == ["singling out", "linkability", "inference"]
    assert len(honest.membership) >= 5


def test_the_distance_to_the_closest_record_carries_its_warning(honest: Attacked) -> None:
    assert "not evidence" in honest.warning
    assert attacks.to_dict(honest)["warning"] == honest.warning


def test_an_interval_of_a_rate_is_wilsons() -> None:
    rate = Rate.of(10, 100)
    assert (rate.low, rate.high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert Rate.of(0, 0) == Rate(0.0, 0.0, 1.0)
