"""Faults of the books: what was measured, drawn or resumed, and what the ledger and the accountants know of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from dpvae.audit.mutants.base import ANY, Mutant, Patch, whole
from dpvae.privacy import accountant, mechanisms, plan
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor, image_anchors, interactions, ngrams
from dpvae.train import run as run_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.trainer import Trainer


def _events(patch: Patch, change: Callable[[Event], Event | None]) -> None:
    real = getattr(plan, "_events")  # noqa: B009

    def fewer(planned: Any) -> tuple[Event, ...]:
        return tuple(e for e in map(change, real(planned)) if e is not None)

    patch.set(plan, "_events", fewer)


@whole("every second step of DP-SGD is booked", ANY)
def books_every_second_step(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, steps=max(e.steps // 2, 1)) if isinstance(e, SampledGaussian)
            else e)


@whole("DP-SGD is booked with half as much noise again as it adds", ANY)
def books_a_larger_noise(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, noise_multiplier=1.5 * e.noise_multiplier)
            if isinstance(e, SampledGaussian) else e)


@whole("one noisy ELBO less is booked than is released", ANY)
def forgets_an_elbo(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, count=e.count - 1)
            if isinstance(e, Gaussian) and e.phase == "metric" and e.count > 1 else e)


@whole("the counts get half of the noise that is booked")
def books_more_noise_than_it_adds(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], tables: Any, *, noise_multiplier: float, phase: str, what: str,
                **rest: Any) -> Any:
        noisy, _ = real(tables, noise_multiplier=noise_multiplier / 2, phase=phase, what=what, **rest)
        return noisy, Gaussian(phase, what, noise_multiplier)

    patch.wrap(anchor, "noisy_counts", quieter)


@whole("sums of images and of texts get half of the noise that is booked", ("images", "text"))
def quiet_sums(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], *args: Any, noise_multiplier: float, phase: str, what: str,
                **rest: Any) -> Any:
        *found, _ = real(*args, noise_multiplier=noise_multiplier / 2, phase=phase, what=what, **rest)
        return (*found, Gaussian(phase, what, noise_multiplier))

    patch.wrap(image_anchors, "noisy_products", quieter)
    patch.wrap(ngrams, "noisy_sparse_sums", quieter)


@whole("private choices get half of the noise that is booked", trainers=("anchored",))
def quiet_choices(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], blocks: Any, *, epsilon: float, phase: str, what: str, choices: int,
                **rest: Any) -> Any:
        found, _ = real(blocks, epsilon=2 * epsilon, phase=phase, what=what, choices=choices, **rest)
        return found, PureDP(phase, what, epsilon, choices)

    patch.wrap(interactions, "noisy_choice", quieter)


@whole("all candidates of a private choice get the same noise, so the best is named", trainers=("anchored",))
def choices_share_their_noise(patch: Patch) -> None:
    def shared(real: Callable[..., Any], blocks: Any, **rest: Any) -> Any:
        scores = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])
        _, event = real([scores], **rest)
        return np.argsort(-scores)[:rest["choices"]].tolist(), event

    patch.wrap(interactions, "noisy_choice", shared)


@whole("something else is measured along the way")
def measures_once_more(patch: Patch) -> None:
    def twice(real: Callable[..., Any], *args: Any, key: Any, **kwargs: Any) -> Any:
        mechanisms.noisy_counts([np.array([len(args[0])])], noise_multiplier=1.0, stream=key.stream("anchor", "peek"),
                                phase="anchor", what="peek")
        return real(*args, key=key, **kwargs)

    patch.wrap(anchor, "measure", twice)


@whole("the ledger is written when all is done", ANY)
def books_afterwards(patch: Patch) -> None:
    real = Ledger.reserve_all

    def reserve(self: Ledger, asks: Any, **rest: Any) -> Any:
        from dpvae.privacy.ledger import Reservation

        self.asks = (asks, rest)  # type: ignore[attr-defined]
        return [Reservation(1, ask.dataset, ask.run, ask.events) for ask in asks]

    def commit(wait: Callable[..., None], self: Ledger, reservation: Any) -> None:
        asks, rest = self.asks  # type: ignore[attr-defined]
        wait(self, real(self, asks, **rest)[0])

    patch.set(Ledger, "reserve_all", reserve)
    patch.wrap(Ledger, "commit", commit)


@whole("a second run on the same data takes the first one's booking", ANY)
def sweep_not_booked(patch: Patch) -> None:
    def reserve(real: Callable[..., Any], self: Ledger, asks: Any, **rest: Any) -> Any:
        from dpvae.privacy.ledger import Reservation

        held = [row for row in self.rows() if row.kind == "reserve" and row.dataset == asks[0].dataset]
        if held and held[0].run != asks[0].run:
            return [Reservation(held[0].seq, held[0].dataset, held[0].run, asks[0].events)]
        return real(self, asks, **rest)

    patch.wrap(Ledger, "reserve_all", reserve)


@whole("a resumed run starts DP-SGD from its first step, with fresh noise")
def resume_draws_anew(patch: Patch) -> None:
    def restore(real: Callable[..., Any], self: Trainer) -> Any:
        state, saved = real(self)
        if saved:
            nonce = os.urandom(8)
            object.__setattr__(self, "key", SecretKey.from_bytes(bytes.fromhex(self.key.tag(nonce))))
        return state, saved

    patch.wrap(Trainer, "_restore", restore)


@whole("a resumed run forgets the steps that were made since the checkpoint")
def resume_forgets_steps(patch: Patch) -> None:
    def restore(real: Callable[..., Any], self: Trainer) -> Any:
        state, saved = real(self)
        if saved and self.plan.sgd is not None:
            state.step = min(state.step + 1, self.plan.sgd.steps)
        return state, saved

    patch.wrap(Trainer, "_restore", restore)


@whole("a resumed run is booked once more, under another name")
def resume_books_twice(patch: Patch) -> None:
    real = run_module.RunFolder.record

    def record(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = real.fget(self)  # type: ignore[attr-defined]
        return {**found, "ledger_run": f"{found['ledger_run']}-{len(list(self.private.iterdir()))}"}

    patch.set(run_module.RunFolder, "record", property(record))


@whole("the DP-SGD loop runs three steps more than were planned")
def a_few_steps_more(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        if number == 0:
            real(self, 10_000, rate_factor)

    patch.wrap(PrivateSteps, "step", step)


@whole("the accountants see a quarter of the steps and half of the statistics' price", ANY)
def everything_at_half_price(patch: Patch) -> None:
    def cheaper(event: Event) -> Event:
        if isinstance(event, SampledGaussian):
            return dataclasses.replace(event, steps=max(event.steps // 4, 1))
        return dataclasses.replace(event, noise_multiplier=2 * event.noise_multiplier) if isinstance(
            event, Gaussian) else event

    patch.wrap(accountant, "merge", lambda real, events, *rest: real([cheaper(event) for event in events], *rest))


@whole("a run that was stopped goes on with any rows", ANY)
def resume_takes_any_rows(patch: Patch) -> None:
    patch.set(run_module.RunFolder, "bind_data", lambda self, content, declared: None)
    patch.set(patch.program, "content_tag", lambda *rest: "0" * 64)


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
