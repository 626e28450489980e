"""The framework as one scikit-learn estimator: fit spends the budget, everything else is free.

    model = DPVAE(epsilon=1.0, delta=1e-6, rows=50_000, runs="runs")
    model.fit(frame, schema="people.yaml")
    rows = model.sample(1000, given={"sex": "Female"})
    print(model.epsilon_)

``fit`` is :func:`dpvae.api.train`: the same plan, ledger, run folder and refusals. What it leaves behind is a released
model, so sampling, scoring and encoding are post-processing and cost nothing, however often they are called. What they
*return* may still tell of the rows they are called with: a score or a latent of a private row is about that row.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from dpvae import api, checks
from dpvae.config import TrainConfig, build
from dpvae.data import frames, lake
from dpvae.data.cells import plain
from dpvae.data.declaration import declaration
from dpvae.data.declare import declare
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Schema
from dpvae.errors import ConfigError, DataError, RunError
from dpvae.files import write_bytes
from dpvae.release.condition import Evidence, conditioned
from dpvae.release.impute import Imputer, complete
from dpvae.release.sample import Sampler, likeliest, load_public
from dpvae.release.score import Density, Ensemble, exact

KNOBS = {"epsilon": "privacy.epsilon", "delta": "privacy.delta", "rows": "data.rows", "target": "data.target",
         "trainer": "trainer.name", "seed": "run.seed", "ledger": "ledger.url", "dataset": "ledger.dataset",
         "runs": "run.root", "run_name": "run.name", "device": "performance.device", "progress": "report.progress"}
HANDED_OVER = ("data.path", "data.builtin", "data.schema", "data.columns")  # by fit


class DPVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A variational autoencoder of a table under (epsilon, delta) differential privacy per row.

    Every ``fit`` spends, unless it resumes or finds again a run of the same ``run_name`` in ``runs``. The noise is
    secret and fresh, so two fits differ; ``seed`` fixes only what is public. A cross-validation or a search is many
    fits: give ``ledger``, ``dataset`` and a cap (``options={"ledger.cap_epsilon": 3.0}``) to have them added up.

    Names of the columns count as public, and so do types that somebody chose: pandas' nullable, categorical and date
    types, Arrow's, polars', numpy's. Those that pandas finds in the cells (int64, float64, bool, object, str: one
    missing cell turns the first into the second) do not: what such a column holds is measured as that of a CSV file is,
    or declared in the schema, and rows come back in the types of the frame.

    A search (``GridSearchCV``) that compares fits by their ``score`` on private rows selects by an exact private
    number, which nobody pays for: what it chooses is not private. Search on public or synthetic rows, or with
    ``dpvae train -m sweep.private=true``, which books the selection.

    Args:
        epsilon, delta: the guarantee; ``delta=None`` leaves it to the plan's rule on public facts.
        rows: the public number of rows; ``None`` has it measured with noise and charged.
        target: a column to be predicted from the others; its tables weigh more.
        trainer: ``anchored``, ``decoder_only`` or ``joint``.
        seed: public; initialisation, fitting and decoding.
        ledger: URL or path of the ledger; ``None`` is the one in ``runs``.
        dataset: the data's name there; ``None`` is the file's name, or ``table``.
        runs: folder of run folders. ``None`` is a temporary one that lives as long as the estimator and whose ledger is
            as short-lived: it remembers no other fit, so adding up is left to you.
        run_name: names the run: an interrupted fit is resumed, a finished one is loaded and *not* trained again,
            whatever ``X`` holds.
        device, progress: ``auto``, ``cpu`` or ``cuda``; ``quiet``, ``plain``, ``rich``, ``json`` or ``auto``.
        options: any other knob of ``dpvae train``, such as ``{"trainer.fit_steps": 50}``.

    Attributes:
        epsilon_: the :class:`~dpvae.privacy.accountant.Epsilon` of the fit. plan_: what was spent, on what.
        run_: the :class:`~dpvae.api.Run`; ``dpvae.release(folder, model)`` publishes it.
        schema_: columns, declared or measured. model_: the released :class:`~dpvae.models.vae.VAE`.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Pickles and deep copies carry the released part alone: no key, no ledger, nothing of the private rows.
    """

    def __init__(self, epsilon: float = 1.0, *, delta: float | None = None, rows: int | None = None,
                 target: str | None = None, trainer: str = "anchored", seed: int = 0,
                 ledger: str | os.PathLike[str] | None = None, dataset: str | None = None,
                 runs: str | os.PathLike[str] | None = None, run_name: str | None = None, device: str = "auto",
                 progress: str = "quiet", options: Mapping[str, Any] | None = None) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.rows = rows
        self.target = target
        self.trainer = trainer
        self.seed = seed
        self.ledger = ledger
        self.dataset = dataset
        self.runs = runs
        self.run_name = run_name
        self.device = device
        self.progress = progress
        self.options = options

    def fit(self, X: Any, y: Any = None, schema: Any = None) -> Self:
        """Train on ``X``; spends ``epsilon``, whether or not it ends well.

        Args:
            X: a pandas or polars frame, an Arrow table, a 2-d array, the path of a CSV or Parquet file, or the name of
                a built-in table. A missing cell is a value of its own; an infinite one is refused.
            y: ignored; name a column of ``X`` with ``target`` instead.
            schema: what is public about the columns: a YAML file, a mapping of the same form, or a
                :class:`~dpvae.data.schema.Schema`, all of whose answers then count as public. What it leaves open, or
                everything without it, is measured and charged.

        Raises :class:`ConfigError`, :class:`SchemaError` or :class:`DataError` for what is wrong with knobs, schema or
        cells, and :class:`BudgetError` over the data set's cap: nothing is spent then.
        """
        self.__dict__.pop("run_", None)  # a fit that fails leaves no model of other rows behind
        scratch = _Scratch() if self.runs is None else None
        root = scratch.path if scratch is not None else Path(os.fspath(self.runs))  # type: ignore[arg-type]
        knobs = self._knobs(root) | {"data.schema": _schema_file(schema, root)}
        self._form, self._likeness = frames.form(X), frames.likeness(X)
        table = None if self._form == "file" else self._validated(X, reset=True)
        names = tuple(name for name, _ in lake.header(frames.file(X) if table is None else table))
        if table is None:
            self.n_features_in_, self.feature_names_in_ = len(names), np.array(names, dtype=object)
            knobs["data.builtin" if frames.is_builtin(X) else "data.path"] = os.fspath(X)
        run = api.train(_config(knobs), table)
        self.model_, self.schema_ = load_public(run.path / "public")
        if self.schema_.names != names:  # a finished run was found by its name
            raise RunError(f"run_name={self.run_name}: that run was trained on other columns; choose another run_name")
        self.epsilon_, self.plan_, self._scratch, self.run_ = run.epsilon, run.plan, scratch, run
        return self

    def sample(self, rows: int, given: Any = None, seed: int | None = None, *,
               balance: Mapping[str, float] | str | None = None) -> Any:
        """``rows`` synthetic rows in the form that was fitted: a pandas or polars frame, an array, or an Arrow table
        (for a file too), in the original types, within the constraints of the schema.

        ``given`` fixes columns: a value (``None`` is a missing cell), a pair ``(low, high)`` of a numeric column, or a
        list of alternatives, as in ``{"sex": "Female", "age": (30, 40), "race": ["White", "Black"]}``; or a table of
        partial rows, whose holes are drawn (``rows`` is then a multiple of its length). The other columns follow the
        model's conditional law (:mod:`dpvae.release.condition`); a condition that is practically impossible under the
        model is a :class:`DataError`, and :meth:`evidence` tells how well the model supports one. ``balance`` draws
        another label balance: ``"even"``, or a share for each value of the target.

        ``seed`` is public and ``None`` is the estimator's: the same seed gives the same rows.
        """
        check_is_fitted(self)
        rows, seed = _plain(rows), _plain(self.seed if seed is None else seed)
        checks.whole(1, rows=rows)
        checks.whole(0, seed=seed)
        if given is not None and not isinstance(given, Mapping):
            table = self._table(given)
            if rows % table.rows:
                raise DataError(f"rows={rows}: expected a multiple of the {table.rows} partial rows that are given")
            return self._returned(complete(self.model_, self.schema_, table, rows // table.rows, seed=seed))
        return self._returned(Sampler(self.model_, self.schema_, seed=seed, given=given, balance=balance).rows(rows))

    def evidence(self, given: Mapping[str, Any]) -> Evidence:
        """The model's probability of a condition, and the effective number of its points behind it. Free; ``given`` as
        in :meth:`sample`."""
        check_is_fitted(self)
        return conditioned(self.model_, self.schema_, given, seed=self.seed)[2]

    def impute(self, X: Any, draws: int = 1) -> list[Any]:
        """A list of ``draws`` copies of ``X``, each with its missing cells drawn from p(missing | observed), in the
        form and the types of ``X``; observed cells stay as they are. As private as ``X``."""
        checks.whole(1, draws=draws)
        table = self._table(X)
        options = self.options or {}
        imputer = Imputer(self.model_, self.schema_, seed=self.seed, outside=options.get("data.outside", "error"))
        kind, likeness = frames.form(X), frames.likeness(X)
        full = [imputer.draw(table, draw, 0) for draw in range(draws)]
        return [self._as(dict(zip(each.names, each.cells, strict=True)), kind, likeness) for each in full]

    def score_samples(self, X: Any, score: str = "iwae") -> np.ndarray:
        """log p(x) of each row, (rows,), in nats: a density over numeric columns, a probability over the others. Lower
        is stranger.

        Exact for the codebook prior; for the normal prior a bound from 64 importance samples per row. The unit of a
        numeric column is its grid where it has one (years, cents) and its own unit otherwise. ``score`` may be
        ``elbo``, ``reconstruction`` or ``regret`` instead: see :mod:`dpvae.release.score`. A score of a private row is
        about that row.
        """
        return self._density().score(self._table(X), score)

    def explain(self, X: Any) -> np.ndarray:
        """The evidence that each cell alone is a mistake, (rows, columns) nats: the largest is its likeliest place."""
        return self._density().explain(self._table(X))

    def threshold(self, false_alarm: float, score: str = "iwae") -> float:
        """The score below which a share ``false_alarm`` of the model's own rows lies; free: no private row is asked."""
        check_is_fitted(self)
        return Ensemble([self._density()]).threshold(false_alarm, score)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`: higher is better. On private rows this number is a statistic of them."""
        return float(self.score_samples(X).mean())

    def transform(self, X: Any) -> np.ndarray:
        """The latent of each row, (rows, Z): the mean of the encoder's q(z | x)."""
        codes = torch.as_tensor(self._density().encode(self._table(X))).long()
        return exact(self.model_).latent(codes).numpy()

    def inverse_transform(self, X: Any) -> Any:
        """The most likely row of each latent, (rows, Z), in the form that was fitted; a bin stands for its median."""
        check_is_fitted(self)
        z_BZ = check_array(X, dtype=np.float32)
        if z_BZ.shape[1] != self._n_features_out:
            raise DataError(f"X of shape {z_BZ.shape}: expected (rows, {self._n_features_out}), as transform returns")
        return self._returned(likeliest(self.model_, self.schema_, z_BZ))

    # -- what scikit-learn asks --------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        tags.non_deterministic = (self.options or {}).get("privacy.secret_seed") is None  # the noise must differ
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "run_")

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.prior.dim)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if state.pop("_scratch", None) is not None and "run_" in state:
            files = (self.run_.path / "run.json", *(self.run_.path / "public").iterdir())
            state["_public"] = {path.relative_to(self.run_.path).as_posix(): path.read_bytes() for path in files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The released part of a temporary run gets a temporary folder of its own, from which it can be released."""
        super().__setstate__({name: value for name, value in state.items() if name != "_public"})
        self._scratch = None
        if "_public" in state:
            self._scratch = _Scratch()
            folder = self._scratch.path / self.run_.path.name
            (folder / "public").mkdir(parents=True)
            for name, content in state["_public"].items():
                write_bytes(folder / name, content)
            self.run_ = replace(self.run_, path=folder)

    # -- configuration -----------------------------------------------------------------------------------------------

    def _knobs(self, root: Path) -> dict[str, Any]:
        """Every knob by its dotted name; those of ``options`` may not say again what a parameter says."""
        values = self.get_params(deep=False) | {"runs": str(root)}
        knobs = {key: _plain(values[name]) for name, key in KNOBS.items()}
        parameters = {key: name for name, key in KNOBS.items()}
        if not isinstance(self.options, Mapping | None):
            raise ConfigError(f"options={self.options!r}: expected a mapping such as {{'trainer.fit_steps': 50}}")
        for key, value in (self.options or {}).items():
            if key in parameters:
                raise ConfigError(f"options[{key!r}]: expected as a parameter; give {parameters[key]}={value!r}")
            if key in HANDED_OVER:
                raise ConfigError(f"options[{key!r}]: expected as an argument of fit")
            if not isinstance(key, str) or key.count(".") != 1:
                raise ConfigError(f"options[{key!r}]: expected group.knob, such as trainer.fit_steps")
            knobs[key] = _plain(value)
        return knobs

    # -- rows in, rows out -------------------------------------------------------------------------------------------

    def _validated(self, X: Any, *, reset: bool) -> Any:
        """``X`` as scikit-learn checks it, which also keeps or compares number and names of the columns."""
        if frames.form(X) == "array":
            return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan",
                                 ensure_min_samples=2 if reset else 1)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return X

    def _table(self, X: Any) -> Table:
        """``X`` as a table with the columns of the schema."""
        check_is_fitted(self)
        if frames.form(X) == "file":
            table = lake.read(frames.file(X), least=1)
        else:
            table = lake.read(self._validated(X, reset=False), least=1)
        # an array's columns are known by their position
        names = self.schema_.names if frames.form(X) == "array" else table.names
        if names != self.schema_.names:
            raise DataError(f"columns={', '.join(names)}: expected those of fit, in their order: "
                            f"{', '.join(self.schema_.names)}")
        return replace(table, names=names)

    def _density(self) -> Density:
        check_is_fitted(self)
        return Density(self.model_, self.schema_, seed=self.seed)

    def _returned(self, cells: Mapping[str, Cells]) -> Any:
        return self._as(cells, self._form, self._likeness)

    def _as(self, cells: Mapping[str, Cells], kind: str, likeness: Any) -> Any:
        """Rows in the form ``kind``; numbers that were read as text are numbers again, but for those of a file."""
        own = {column.name: plain(column, cells[column.name]) for column in self.schema_.columns}
        return frames.like(cells if kind == "file" else own, kind, likeness)


class _Scratch:
    """A folder that is removed with the object that owns it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dpvae-"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process forked off the owner
        shutil.rmtree(path, ignore_errors=True)


def _plain(value: Any) -> Any:
    """numpy's scalars (of a parameter search, say) and paths as Python's own."""
    return value.item() if isinstance(value, np.generic) else os.fspath(value) if isinstance(value, os.PathLike) else (
        value)


def _config(knobs: Mapping[str, Any]) -> TrainConfig:
    tree: dict[str, dict[str, Any]] = {}
    for key, value in knobs.items():
        group, name = key.split(".")
        tree.setdefault(group, {})[name] = value
    return build(TrainConfig, tree)


def _schema_file(schema: Any, root: Path) -> str | None:
    """The path of a YAML file that says what ``schema`` says; named by its content, so that a run can be resumed."""
    if schema is None or isinstance(schema, str | os.PathLike):
        return None if schema is None else os.fspath(schema)
    mapping = declaration(schema) if isinstance(schema, Schema) else schema
    declare(mapping)  # what is wrong with it is told before anything is written
    text = json.dumps(mapping, ensure_ascii=False, indent=1,
                      default=lambda v: v.item() if isinstance(v, np.generic) else str(v)).encode()
    path = root / ".schemas" / f"{sha256(text).hexdigest()[:16]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text)
    return str(path)
