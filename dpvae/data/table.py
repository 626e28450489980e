"""Rows to codes and back.

A :class:`TableCodec` turns a table into one small integer per cell by the rules of a resolved schema, and codes back
into cells: inside a bin a value is *drawn*, following the finer released histogram where there is one, so that a
synthetic column has no comb of bin midpoints (unless its values repeat: then a bin has few); integers stay integers,
decimals keep their scale, dates are dates.

>>> from dpvae.data import lake
>>> from dpvae.data.schema import Schema
>>> age = Column("age", "integer", "int64", nullable=True, lower=17, upper=90, heaps=(), edges=(16.5, 30.5, 90.5))
>>> codec = TableCodec(Schema((age,)))
>>> codes = codec.encode(lake.read({"age": [20, 64, None]}))
>>> codes.ravel().tolist()
[0, 1, 2]
>>> back = codec.decode(codes, np.random.default_rng(0))["age"]
>>> back.values.dtype, back.missing.tolist()
(dtype('int64'), [False, False, True])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dpvae.checks import one_of
from dpvae.config import OUTSIDE
from dpvae.data.cells import from_axis, from_categories, to_axis, to_keys
from dpvae.data.distinct import Distinct
from dpvae.data.dtypes import is_text
from dpvae.data.kinds import refuse_free_text
from dpvae.data.lake import Cells, Rows, Table
from dpvae.data.schema import CLOCK, OTHER, Category, Column, Schema
from dpvae.errors import DataError, SchemaError


def validate(table: Rows, schema: Schema, outside: str = "error") -> None:
    """Raise unless every cell fits what is *declared*; to be called before anything is spent.

    Columns that are measured may hold anything but inf: what lies outside the measured domain is clipped to it, or
    becomes ``other``, silently and record by record.
    """
    one_of(OUTSIDE, outside=outside)
    _match(table, schema)
    refuse_free_text(table, schema)
    for j, column in enumerate(schema.columns):
        for cells in table.pieces(j):
            read_column(column, cells, outside)


def read_column(column: Column, cells: Cells, outside: str) -> Any:
    """Axis values (rows,) of a numeric column, keys of a discrete one, the raw cells of one of unknown kind.

    The declared domain is enforced the way ``outside`` says: an error, clipped to the nearest bound, or missing.
    """
    never = column.nullable is False and "nullable" in column.declared
    if never and cells.missing.any():
        raise DataError(f"column={column.name!r}: {int(cells.missing.sum())} cells are missing, but none may be; "
                        "add missing: true to its schema")
    if never and outside == "missing":
        raise SchemaError(f"column={column.name!r}: outside=missing needs a code for missing cells; add missing: true")
    if column.kind is None:
        return cells
    return _axis(column, cells, outside) if column.is_numeric else _keys(column, cells, outside)


def _axis(column: Column, cells: Cells, outside: str) -> np.ndarray:
    axis = to_axis(column, cells)
    if is_text(cells.dtype) and "kind" not in column.declared:  # "inf" in a text column is no number
        axis[np.isinf(axis)] = np.nan
    lower = column.lower if "lower" in column.declared and column.lower is not None else -np.inf
    upper = column.upper if "upper" in column.declared and column.upper is not None else np.inf
    slack = column.step / 1000
    with np.errstate(invalid="ignore"):
        beyond = (axis < lower - slack) | (axis > upper + slack) | np.isinf(axis)
        if column.kind == "integer" and "kind" in column.declared:
            beyond |= np.isfinite(axis) & (axis != np.rint(axis))
    unreadable = np.isnan(axis) & ~cells.missing
    if outside == "error" and beyond.any():
        wanted = f"{column.kind} in {_bound(column, lower)} .. {_bound(column, upper)}"
        _refuse(column, cells, beyond, wanted if np.isfinite([lower, upper]).any() else f"{column.kind}, finite")
    if outside != "missing" and "kind" in column.declared and unreadable.any():
        _refuse(column, cells, unreadable, f"{column.kind} cells" + (f" like {column.format}" if column.format else ""))
    axis = np.where(beyond, np.nan, axis) if outside == "missing" else np.clip(axis, lower, upper)
    return np.rint(axis) if column.kind == "integer" else axis


def _bound(column: Column, value: float) -> str:
    return column.text(value) if np.isfinite(value) else "any"


def _keys(column: Column, cells: Cells, outside: str) -> list[Category | None]:
    keys = to_keys(column, cells)
    strict = "categories" in column.declared or (column.kind == "boolean" and "kind" in column.declared)
    if not strict or column.other:
        return keys
    known = set(column.categories or ())
    unknown = np.array([k not in known for k in keys], dtype=bool) & ~cells.missing
    if unknown.any() and outside != "missing":
        _refuse(column, cells, unknown, " or ".join(column.spelling) if column.spelling else
                "one of its declared categories")
    return [None if out else k for k, out in zip(keys, unknown.tolist(), strict=True)] if unknown.any() else keys


def _refuse(column: Column, cells: Cells, bad: np.ndarray, wanted: str) -> None:
    first = int(np.flatnonzero(bad)[0])
    value = cells.values[first]
    if column.kind in CLOCK and not is_text(cells.dtype):
        value = column.text(float(to_axis(column, Cells(cells.values[first:first + 1], np.zeros(1, bool),
                                                        cells.dtype))[0]))
    elif isinstance(value, np.generic):
        value = value.item()
    can_clip = column.is_numeric and not np.isnan(to_axis(column, cells)[first])
    ways = " or ".join((["data.outside=clip"] if can_clip else []) + ["data.outside=missing"])
    raise DataError(f"column={column.name!r}: {value!r} in row {first + 1} ({int(bad.sum())} such cells); expected "
                    f"{wanted}; repair it, correct the schema, or ask for {ways}")


def _match(table: Rows, schema: Schema) -> None:
    if table.names != schema.names:
        raise SchemaError(f"table columns={list(table.names)}: expected {list(schema.names)}; bind the schema first")


class TableCodec:
    """Encode and decode whole tables by a resolved schema."""

    def __init__(self, schema: Schema) -> None:
        if not schema.resolved:
            raise SchemaError(f"schema: open questions {', '.join(schema.open_questions[:5])}; run the survey first")
        self.schema = schema
        self._coders = tuple(_Numeric(c) if c.is_numeric else _Discrete(c) for c in schema.columns)

    @property
    def widths(self) -> tuple[np.ndarray, ...]:
        """Per column, the width of each code: 1 for categories, heaps and missing; grid points or length of a bin."""
        return tuple(coder.widths for coder in self._coders)

    @property
    def atoms(self) -> tuple[np.ndarray, ...]:
        """Per column and code, whether its values can be counted: all but the bins of a continuous column."""
        return tuple(coder.atoms for coder in self._coders)

    def distinct(self, table: Table) -> tuple[Distinct, ...]:
        """The columns of ``table``, for :meth:`encode` and what else asks about its cells."""
        _match(table, self.schema)
        return tuple(map(Distinct.of, self.schema.columns, table.cells))

    def encode(self, table: Table, outside: str = "error", distinct: Sequence[Distinct] | None = None) -> np.ndarray:
        """Codes, shape (rows, columns), int16 (int32 where a column has more than 32,767 codes)."""
        one_of(OUTSIDE, outside=outside)
        size = max(self.schema.cardinalities)
        codes = np.empty((table.rows, len(self._coders)), np.int16 if size < 2**15 else np.int32)
        for j, (coder, column) in enumerate(zip(self._coders, distinct or self.distinct(table), strict=True)):
            try:
                codes[:, j] = column.rows(coder.encode(column.cells, outside))
            except DataError:
                coder.encode(table.cells[j], outside)  # names the row
                raise
        return codes

    def shares(self, name: str, low: float, high: float) -> np.ndarray:
        """Of each code of a numeric column, the share that lies in [``low``, ``high``] of its axis; (codes,)."""
        coder = self._coders[self.schema.names.index(name)]
        assert isinstance(coder, _Numeric)
        return coder.shares(low, high)

    def decode(self, codes: np.ndarray, rng: np.random.Generator,
               between: Mapping[str, tuple[float, float]] | None = None) -> dict[str, Cells]:
        """Cells by column name, for codes of shape (rows, columns); ``rng`` is public randomness.

        Where ``between`` names a numeric column, its values are drawn from that part of their bins.
        """
        sizes = np.array(self.schema.cardinalities)
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or (codes < 0).any() or (codes >= sizes).any():
            raise DataError(f"codes of shape {codes.shape}: expected (rows, {len(sizes)}), each below its cardinality")
        cells = {}
        for j, (column, coder) in enumerate(zip(self.schema.columns, self._coders, strict=True)):
            part = (between or {}).get(column.name)
            held = {"between": part} if part is not None and isinstance(coder, _Numeric) else {}
            cells[column.name] = coder.decode(codes[:, j].astype(np.int64), rng, **held)
        return cells

    def log_density_offset(self, codes: np.ndarray) -> np.ndarray:
        """Minus the log width of each row's bins, shape (rows,): turns log p(codes) into a log density, in nats."""
        return -sum((np.log(coder.widths)[codes[:, j]] for j, coder in enumerate(self._coders)),
                    start=np.zeros(len(codes)))

    def log_within(self, distinct: Sequence[Distinct]) -> np.ndarray:
        """How much denser a bin is at each of these values than where it is flat, (rows, columns) nats; 0 for the rest.

        Half of a bin counts as flat and half as the finest released histogram, which is empty where it saw only noise.
        """
        return np.stack([column.rows(coder.log_within(column.cells))
                         for coder, column in zip(self._coders, distinct, strict=True)], 1)


class _Discrete:
    def __init__(self, column: Column) -> None:
        self.column = column
        self.index: Mapping[Any, int] = {c: i for i, c in enumerate(column.categories or ())}
        self.known = [*(column.categories or ()), *(column.rare[0] if column.rare else ())]
        self.missing_code = column.cardinality - 1 if column.nullable else None
        self.other_code = column.values if column.other else None
        self.widths, self.atoms = np.ones(column.cardinality), np.ones(column.cardinality, dtype=bool)
        if column.rare is not None:
            self.widths[column.values] = len(column.rare[0])

    def encode(self, cells: Cells, outside: str) -> np.ndarray:
        keys = read_column(self.column, cells, outside)
        unseen = self.other_code if self.other_code is not None else 0  # 0: the most frequent of the measured ones
        codes = np.fromiter((self.index.get(k, unseen) for k in keys), np.int64, len(keys))
        if self.missing_code is not None:
            gone = np.fromiter((k is None for k in keys), bool, len(keys))
            codes[gone] = self.missing_code
        return codes

    def log_within(self, cells: Cells) -> np.ndarray:
        return np.zeros(len(cells.values))

    def decode(self, codes: np.ndarray, rng: np.random.Generator) -> Cells:
        missing = codes == self.missing_code if self.missing_code is not None else np.zeros(len(codes), dtype=bool)
        codes = self._with_rare(codes, rng)
        unknown = codes == len(self.known)
        if unknown.any() and not is_text(self.column.dtype):  # no text fits: any of the known values, or none at all
            codes = np.where(unknown, rng.integers(max(len(self.known), 1), size=len(codes)), codes)
            missing = missing | (unknown & (not self.known))
        spelled: list[Any] = [*self.known, OTHER]
        return from_categories(self.column, [spelled[c] if not gone else "" for c, gone in
                                             zip(codes.tolist(), missing.tolist(), strict=True)], missing)

    def _with_rare(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions in ``known``; one past its end for a value that nobody published."""
        places = np.minimum(codes, self.column.values)
        folded = codes == self.other_code
        places[folded] = len(self.known)
        if self.column.rare is not None and folded.any():
            shares = np.cumsum(self.column.rare[1])
            drawn = np.searchsorted(shares, rng.random(int(folded.sum())) * shares[-1], side="right")
            places[folded] = self.column.values + np.minimum(drawn, len(shares) - 1)
        return places


class _Numeric:
    def __init__(self, column: Column) -> None:
        self.column = column
        self.edges = np.array(column.edges or (), dtype=np.float64)
        self.heaps = np.array(column.heaps or (), dtype=np.float64)
        self.missing_code = column.cardinality - 1 if column.nullable else None
        self.leaf_edges, self.leaf_weights = _leaves(column, self.edges, self.heaps)
        self.unit = column.step if column.kind != "continuous" and column.step else 1.0
        self.widths, self.atoms = self._widths(), np.ones(column.cardinality, dtype=bool)
        if column.kind == "continuous" or not column.step:
            self.atoms[len(self.heaps):column.values] = False
        self._cumulate()

    def _widths(self) -> np.ndarray:
        widths = np.ones(self.column.cardinality)
        if self.column.bins:
            unit = self.unit
            inside = np.diff(self.edges) / unit
            if self.column.step:  # a heap is no point of the bin it lies in
                which = np.searchsorted(self.edges, self.heaps, side="right") - 1
                held = (which >= 0) & (which < len(inside))
                inside -= np.bincount(which[held], minlength=len(inside)) * self.column.step / unit
            least = self.column.step / unit or 1e-300
            widths[len(self.heaps):len(self.heaps) + len(inside)] = np.maximum(inside, least)
        return widths

    def _cumulate(self) -> None:
        """Where each bin's leaves begin and end on the line of cumulative weights."""
        if not self.column.bins:
            return
        bounds = np.searchsorted(self.leaf_edges, self.edges)  # leaves bounds[b] .. bounds[b + 1] make up bin b
        weights = self.leaf_weights.copy()
        for b in np.flatnonzero(np.add.reduceat(weights, bounds[:-1]) <= 0):
            weights[bounds[b]:bounds[b + 1]] = np.diff(self.leaf_edges[bounds[b]:bounds[b + 1] + 1])
        weights /= np.repeat(np.add.reduceat(weights, bounds[:-1]), np.diff(bounds))  # each bin spans a unit
        self.cumulative = np.concatenate([[0.0], np.cumsum(weights)])
        self.cumulative[bounds] = np.arange(len(bounds))  # exactly, whatever the rounding

    def encode(self, cells: Cells, outside: str) -> np.ndarray:
        axis = read_column(self.column, cells, outside)
        gone = np.isnan(axis)
        axis = np.where(gone, 0.0, axis)
        codes = self._nearest_heap(axis)
        if self.column.bins:
            bins = np.clip(np.searchsorted(self.edges, axis, side="right") - 1, 0, self.column.bins - 1)
            slack = self.column.step / 1000
            on_heap = np.abs(axis - self.heaps[codes]) <= slack if len(self.heaps) else np.zeros(len(axis), dtype=bool)
            codes = np.where(on_heap, codes, len(self.heaps) + bins)
        codes[gone] = self.missing_code if self.missing_code is not None else self.column.values // 2
        return codes

    def _nearest_heap(self, axis: np.ndarray) -> np.ndarray:
        """Code of the heap nearest to each value."""
        if len(self.heaps) < 2:
            return np.zeros(len(axis), dtype=np.int64)
        order = np.argsort(self.heaps)
        middles = (self.heaps[order][1:] + self.heaps[order][:-1]) / 2
        return order[np.searchsorted(middles, axis, side="right")]

    def _place(self, x: float) -> float:
        """Where ``x`` lies on the line of cumulative weights, on which bin b is [b, b + 1]."""
        return float(np.interp(x, self.leaf_edges, self.cumulative))

    def _span(self, low: float, high: float) -> tuple[float, float]:
        """The part of that line between two points of the axis, both included."""
        half = self.column.step / 2
        return self._place(low - half), self._place(high + half)

    def log_within(self, cells: Cells) -> np.ndarray:
        codes = self.encode(cells, "clip")
        bins = codes - len(self.heaps)
        inside = (bins >= 0) & (bins < self.column.bins)
        out, axis = np.zeros(len(codes)), to_axis(self.column, cells)[inside]
        leaf = np.clip(np.searchsorted(self.leaf_edges, axis, side="right") - 1, 0, max(len(self.leaf_weights) - 1, 0))
        share = np.diff(self.cumulative) / np.diff(self.leaf_edges) if inside.any() else np.zeros(1)
        out[inside] = np.log(0.5 + 0.5 * share[leaf] * self.unit * self.widths[codes[inside]])
        return out

    def shares(self, low: float, high: float) -> np.ndarray:
        out = np.zeros(self.column.cardinality)
        out[:len(self.heaps)] = (self.heaps >= low) & (self.heaps <= high)
        if self.column.bins:
            first, last = self._span(low, high)
            bins = np.arange(self.column.bins)
            out[len(self.heaps):self.column.values] = np.clip(last - bins, 0, 1) - np.clip(first - bins, 0, 1)
        return out

    def decode(self, codes: np.ndarray, rng: np.random.Generator, between: tuple[float, float] | None = None) -> Cells:
        heaps = len(self.heaps)
        missing = codes == self.missing_code if self.missing_code is not None else np.zeros(len(codes), dtype=bool)
        axis = np.zeros(len(codes))
        on_heap = ~missing & (codes < heaps)
        axis[on_heap] = self.heaps[codes[on_heap]]
        in_bin = ~missing & ~on_heap
        axis[in_bin] = self._draw(codes[in_bin] - heaps, rng, between)
        if between is not None:  # a rounding error must not step over the ends of what was asked for
            axis = np.clip(axis, *between)
        return from_axis(self.column, axis, missing)

    def _draw(self, bins: np.ndarray, rng: np.random.Generator, between: tuple[float, float] | None) -> np.ndarray:
        if not len(bins):
            return np.zeros(0)
        place = bins + rng.random(len(bins))
        if between is not None:
            first, last = (np.clip(end - bins, 0.0, 1.0) for end in self._span(*between))
            place = bins + first + (place - bins) * (last - first)
        leaf = np.searchsorted(self.cumulative, place, side="right") - 1
        low, high = self.leaf_edges[leaf], self.leaf_edges[leaf + 1]
        start, end = self.cumulative[leaf], self.cumulative[leaf + 1]
        drawn = low + (place - start) / np.maximum(end - start, 1e-300) * (high - low)
        if self.column.step:  # a rounding error must not step over the leaf's end
            half = self.column.step / 2
            drawn = np.clip(drawn, low + half * 0.01, high - half * 0.01)
        if self.column.repeats:
            drawn = self._at_marks(bins, drawn)
        return np.asarray(np.clip(drawn, self.column.lower, self.column.upper))

    def _at_marks(self, bins: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The nearest of four values of the bin: its ends, and those of its heaviest leaf, where most repeat. A cut
        between two of them that lie in different bins is a cut between these bins."""
        bounds = np.searchsorted(self.leaf_edges, self.edges)
        top = np.array([a + self.leaf_weights[a:b].argmax() for a, b in pairwise(bounds)])
        first, last = (np.stack([self.edges[i:i + self.column.bins], self.leaf_edges[top + i]], 1) for i in (0, 1))
        inset = self.column.step / 2 or (last - first) * 1e-9  # a bin holds its lower end, not its upper one
        marks = np.concatenate([first + inset, last - inset], 1)[bins]
        nearest = np.abs(marks - drawn[:, None]).argmin(1)
        return np.asarray(np.take_along_axis(marks, nearest[:, None], 1)[:, 0])


def _leaves(column: Column, edges: np.ndarray, heaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finest released histogram inside the bins, with no weight on the heaps' own grid points."""
    if not column.bins:
        return edges, np.zeros(0)
    if column.within is not None:
        coarse, weights = np.array(column.within[0]), np.array(column.within[1], dtype=np.float64)
    else:
        coarse, weights = edges, np.diff(edges)
    half = column.step / 2
    cuts = np.concatenate([heaps - half, heaps + half]) if half else np.zeros(0)
    fine = np.unique(np.concatenate([edges, coarse, cuts[(cuts > edges[0]) & (cuts < edges[-1])]]))
    if half:  # cuts that differ from an edge by a rounding error are that edge
        fine = fine[np.concatenate([[True], np.diff(fine) > half * 0.01])]
        fine[np.searchsorted(fine, edges - half * 0.02)] = edges
    middles = (fine[:-1] + fine[1:]) / 2
    parent = np.clip(np.searchsorted(coarse, middles, side="right") - 1, 0, len(weights) - 1)
    out = weights[parent] * np.diff(fine) / np.diff(coarse)[parent]
    if half and len(heaps):
        nearest = np.abs(middles[:, None] - heaps[None, :]).min(axis=1)
        out[(nearest < half * 0.02) & (np.diff(fine) < column.step * 1.01)] = 0.0
    return fine, out
