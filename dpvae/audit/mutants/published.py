"""Faults of what is published: models, schemas, choices and lines of text that hold more than was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpvae.audit.mutants.base import ANY, Mutant, Patch, private_loss, telling, whole
from dpvae.data import survey as survey_module
from dpvae.data.survey import _Survey
from dpvae.data.table import TableCodec
from dpvae.privacy import mechanisms
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.sleep import log_q
from dpvae.train.trainer import Trainer

WITH_SLEEP = ("anchored", "decoder_only")


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


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
