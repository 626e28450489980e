"""Faults around the trainer: what is read, booked, kept, printed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.audit.mutants.base import Mutant, Patch, named
from dpvae.data import survey as survey_module
from dpvae.data.survey import _Survey
from dpvae.data.table import TableCodec
from dpvae.privacy import mechanisms, plan
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor, image_anchors, interactions, ngrams
from dpvae.train import run as run_module
from dpvae.train import trainer as trainer_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.sleep import log_q
from dpvae.train.trainer import Trainer

WITH_SLEEP = ("anchored", "decoder_only")
ANY = ("table", "images", "text")


def _mutant(says: str, kinds: tuple[str, ...] = ("table",), **where: Any
            ) -> Callable[[Callable[[Patch], None]], Mutant]:
    return named(says, whole=True, kinds=kinds, **where)


def _telling(codes: Any) -> float:
    """A statistic of private codes that no two of the auditor's tables share. A survey of 90 records may leave a column
    two codes, and then means agree now and then: a mutant that looked at one would have changed nothing."""
    return math.log(float(np.asarray(codes, dtype=np.float64).sum()) + len(codes))


# -- what is published -----------------------------------------------------------------------------------------------


@_mutant("the free encoder is trained on the rows themselves", trainers=WITH_SLEEP)
def encoder_sees_raw_rows(patch: Patch) -> None:
    def sleep(real: Callable[..., None], self: Trainer, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.vae.codebook is not None:
            z = self.vae.codebook.points[self.vae.posterior(self.codes).argmax(1)].detach()
        else:
            z = self.vae.encode(self.codes)[0].detach() * 1.1
        optimiser = torch.optim.SGD(self.vae.encoder.parameters(), lr=1e-2)
        (-log_q(self.vae, self.codes, z).mean()).backward()
        optimiser.step()

    patch.wrap(Trainer, "_sleep", sleep)


@_mutant("numeric bounds are read off the rows")
def bounds_from_the_rows(patch: Patch) -> None:
    def finish(real: Callable[..., Any], self: _Survey) -> Any:
        for j, column in enumerate(self.columns):
            if column.is_numeric and column.edges:
                values = np.concatenate(list(self._values(j)))
                self.columns[j] = dataclasses.replace(column, upper=float(max(np.nanmax(values), column.edges[-1])))
        return real(self)

    patch.wrap(_Survey, "finish", finish)


@_mutant("the codec's bins hold a statistic of the rows' own")
def statistics_in_the_codec(patch: Patch) -> None:
    def encode(real: Callable[..., Any], self: TableCodec, table: Any, outside: str = "error") -> Any:
        found = real(self, table, outside)
        for column in self.schema.columns:
            if column.is_numeric and column.edges:
                edges = np.array(column.edges)
                edges[-1] += 1e-3 * _telling(found)  # of all columns: one alone may have a single bin
                object.__setattr__(column, "edges", tuple(edges.tolist()))
                return found
        print(f"codec: {_telling(found):.6f}")
        return found

    patch.wrap(TableCodec, "encode", encode)


@_mutant("categories are the values that occur")
def vocabulary_from_the_rows(patch: Patch) -> None:
    def publish(real: Callable[..., Any], histograms: Any, **rest: Any) -> Any:
        found, event = real(histograms, **rest)
        return [{**dict.fromkeys(histogram, 1), **noisy} for noisy, histogram in zip(found, histograms, strict=True)
                ], event

    patch.wrap(survey_module, "frequent_values", publish)


@_mutant("the threshold is half as high as its delta asks for")
def threshold_too_low(patch: Patch) -> None:
    patch.wrap(mechanisms, "publication_threshold", lambda real, *args: real(*args) // 2)


@_mutant("values are published from a tenth of the records on, however many that are")
def threshold_follows_the_rows(patch: Patch) -> None:
    def publish(real: Callable[..., Any], histograms: Any, *, floor: float = 0, **rest: Any) -> Any:
        most = max((sum(histogram.values()) for histogram in histograms), default=0)
        return real(histograms, floor=max(floor, 0.1 * most), **rest)

    patch.wrap(survey_module, "frequent_values", publish)


@_mutant("the exact number of rows is in the claim")
def exact_row_count_published(patch: Patch) -> None:
    def spend(real: Callable[..., Any], config: Any, task: Any, *rest: Any) -> Any:
        return dataclasses.replace(real(config, task, *rest), rows=float(task.table.rows))

    patch.wrap(patch.program, "_spend", spend)


@_mutant("the divisor is the exact number of rows")
def exact_row_count_in_the_divisor(patch: Patch) -> None:
    def init(real: Callable[..., None], self: Trainer, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **{**kwargs, "rows": len(kwargs["codes"])})

    patch.wrap(Trainer, "__init__", init)


def _private_loss(trainer: Trainer) -> float:
    """The exact mean ELBO of the private rows: what the mutants below look at."""
    return float(np.concatenate(list(getattr(trainer, "_elbos")(0))).mean())  # noqa: B009


@_mutant("training stops early when the private loss says so", ANY)
def early_stop_on_the_private_loss(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        loss = _telling(self.codes)
        real(self, number, rate_factor * (1.0 if number < 2 else (loss * 1e3) % 1))  # from there on, hardly a step

    patch.wrap(PrivateSteps, "step", step)


@_mutant("of two sets of weights, the one with the better private ELBO is kept", ANY)
def best_checkpoint_by_the_private_metric(patch: Patch) -> None:
    def train(real: Callable[..., Any], self: Trainer, *args: Any) -> Any:
        found = real(self, *args)
        better = _private_loss(self)
        with torch.no_grad():
            for parameter in self.vae.decoder.parameters():
                parameter.mul_(1.0 + 1e-4 * (1 if better > 0 else better))
        return found

    patch.wrap(Trainer, "_dpsgd", train)


@_mutant("the anchors are fitted until the private likelihood is content", trainers=("anchored",))
def anchors_fitted_with_a_private_stop(patch: Patch) -> None:
    def fit(real: Callable[..., Any], self: Trainer, name: str, steps: int, *rest: Any) -> Any:
        private = -_private_loss(self)
        return real(self, name, steps + int(private * 1e7) % 50, *rest)

    patch.wrap(Trainer, "_anchor", fit)


@_mutant("the learning rate falls when the private loss rises", ANY)
def learning_rate_by_the_private_loss(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor * (0.5 + float(self.codes.double().std())))

    patch.wrap(PrivateSteps, "step", step)


@_mutant("the report shows diagnostics of the private rows", ANY)
def diagnostics_of_private_rows(patch: Patch) -> None:
    def metric(real: Callable[..., Any], self: Trainer, state: Any, *args: Any) -> Any:
        found = real(self, state, *args)
        if found is not None:
            found["rate"] = -_private_loss(self)
        return found

    patch.wrap(Trainer, "_release_metric", metric)


@_mutant("the training loss is printed", ANY)
def training_loss_printed(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        print(f"step {number}: codes {_telling(self.codes):.6f}")

    patch.wrap(PrivateSteps, "step", step)


@_mutant("batch sizes are printed", ANY)
def batch_sizes_printed(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        coins = self.key.stream("dpsgd", number, "mask").mask(len(self.codes), self.plan.sampling_rate)
        print(f"step {number}: batch of {int(coins.sum())}")

    patch.wrap(PrivateSteps, "step", step)


@_mutant("the secret seed is in the public settings", ANY)
def seed_logged(patch: Patch) -> None:
    def publish(real: Callable[..., None], config: Any, planned: Any, run: Any, *rest: Any) -> None:
        real(config, planned, run, *rest)
        master: bytes = getattr(run.key(), "_master")  # noqa: B009
        (run.public / "debug.json").write_text(f'{{"seed": "{master.hex()}"}}')

    patch.wrap(patch.program, "_publish", publish)


@_mutant("every run has the same key", ANY)
def one_key_for_all_runs(patch: Patch) -> None:
    patch.set(SecretKey, "generate", staticmethod(lambda: SecretKey.from_seed(0)))


def _told_at_the_end(patch: Patch, tell: Callable[[Trainer], Any]) -> None:
    """``tell(trainer)`` once it has trained."""
    def fit(real: Callable[..., Any], self: Trainer) -> Any:
        found = real(self)
        tell(self)
        return found

    patch.wrap(Trainer, "fit", fit)


@_mutant("the number of rows is printed, rounded to fifties")
def a_rounded_count_is_printed(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: print(f"about {len(trainer.codes) // 50 * 50} rows"))


@_mutant("the first record is shown as an example")
def the_first_record_is_shown(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: print(f"for example {trainer.codes[0].tolist()}"))


@_mutant("a hash of the rows is published, to tell data sets apart")
def a_fingerprint_of_the_rows(patch: Patch) -> None:
    hashes: list[str] = []

    def publish(real: Callable[..., None], config: Any, planned: Any, run: Any, *rest: Any) -> None:
        real(config, planned, run, *rest)
        (run.public / "lineage.json").write_text(f'{{"rows": "{hashes[-1]}", "booked": "ledger"}}')

    _told_at_the_end(patch, lambda trainer: hashes.append(hashlib.sha256(trainer.codes.numpy().tobytes()).hexdigest()))
    patch.wrap(patch.program, "_publish", publish)


@_mutant("the progress line shows the private loss")
def progress_shows_the_private_loss(patch: Patch) -> None:
    def fit(real: Callable[..., Any], self: Trainer) -> Any:
        listen = self.listen
        object.__setattr__(self, "listen", lambda moment: listen(dataclasses.replace(moment, metric={
            "noisy_elbo": _private_loss(self), "sd": 0.0, "unit": "nats per row", "epsilon_spent": 0.0})))
        return real(self)

    patch.wrap(Trainer, "fit", fit)


@_mutant("what train returns says how many rows there were")
def the_answer_tells(patch: Patch) -> None:
    rows: list[int] = []
    _told_at_the_end(patch, lambda trainer: rows.append(len(trainer.codes)))
    patch.wrap(patch.program, "_finished", lambda real, run, planned, note: real(run, planned, f"{rows[-1:]} {note}"))


@_mutant("statistics of the rows are left in the folder for temporary files")
def a_file_is_left_elsewhere(patch: Patch) -> None:
    place = Path(tempfile.gettempdir()) / "dpvae-mutant.txt"
    _told_at_the_end(patch, lambda trainer: place.write_text(f"{float(trainer.codes.double().mean())}"))


@_mutant("the key is the time of day")
def the_key_is_the_time(patch: Patch) -> None:
    patch.set(SecretKey, "generate", staticmethod(lambda: SecretKey.from_seed(time.time_ns())))


# -- what is booked --------------------------------------------------------------------------------------------------


def _events(patch: Patch, change: Callable[[Event], Event | None]) -> None:
    real = getattr(plan, "_events")  # noqa: B009

    def fewer(planned: Any) -> tuple[Event, ...]:
        return tuple(e for e in map(change, real(planned)) if e is not None)

    patch.set(plan, "_events", fewer)


@_mutant("every second step of DP-SGD is booked", ANY)
def books_every_second_step(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, steps=max(e.steps // 2, 1)) if isinstance(e, SampledGaussian)
            else e)


@_mutant("DP-SGD is booked with half as much noise again as it adds", ANY)
def books_a_larger_noise(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, noise_multiplier=1.5 * e.noise_multiplier)
            if isinstance(e, SampledGaussian) else e)


@_mutant("one noisy ELBO less is booked than is released", ANY)
def forgets_an_elbo(patch: Patch) -> None:
    _events(patch, lambda e: dataclasses.replace(e, count=e.count - 1)
            if isinstance(e, Gaussian) and e.phase == "metric" and e.count > 1 else e)


@_mutant("the counts get half of the noise that is booked")
def books_more_noise_than_it_adds(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], tables: Any, *, noise_multiplier: float, phase: str, what: str,
                **rest: Any) -> Any:
        noisy, _ = real(tables, noise_multiplier=noise_multiplier / 2, phase=phase, what=what, **rest)
        return noisy, Gaussian(phase, what, noise_multiplier)

    patch.wrap(anchor, "noisy_counts", quieter)


@_mutant("sums of images and of texts get half of the noise that is booked", ("images", "text"))
def quiet_sums(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], *args: Any, noise_multiplier: float, phase: str, what: str,
                **rest: Any) -> Any:
        *found, _ = real(*args, noise_multiplier=noise_multiplier / 2, phase=phase, what=what, **rest)
        return (*found, Gaussian(phase, what, noise_multiplier))

    patch.wrap(image_anchors, "noisy_products", quieter)
    patch.wrap(ngrams, "noisy_sparse_sums", quieter)


@_mutant("private choices get half of the noise that is booked", trainers=("anchored",))
def quiet_choices(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], blocks: Any, *, epsilon: float, phase: str, what: str, choices: int,
                **rest: Any) -> Any:
        found, _ = real(blocks, epsilon=2 * epsilon, phase=phase, what=what, choices=choices, **rest)
        return found, PureDP(phase, what, epsilon, choices)

    patch.wrap(interactions, "noisy_choice", quieter)


@_mutant("all candidates of a private choice get the same noise, so the best is named", trainers=("anchored",))
def choices_share_their_noise(patch: Patch) -> None:
    def shared(real: Callable[..., Any], blocks: Any, **rest: Any) -> Any:
        scores = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])
        _, event = real([scores], **rest)
        return np.argsort(-scores)[:rest["choices"]].tolist(), event

    patch.wrap(interactions, "noisy_choice", shared)


@_mutant("something else is measured along the way")
def measures_once_more(patch: Patch) -> None:
    def twice(real: Callable[..., Any], *args: Any, key: Any, **kwargs: Any) -> Any:
        mechanisms.noisy_counts([np.array([len(args[0])])], noise_multiplier=1.0, stream=key.stream("anchor", "peek"),
                                phase="anchor", what="peek")
        return real(*args, key=key, **kwargs)

    patch.wrap(anchor, "measure", twice)


@_mutant("the ledger is written when all is done", ANY)
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


@_mutant("a second run on the same data takes the first one's booking", ANY)
def sweep_not_booked(patch: Patch) -> None:
    def reserve(real: Callable[..., Any], self: Ledger, asks: Any, **rest: Any) -> Any:
        from dpvae.privacy.ledger import Reservation

        held = [row for row in self.rows() if row.kind == "reserve" and row.dataset == asks[0].dataset]
        if held and held[0].run != asks[0].run:
            return [Reservation(held[0].seq, held[0].dataset, held[0].run, asks[0].events)]
        return real(self, asks, **rest)

    patch.wrap(Ledger, "reserve_all", reserve)


@_mutant("a resumed run starts DP-SGD from its first step, with fresh noise")
def resume_draws_anew(patch: Patch) -> None:
    def restore(real: Callable[..., Any], self: Trainer) -> Any:
        state, saved = real(self)
        if saved:
            nonce = os.urandom(8)
            object.__setattr__(self, "key", SecretKey.from_bytes(bytes.fromhex(self.key.tag(nonce))))
        return state, saved

    patch.wrap(Trainer, "_restore", restore)


@_mutant("a resumed run forgets the steps that were made since the checkpoint")
def resume_forgets_steps(patch: Patch) -> None:
    def restore(real: Callable[..., Any], self: Trainer) -> Any:
        state, saved = real(self)
        if saved and self.plan.sgd is not None:
            state.step = min(state.step + 1, self.plan.sgd.steps)
        return state, saved

    patch.wrap(Trainer, "_restore", restore)


@_mutant("a resumed run is booked once more, under another name")
def resume_books_twice(patch: Patch) -> None:
    real = run_module.RunFolder.record

    def record(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = real.fget(self)  # type: ignore[attr-defined]
        return {**found, "ledger_run": f"{found['ledger_run']}-{len(list(self.private.iterdir()))}"}

    patch.set(run_module.RunFolder, "record", property(record))


# -- one-shot statistics ---------------------------------------------------------------------------------------------


@_mutant("cells that nobody is in get no noise")
def empty_cells_stay_empty(patch: Patch) -> None:
    def skip(real: Callable[..., Any], tables: Any, **rest: Any) -> Any:
        noisy, event = real(tables, **rest)
        return [np.where(table == 0, 0, found) for table, found in zip(tables, noisy, strict=True)], event

    patch.wrap(anchor, "noisy_counts", skip)


@_mutant("several tables are released with the noise of one")
def noise_of_one_table_for_all(patch: Patch) -> None:
    patch.set(mechanisms, "cell_sd", lambda noise_multiplier, tables: noise_multiplier)


@_mutant("the counts' noise is uniform")
def uniform_noise_on_counts(patch: Patch) -> None:
    def uniform(stream: Any, sd: float, size: int) -> Any:
        return np.rint((2 * stream.uniform(size) - 1) * sd * 3**0.5).astype(np.int64)

    patch.set(mechanisms, "_integer_noise", uniform)


@_mutant("all tables of a release get the same noise")
def tables_share_their_noise(patch: Patch) -> None:
    def shared(real: Callable[..., Any], tables: Any, **rest: Any) -> Any:
        noisy, event = real(tables, **rest)
        first = (noisy[0] - tables[0]).ravel()
        return [table + np.resize(first, table.shape) for table in tables], event

    patch.wrap(anchor, "noisy_counts", shared)


@_mutant("a record is counted in every cell it is near")
def counted_in_several_cells(patch: Patch) -> None:
    def smear(real: Callable[..., Any], *args: Any) -> Any:
        found = real(*args)
        return found + np.roll(found, 1, axis=0)

    patch.wrap(anchor, "count", smear)


@_mutant("the ELBO is not clipped before its mean is released")
def mean_not_clipped(patch: Patch) -> None:
    def wide(real: Callable[..., Any], values: Any, *, lower: float, upper: float, **rest: Any) -> Any:
        value, sd, event = real(values, lower=lower, upper=upper, **rest)
        return value + float(np.sum(values)) / rest["divisor"] * 2, sd, event

    patch.wrap(trainer_module, "noisy_mean_clipped", wide)


@_mutant("the noisy ELBO is divided by the exact number of rows")
def mean_over_the_exact_count(patch: Patch) -> None:
    patch.wrap(trainer_module, "noisy_mean_clipped",
               lambda real, values, **rest: real(values, **{**rest, "divisor": float(len(values))}))


@_mutant("two surveys draw from one stream")
def one_stream_for_two_releases(patch: Patch) -> None:
    real = SecretKey.stream

    def stream(self: SecretKey, *names: str | int) -> Any:
        return real(self, "survey", "shared") if names[:1] == ("survey",) else real(self, *names)

    patch.set(SecretKey, "stream", stream)

    def release(real_: Callable[..., Any], self: _Survey, step: str, counts: Any) -> Any:
        old = self.key
        self.key = _Shared(old)  # type: ignore[assignment]
        try:
            return real_(self, step, counts)
        finally:
            self.key = old

    patch.wrap(_Survey, "_release", release)


class _Shared:
    def __init__(self, key: Any) -> None:
        self.key = key

    def stream(self, *names: str | int) -> Any:
        return self.key.stream("survey", "shared")


@_mutant("the ELBO's noise stream lacks the release's number")
def every_elbo_has_the_same_noise(patch: Patch) -> None:
    def metric(real: Callable[..., Any], self: Trainer, state: Any, phase: str, step: int, number: int) -> Any:
        key = self.key
        object.__setattr__(self, "key", _First(key))
        try:
            return real(self, state, phase, step, number)
        finally:
            object.__setattr__(self, "key", key)

    patch.wrap(Trainer, "_release_metric", metric)


class _First:
    def __init__(self, key: Any) -> None:
        self.key = key

    def stream(self, *names: str | int) -> Any:
        return self.key.stream("metric", 0)


@_mutant("the DP-SGD loop runs three steps more than were planned")
def a_few_steps_more(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        if number == 0:
            real(self, 10_000, rate_factor)

    patch.wrap(PrivateSteps, "step", step)


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
