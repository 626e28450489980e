"""Faults of what leaves, by whatever door, and of the secrets that must not."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpvae.audit.mutants.base import ANY, Mutant, Patch, private_loss, telling, whole
from dpvae.data.lake import held
from dpvae.modalities import table
from dpvae.privacy import noise
from dpvae.privacy.ledger import Ledger
from dpvae.privacy.noise import SecretKey
from dpvae.train import run as run_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.trainer import Trainer


def _told_at_the_end(patch: Patch, tell: Callable[[Trainer], Any]) -> None:
    """``tell(trainer)`` once it has trained."""
    def fit(real: Callable[..., Any], self: Trainer) -> Any:
        found = real(self)
        tell(self)
        return found

    patch.wrap(Trainer, "fit", fit)


def _afterwards(patch: Patch, write: Callable[[Any], Any]) -> None:
    """``write(run)`` once its public folder is written."""
    def publish(real: Callable[..., None], run: Any, *rest: Any, **more: Any) -> None:
        real(run, *rest, **more)
        write(run)

    patch.wrap(patch.program, "write_public", publish)


@whole("the number of rows is printed, rounded to fifties")
def a_rounded_count_is_printed(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: print(f"about {len(trainer.codes) // 50 * 50} rows"))


@whole("the types of columns are found in their cells")
def types_follow_the_cells(patch: Patch) -> None:
    patch.set(held, "_column", lambda name, values: (held.pa.array(values, from_pandas=True), None))


@whole("the first record is shown as an example")
def the_first_record_is_shown(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: print(f"for example {trainer.codes[0].tolist()}"))


@whole("a hash of the rows is published, to tell data sets apart")
def a_fingerprint_of_the_rows(patch: Patch) -> None:
    hashes: list[str] = []
    _told_at_the_end(patch, lambda trainer: hashes.append(hashlib.sha256(trainer.codes.numpy().tobytes()).hexdigest()))
    _afterwards(patch, lambda run: (run.public / "lineage.json").write_text(
        f'{{"rows": "{hashes[-1]}", "booked": "ledger"}}'))


@whole("the progress line shows the private loss")
def progress_shows_the_private_loss(patch: Patch) -> None:
    def fit(real: Callable[..., Any], self: Trainer) -> Any:
        listen = self.listen
        object.__setattr__(self, "listen", lambda moment: listen(dataclasses.replace(moment, metric={
            "noisy_elbo": private_loss(self), "sd": 0.0, "unit": "nats per row", "epsilon_spent": 0.0})))
        return real(self)

    patch.wrap(Trainer, "fit", fit)


@whole("what train returns says how many rows there were")
def the_answer_tells(patch: Patch) -> None:
    rows: list[int] = []
    _told_at_the_end(patch, lambda trainer: rows.append(len(trainer.codes)))
    patch.wrap(patch.program, "_finished", lambda real, run, planned, note: real(run, planned, f"{rows[-1:]} {note}"))


@whole("statistics of the rows are left in the folder for temporary files")
def a_file_is_left_elsewhere(patch: Patch) -> None:
    place = Path(tempfile.gettempdir()) / "dpvae-mutant.txt"
    _told_at_the_end(patch, lambda trainer: place.write_text(f"{float(trainer.codes.double().mean())}"))


@whole("the key is the time of day")
def the_key_is_the_time(patch: Patch) -> None:
    patch.set(SecretKey, "generate", staticmethod(lambda: SecretKey.from_seed(time.time_ns())))


@whole("the secret seed is in the public settings", ANY)
def seed_logged(patch: Patch) -> None:
    def write(run: Any) -> None:
        master: bytes = getattr(run.key(), "_master")  # noqa: B009
        (run.public / "debug.json").write_text(f'{{"seed": "{master.hex()}"}}')

    _afterwards(patch, write)


@whole("every run has the same key", ANY)
def one_key_for_all_runs(patch: Patch) -> None:
    patch.set(SecretKey, "generate", staticmethod(lambda: SecretKey.from_seed(0)))


# -- other doors -----------------------------------------------------------------------------------------------------


def _written(patch: Patch, write: Callable[[Any, str], Any]) -> None:
    """``write(run, a statistic of the rows)`` when a run is published."""
    held: list[str] = []
    _told_at_the_end(patch, lambda trainer: held.append(f"{telling(trainer.codes):.6f}"))
    _afterwards(patch, lambda run: write(run, held[-1]))


@whole("statistics of the rows are left in the run's folder, beside public and private", ANY)
def a_log_in_the_run_folder(patch: Patch) -> None:
    _written(patch, lambda run, told: (run.path / "debug.log").write_text(told))


@whole("statistics of the rows are kept in a folder beside the run", ANY)
def a_cache_beside_the_run(patch: Patch) -> None:
    def write(run: Any, told: str) -> None:
        (run.path.parent / "cache").mkdir(exist_ok=True)
        (run.path.parent / "cache" / "statistics.json").write_text(told)

    _written(patch, write)


@whole("a date in a public file tells a statistic of the rows", ANY)
def a_date_tells(patch: Patch) -> None:
    _written(patch, lambda run, told: (run.public / "lineage.json").write_text(
        f'{{"created": "2026-01-01T00:00:00.{told[-6:]}+00:00"}}'))


@whole("the rows are saved by torch, which Python does not hear, where temporary files are", ANY)
def rows_saved_by_torch(patch: Patch) -> None:
    place = Path(tempfile.gettempdir()) / "dpvae-mutant.pt"
    _told_at_the_end(patch, lambda trainer: torch.save(trainer.codes, str(place)))


@whole("statistics of the rows are logged, at a level that is not shown by default", ANY)
def logged_quietly(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: logging.getLogger("dpvae.train").debug("rows %f", telling(trainer.codes)))


@whole("a warning tells a statistic of the rows", ANY)
def a_warning_tells(patch: Patch) -> None:
    _told_at_the_end(patch, lambda trainer: warnings.warn(f"rows {telling(trainer.codes):.6f}", stacklevel=1))


@whole("what train returns has the rows' number in an attribute", ANY)
def an_attribute_tells(patch: Patch) -> None:
    rows: list[int] = []

    def finished(real: Callable[..., Any], *args: Any) -> Any:
        found = real(*args)
        object.__setattr__(found, "rows_seen", rows[-1:])
        return found

    _told_at_the_end(patch, lambda trainer: rows.append(len(trainer.codes)))
    patch.wrap(patch.program, "_finished", finished)


@whole("the head of the ledger in the claim is a hash of the rows", ANY)
def the_head_is_a_fingerprint(patch: Patch) -> None:
    held: list[str] = []
    _told_at_the_end(patch, lambda trainer: held.append(hashlib.sha256(trainer.codes.numpy().tobytes()).hexdigest()))
    patch.wrap(Ledger, "head", lambda real, self: held[-1] if held else real(self))


@whole("it is printed how many records gave no finite gradient", ANY)
def spoiled_records_are_counted(patch: Patch) -> None:
    def close(real: Callable[..., None], self: PrivateSteps) -> None:
        print(f"{int(self.optimizer.not_finite)} records were skipped")
        real(self)

    patch.wrap(PrivateSteps, "close", close)


@whole("with the checkpoint of the twentieth step, statistics of the rows are printed", ANY)
def a_checkpoint_tells(patch: Patch) -> None:
    def save(real: Callable[..., None], self: Trainer, state: Any, *extra: Any) -> None:
        real(self, state, *extra)
        if state.step == 20:
            print(f"checkpoint: {telling(self.codes):.6f}")

    patch.wrap(Trainer, "_save", save)


@whole("a release mixes rows of the training table in, kept in private until then")
def rows_mixed_into_the_release(patch: Patch) -> None:
    held: list[Any] = []

    def writer(real: Callable[..., Any], public: Path, *args: Any, **how: Any) -> Any:
        write = real(public, *args, **how)

        def mixed(folder: Path, marks: Mapping[str, str]) -> Any:
            return {**write(folder, marks), "sample": np.load(public.parent / "private" / "warm.npy")[:3].tolist()}

        return mixed

    _told_at_the_end(patch, lambda trainer: held.append(trainer.codes.numpy()))
    _afterwards(patch, lambda run: np.save(run.private / "warm.npy", held[-1]))
    patch.wrap(table, "writer", writer)


# -- keys and streams ------------------------------------------------------------------------------------------------


@whole("a key has thirty-one secret bits", ANY)
def a_key_of_31_bits(patch: Patch) -> None:
    patch.set(SecretKey, "generate", staticmethod(lambda: SecretKey.from_seed(secrets.randbits(31))))


@whole("a run's key is drawn from a thousand", ANY)
def a_key_of_a_thousand(patch: Patch) -> None:
    def fill(real: Callable[..., None], draft: Path, config: Any) -> None:
        real(draft, config)
        (draft / "private" / "key").unlink()
        SecretKey.from_seed(int.from_bytes(os.urandom(8), "big") % 1000).save(draft / "private" / "key")

    patch.wrap(run_module, "_fill", fill)


@whole("the key stays in private when the run has ended", ANY)
def the_key_stays(patch: Patch) -> None:
    patch.set(run_module.RunFolder, "forget", lambda self: None)


@whole("streams are named by their first two names: coins, latents and noise of a step are the same bits", ANY)
def names_are_cut(patch: Patch) -> None:
    patch.wrap(noise, "_encode", lambda real, names: real(names[:2]))


MUTANTS: tuple[Mutant, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Mutant))
