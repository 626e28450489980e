"""The public door: any trainer with one method is audited, and mistakes that are in no catalogue are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference_trainer import CLAIM, COLUMNS, Reference, canaries, rows

from dpvae.audit.replay import Claim, Person, StepRunner, audit_step
from dpvae.audit.runner import windows
from dpvae.audit.verdict import Battery
from dpvae.errors import ConfigError


def audited(kind: type[Reference], **options: Any) -> Battery:
    return audit_step(kind, CLAIM, rows(), **{"canaries": canaries(), "quick": True, **options})


def test_a_correct_trainer_passes_every_test() -> None:
    battery = audited(Reference, quick=False)
    assert battery.failed == ()
    assert set(battery.tests) == {"T1", "T2", "T3", "T4", "T5", "T6", "T7"}
    assert battery.left_out == ()


class Grey(Reference):
    """Shows its parameters and nothing else, and cannot be told a past."""

    def step(self) -> None:  # type: ignore[override]
        super().step()


def test_a_trainer_that_shows_only_its_parameters_is_audited_too() -> None:
    claim = Claim(**{**vars(CLAIM), "divisor": CLAIM.divisor / 0.5})
    battery = audit_step(Grey, claim, rows(), quick=True)
    assert battery.failed == ()
    assert {"T1", "T2", "T5", "T6"} <= set(battery.tests)
    assert any("T4" in text for text in battery.left_out)


class Shows(Reference):
    """Draws from a generator of its own, and shows sum, noise and batch."""

    generator = np.random.default_rng(5)

    def step(self) -> dict[str, Any]:  # type: ignore[override]
        taken = self.generator.random(len(self.rows)) < CLAIM.sampling_rate
        with np.errstate(all="ignore"):
            total = self.clipped(self.gradients(self.rows[taken])).sum(0)
        noise = self.generator.normal(size=total.size) * CLAIM.noise_multiplier * CLAIM.clip_norm
        return {"update": (total + noise) / CLAIM.divisor, "total": total, "noise": noise, "batch": taken}


def test_what_a_trainer_shows_of_itself_is_used_and_checked() -> None:
    class Lies(Shows):
        def step(self) -> dict[str, Any]:  # type: ignore[override]
            shown = super().step()
            return {**shown, "update": (shown["total"] + shown["noise"] / 2) / CLAIM.divisor}

    battery = audit_step(Lies, CLAIM, rows(), quick=True)
    assert "the update is the sum plus the noise that is shown" in {f.law for f in battery.failed}


# -- mistakes that no catalogue lists ------------------------------------------------------------------------------


class SumOfNorms(Reference):
    """Clips by the L1 norm's square root."""

    def clipped(self, gradients: Any) -> Any:
        return gradients / np.maximum(np.sqrt(np.abs(gradients).sum(1, keepdims=True)), 1.0) * CLAIM.clip_norm


class OnlyHugeOnes(Reference):
    """Clips what is above ten times C, by mistake of a unit."""

    def clipped(self, gradients: Any) -> Any:
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        return np.nan_to_num(np.where(norms > 10 * CLAIM.clip_norm, gradients / norms * CLAIM.clip_norm, gradients))


class CentredGradients(Reference):
    """Subtracts the batch's mean before clipping."""

    def gradients(self, batch: Any) -> Any:
        return batch - batch.mean(0) if len(batch) else batch


class NoiseOnEvenCoordinates(Reference):
    def noise(self, size: int) -> Any:
        return super().noise(size) * (np.arange(size) % 2 == 0) * 2**0.5


class MovingAverageNoise(Reference):
    """Correlated between steps: half of the last step's noise is reused."""

    def noise(self, size: int) -> Any:
        fresh = super().noise(size)
        kept, self.last = getattr(self, "last", fresh), fresh
        return (fresh + 0.5 * kept) / 1.25**0.5


class SortedNoise(Reference):
    def noise(self, size: int) -> Any:
        return np.sort(super().noise(size))


class NoiseTimesBatch(Reference):
    """Scales the noise with the batch that was drawn."""

    def noise(self, size: int) -> Any:
        return super().noise(size) * np.sqrt(self.coins().sum() / CLAIM.divisor)


class StickyCoins(Reference):
    """A record that was in stays in, half of the time."""

    def coins(self) -> Any:
        fresh = super().coins()
        again = self.key.stream("dpsgd", self.number, "stay").mask(len(self.rows), 0.5)
        before = getattr(self, "before", fresh)
        self.before = np.where(again, before, fresh)
        return self.before


class LargestFirst(Reference):
    """Takes the rows with the largest norm when the batch would be small."""

    def coins(self) -> Any:
        taken = super().coins()
        if taken.sum() < CLAIM.divisor and len(taken):
            taken = taken.copy()
            taken[np.argsort(-np.abs(np.nan_to_num(self.rows)).sum(1))[:2]] = True
        return taken


class PrivateDivisor(Reference):
    def divisor(self, batch: Any) -> float:
        return CLAIM.sampling_rate * len(self.rows)


class MedianImputation(Reference):
    """Fills NaN in with the column medians of the table."""

    def gradients(self, batch: Any) -> Any:
        middle = np.nanmedian(np.where(np.isfinite(self.rows), self.rows, np.nan), axis=0)
        return np.where(np.isfinite(batch), batch, middle) - 0.1 * middle


class StaleGradient(Reference):
    """Adds a tenth of the last step's clipped sum: every record counts again, undrawn."""

    def clipped(self, gradients: Any) -> Any:
        clipped = super().clipped(gradients)
        kept, self.kept = getattr(self, "kept", np.zeros((0, COLUMNS))), clipped
        return np.concatenate([clipped, 0.1 * kept])


class Leaves(Reference):
    """Says of itself how many rows there are."""

    def controls(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}


class OneStream(Reference):
    """Noise of two steps from one stream."""

    def noise(self, size: int) -> Any:
        stream = self.key.stream("dpsgd", self.number // 2, "noise")
        drawn = stream.normal(2 * size) * CLAIM.noise_multiplier * CLAIM.clip_norm
        return drawn[size * (self.number % 2):][:size]


class OneDirectionSpared(Reference):
    """Noise in fifty-nine of sixty directions."""

    def noise(self, size: int) -> Any:
        drawn, spared = super().noise(size), np.random.default_rng(8).normal(size=size)
        return drawn - spared * (drawn @ spared) / (spared @ spared)


class TailsCut(Reference):
    def noise(self, size: int) -> Any:
        most = 3.9 * CLAIM.noise_multiplier * CLAIM.clip_norm
        return np.clip(super().noise(size), -most, most)


class RateOnePerCentOff(Reference):
    def coins(self) -> Any:
        return self.key.stream("dpsgd", self.number, "mask").mask(len(self.rows), 1.01 * CLAIM.sampling_rate)


BLIND = (SumOfNorms, OnlyHugeOnes, CentredGradients, NoiseOnEvenCoordinates, MovingAverageNoise, SortedNoise,
         NoiseTimesBatch, StickyCoins, LargestFirst, PrivateDivisor, MedianImputation, StaleGradient, Leaves, OneStream,
         OneDirectionSpared, TailsCut, RateOnePerCentOff)


@pytest.mark.parametrize("kind", BLIND, ids=lambda kind: kind.__name__)
def test_a_mistake_that_no_catalogue_lists_is_seen(kind: type[Reference]) -> None:
    assert not audited(kind).passed


def test_adversarial_people_can_be_the_callers_own() -> None:
    class AfraidOfSeven(Reference):
        def clipped(self, gradients: Any) -> Any:
            clipped = super().clipped(gradients)
            return clipped * (100 if len(gradients) and (np.abs(gradients[:, 0] - 7) < 0.5).any() else 1)

    assert audited(AfraidOfSeven).passed
    seven = Person("seven", np.full(COLUMNS, 7.0))
    assert audited(AfraidOfSeven, people=[seven]).caught_by == ("T1",)


def test_a_claim_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier=0"):
        Claim(clip_norm=1.0, noise_multiplier=0.0, sampling_rate=0.1, steps=3)


def test_a_trainer_that_shows_nothing_is_refused() -> None:
    class Silent(Reference):
        def step(self) -> None:  # type: ignore[override]
            super().step()
            del self.parameters

        def __post_init__(self) -> None:
            super().__post_init__()
            del self.parameters

    with pytest.raises((TypeError, AttributeError), match="parameters"):
        audit_step(Silent, CLAIM, rows(), quick=True)


def test_the_steps_that_are_looked_at_are_the_first_some_in_the_middle_and_the_last() -> None:
    runner = StepRunner(Reference, CLAIM)
    assert windows(runner, CLAIM, 20) == [(0, 20)]  # it cannot start later than it starts
    runner.late = runner.tells = True
    assert windows(runner, CLAIM, 20) == [(0, 16), (36, 2), (58, 2)]
    assert windows(runner, CLAIM, 60) == [(0, 60)]
    for steps in range(8, 60):
        looked = [step for start, length in windows(runner, CLAIM, steps) for step in range(start, start + length)]
        assert len(set(looked)) == len(looked) == steps
        assert (looked[0], looked[-1]) == (0, CLAIM.steps - 1)
