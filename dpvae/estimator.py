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

import copy
import importlib
import json
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from dpvae import api, checks
from dpvae.config import TrainConfig, build
from dpvae.data import builtin, lake
from dpvae.data.cells import from_axis, to_axis
from dpvae.data.declare import declare
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import EPOCH, Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import ConfigError, DataError, RunError
from dpvae.models.likelihood import Columns
from dpvae.models.vae import VAE
from dpvae.release.sample import load_public, sample_codes
from dpvae.rng import seed_of, stream
from dpvae.train.checkpoint import write_bytes

KNOBS = {"epsilon": "privacy.epsilon", "delta": "privacy.delta", "rows": "data.rows", "target": "data.target",
         "trainer": "trainer.name", "seed": "run.seed", "ledger": "ledger.url", "dataset": "ledger.dataset",
         "runs": "run.root", "run_name": "run.name", "device": "performance.device", "progress": "report.progress"}
HANDED_OVER = ("data.path", "data.builtin", "data.schema")  # by fit
IMPORTANCE_SAMPLES = 64
PROPOSALS = 65_536  # latents from which those that fit a condition are drawn (normal prior)
FEWEST_EFFECTIVE = 100.0  # of them must count


class DPVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A variational autoencoder of a table under (epsilon, delta) differential privacy per row.

    Every ``fit`` spends, unless it resumes or finds again a run of the same ``run_name`` in ``runs``. The noise is
    secret and fresh, so two fits differ; ``seed`` fixes only what is public. A cross-validation or a search is many
    fits: give ``ledger``, ``dataset`` and a cap (``options={"ledger.cap_epsilon": 3.0}``) to have them added up.

    Names and *types* of the columns count as public. A pandas column of integers turns to floats because of one missing
    cell; use a nullable type, or a CSV file, where that alone would tell.

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
        """Train on ``X``; spends epsilon.

        Args:
            X: a pandas or polars frame, an Arrow table, a 2-d array, the path of a CSV or Parquet file, or the name of
                a built-in table. A missing cell is a value of its own; an infinite one is refused.
            y: ignored; name a column of ``X`` with ``target`` instead.
            schema: what is public about the columns: a YAML file, a mapping of the same form, or a
                :class:`~dpvae.data.schema.Schema`, all of whose answers then count as public. What it leaves open, or
                everything without it, is measured and charged.
        """
        self.__dict__.pop("run_", None)  # a fit that fails leaves no model of other rows behind
        scratch = _Scratch() if self.runs is None else None
        root = scratch.path if scratch is not None else Path(os.fspath(self.runs))  # type: ignore[arg-type]
        knobs = self._knobs(root) | {"data.schema": _schema_file(schema, root)}
        self._form, self._likeness = _form(X), _likeness(X)
        table = None if self._form == "file" else self._validated(X, reset=True)
        names = tuple(name for name, _ in lake.header(_file(X) if table is None else table))
        if table is None:
            self.n_features_in_, self.feature_names_in_ = len(names), np.array(names, dtype=object)
            knobs["data.builtin" if _is_builtin(X) else "data.path"] = os.fspath(X)
        run = api.train(_config(knobs), table)
        self.model_, self.schema_ = load_public(run.path / "public")
        if self.schema_.names != names:  # a finished run was found by its name
            raise RunError(f"run_name={self.run_name}: that run was trained on other columns; choose another run_name")
        self.epsilon_, self.plan_, self._scratch, self.run_ = run.epsilon, run.plan, scratch, run
        return self

    def sample(self, rows: int, given: Mapping[str, Any] | None = None, seed: int | None = None) -> Any:
        """``rows`` synthetic rows in the form that was fitted: a pandas or polars frame, an array, or an Arrow table
        (for a file too), in the original types.

        ``given`` fixes the values of some columns, such as ``{"sex": "Female", "age": 40}``; ``None`` is a missing
        cell. With the codebook prior of ``trainer="anchored"`` the other columns are drawn from the model's exact
        conditional distribution: the weight of component k is multiplied by p(given | k), and inside a component
        columns are independent. With the normal prior, latents are resampled from at least 65,536 proposals by their
        p(given | z), which is exact in the limit; a condition that fewer than 100 effective proposals fit is refused.

        ``seed`` is public and ``None`` is the estimator's: the same seed gives the same rows.
        """
        check_is_fitted(self)
        rows, seed = _plain(rows), _plain(self.seed if seed is None else seed)
        checks.whole(1, rows=rows)
        checks.whole(0, seed=seed)
        fixed = {self._position(name): _fixed(self.schema_.column(name), value)
                 for name, value in (given or {}).items()}
        if fixed:
            codes = _sample_given(self.model_, {j: code for j, (code, _) in fixed.items()}, rows, seed)
        else:
            codes = sample_codes(self.model_, rows, seed=seed)
        cells = TableCodec(self.schema_).decode(codes, stream(seed, "decode"))
        for j, (_, axis) in fixed.items():
            if axis is not None:  # a code may stand for a whole bin
                column = self.schema_.columns[j]
                cells[column.name] = from_axis(column, np.full(rows, axis), np.zeros(rows, dtype=bool))
        return self._returned(cells)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row, (rows,), in nats: a density over numeric columns, a probability over the others.

        Exact for the codebook prior; for the normal prior a bound from 64 importance samples per row. The unit of a
        numeric column is its grid where it has one (years, cents) and its own unit otherwise.
        """
        codes = self._codes(X)
        log_prob = _exact(self.model_).log_prob(torch.as_tensor(codes).long(), samples=IMPORTANCE_SAMPLES,
                                                generator=torch.Generator().manual_seed(seed_of(self.seed, "score")))
        return log_prob.numpy() + TableCodec(self.schema_).log_density_offset(codes)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of :meth:`score_samples`: higher is better. On private rows this number is a statistic of them."""
        return float(self.score_samples(X).mean())

    def transform(self, X: Any) -> np.ndarray:
        """The latent of each row, (rows, Z): the mean of the encoder's q(z | x)."""
        codes = self._codes(X)
        return _exact(self.model_).latent(torch.as_tensor(codes).long()).numpy()

    def inverse_transform(self, X: Any) -> Any:
        """The most likely row of each latent, (rows, Z), in the form that was fitted; a bin stands for its median."""
        check_is_fitted(self)
        z_BZ = check_array(X, dtype=np.float32)
        if z_BZ.shape[1] != self._n_features_out:
            raise DataError(f"X of shape {z_BZ.shape}: expected (rows, {self._n_features_out}), as transform returns")
        with torch.no_grad():
            logits_BW = self.model_.decode(torch.as_tensor(z_BZ))
        codes = torch.stack([part.argmax(-1) for part in logits_BW.split(self.model_.likelihood.sizes, -1)], -1)
        middle: Any = _Middle()
        return self._returned(TableCodec(self.schema_).decode(codes.numpy(), middle))

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
        if _form(X) == "array":
            return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan",
                                 ensure_min_samples=2 if reset else 1)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return X

    def _codes(self, X: Any) -> np.ndarray:
        """Rows as codes, (rows, D)."""
        check_is_fitted(self)
        if _form(X) == "file":
            return self._encoded(lake.read(_file(X)))
        X = self._validated(X, reset=False)
        if len(X) == 1:  # lake.read refuses a single row, as training must
            return self._encoded(lake.read(_twice(X)), array=_form(X) == "array")[:1]
        return self._encoded(lake.read(X), array=_form(X) == "array")

    def _encoded(self, table: Table, *, array: bool = False) -> np.ndarray:
        names = self.schema_.names if array else table.names  # an array's columns are known by their position
        if names != self.schema_.names:
            raise DataError(f"columns={', '.join(names)}: expected those of fit, in their order: "
                            f"{', '.join(self.schema_.names)}")
        return TableCodec(self.schema_).encode(replace(table, names=names),
                                               (self.options or {}).get("data.outside", "error"))

    def _position(self, name: str) -> int:
        return self.schema_.columns.index(self.schema_.column(name))

    def _returned(self, cells: Mapping[str, Cells]) -> Any:
        if self._form == "array":
            return _to_array(cells, self._likeness)
        table = lake.to_arrow(cells)
        if self._form == "polars":
            return importlib.import_module("polars").from_arrow(table)
        return _to_pandas(table, *self._likeness) if self._form == "pandas" else table


class _Scratch:
    """A folder that is removed with the object that owns it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dpvae-"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process forked off the owner
        shutil.rmtree(path, ignore_errors=True)


class _Middle:
    """Stands in for a random generator where the middle of a bin is wanted."""

    def random(self, size: int) -> np.ndarray:
        return np.full(size, 0.5)

    def integers(self, high: int, size: int) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)


class _DoubleColumns(Columns):
    """Columns whose one-hot rows are in double precision."""

    def one_hot(self, codes_BD: torch.Tensor) -> torch.Tensor:
        return super().one_hot(codes_BD).double()


def _exact(vae: VAE) -> VAE:
    """``vae`` in double precision: in single, the last digits of a row's score depend on the rows beside it."""
    exact = copy.deepcopy(vae).double()
    exact.likelihood = _DoubleColumns(vae.likelihood.sizes)
    return exact


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


# -- forms of a table --------------------------------------------------------------------------------------------------


def _form(X: Any) -> str:
    if isinstance(X, str | os.PathLike):
        return "file"
    library = type(X).__module__.split(".")[0]
    if library in ("pandas", "polars") and hasattr(X, "columns"):
        return library
    return "arrow" if hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__") else "array"


def _is_builtin(X: Any) -> bool:
    return isinstance(X, str) and X in builtin.names()


def _file(X: Any) -> Any:
    return builtin.path(X) if _is_builtin(X) else X


def _likeness(X: Any) -> Any:
    """What must be remembered to give rows back as they came. Names of types alone: a pandas ``category`` type also
    lists every category, published or not."""
    form = _form(X)
    if form == "pandas":
        return X.columns, [str(dtype) for dtype in X.dtypes]
    return np.asarray(X).dtype if form == "array" else None


def _twice(X: Any) -> Any:
    if _form(X) == "pandas":
        return X.iloc[[0, 0]]
    return X.take([0, 0]) if _form(X) == "arrow" else X[[0, 0]]


def _to_pandas(table: Any, labels: Any, dtypes: list[str]) -> Any:
    frame = table.to_pandas()
    for name, dtype in zip(frame.columns, dtypes, strict=True):
        if dtype not in ("category", str(frame[name].dtype)):
            with suppress(ValueError, TypeError):  # integers among which the model knows missing cells stay floats
                frame[name] = frame[name].astype(dtype)
    return frame.set_axis(labels, axis=1)


def _to_array(cells: Mapping[str, Cells], dtype: np.dtype) -> np.ndarray:
    missing = np.column_stack([c.missing for c in cells.values()])
    if missing.any() and dtype.kind not in "fOM":
        dtype = np.dtype(np.float64 if dtype.kind in "iu" else object)
    rows = np.column_stack([c.values.astype(dtype) for c in cells.values()])
    if missing.any():
        rows[missing] = None if dtype.kind == "O" else np.array("NaT" if dtype.kind == "M" else "nan", dtype)
    return rows


# -- conditions --------------------------------------------------------------------------------------------------------


def _fixed(column: Column, value: Any) -> tuple[int, float | None]:
    """The code that ``value`` falls under and, for a number or a date, its place on the column's axis."""
    cells = lake.read({column.name: [value, value]}).cells[0]
    if cells.missing[0]:
        if not column.nullable:
            raise DataError(f"given {column.name}=None: expected a value; the model knows no missing cells there")
        return column.cardinality - 1, None
    if not column.is_numeric:
        known = list(column.categories or ())
        if value not in known:
            value = str(value)
        if value not in known:
            raise DataError(f"given {column.name}={value!r}: expected one of {', '.join(map(str, known))}"
                            f"{checks.did_you_mean(value, map(str, known))}")
        return known.index(value), None
    axis = float(to_axis(column, cells)[0])
    low, high = column.lower, column.upper
    assert low is not None
    assert high is not None
    if not low <= axis <= high or (column.step and abs(column.on_grid(axis) - axis) > column.step / 1000):
        raise DataError(f"given {column.name}={value!r}: expected {column.kind} in {column.text(low)} .. "
                        f"{column.text(high)}, as precise as the column")
    code = TableCodec(Schema((column,))).encode(Table((column.name,), (cells,)), "clip")[0, 0]
    return int(code), axis


@torch.no_grad()
def _sample_given(vae: VAE, fixed: Mapping[int, int], rows: int, seed: int) -> np.ndarray:
    """Codes, (rows, D), in which column j has the code ``fixed[j]``; see :meth:`DPVAE.sample`."""
    columns = vae.likelihood
    places = [columns.starts[j] + code for j, code in fixed.items()]
    if vae.codebook is not None:
        log_p_KW = columns.log_probs(vae.decode(vae.codebook.points))
        vae = copy.deepcopy(vae)
        assert vae.codebook is not None
        vae.codebook.weights += log_p_KW[:, places].sum(1)  # p(k | given) is proportional to w_k p(given | k)
        codes_BD = sample_codes(vae, rows, seed=seed)
    else:
        generator = torch.Generator().manual_seed(seed_of(seed, "given"))
        z_PZ = vae.prior.sample(min(max(PROPOSALS, 4 * rows), 2**22), generator=generator)
        log_p_P = torch.cat([columns.log_probs(vae.decode(z))[:, places].sum(1) for z in z_PZ.split(4096)])
        weights_P = log_p_P.double().softmax(0)
        effective = float(1 / weights_P.square().sum())
        if effective < FEWEST_EFFECTIVE:
            raise DataError(f"given: {effective:.0f} of {len(z_PZ)} latents fit; expected at least "
                            f"{FEWEST_EFFECTIVE:.0f}: the model holds this next to impossible, fix fewer columns")
        picks = torch.multinomial(weights_P, rows, replacement=True, generator=generator)
        codes_BD = torch.cat([columns.sample(vae.decode(z), generator=generator)
                              for z in z_PZ[picks].split(4096)]).numpy()
    for j, code in fixed.items():
        codes_BD[:, j] = code
    return codes_BD


# -- schemas -----------------------------------------------------------------------------------------------------------


def _schema_file(schema: Any, root: Path) -> str | None:
    """The path of a YAML file that says what ``schema`` says; named by its content, so that a run can be resumed."""
    if schema is None or isinstance(schema, str | os.PathLike):
        return None if schema is None else os.fspath(schema)
    mapping = _declaration(schema) if isinstance(schema, Schema) else schema
    declare(mapping)  # what is wrong with it is told before anything is written
    text = json.dumps(mapping, ensure_ascii=False, indent=1,
                      default=lambda v: v.item() if isinstance(v, np.generic) else str(v)).encode()
    path = root / ".schemas" / f"{sha256(text).hexdigest()[:16]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text)
    return str(path)


def _declaration(schema: Schema) -> dict[str, Any]:
    """The mapping that declares every answer of ``schema``; JSON is YAML."""
    return {"target": schema.target, "columns": {column.name: _facts(column) for column in schema.columns}}


def _facts(column: Column) -> dict[str, Any]:
    missing = "measure" if column.nullable is None else column.nullable
    if column.kind is None:
        return {"missing": missing}
    facts: dict[str, Any] = {"kind": column.kind, "missing": missing}
    if column.kind in ("categorical", "ordinal") and column.categories:
        facts |= {"categories": list(column.categories), "other": column.other}
    if column.is_numeric:
        edges, step = list(column.edges or ()), column.step
        if edges and step:  # between grid points, as a bound schema has them; a person writes grid points
            edges = [*(math.ceil(e / step - 1e-9) * step for e in edges[:-1]),
                     math.floor(edges[-1] / step + 1e-9) * step]
        low, high = column.lower, column.upper
        if edges and low is not None and high is not None:  # whatever the rounding
            low, high = min(low, edges[0]), max(high, edges[-1])
        facts |= {"min": low, "max": high, "heaps": column.heaps, "edges": edges or None,
                  "format": column.format, "unit": column.unit if column.kind == "datetime" else None,
                  "decimals": column.decimals if column.kind == "continuous" else None}
    if column.kind == "datetime":
        facts |= {key: _dates(facts[key]) for key in ("min", "max", "heaps", "edges")}
    return {key: value for key, value in facts.items() if value is not None}


def _dates(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_dates(v) for v in value]
    return None if value is None else (EPOCH + timedelta(seconds=value)).isoformat()
