"""Interactions of several columns that no pair shows: found among millions for next to nothing, then measured (select
by the exponential mechanism, then measure, as AIM and MWEM do with marginals).

Where the label is the exclusive or of four columns, every marginal of fewer is flat: no method that looks at pairs,
and no gradient, can see it (Kearns 1998). But one can ask. Each column gets a sign, +1 or -1 by its code (each of two
values; above or below the released median; the commonest category or not), centred by its released one-way table and
scaled into [-1, 1]. The score of a set of columns is the sum over records of the product of their signs, less what
the decoder expects of it: one record moves it by at most 1. The exponential mechanism names the best of millions of
sets at a cost that does not grow with their number (:func:`dpvae.privacy.mechanisms.noisy_choice`). A random part of
the records is enough for it, which bounds the time. The tables of signs of the sets that were named are then released
with Gaussian noise, and where one differs clearly from what the decoder says, the decoder is made to follow it.

Shapes: N records, D columns, K points, W one-hot width, S sets of r columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpvae.models.vae import VAE
from dpvae.privacy.mechanisms import cell_sd, noisy_choice, noisy_counts
from dpvae.privacy.noise import SecretKey, SecretStream
from dpvae.privacy.plan import CHOSEN_WHAT, TABLES_WHAT, InteractionPlan
from dpvae.train.anchor import RECORDS_AT_ONCE, Anchors, Further, count
from dpvae.train.contrasts import Numbers, shares

PHASE = "interactions"
ORDERS = (3, 4, 5)  # numbers of columns in the sets that are asked about, the target among them or not
SETS_AT_ONCE = 256
SEARCHED_AT_ONCE = 2**12  # records: with a thousand products of signs of each, 32 MB
MOST_WORK = 8e10  # multiplications of one search: seconds
FEWEST_RECORDS = 2000
ROUNDING = 1e-3  # kept back of a score's sensitivity: sums of a million doubles err by less
LARGE = 0.1  # share of the records that an interaction must concern, in the product of signs
CLEAR = 5.0  # standard deviations above which a table is said to differ
PUSH = 3.0  # log-odds, times two, by which a point is told its side of a column


@dataclass(frozen=True)
class Interaction:
    """A released table over the sides of some columns. ``sides[i]`` (codes of column i,) is True on the + side."""

    columns: tuple[int, ...]
    sides: tuple[NDArray[np.bool_], ...]
    table: NDArray[np.int64]  # (2,) * len(columns)
    sd: float
    directions: tuple[int, ...] = ()  # of the latent space that hold it, once it is written

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {"columns": list(self.columns), "sides": [side.tolist() for side in self.sides],
                "table": self.table.tolist(), "sd": self.sd, "directions": list(self.directions)}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Interaction:
        """The interaction that :meth:`to_dict` wrote."""
        return cls(tuple(saved["columns"]), tuple(np.array(side, dtype=bool) for side in saved["sides"]),
                   np.array(saved["table"], dtype=np.int64), saved["sd"], tuple(saved["directions"]))


def splits(anchors: Anchors, orders: Sequence[Numbers | None]) -> list[NDArray[np.bool_]]:
    """Each column in two sides, near halves of the released one-way table."""
    return [_side(shares(table), order) for table, order in zip(anchors.one_way, orders, strict=True)]


def _side(p: Numbers, order: Numbers | None) -> NDArray[np.bool_]:
    if order is None:
        return np.arange(len(p)) == (int(np.argmax(p)) if len(p) > 2 else len(p) - 1)
    place = np.argsort(np.where(np.isnan(order), np.inf, order), kind="stable")
    upper = np.zeros(len(p), dtype=bool)
    cumulated = np.cumsum(p[place])
    cut = int(np.argmin(np.abs(cumulated[:-1] - 0.5))) + 1 if len(p) > 1 else 1
    upper[place[cut:]] = True
    return upper


def signs(anchors: Anchors, sides: Sequence[NDArray[np.bool_]]) -> list[Numbers]:
    """Centred signs by code, each within [-1, 1]."""
    found = []
    for table, side in zip(anchors.one_way, sides, strict=True):
        centred = np.where(side, 1.0, -1.0)
        centred -= float(shares(table) @ centred)
        found.append(centred / max(float(np.abs(centred).max()), 1e-12))
    return found


def measure(codes: NDArray[np.integer], anchors: Anchors, orders: Sequence[Numbers | None], vae: VAE, *,
            plan: InteractionPlan, key: SecretKey) -> list[Interaction]:
    """Choose and measure. ``codes`` (N, D) is private; costs the two events of ``plan``."""
    sides = splits(anchors, orders)
    search = _Search(codes.shape[1], anchors, signs(anchors, sides), vae, key)
    chosen, _ = noisy_choice(search.scores(codes), choices=plan.choices, epsilon=plan.epsilon,
                             stream=key.stream(PHASE, "choice"), phase=PHASE, what=CHOSEN_WHAT)
    sets = search.named(chosen)
    exact = [np.zeros((2,) * len(columns), dtype=np.int64) for columns in sets]
    for start in range(0, len(codes), RECORDS_AT_ONCE):
        part = codes[start:start + RECORDS_AT_ONCE]
        for table, columns in zip(exact, sets, strict=True):
            table += count(np.column_stack([sides[j][part[:, j]] for j in columns]), [2] * len(columns),
                           range(len(columns)))
    noisy, _ = noisy_counts(exact, noise_multiplier=plan.noise, stream=key.stream(PHASE, "tables"), phase=PHASE,
                            what=TABLES_WHAT)
    sd = cell_sd(plan.noise, len(exact))
    return [Interaction(columns, tuple(sides[j] for j in columns), table, sd)
            for columns, table in zip(sets, noisy, strict=True)]


@dataclass(frozen=True)
class _Family:
    """All sets of ``order`` columns, with the target or without it, as products of a left and a right part."""

    left: list[tuple[int, ...]]  # sorted by their last column
    right: list[tuple[int, ...]]  # sorted by their first column, the largest first
    target: int | None

    @classmethod
    def of(cls, free: Sequence[int], order: int, target: int | None) -> _Family:
        others = order - (target is not None)
        return cls(sorted(combinations(free, (others + 1) // 2), key=lambda s: s[-1]),
                   sorted(combinations(free, others // 2), key=lambda s: -s[0]), target)

    @property
    def work(self) -> int:
        """Multiplications per record."""
        return len(self.left) * len(self.right)


class _Search:
    """All families that are small enough, in a fixed public order; the smaller sets come first."""

    def __init__(self, columns: int, anchors: Anchors, signs_: list[Numbers], vae: VAE, key: SecretKey) -> None:
        self.signs, self.key, self.rows = signs_, key, anchors.rows
        free = [j for j in range(columns) if j != anchors.target]
        self.families: list[_Family] = []
        for target in dict.fromkeys((anchors.target, None)):
            for order in ORDERS:
                others = order - (target is not None)
                if others <= len(free) and _work(len(free), others) * FEWEST_RECORDS <= MOST_WORK:
                    self.families.append(_Family.of(free, order, target))
        work = sum(family.work for family in self.families)
        self.rate = min(max(MOST_WORK / max(work, 1), FEWEST_RECORDS) / self.rows, 1.0)
        self.points, self.weights = _expected(vae, signs_)
        self.blocks: list[tuple[int, _Family, int, NDArray[np.int32], NDArray[np.int32]]] = []

    def scores(self, codes: NDArray[np.integer]) -> Iterator[Numbers]:
        """Blocks of scores. One record takes part in each by a product of numbers within [-1, 1]."""
        searched = codes[_heads(self.key.stream(PHASE, "mask"), len(codes), self.rate)]
        scale = self.weights * (self.rows * self.rate)
        self.blocks, start = [], 0
        for family in self.families:
            first = np.array([s[0] for s in family.right])
            right_K = np.stack([self.points[:, list(s)].prod(1) for s in family.right], 1)
            for begin in range(0, len(family.left), SETS_AT_ONCE):
                part = family.left[begin:begin + SETS_AT_ONCE]
                last = np.array([s[-1] for s in part])
                width = int((first > last.min()).sum())
                valid = last[:, None] < first[None, :width]
                value = np.abs(_sums(family, part, searched, self.signs, width)
                               - (_products(family, part, self.points) * scale) @ right_K[:, :width])
                left, right = np.nonzero(valid)
                self.blocks.append((start, family, begin, left.astype(np.int32), right.astype(np.int32)))
                start += len(left)
                yield value[valid] * (1 - ROUNDING)

    def named(self, positions: Sequence[int]) -> list[tuple[int, ...]]:
        """The columns of each chosen set, the target last."""
        found = []
        for position in positions:
            start, family, begin, left, right = next(b for b in reversed(self.blocks) if b[0] <= position)
            columns = (*family.left[begin + left[position - start]], *family.right[right[position - start]])
            found.append((*columns, family.target) if family.target is not None else columns)
        return found


def _heads(stream: SecretStream, rows: int, rate: float) -> NDArray[np.int64]:
    """Where a coin of chance ``rate`` fell on heads, ascending: the coins of one mask, some at once."""
    return np.concatenate([start + np.flatnonzero(stream.mask(min(RECORDS_AT_ONCE, rows - start), rate))
                           for start in range(0, max(rows, 1), RECORDS_AT_ONCE)])


def _work(columns: int, others: int) -> int:
    return math.comb(columns, (others + 1) // 2) * math.comb(columns, others // 2)


def _sums(family: _Family, part: list[tuple[int, ...]], codes: NDArray[np.integer], signs_: Sequence[Numbers],
          width: int) -> Numbers:
    """Sums over the records of products of signs, (sets of ``part``, the first ``width`` right parts), some at once."""
    total = np.zeros((len(part), width))
    for start in range(0, len(codes), SEARCHED_AT_ONCE):
        some = codes[start:start + SEARCHED_AT_ONCE]
        block = np.column_stack([table[some[:, j]] for j, table in enumerate(signs_)])
        right = np.empty((len(block), width))
        for column, s in zip(right.T, family.right, strict=False):
            block[:, list(s)].prod(1, out=column)
        total += _products(family, part, block) @ right
    return total


def _products(family: _Family, part: list[tuple[int, ...]], values: Numbers) -> Numbers:
    """Products of the columns of ``values`` (N, D) over each left set and the target, (sets, N)."""
    left = np.empty((len(part), len(values)))
    for row, s in zip(left, part, strict=True):
        values[:, list(s)].prod(1, out=row)
    return left if family.target is None else left * values[:, family.target]


@torch.no_grad()
def _expected(vae: VAE, signs_: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
    """Per point of the codebook, the mean of each column's sign, (K, D), and the points' weights, (K,)."""
    codebook = vae.codebook
    assert codebook is not None
    p_KW = vae.likelihood.log_probs(vae.decode(codebook.points)).exp().cpu().numpy()
    means = [p_KW[:, vae.likelihood.slice(j)] @ table for j, table in enumerate(signs_)]
    return np.stack(means, 1).astype(np.float64), codebook.log_weights.exp().double().cpu().numpy()


# -- what the tables mean: from here on everything is public ---------------------------------------------------------


def side_shares(vae: VAE, found: Interaction, p_KW: Tensor) -> Tensor:
    """(K, r): each point's probability of the + side."""
    parts = [p_KW[:, vae.likelihood.slice(j)] @ torch.as_tensor(side, dtype=p_KW.dtype, device=p_KW.device)
             for j, side in zip(found.columns, found.sides, strict=True)]
    return torch.stack(parts, 1)


def cells(shares_Kr: Tensor) -> Tensor:
    """(K, 2 ** r): each point's probability of every cell, in the order of the released table."""
    out = torch.ones(len(shares_Kr), 1, dtype=shares_Kr.dtype, device=shares_Kr.device)
    for share_K in shares_Kr.unbind(1):
        out = (out[:, :, None] * torch.stack([1 - share_K, share_K], 1)[:, None, :]).flatten(1)
    return out


def residual(vae: VAE, found: Interaction, p_KW: Tensor, counts_K: Tensor) -> Tensor:
    """Sum of squared residuals of the table in units of its noise."""
    goal = torch.as_tensor(found.table.reshape(-1), dtype=p_KW.dtype, device=p_KW.device)
    return ((counts_K @ cells(side_shares(vae, found, p_KW)) - goal) / found.sd).square().sum()


def further(vae: VAE, found: Sequence[Interaction]) -> Further:
    """The residuals of these tables, for :func:`dpvae.train.anchor.fit`."""
    def add(p_KW: Tensor, counts_K: Tensor) -> tuple[Tensor, int]:
        parts = [residual(vae, one, p_KW, counts_K) for one in found]
        return torch.stack(parts).sum(), sum(one.table.size for one in found)

    return add


@torch.no_grad()
def stands_out(vae: VAE, found: Interaction, rows: float) -> bool:
    """Whether the released table has an interaction of all its columns that the decoder lacks, large and clear."""
    codebook = vae.codebook
    assert codebook is not None
    p_KW = vae.likelihood.log_probs(vae.decode(codebook.points)).exp()
    model = (codebook.log_weights.exp() * rows) @ cells(side_shares(vae, found, p_KW))
    sign = torch.tensor([math.prod(2 * b - 1 for b in bits) for bits in product((0, 1), repeat=len(found.columns))])
    goal = torch.as_tensor(found.table.reshape(-1), dtype=torch.float32, device=model.device)
    size = abs(float(((goal - model) * sign.to(model.device)).sum()))
    noise = math.sqrt(len(sign) * found.sd**2 + rows)
    return size > max(CLEAR * noise, LARGE * rows)


@torch.no_grad()
def write(vae: VAE, found: Interaction, *, generator: torch.Generator) -> Interaction:
    """Give every point a cell of the table, drawn so that together they follow it, in the latent directions that
    matter least; returns the interaction with these. A point that is sure of a column keeps it: a cell is drawn by
    table / expected table x own cells."""
    codebook, layer = vae.codebook, vae.decoder[-1]
    assert codebook is not None
    assert isinstance(layer, nn.Linear)
    p_KW = vae.likelihood.log_probs(vae.decode(codebook.points)).exp()
    own_KC = cells(side_shares(vae, found, p_KW)).cpu()
    goal_C = torch.as_tensor(np.maximum(found.table.reshape(-1), 0.5), dtype=own_KC.dtype)
    odds_KC = own_KC * (goal_C / goal_C.sum() / (codebook.log_weights.exp().cpu() @ own_KC).clamp_min(1e-9))
    drawn_K = torch.multinomial(odds_KC.clamp_min(1e-12), 1, generator=generator)[:, 0]
    r = len(found.columns)
    energy_Z = codebook.points.square().mean(0) * layer.weight.square().sum(0)
    chosen = torch.argsort(energy_Z)[:r].tolist()
    for place, (direction, column, side) in enumerate(zip(chosen, found.columns, found.sides, strict=True)):
        upper_K = ((drawn_K >> (r - 1 - place)) & 1).to(codebook.points)
        codebook.points[:, direction] = 2 * upper_K - 1
        layer.weight[:, direction] = 0
        push = torch.where(torch.as_tensor(side), PUSH, -PUSH).to(layer.weight)
        layer.weight[vae.likelihood.slice(column), direction] = push
    return replace(found, directions=tuple(chosen))
