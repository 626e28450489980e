"""Anchors: noisy marginals measured once, and a decoder fitted to them for free.

A VAE with a codebook prior and a product-of-columns decoder is a mixture of products. With ``P`` (points x one-hot
width) its column probabilities and ``w`` its weights, *all* its two-way marginals are one matrix product,
``P.T @ (w * P)``, and those given a target value ``y`` are ``P.T @ (w * P[:, y] * P)``: differentiable, exact, full
batch. Fitting them to noisy counts is post-processing: it may run as long as it likes and costs nothing. Tables of
three columns, over few groups of codes, are in :mod:`dpvae.train.triples`.

What makes the fit good was measured (docs/decisions.md): every table is weighted by its own noise, so that the loss is
the log-likelihood of the noise; the decoder's bias starts at the noisy one-way tables; the points carry a low-rank
linear decoder, which can hold deterministic pairs without being free to invent structure in the noise; and codes that
are neighbours on a column's axis are expected to have like weights, so that what one of them hides in the noise the
others tell.

Shapes: D columns, W one-hot width, K points, L target values (1 where there is none).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvae.models.likelihood import Columns
from dpvae.models.vae import VAE
from dpvae.privacy.events import Gaussian
from dpvae.privacy.mechanisms import cell_sd, noisy_counts
from dpvae.privacy.noise import SecretKey
from dpvae.train import misfit
from dpvae.train.fit_prior import Places, Prior
from dpvae.train.triples import Residual, Triples, of_features
from dpvae.train.triples import counts as triple_counts

Counts = NDArray[np.int64]
Progress = Callable[[int, float], None]
Further = Callable[[Tensor, Tensor], tuple[Tensor, int]]  # P (K, W), expected rows of each point (K,) -> chi2, cells

TARGET_VALUES = 4  # pairs are split by the target's value up to this many values: L x W x W cells are kept in memory
LEARNING_RATE = 0.03
RECORDS_AT_ONCE = 2**16  # their columns fit in the cache
WIDTH_AT_ONCE = 1200  # wider tables are fitted on random subsets of columns


@dataclass(frozen=True)
class Anchors:
    """Released noisy counts and the standard deviation of one cell of each kind.

    ``one_way[j]`` has shape (codes of j,); ``with_target[j]`` (codes of j, target values); ``pairs[i, j]``
    (L, codes of i, codes of j); ``whole[i, j]`` the same pair whatever the target's value, released for itself. ``sd``
    is by name of the release.
    """

    one_way: tuple[Counts, ...]
    with_target: Mapping[int, Counts]
    pairs: Mapping[tuple[int, int], Counts]
    sd: Mapping[str, float]
    target: int | None
    triples: Triples | None = None
    counted: Sequence[Mapping[int, tuple[float, float]]] = ()  # by column: code -> a count released before, and its sd
    whole: Mapping[tuple[int, int], Counts] = field(default_factory=dict)

    @property
    def rows(self) -> float:
        """The released estimate of the number of rows: what the one-way tables sum to, on average."""
        return max(float(np.mean([table.sum() for table in self.one_way])), 1.0)

    def pair(self, i: int, j: int) -> tuple[NDArray[np.float64], float]:
        """What all releases say of a pair, each by its noise: (codes of i, codes of j), and the sd of a cell."""
        split = self.pairs[i, j]
        table, variance = split.sum(0).astype(np.float64), len(split) * self.sd["pairs"] ** 2
        if not self.whole:
            return table, math.sqrt(variance)
        kept = self.sd["whole-pairs"] ** 2 / (variance + self.sd["whole-pairs"] ** 2)
        return table + (1 - kept) * (self.whole[i, j] - table), math.sqrt(kept * variance)


def measure(codes: NDArray[np.integer], cardinalities: Sequence[int], target: int | None, *,
            noise: Mapping[str, float], key: SecretKey, groups: int = 0) -> tuple[Anchors, tuple[Gaussian, ...]]:
    """Count and noise the tables that ``noise`` (release name -> joint noise multiplier) asks for, in that order.

    Each release is one Gaussian event; a record is in one cell of every table, so T tables share sensitivity sqrt(T).
    ``pairs`` are split by a target of few values; ``whole-pairs``, which follow them, are not.
    Triples are over at most ``groups`` groups of each column, which follow from the tables with the target, released
    before them.
    """
    features = [j for j in range(len(cardinalities)) if j != target]
    by_target = target is not None and cardinalities[target] <= TARGET_VALUES
    names: dict[str, list[tuple[int, ...]]] = {"one-way": [(j,) for j in range(len(cardinalities))]}
    names["with-target"] = [] if target is None else [(j, target) for j in features]
    split = (target,) if by_target and target is not None else ()
    levels = [(j, cardinalities[j]) for j in split]
    names["pairs"] = [(*split, i, j) for i, j in combinations(features, 2)]
    exact: dict[str, list[Counts]] = {}
    released: dict[str, list[Counts]] = {}
    events: list[Gaussian] = []
    sds: dict[str, float] = {}
    held: Mapping[int, Counts] = {}
    for name, multiplier in noise.items():
        if name == "triples":
            held = of_features(dict(zip(features, released["with-target"], strict=True)), sds["with-target"], groups)
            exact[name] = triple_counts(codes, held, *levels)
        elif name == "whole-pairs":  # no second pass over the records
            exact[name] = [table.sum(0) if by_target else table for table in exact["pairs"]]
        else:
            exact[name] = counts(codes, cardinalities, names[name])
        released[name], event = noisy_counts(
            exact[name], noise_multiplier=multiplier, stream=key.stream("anchor", name), phase="anchor",
            what=f"noisy {name} tables")
        events.append(event)
        sds[name] = cell_sd(multiplier, len(exact[name]))
    triples = Triples(held, dict(zip(combinations(held, 3), released["triples"], strict=True))) if held else None
    with_target = dict(zip(features, released.get("with-target", []), strict=False))
    pairs = {(columns[-2], columns[-1]): table if by_target else table[None]
             for columns, table in zip(names["pairs"], released.get("pairs", []), strict=False)}
    whole = dict(zip(combinations(features, 2), released.get("whole-pairs", []), strict=False))
    return Anchors(tuple(released["one-way"]), with_target, pairs, sds, target, triples, whole=whole), tuple(events)


def counts(codes: NDArray[np.integer], cardinalities: Sequence[int], tables: Sequence[tuple[int, ...]]) -> list[Counts]:
    """The exact contingency tables of several sets of columns, in one pass over the records; private."""
    total = [np.zeros(tuple(cardinalities[j] for j in columns), dtype=np.int64) for columns in tables]
    for start in range(0, len(codes), RECORDS_AT_ONCE):
        whole = np.asarray(codes[start:start + RECORDS_AT_ONCE]).T.astype(np.int64, order="C")  # a column is one block
        for table, columns in zip(total, tables, strict=True):
            table += count(whole.T, cardinalities, columns)
    return total


def count(codes: NDArray[np.integer], cardinalities: Sequence[int], columns: Sequence[int]) -> Counts:
    """The exact contingency table of ``columns``; private."""
    shape = tuple(cardinalities[j] for j in columns)
    flat: Counts = codes[:, columns[0]].astype(np.int64, copy=False)
    for j in columns[1:]:
        flat = flat * cardinalities[j] + codes[:, j]
    return np.bincount(flat, minlength=math.prod(shape)).reshape(shape)


def fit(vae: VAE, anchors: Anchors, *, steps: int, learning_rate: float, generator: torch.Generator,
        progress: Progress = lambda step, residual: None, further: Further | None = None,
        free: Sequence[int] = (), orders: Sequence[Places | None] = ()) -> float:
    """Fit prior and decoder of ``vae`` (codebook prior) to ``anchors``, from where they stand; returns the final mean
    squared residual in units of the noise variance (1.0: as far away as the noise itself). ``further`` adds the
    residuals of other released tables; latent directions in ``free`` have no prior; ``orders`` says by column where its
    codes lie on an axis (NaN: nowhere). Reads nothing private."""
    codebook = vae.codebook
    assert codebook is not None
    device = codebook.points.device
    targets = _Targets(vae.likelihood, anchors, device)
    prior = Prior(vae.likelihood, orders, device)
    parameters = [*codebook.parameters(), *vae.decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_cosine(step, steps))
    residual = math.nan
    for step in range(steps):
        chosen = targets.choose(generator)
        chi2, cells = targets.residual(vae, chosen, further)
        optimiser.zero_grad(set_to_none=True)
        ((chi2 + prior(vae, free)) / cells).backward()
        optimiser.step()
        schedule.step()
        residual = float(chi2.detach() / cells)
        progress(step + 1, residual)
    return residual


def start_bias(vae: VAE, anchors: Anchors) -> None:
    """Set the decoder's last bias to the noisy one-way log-frequencies."""
    logs = []
    for table in anchors.one_way:
        positive = torch.as_tensor(np.maximum(table, 0.5), dtype=torch.float32)
        logs.append((positive / positive.sum()).log())
    with torch.no_grad():
        bias = vae.decoder[-1].bias
        assert isinstance(bias, Tensor)
        bias.copy_(torch.cat(logs))


def _warm_cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 20)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class _Targets:
    """The anchors as dense tensors in one-hot order, each cell divided by its noise."""

    def __init__(self, columns: Columns, anchors: Anchors, device: torch.device) -> None:
        self.columns, self.anchors, self.device = columns, anchors, device
        self.rows = anchors.rows
        self.one_W = self._tensor(np.concatenate(anchors.one_way)) / anchors.sd["one-way"]
        self.block_W = torch.repeat_interleave(torch.arange(len(columns.sizes)), torch.tensor(columns.sizes)).to(device)
        target = anchors.target
        self.target = columns.slice(target) if target is not None else None
        self.with_WL = self._dense_with_target() if anchors.with_target else None
        self.pairs_LWW = self._dense_pairs(anchors.pairs, "pairs") if anchors.pairs else None
        whole = {pair: table[None] for pair, table in anchors.whole.items()}
        self.whole_WW = self._dense_pairs(whole, "whole-pairs")[0] if whole else None
        above_WW = self.block_W[:, None] < self.block_W[None, :]
        if anchors.target is not None:
            other_W = self.block_W != anchors.target
            above_WW = above_WW & other_W[:, None] & other_W
        self.kept_WW = above_WW.float()  # each pair of features once
        triples = anchors.triples
        self.triples = Residual(triples, columns, anchors.sd["triples"], device) if triples is not None else None
        known = [(columns.starts[j] + code, count / sd, 1 / sd)
                 for j, codes in enumerate(anchors.counted) for code, (count, sd) in codes.items()]
        places, counts, scales = zip(*known, strict=True) if known else ((), (), ())
        self.counted_P = torch.tensor(places, dtype=torch.long, device=device)  # places in the one-hot width
        self.count_P, self.scale_P = self._tensor(np.array(counts)), self._tensor(np.array(scales))

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _dense_with_target(self) -> Tensor:
        assert self.anchors.target is not None
        dense = torch.zeros(self.columns.width, self.columns.sizes[self.anchors.target], device=self.device)
        for j, table in self.anchors.with_target.items():
            dense[self.columns.slice(j)] = self._tensor(table) / self.anchors.sd["with-target"]
        return dense

    def _dense_pairs(self, pairs: Mapping[tuple[int, int], Counts], name: str) -> Tensor:
        levels = len(next(iter(pairs.values())))
        dense = torch.zeros(levels, self.columns.width, self.columns.width, device=self.device)
        for (i, j), table in pairs.items():
            dense[:, self.columns.slice(i), self.columns.slice(j)] = self._tensor(table) / self.anchors.sd[name]
        return dense

    def choose(self, generator: torch.Generator) -> Tensor | None:
        """Positions of a random subset of feature columns, where all of them at once would be too wide."""
        if self.pairs_LWW is None or self.columns.width <= WIDTH_AT_ONCE:
            return None
        features = [j for j in range(len(self.columns.sizes)) if j != self.anchors.target]
        kept: list[int] = []
        width = 0
        for pick in torch.randperm(len(features), generator=generator).tolist():
            if width + self.columns.sizes[features[pick]] <= WIDTH_AT_ONCE or len(kept) < 2:
                kept.append(features[pick])
                width += self.columns.sizes[features[pick]]
        positions = [torch.arange(self.columns.starts[j], self.columns.starts[j + 1]) for j in sorted(kept)]
        return torch.cat(positions).to(self.device)

    def residual(self, vae: VAE, chosen: Tensor | None, further: Further | None = None) -> tuple[Tensor, int]:
        """Sum of squared residuals in units of the noise, and the number of cells in it."""
        codebook = vae.codebook
        assert codebook is not None
        p_KW = vae.likelihood.log_probs(vae.decode(codebook.points)).exp()
        w_K = codebook.log_weights.exp() * self.rows
        sd = self.anchors.sd
        rows_W = w_K @ p_KW
        chi2 = (rows_W / sd["one-way"] - self.one_W).square().sum()
        chi2 = chi2 + (rows_W[self.counted_P] * self.scale_P - self.count_P).square().sum()
        cells = self.columns.width + len(self.counted_P)
        given_KL = p_KW[:, self.target] if self.target is not None else None
        if self.with_WL is not None and given_KL is not None:
            model_WL = p_KW.T @ (w_K[:, None] * given_KL) / sd["with-target"]
            other_W = self.block_W != self.anchors.target
            chi2 = chi2 + ((model_WL - self.with_WL) * other_W[:, None]).square().sum()
            cells += int(other_W.sum()) * self.with_WL.shape[1]
        if self.pairs_LWW is not None:
            pair_chi2, pair_cells = self._pairs(p_KW, w_K, given_KL, chosen)
            chi2, cells = chi2 + pair_chi2, cells + pair_cells
        if self.triples is not None:
            chi2, cells = chi2 + self.triples(p_KW, w_K, given_KL), cells + self.triples.cells
        if further is not None:
            more_chi2, more_cells = further(p_KW, w_K)
            chi2, cells = chi2 + more_chi2, cells + more_cells
        return chi2, cells

    def _pairs(self, p_KW: Tensor, w_K: Tensor, given_KL: Tensor | None, chosen: Tensor | None) -> tuple[Tensor, int]:
        goals_LWW, kept_WW, whole_WW = self.pairs_LWW, self.kept_WW, self.whole_WW
        assert goals_LWW is not None
        if chosen is not None:
            p_KW, goals_LWW, kept_WW = p_KW[:, chosen], goals_LWW[:, chosen][:, :, chosen], kept_WW[chosen][:, chosen]
            whole_WW = None if whole_WW is None else whole_WW[chosen][:, chosen]
        rows_K1 = (w_K / self.anchors.sd["pairs"])[:, None]
        rows_KL = rows_K1 * given_KL if len(goals_LWW) > 1 and given_KL is not None else rows_K1
        whole = None if whole_WW is None else (whole_WW, self.anchors.sd["pairs"] / self.anchors.sd["whole-pairs"])
        cells = int(kept_WW.sum()) * (len(goals_LWW) + (whole is not None))
        return misfit.pairs(p_KW, rows_KL, goals_LWW, kept_WW, whole), cells
