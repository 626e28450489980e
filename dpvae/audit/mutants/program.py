"""Faults around the trainer: what is read, booked, kept, printed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpvae.audit.mutants.base import ANY, Mutant, Patch, private_loss, telling, whole
from dpvae.data import survey as survey_module
from dpvae.data.survey import _Survey
from dpvae.data.table import TableCodec
from dpvae.privacy import accountant, mechanisms, plan
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


# -- what is published -----------------------------------------------------------------------------------------------


@whole("the free encoder is trained on the rows themselves", trainers=WITH_SLEEP)
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


@whole("numeric bounds are read off the rows")
def bounds_from_the_rows(patch: Patch) -> None:
    def finish(real: Callable[..., Any], self: _Survey) -> Any:
        for j, column in enumerate(self.columns):
            if column.is_numeric and column.edges:
                values = np.concatenate(list(self._values(j)))
                self.columns[j] = dataclasses.replace(column, upper=float(max(np.nanmax(values), column.edges[-1])))
        return real(self)

    patch.wrap(_Survey, "finish", finish)


@whole("the codec's bins hold a statistic of the rows' own")
def statistics_in_the_codec(patch: Patch) -> None:
    def encode(real: Callable[..., Any], self: TableCodec, table: Any, outside: str = "error") -> Any:
        found = real(self, table, outside)
        for column in self.schema.columns:
            if column.is_numeric and column.edges:
                edges = np.array(column.edges)
                edges[-1] += 1e-3 * telling(found)  # of all columns: one alone may have a single bin
                object.__setattr__(column, "edges", tuple(edges.tolist()))
                return found
        print(f"codec: {telling(found):.6f}")
        return found

    patch.wrap(TableCodec, "encode", encode)


@whole("categories are the values that occur")
def vocabulary_from_the_rows(patch: Patch) -> None:
    def publish(real: Callable[..., Any], histograms: Any, **rest: Any) -> Any:
        found, event = real(histograms, **rest)
        return [{**dict.fromkeys(histogram, 1), **noisy} for noisy, histogram in zip(found, histograms, strict=True)
                ], event

    patch.wrap(survey_module, "frequent_values", publish)


@whole("the threshold is half as high as its delta asks for")
def threshold_too_low(patch: Patch) -> None:
    patch.wrap(mechanisms, "publication_threshold", lambda real, *args: real(*args) // 2)


@whole("values are published from a tenth of the records on, however many that are")
def threshold_follows_the_rows(patch: Patch) -> None:
    def publish(real: Callable[..., Any], histograms: Any, *, floor: float = 0, **rest: Any) -> Any:
        most = max((sum(histogram.values()) for histogram in histograms), default=0)
        return real(histograms, floor=max(floor, 0.1 * most), **rest)

    patch.wrap(survey_module, "frequent_values", publish)


@whole("the exact number of rows is in the claim")
def exact_row_count_published(patch: Patch) -> None:
    def spend(real: Callable[..., Any], config: Any, task: Any, *rest: Any) -> Any:
        return dataclasses.replace(real(config, task, *rest), rows=float(task.table.rows))

    patch.wrap(patch.program, "_spend", spend)


@whole("the divisor is the exact number of rows")
def exact_row_count_in_the_divisor(patch: Patch) -> None:
    def init(real: Callable[..., None], self: Trainer, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **{**kwargs, "rows": len(kwargs["codes"])})

    patch.wrap(Trainer, "__init__", init)


@whole("training stops early when the private loss says so", ANY)
def early_stop_on_the_private_loss(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        loss = telling(self.codes)
        real(self, number, rate_factor * (1.0 if number < 2 else (loss * 1e3) % 1))  # from there on, hardly a step

    patch.wrap(PrivateSteps, "step", step)


@whole("of two sets of weights, the one with the better private ELBO is kept", ANY)
def best_checkpoint_by_the_private_metric(patch: Patch) -> None:
    def train(real: Callable[..., Any], self: Trainer, *args: Any) -> Any:
        found = real(self, *args)
        better = private_loss(self)
        with torch.no_grad():
            for parameter in self.vae.decoder.parameters():
                parameter.mul_(1.0 + 1e-4 * (1 if better > 0 else better))
        return found

    patch.wrap(Trainer, "_dpsgd", train)


@whole("the anchors are fitted until the private likelihood is content", trainers=("anchored",))
def anchors_fitted_with_a_private_stop(patch: Patch) -> None:
    def fit(real: Callable[..., Any], self: Trainer, name: str, steps: int, *rest: Any) -> Any:
        private = -private_loss(self)
        return real(self, name, steps + int(private * 1e7) % 50, *rest)

    patch.wrap(Trainer, "_anchor", fit)


@whole("the learning rate falls when the private loss rises", ANY)
def learning_rate_by_the_private_loss(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor * (0.5 + float(self.codes.double().std())))

    patch.wrap(PrivateSteps, "step", step)


@whole("the report shows diagnostics of the private rows", ANY)
def diagnostics_of_private_rows(patch: Patch) -> None:
    def metric(real: Callable[..., Any], self: Trainer, state: Any, *args: Any) -> Any:
        found = real(self, state, *args)
        if found is not None:
            found["rate"] = -private_loss(self)
        return found

    patch.wrap(Trainer, "_release_metric", metric)


@whole("the training loss is printed", ANY)
def training_loss_printed(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        print(f"step {number}: codes {telling(self.codes):.6f}")

    patch.wrap(PrivateSteps, "step", step)


@whole("batch sizes are printed", ANY)
def batch_sizes_printed(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        coins = self.key.stream("dpsgd", number, "mask").mask(len(self.codes), self.plan.sampling_rate)
        print(f"step {number}: batch of {int(coins.sum())}")

    patch.wrap(PrivateSteps, "step", step)


# -- what is booked --------------------------------------------------------------------------------------------------


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


# -- one-shot statistics ---------------------------------------------------------------------------------------------


@whole("cells that nobody is in get no noise")
def empty_cells_stay_empty(patch: Patch) -> None:
    def skip(real: Callable[..., Any], tables: Any, **rest: Any) -> Any:
        noisy, event = real(tables, **rest)
        return [np.where(table == 0, 0, found) for table, found in zip(tables, noisy, strict=True)], event

    patch.wrap(anchor, "noisy_counts", skip)


@whole("several tables are released with the noise of one")
def noise_of_one_table_for_all(patch: Patch) -> None:
    patch.set(mechanisms, "cell_sd", lambda noise_multiplier, tables: noise_multiplier)


@whole("the counts' noise is uniform")
def uniform_noise_on_counts(patch: Patch) -> None:
    def uniform(stream: Any, sd: float, size: int) -> Any:
        return np.rint((2 * stream.uniform(size) - 1) * sd * 3**0.5).astype(np.int64)

    patch.set(mechanisms, "_integer_noise", uniform)


@whole("all tables of a release get the same noise")
def tables_share_their_noise(patch: Patch) -> None:
    def shared(real: Callable[..., Any], tables: Any, **rest: Any) -> Any:
        noisy, event = real(tables, **rest)
        first = (noisy[0] - tables[0]).ravel()
        return [table + np.resize(first, table.shape) for table in tables], event

    patch.wrap(anchor, "noisy_counts", shared)


@whole("a record is counted in every cell it is near")
def counted_in_several_cells(patch: Patch) -> None:
    def smear(real: Callable[..., Any], *args: Any) -> Any:
        found = real(*args)
        return found + np.roll(found, 1, axis=0)

    patch.wrap(anchor, "count", smear)


@whole("the ELBO is not clipped before its mean is released")
def mean_not_clipped(patch: Patch) -> None:
    def wide(real: Callable[..., Any], values: Any, *, lower: float, upper: float, **rest: Any) -> Any:
        value, sd, event = real(values, lower=lower, upper=upper, **rest)
        return value + float(np.sum(values)) / rest["divisor"] * 2, sd, event

    patch.wrap(trainer_module, "noisy_mean_clipped", wide)


@whole("the noisy ELBO is divided by the exact number of rows")
def mean_over_the_exact_count(patch: Patch) -> None:
    patch.wrap(trainer_module, "noisy_mean_clipped",
               lambda real, values, **rest: real(values, **{**rest, "divisor": float(len(values))}))


@whole("two surveys draw from one stream")
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


@whole("the ELBO's noise stream lacks the release's number")
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


@whole("the DP-SGD loop runs three steps more than were planned")
def a_few_steps_more(patch: Patch) -> None:
    def step(real: Callable[..., None], self: PrivateSteps, number: int, rate_factor: float) -> None:
        real(self, number, rate_factor)
        if number == 0:
            real(self, 10_000, rate_factor)

    patch.wrap(PrivateSteps, "step", step)


@whole("cells of more than five hundred records get a quarter of the noise")
def crowded_cells_are_quieter(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], tables: Any, **rest: Any) -> Any:
        noisy, event = real(tables, **rest)
        return [np.where(table > 500, table + (found - table) // 4, found)
                for table, found in zip(tables, noisy, strict=True)], event

    patch.wrap(anchor, "noisy_counts", quieter)


@whole("the first ten records count twice in tables of two columns")
def the_first_rows_count_twice(patch: Patch) -> None:
    def twice(real: Callable[..., Any], codes: Any, cardinalities: Any, tables: Any) -> Any:
        found, first = real(codes, cardinalities, tables), real(codes[:10], cardinalities, tables)
        return [a + b * (len(columns) == 2) for a, b, columns in zip(found, first, tables, strict=True)]

    patch.wrap(anchor, "counts", twice)


@whole("a column's codes are ranks in the table")
def codes_are_ranks(patch: Patch) -> None:
    def encode(real: Callable[..., Any], self: TableCodec, table: Any, outside: str = "error") -> Any:
        found = real(self, table, outside).copy()
        ranks = np.argsort(np.argsort(found[:, 1], kind="stable"), kind="stable")
        found[:, 1] = ranks * (int(found[:, 1].max(initial=0)) + 1) // max(len(ranks), 1)
        return found

    patch.wrap(TableCodec, "encode", encode)


@whole("the noisy ELBO gets nine tenths of its noise")
def a_slightly_quiet_mean(patch: Patch) -> None:
    def quieter(real: Callable[..., Any], *args: Any, noise_multiplier: float, **rest: Any) -> Any:
        value, sd, event = real(*args, noise_multiplier=0.9 * noise_multiplier, **rest)
        return value, sd / 0.9, dataclasses.replace(event, noise_multiplier=noise_multiplier)

    patch.wrap(trainer_module, "noisy_mean_clipped", quieter)


@whole("the ELBO is clipped to a range that follows the number of rows, in steps of fifty")
def the_range_follows_the_rows(patch: Patch) -> None:
    def wide(real: Callable[..., Any], values: Any, *, lower: float, **rest: Any) -> Any:
        whole_ = np.concatenate([np.atleast_1d(block) for block in values])
        return real(whole_, lower=lower * (1 + len(whole_) // 50), **rest)

    patch.wrap(trainer_module, "noisy_mean_clipped", wide)


@whole("private choices cost 12 % more than is booked", trainers=("anchored",))
def choices_are_a_little_surer(patch: Patch) -> None:
    def surer(real: Callable[..., Any], blocks: Any, *, epsilon: float, **rest: Any) -> Any:
        found, event = real(blocks, epsilon=1.12 * epsilon, **rest)
        return found, dataclasses.replace(event, epsilon=epsilon)

    patch.wrap(interactions, "noisy_choice", surer)


@whole("the threshold is one too low")
def threshold_one_too_low(patch: Patch) -> None:
    patch.wrap(mechanisms, "publication_threshold", lambda real, *args: real(*args) - 1)


@whole("values are published in the order of their exact counts")
def the_order_of_exact_counts(patch: Patch) -> None:
    def publish(real: Callable[..., Any], histograms: Any, **rest: Any) -> Any:
        found, event = real(histograms, **rest)
        return [{value: noisy[value] for value in sorted(held, key=held.__getitem__, reverse=True) if value in noisy}
                for noisy, held in zip(found, histograms, strict=True)], event

    patch.wrap(survey_module, "frequent_values", publish)


@whole("shares of the look at rare values follow the exact number of values")
def shares_follow_the_rows(patch: Patch) -> None:
    def rare(real: Callable[..., None], self: _Survey) -> None:
        self.hidden = {j: 10.0 * len(self._histogram(j)) for j in self.hidden}
        real(self)

    patch.wrap(_Survey, "rare", rare)


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
