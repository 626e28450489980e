"""The target drawn last, so that the errors of drawing cancel out. Post-processing: costs no privacy.

A row of a mixture is a point's, and its target is drawn by that point alone: a coin that falls here or there whatever
the coins of similar rows did, and what learns from the rows must average over all of them. Here the other columns are
drawn as before, then the target of each row from its exact law p(y | x) in the model, one block of rows after another.
In every cell of every table of one or two other columns the coins thrown so far have an excess, the sum of what was
drawn less what was expected, and where the cells of a row have too much of a value, its chance is made smaller. The
corrections are zero on average and never large enough to leave [0, 1], so a row keeps its law, while the excesses
stay a fraction of what independent coins leave (balancing by a self-correcting walk: Alweiss, Liu and Sawhney 2021,
doi 10.1145/3406325.3450994).

It takes several times as long as drawing rows independently, and matters less the more rows there are; so tables of a
single shard are drawn this way, and longer ones are not.

Shapes: N rows, D columns, L target values, T tables of one or two other columns, C cells of them all.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE

BLOCK = 64  # rows that are drawn with the same corrections
GAIN = 10.0  # of the correction; 0: independent coins
PRIOR_ROWS = 200.0  # added to a cell's rows, so that what few rows did moves nothing
MOST_TABLES = 2000  # of two columns; a table with more of them looks at one column at a time

Numbers = NDArray[np.float64]
Codes = NDArray[np.integer]


def redrawn(vae: VAE, codes_ND: Codes, target: int, rng: np.random.Generator) -> Codes:
    """``codes_ND`` with column ``target`` drawn anew from its law given the others, evened out; a codebook's rows."""
    law_NL = posterior(Mixture.of(vae, generator=torch.Generator()), codes_ND, target)
    out = codes_ND.copy()
    out[:, target] = evened(law_NL, cells(codes_ND, vae.likelihood.sizes, target), rng)
    return out


def posterior(mixture: Mixture, codes_ND: Codes, target: int) -> Numbers:
    """p(y | the other columns), (N, L)."""
    codes = torch.as_tensor(codes_ND).long()
    seen_D = torch.arange(codes.shape[1]) != target
    probs_KL = mixture.log_probs[:, mixture.columns.slice(target)].exp()
    parts = [mixture.joint(codes[s], seen_D.expand(codes[s].shape)).softmax(1) @ probs_KL
             for s in mixture.chunks(codes)]
    law_NL = torch.cat(parts).double().numpy() if parts else np.zeros((0, probs_KL.shape[1]))
    return np.asarray(law_NL / law_NL.sum(1, keepdims=True))


def cells(codes_ND: Codes, sizes: tuple[int, ...], target: int) -> NDArray[np.int32]:
    """Which cell of each table of one or two other columns a row falls into, (N, T); no two tables share a cell."""
    others = [j for j in range(len(sizes)) if j != target]
    pairs = list(combinations(others, 2)) if math.comb(len(others), 2) <= MOST_TABLES else []
    codes, start = codes_ND.astype(np.int32), 0
    held = np.empty((len(codes), len(others) + len(pairs)), dtype=np.int32)
    for place, j in enumerate(others):
        held[:, place] = start + codes[:, j]
        start += sizes[j]
    for place, (i, j) in enumerate(pairs, start=len(others)):
        held[:, place] = start + codes[:, i] * sizes[j] + codes[:, j]
        start += sizes[i] * sizes[j]
    return held


def evened(law_NL: Numbers, held_NT: NDArray[np.int32], rng: np.random.Generator, gain: float = GAIN) -> Codes:
    """A target value for every row, (N,): row by row from ``law_NL``, and in every cell nearly what it expects."""
    levels, tables = law_NL.shape[1], held_NT.shape[1]
    count_C = np.bincount(held_NT.ravel())
    excess_CL = np.zeros((len(count_C), levels))
    drawn_N = np.zeros(len(law_NL), dtype=np.int64)
    order = rng.permutation(len(law_NL))
    for rows in np.split(order, range(BLOCK, len(order), BLOCK)):
        law, held = law_NL[rows], held_NT[rows]
        rate = (excess_CL[held] / (count_C[held] + PRIOR_ROWS)[:, :, None]).sum(1)
        push = np.clip(gain * rate, -0.5, 0.5)
        chance = law * (1 - push + (law * push).sum(1, keepdims=True))  # adds up to one, and lies within [0, 2 law]
        drawn = np.minimum((chance.cumsum(1) <= rng.random((len(rows), 1))).sum(1), levels - 1)
        drawn_N[rows] = drawn
        surprise = np.eye(levels)[drawn] - law
        np.add.at(excess_CL, held.ravel(), np.repeat(surprise, tables, axis=0))
    return drawn_N
