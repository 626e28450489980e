"""How far a synthetic table is from the real one, in the numbers the field compares by. Reads private rows: sealed.

Every column becomes integer codes, cut once by the reference table (or by a released schema), and then the shares of
all single columns and of all pairs are compared by total variation distance (0: identical, 1: disjoint). A distance
means nothing without its *floor*: two tables drawn from one law also differ, the more the fewer rows they have.

The conventions are those of the usual outside judges, so that figures can be compared: a number with more than ``bins``
distinct values is cut at the quantiles of the reference column, and a value that holds two quantiles (a heap of zeros)
gets a bin of its own; everything else is a category, spelled so that 3, 3.0 and "3" are one; a missing cell is a value.

Nothing here is charged, because nothing here may leave: see :mod:`dpvae.evaluate.judge`.

>>> from dpvae.data import lake
>>> real = lake.read({"sex": ["f", "f", "m", "m"], "age": [20, 30, 40, 50]})
>>> same, other = Quantiles(real, 20), lake.read({"sex": ["f", "f", "f", "m"], "age": [20, 30, 40, 50]})
>>> distances(same, real, other).one_way["sex"]
0.25
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dpvae import checks
from dpvae.data.cells import ticks_per_second
from dpvae.data.dtypes import is_text
from dpvae.data.lake import CSV, Cells, Table
from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec

MISSING = "<missing>"
WORST = 5
Codes = NDArray[np.int64]
K = TypeVar("K")


class Binning(Protocol):
    """Codes for the columns of any table that has them."""

    def codes(self, table: Table, name: str) -> Codes:
        """(rows,), each in [0, size)."""

    def size(self, name: str) -> int:
        """How many codes the column has."""


@dataclass(frozen=True)
class Distances:
    """Total variation distances by column and by pair of columns, in table order."""

    one_way: Mapping[str, float]
    two_way: Mapping[tuple[str, str], float]

    def with_target(self, target: str) -> float:
        """Mean over the pairs that hold ``target``; nan where there are none."""
        return mean([value for pair, value in self.two_way.items() if target in pair])


@dataclass(frozen=True)
class Fidelity:
    """Synthetic against real. Distances are means over columns or pairs; lower is better.

    ``floor_*`` is the distance of the real test rows from the real train rows; ``sampling_floor_*`` is that distance
    scaled to the number of synthetic rows: what a perfect generator would reach on average. ``rank_correlation_error``
    is the mean absolute difference of Spearman's correlation over pairs of numeric columns (nan: fewer than two).
    """

    tvd_1way: float
    tvd_2way: float
    tvd_2way_with_target: float
    tvd_1way_max: float
    tvd_2way_max: float
    floor_1way: float
    floor_2way: float
    sampling_floor_1way: float
    sampling_floor_2way: float
    rank_correlation_error: float
    rank_correlation_error_max: float
    per_column: Mapping[str, float]
    worst_columns: tuple[tuple[str, float], ...]
    worst_pairs: tuple[tuple[str, str, float], ...]
    worst_rank_correlations: tuple[tuple[str, str, float], ...]


def fidelity(real: Table, synth: Table, *, binning: Binning, test: Table | None = None,
             target: str | None = None) -> Fidelity:
    """All of :class:`Fidelity`; ``test`` (real rows the generator never saw) gives the floors, nan without it."""
    found = distances(binning, real, synth)
    floor = distances(binning, real, test) if test is not None else Distances({}, {})
    fewer = 1.0 if test is None else math.sqrt((1 / real.rows + 1 / synth.rows) / (1 / real.rows + 1 / test.rows))
    floors = mean(list(floor.one_way.values())), mean(list(floor.two_way.values()))
    ranks = rank_correlation_errors(real, synth)
    return Fidelity(
        tvd_1way=mean(list(found.one_way.values())), tvd_2way=mean(list(found.two_way.values())),
        tvd_2way_with_target=found.with_target(target) if target is not None else math.nan,
        tvd_1way_max=max(found.one_way.values()), tvd_2way_max=max(found.two_way.values(), default=math.nan),
        floor_1way=floors[0], floor_2way=floors[1],
        sampling_floor_1way=floors[0] * fewer, sampling_floor_2way=floors[1] * fewer,
        rank_correlation_error=mean(list(ranks.values())),
        rank_correlation_error_max=max(ranks.values(), default=math.nan), per_column=found.one_way,
        worst_columns=tuple(_largest(found.one_way)), worst_pairs=tuple((*k, v) for k, v in _largest(found.two_way)),
        worst_rank_correlations=tuple((*k, v) for k, v in _largest(ranks)))


def distances(binning: Binning, real: Table, synth: Table) -> Distances:
    """Of every column and every pair of columns of ``real``."""
    names = real.names
    ours, theirs = ({name: binning.codes(table, name) for name in names} for table in (real, synth))
    sizes = {name: binning.size(name) for name in names}
    one = {name: tvd(_shares([ours[name]], [sizes[name]]), _shares([theirs[name]], [sizes[name]])) for name in names}
    two = {}
    for pair in combinations(names, 2):
        shape = [sizes[name] for name in pair]
        two[pair] = tvd(_shares([ours[name] for name in pair], shape), _shares([theirs[name] for name in pair], shape))
    return Distances(one, two)


def contingency(codes: Sequence[NDArray[np.integer]], sizes: Sequence[int]) -> Codes:
    """How many rows hold each combination of codes: shape ``sizes``, for one code array (rows,) per axis.

    >>> contingency([np.array([0, 1, 1]), np.array([2, 0, 0])], [2, 3]).tolist()
    [[0, 0, 1], [2, 0, 0]]
    """
    flat = np.ravel_multi_index(tuple(np.asarray(c, dtype=np.int64) for c in codes), tuple(sizes))
    return np.bincount(flat, minlength=math.prod(sizes)).reshape(sizes)


def tvd(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Half the L1 distance of two arrays of shares."""
    return 0.5 * float(np.abs(p - q).sum())


def mean(values: Sequence[float]) -> float:
    """nan for none."""
    return float(np.mean(values)) if len(values) else math.nan


def _shares(codes: Sequence[Codes], sizes: Sequence[int]) -> NDArray[np.float64]:
    return contingency(codes, sizes) / max(len(codes[0]), 1)


def _largest(values: Mapping[K, float]) -> list[tuple[K, float]]:
    return sorted(values.items(), key=lambda item: -item[1])[:WORST]


# ---- cells as numbers, or as words ------------------------------------------------------------------------------


def as_numbers(cells: Cells) -> NDArray[np.float64]:
    """(rows,): nan where a cell is missing or is no number; datetimes in seconds since 1970, times since midnight."""
    if is_text(cells.dtype) and cells.values.dtype == object:
        known = {text: _number(text) for text in set(cells.values.tolist())}
        values = np.fromiter((known[text] for text in cells.values.tolist()), np.float64, len(cells.values))
    elif cells.dtype.startswith(("time", "date")):
        values = cells.values / ticks_per_second(cells.dtype)
    else:
        values = cells.values.astype(np.float64)
    return np.where(cells.missing, np.nan, values)


def is_number(cells: Cells) -> bool:
    """By type; the text cells of a CSV file are numbers if all that are present parse as such."""
    if cells.values.dtype == bool or cells.dtype == "null":
        return False
    if cells.values.dtype != object:
        return True
    present = set(cells.values[~cells.missing].tolist())
    return cells.dtype == CSV and bool(present) and not any(math.isnan(_number(text)) for text in present)


def as_words(cells: Cells) -> NDArray[np.object_]:
    """(rows,) of text with one spelling per value; :data:`MISSING` where a cell is missing.

    >>> as_words(Cells(np.array(["3.0", " a", "3", ""], object), np.array([False, False, False, True]), CSV)).tolist()
    ['3', 'a', '3', '<missing>']
    """
    values = cells.values.tolist()
    known = {value: _word(value) for value in set(values)}
    words = [MISSING if gone else known[value] for value, gone in zip(values, cells.missing.tolist(), strict=True)]
    return np.array(words, dtype=object)


def _word(value: object) -> str:
    text = str(value).strip()
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        return text.capitalize()
    number = _number(text)
    return str(int(number)) if math.isfinite(number) and number == round(number) else text


def _number(text: object) -> float:
    if isinstance(text, str) and "_" in text:  # which Python reads as a number, and nobody else does
        return math.nan
    try:
        return float(text)  # type: ignore[arg-type]
    except ValueError:
        return math.nan


# ---- two ways to cut columns ------------------------------------------------------------------------------------


class Quantiles:
    """Cut by the reference table itself. Code 0: missing; the last code: a category the reference does not hold."""

    def __init__(self, reference: Table, bins: int) -> None:
        checks.whole(2, bins=bins)
        self._cuts: dict[str, NDArray[np.float64]] = {}
        self._index: dict[str, dict[str, int]] = {}
        for name, cells in zip(reference.names, reference.cells, strict=True):
            numbers = as_numbers(cells) if is_number(cells) else np.zeros(0)
            numbers = numbers[~np.isnan(numbers)]
            if len(np.unique(numbers)) > bins:
                self._cuts[name] = quantile_cuts(numbers, bins)
            else:
                words = sorted(set(as_words(cells).tolist()) - {MISSING})
                self._index[name] = {word: code for code, word in enumerate(words, 1)}

    def size(self, name: str) -> int:
        """How many codes the column has."""
        return len(self._cuts[name] if name in self._cuts else self._index[name]) + 2

    def codes(self, table: Table, name: str) -> Codes:
        """(rows,): 0 for missing, then bins or known words, then one for all unseen words."""
        cells = table.column(name)
        if name in self._cuts:
            numbers = as_numbers(cells)
            above = 1 + np.searchsorted(self._cuts[name], numbers, side="right")  # a value on a cut lies above it
            return np.where(np.isnan(numbers), 0, above)
        unseen = len(self._index[name]) + 1
        known = {MISSING: 0} | self._index[name]
        words = as_words(cells)
        return np.fromiter((known.get(word, unseen) for word in words), np.int64, len(words))


def quantile_cuts(numbers: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Inner bin edges; a value that holds two quantiles is closed in right above itself.

    >>> quantile_cuts(np.array([-1.0, 0.0, 0.0, 0.0, 0.0, 1.0]), 5).tolist()
    [0.0, 5e-324]
    """
    inner = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
    cuts, repeats = np.unique(inner, return_counts=True)
    return np.unique(np.concatenate([cuts, np.nextafter(cuts[repeats > 1], np.inf)]))


class Declared:
    """Cut by a resolved schema, such as the ``schema.json`` of a release: public bins, nothing of the real rows."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._codes: dict[tuple[int, str], Codes] = {}
        self._held: list[Table] = []  # an id is unique only while its object lives

    def size(self, name: str) -> int:
        """How many codes the column has."""
        return self._schema.column(name).cardinality

    def codes(self, table: Table, name: str) -> Codes:
        """(rows,): the schema's own codes."""
        if (id(table), name) not in self._codes:
            cut = TableCodec(self._schema).encode(select(table, self._schema.names), "clip").astype(np.int64)
            self._codes |= {(id(table), column): cut[:, j] for j, column in enumerate(self._schema.names)}
            self._held.append(table)
        return self._codes[id(table), name]


def select(table: Table, names: Sequence[str]) -> Table:
    """The columns ``names``, in that order; raises :class:`~dpvae.errors.DataError` where one is not there."""
    return Table(tuple(names), tuple(table.column(name) for name in names))


# ---- numeric columns at full resolution ---------------------------------------------------------------------------


def rank_correlation_errors(real: Table, synth: Table) -> dict[tuple[str, str], float]:
    """|Spearman(real) - Spearman(synthetic)| for each pair of numeric columns, over rows where both are present.

    What binned pairs cannot see: whether two continuous columns rise together inside their bins.
    """
    names = [name for name, cells in zip(real.names, real.cells, strict=True) if is_number(cells)]
    ours, theirs = (_Ranks({name: as_numbers(table.column(name)) for name in names}) for table in (real, synth))
    return {(a, b): abs(ours.spearman(a, b) - theirs.spearman(a, b)) for a, b in combinations(names, 2)}


class _Ranks:
    """Spearman's correlations of the columns of one table; a column without gaps is ranked once."""

    def __init__(self, columns: Mapping[str, NDArray[np.float64]]) -> None:
        self.columns = columns
        self.ranks = {name: rankdata(column) for name, column in columns.items() if np.isfinite(column).all()}

    def spearman(self, a: str, b: str) -> float:
        if a in self.ranks and b in self.ranks:
            return _pearson(self.ranks[a], self.ranks[b])
        return spearman(self.columns[a], self.columns[b])


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of average ranks over the rows that hold both; 0 where one of them is constant there.

    >>> spearman(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 4.0, 9.0, 0.0]))
    1.0
    """
    both = np.isfinite(a) & np.isfinite(b)
    return _pearson(rankdata(a[both]), rankdata(b[both]))


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
