"""Measure with noise what the schema leaves open, in at most seven releases.

    rows     how many there are                      where no public row count is declared
    kinds    classes of cells: integer, date, ...     CSV columns, decimals of floats, units of timestamps
    missing  missing cells per column                 where nobody said whether cells may be missing
    values   values that many records share           categories; heaps of numeric columns
    rare     values that fewer records share          columns of which values left more than noise unpublished
    bounds   orders of magnitude                      numeric columns without declared bounds
    bins     a fine histogram between the bounds      numeric columns without declared bins

Each release is one event whose noise is fixed before the data is opened: a record touches one cell per column, so the
noise per cell grows with the square root of the columns measured, and the price does not. Later steps may look at what
earlier ones released, and at nothing else: no exact statistic steers anything. Which steps are planned follows from
public facts; a planned step that turns out to have no columns is still paid for, so the bill is known in advance.

A category or heap that few records share is never published: see ``frequent_values`` for the threshold.

>>> schema = Schema.undeclared([("age", "int64"), ("sex", "string")])
>>> survey_steps(schema, rows_known=True)
('kinds', 'missing', 'values', 'rare', 'bounds', 'bins')
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dpvae.data import answers, guess, kinds
from dpvae.data import bins as binning
from dpvae.data.lake import Rows, Table
from dpvae.data.schema import Category, Column, Schema, with_snapped_edges
from dpvae.data.table import read_column
from dpvae.errors import ConfigError
from dpvae.privacy.events import Event, Gaussian, Threshold
from dpvae.privacy.mechanisms import cell_sd, frequent_values, noisy_counts
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import SURVEY_WHAT, THRESHOLDED

Counted = Mapping[int, tuple[float, float]]
PHASE = "survey"
STEPS = tuple(SURVEY_WHAT)
LABEL_SHARE = 0.2  # of the look at rare values, at least, for a target of few values
LABEL_HIDDEN = 0.02  # of the rows, that the first look may have missed of it: with less there is nothing to look for
LEAST_HIDDEN = 0.01  # of the rows: a column of which less is hidden gets as much of the look at rare values
HEAP_SHARE = 0.01  # of the rows: the least that makes a value a heap
SCALES = 2  # copies of the scale cells: in blocks of 16 a thin tail stands out of the noise
BLIND = 20.0  # noise sds of the first look at values: fewer rows in all could not show that a column has few values
FAINT = 48.0  # noise sds of magnitudes: of fewer rows, single cells show too few


@dataclass(frozen=True)
class Survey:
    """The resolved schema, the row count the plan may use, and what was spent to learn them."""

    schema: Schema
    rows: float
    events: tuple[Event, ...]
    measured: dict[str, Any] = field(default_factory=dict)  # released noisy numbers by step: public
    counted: tuple[Counted, ...] = ()  # by column: code -> released count and the sd of its noise


def survey_steps(schema: Schema, rows_known: bool) -> tuple[str, ...]:
    """The steps that are needed: a function of the schema as it stands before any measurement."""
    needed = {"rows": not rows_known} | {step: any(_asked(step, c) for c in schema.columns) for step in STEPS[1:]}
    needed["rare"] |= schema.target is not None and _may_be_label(schema.column(schema.target))
    return tuple(step for step in STEPS if needed[step])


def survey_events(steps: tuple[str, ...], *, noise: Mapping[str, float], delta: float) -> tuple[Event, ...]:
    """Exactly the events that :func:`survey` will perform, for the ledger to reserve beforehand."""
    for step in steps:
        if step not in noise:
            raise ConfigError(f"noise: has no step {step!r}; expected a noise multiplier for {', '.join(steps)}")
    return tuple(_event(step, noise[step], delta) for step in steps)


def _event(step: str, noise_multiplier: float, delta: float) -> Event:
    if step in THRESHOLDED:
        return Threshold(PHASE, SURVEY_WHAT[step], noise_multiplier, delta)
    return Gaussian(PHASE, SURVEY_WHAT[step], noise_multiplier)


def _asked(step: str, column: Column) -> bool:
    """Whether ``step`` has something to measure in ``column`` as far as is known about it."""
    unknown, open_ = column.kind is None, set(column.open)
    if step == "kinds":
        return kinds.asks(column)
    if step == "missing":
        return "nullable" in open_
    if step == "values":
        return unknown or "categories" in open_ or ("heaps" in open_ and not binning.is_small(column))
    if step == "rare":
        return unknown or "categories" in open_
    if step == "bounds":
        return unknown or bool({"lower", "upper"} & open_)
    return unknown or "edges" in open_


def _may_be_label(column: Column) -> bool:
    """Whether a target could have few values, whole numbers or texts, of which nothing is declared."""
    asked = {"integer": "lower", "categorical": "categories", "ordinal": "categories"}
    return column.kind is None or (column.kind in asked and asked[column.kind] not in column.declared)


def survey(table: Rows, schema: Schema, *, noise: Mapping[str, float], delta: float, key: SecretKey,
           rows: int | None, outside: str = "error") -> Survey:
    """Close every open question of ``schema``; ``noise`` holds one noise multiplier per step.

    ``rows`` is the public row count, or ``None`` to measure it. ``delta`` is what the threshold of each of the steps
    values and rare may cost. Call :func:`dpvae.data.table.validate` first: a cell outside its declared domain is an
    error here too, but by now the ledger has booked the survey.
    """
    steps = survey_steps(schema, rows is not None)
    events = survey_events(steps, noise=noise, delta=delta)
    work = _Survey(table, schema, noise, delta, key, 0.0 if rows is None else float(rows), outside)
    for step in steps:
        getattr(work, step)()
    schema_ = work.finish()
    return Survey(schema_, work.total, events, work.measured, tuple(map(work.counted, range(len(schema_.columns)))))


class _Survey:
    """One survey under way: the schema fills up step by step."""

    def __init__(self, table: Rows, schema: Schema, noise: Mapping[str, float], delta: float, key: SecretKey,
                 total: float, outside: str) -> None:
        self.table, self.noise, self.delta, self.key = table, noise, delta, key
        self.total, self.outside = total, outside
        self.columns = list(schema.columns)
        self.schema = schema
        self.measured: dict[str, Any] = {}
        self.gone: dict[int, float] = {}  # noisy counts of missing cells
        self.candidates: dict[int, dict[float, int]] = {}  # noisy counts of values that may be heaps
        self.published: dict[int, Mapping[Category, int]] = {}  # noisy counts of the values of a discrete column
        self.sd: dict[int, dict[Any, float]] = {}  # of the noise in candidates and published
        self.label: int | None = None  # a target of few values, that are looked at twice
        self.hidden: dict[int, float] = {}  # noisy counts of its cells whose values are not published
        self.scale: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # scale cells and their denoised mass
        self._read: dict[int, Any] = {}

    # ---- the private data is touched in the methods of this part and nowhere else ---------------------------------

    def _values(self, j: int) -> Iterator[Any]:
        """Column ``j`` as axis values or keys, a piece at a time; of a table in memory they are kept."""
        if isinstance(self.table, Table):
            if j not in self._read:
                self._read[j] = read_column(self.columns[j], self.table.cells[j], self.outside)
            yield self._read[j]
        else:
            yield from (read_column(self.columns[j], cells, self.outside) for cells in self.table.pieces(j))

    def _release(self, step: str, counts: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        """The histograms with noise, one cell per record in each, and the noise's sd per cell."""
        if not counts:
            return [], 0.0
        noisy, _ = noisy_counts(counts, noise_multiplier=self.noise[step], stream=self.key.stream(PHASE, step),
                                phase=PHASE, what=SURVEY_WHAT[step])
        return noisy, cell_sd(self.noise[step], len(counts))

    def rows(self) -> None:
        noisy, sd = self._release("rows", [np.array([self.table.rows])])
        self.total = float(max(noisy[0][0], 1))
        self.measured["rows"] = {"noisy": self.total, "sd": sd}

    def values(self) -> None:
        released = self._frequent("values", self._which("values"))
        for j, (counts, sd) in released.items():
            self.sd[j] = dict.fromkeys(counts, sd)
            if self.columns[j].is_numeric:
                self.candidates[j] = {float(v): c for v, c in counts.items()}
            else:
                self._categories(j, counts, sd)

    def rare(self) -> None:
        """Once more, for few columns, with less noise and lower thresholds; the least where most is hidden. A target
        of few values is one of them: a rare event is what its table is about."""
        self.label = self._label()
        others = [j for j in self.published if j != self.label]
        asked = [j for j in others if self.columns[j].other] or [j for j in others if self._may_hide(j)]
        asked += [] if self.label is None else [self.label]
        shares = _shares([max(self.hidden[j], LEAST_HIDDEN * self.total) for j in asked], self.label is not None)
        for j, (counts, sd) in self._frequent("rare", asked, shares).items():
            numeric = self.columns[j].is_numeric
            known: Mapping[Any, int] = self.candidates.get(j, {}) if numeric else self.published[j]
            kept = known if sd > self.measured["values"]["sd"][self.columns[j].name] else {}  # with less noise
            self.sd[j] |= dict.fromkeys(counts.keys() - kept.keys(), sd)
            if numeric:
                self.candidates[j] = {float(v): c for v, c in {**known, **counts, **kept}.items()}
            else:
                self._categories(j, {**known, **counts, **kept}, sd)

    def _may_hide(self, j: int) -> bool:
        """Whether what is left of a column is many rows, and likely no noise: worth a look that is paid for anyway."""
        sd = self.measured["values"]["sd"][self.columns[j].name] * math.sqrt(len(self.published[j]) + 1)
        return self.hidden[j] > max(sd, LABEL_HIDDEN * self.total)

    def _frequent(self, step: str, asked: list[int], shares: list[float] | None = None
                  ) -> dict[int, tuple[Mapping[Any, int], float]]:
        """By column, values with their noisy counts, and the noise's sd per count."""
        if not asked:
            return {}
        released, _ = frequent_values(
            [self._histogram(j) for j in asked], noise_multiplier=self.noise[step], delta=self.delta, shares=shares,
            stream=self.key.stream(PHASE, step), phase=PHASE, what=SURVEY_WHAT[step])
        among = [1 / share for share in shares] if shares else [len(asked)] * len(asked)
        sds = [cell_sd(self.noise[step], columns) for columns in among]
        names = [self.columns[j].name for j in asked]
        self.measured[step] = {"sd": dict(zip(names, sds, strict=True)), "columns": {
            name: [[v, c] for v, c in counts.items()] for name, counts in zip(names, released, strict=True)}}
        return dict(zip(asked, zip(released, sds, strict=True), strict=True))

    def _histogram(self, j: int) -> Mapping[Any, int]:
        counts: Counter[Any] = Counter()
        for values in self._values(j):
            counts.update((values[np.isfinite(values)] + 0.0).tolist()  # + 0.0: one zero, not two
                          if self.columns[j].is_numeric else values)
        counts.pop(None, None)
        return counts

    def _leaf_counts(self, j: int, grid: np.ndarray, heaps: tuple[float, ...]) -> list[np.ndarray]:
        """One cell per leaf, then one per heap; and the leaves alone in larger blocks."""
        order = np.argsort(heaps)
        leaves, held = [], []
        for axis in self._values(j):
            on_heap = np.isin(axis, heaps)
            which = order[np.searchsorted(np.array(heaps)[order], axis[on_heap])] if heaps else np.zeros(0, dtype=int)
            leaves.append(binning.count(grid, axis[~on_heap]))
            held.append(np.bincount(which, minlength=len(heaps)))
        tables = binning.coarsened(_sum(leaves))
        return [np.concatenate([tables[0], _sum(held)]), *tables[1:]]

    # ---- what the releases mean: from here on everything is public ------------------------------------------

    def _which(self, step: str) -> list[int]:
        return [j for j, column in enumerate(self.columns) if _asked(step, column)]

    def _answer(self, j: int, **answers: Any) -> None:
        self.columns[j] = replace(self.columns[j], **answers)
        if {"kind", "format", "lower", "upper"} & set(answers):
            self._read.pop(j, None)

    def _guessed(self, j: int, what: str) -> None:
        self._answer(j, guessed=(*(self.columns[j].guessed or ()), what))

    def kinds(self) -> None:
        asked = self._which("kinds")
        noisy, sd = self._release("kinds", [_sum(
            kinds.count(self.columns[j], cells) for cells in self.table.pieces(j)) for j in asked])
        released = sum(map(len, noisy))
        for j, counts in zip(asked, noisy, strict=True):
            named = dict(zip(kinds.classes(self.columns[j]), counts.tolist(), strict=True))
            self._answer(j, **kinds.decide(self.columns[j], named, sd, released, rows=self.total))

    def missing(self) -> None:
        asked = self._which("missing")
        noisy, sd = self._release("missing", [np.array([self._count_missing(j)]) for j in asked])
        for j, counts in zip(asked, noisy, strict=True):
            self.gone[j] = float(max(counts[0], 0))
            self._answer(j, nullable=bool(counts[0] > 3 * sd))
        self.measured["missing"] = {"sd": sd, "columns": {self.columns[j].name: self.gone[j] for j in asked}}

    def _count_missing(self, j: int) -> int:
        numeric = self.columns[j].is_numeric
        return sum(int(np.isnan(values).sum()) if numeric else sum(v is None for v in values)
                   for values in self._values(j))

    def _categories(self, j: int, counts: Mapping[Category, int], sd: float) -> None:
        self.published[j] = counts
        left = self.total - self.gone.get(j, 0.0) - sum(counts[v] for v in answers.published(counts))
        self.hidden[j] = left
        self._answer(j, **answers.categories(self.columns[j], counts, left=left, sd=sd))

    def _label(self) -> int | None:
        """The target, where the first look says that it has few values, or could not say that it has many, and left
        something hidden."""
        if self.schema.target is None:
            return None
        j = self.schema.names.index(self.schema.target)
        if not _may_be_label(self.columns[j]) or j not in self.sd:
            return None
        sd = self.measured["values"]["sd"][self.columns[j].name]
        known = self.candidates.get(j, {}) if self.columns[j].is_numeric else self.published[j]
        left = self._present(j) - sum(known.values())
        self.hidden[j] = min(max(left, 0.0) + 2 * sd * math.sqrt(len(known) + 1), self.total)
        few = left < self.total / 2 or self.total < BLIND * sd
        return j if few and self.hidden[j] > LABEL_HIDDEN * self.total else None

    def bounds(self) -> None:
        asked = self._which("bounds")
        cells = [binning.scale_cells(self.columns[j]) for j in asked]
        tables = [binning.coarsened(_sum(binning.count(e, axis) for axis in self._values(j)))[:SCALES]
                  for j, e in zip(asked, cells, strict=True)]
        noisy, sd = self._release("bounds", [table for several in tables for table in several])
        released = iter(noisy)
        for j, edges, several in zip(asked, cells, tables, strict=True):
            noisy_j = [next(released) for _ in several]
            mass = binning.denoise(noisy_j, sd, self._present(j), reach=binning.PER_OCTAVE,
                                   usual=guess.usual(self.columns[j], edges))
            if self._present(j) < FAINT * sd:
                likely, bare = guess.magnitudes(self.columns[j], edges, noisy_j, sd, self._present(j))
                clear = binning.stands_out(noisy_j, sd)
                mass = (mass + likely) / 2 if clear else likely  # what stands out may be one side of a column alone
                if bare and not clear:
                    self._guessed(j, "range")
            if self.columns[j].kind != "datetime":
                mass = binning.on_one_side(edges, mass, sd)
            held = binning.trim(mass)
            self.scale[j] = edges[held.start:held.stop + 1], mass[held]
            lower, upper = binning.bounds(self.columns[j], edges, mass)
            self._answer(j, lower=lower, upper=upper)

    def _present(self, j: int) -> float:
        return max(self.total - self.gone.get(j, 0.0), 0.0)

    def bins(self) -> None:
        asked = self._which("bins")
        heaps = [self._heaps(j) for j in asked]
        grids = [binning.leaves(self.columns[j], *self.scale.get(j, (None, None))) for j in asked]
        tables = [self._leaf_counts(j, grid, heap) for j, grid, heap in zip(asked, grids, heaps, strict=True)]
        noisy, sd = self._release("bins", [table for several in tables for table in several])
        released = iter(noisy)
        for j, grid, heap, several in zip(asked, grids, heaps, tables, strict=True):
            usual = binning.expected(grid, *self.scale[j]) if j in self.scale else None
            self._answer(j, **answers.bins(self.columns[j], grid, heap, [next(released) for _ in several], sd=sd,
                                           present=self._present(j), rows=self.total, usual=usual))
        self.measured["bins"] = {"sd": sd}

    def _heaps(self, j: int) -> tuple[float, ...]:
        """Declared heaps, or the published values that many rows share, most frequent first."""
        if self.columns[j].heaps is not None:
            return self.columns[j].heaps or ()
        if j == self.label and self.candidates.get(j):
            return tuple(self.candidates[j])[:binning.CODES - answers.FEWEST_BINS]
        found = [v for v, c in self.candidates.get(j, {}).items() if c >= HEAP_SHARE * self.total]
        low, high = self.columns[j].lower or 0.0, self.columns[j].upper or 0.0
        return tuple(v for v in found if low <= v <= high)[:binning.CODES - answers.FEWEST_BINS]

    def counted(self, j: int) -> Counted:
        """What was released of single codes on the way."""
        column = self.columns[j]
        counts: Mapping[Any, int] = self.candidates.get(j, {}) if column.is_numeric else self.published.get(j, {})
        values = (column.heaps if column.is_numeric else column.categories) or ()
        return {code: (float(counts[v]), self.sd[j][v]) for code, v in enumerate(values) if v in counts}

    def finish(self) -> Schema:
        """All questions closed, also those that no step was asked about."""
        for j, column in enumerate(self.columns):
            if column.is_numeric and column.heaps is None:
                self._answer(j, heaps=())
            elif not column.is_numeric and column.other is None:
                self._answer(j, other=False)
            if not column.is_numeric and column.other and not column.categories:
                self._guessed(j, "values")
            self.columns[j] = with_snapped_edges(self.columns[j])
        return replace(self.schema, columns=tuple(self.columns))


def _shares(hidden: list[float], label: bool = False) -> list[float]:
    """Of the squared signal of a look at columns with so many hidden cells, by column; the last may be the label.

    What stays hidden falls with the threshold, about in proportion to what is hidden now, and the threshold with the
    root of the share: the sum of ``h / sqrt(a)`` is least where ``a`` goes with ``h`` to the power of two thirds.
    """
    weights = [cells ** (2 / 3) for cells in hidden]
    if label and len(weights) > 1:
        weights[-1] = max(weights[-1], LABEL_SHARE / (1 - LABEL_SHARE) * math.fsum(weights[:-1]))
    return [weight / math.fsum(weights) for weight in weights]


def _sum(counts: Iterable[np.ndarray]) -> np.ndarray:
    total: np.ndarray = np.sum(list(counts), axis=0)
    return total
