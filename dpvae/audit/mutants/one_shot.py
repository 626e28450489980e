"""Faults of statistics released once: their noise, their bounds, who counts in them, their streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dpvae.audit.mutants.base import Mutant, Patch, whole
from dpvae.data import survey as survey_module
from dpvae.data.survey import _Survey
from dpvae.data.table import TableCodec
from dpvae.privacy import mechanisms
from dpvae.privacy.noise import SecretKey
from dpvae.train import anchor, interactions
from dpvae.train import trainer as trainer_module
from dpvae.train.trainer import Trainer


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


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
