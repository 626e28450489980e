"""Wide tables: a latent code learned from noisy sums, and a decoder written down from it in closed form.

Among 200 columns there are 20,000 pairs; released one by one they drown. What they share does not: if a hidden cause
moves many columns a little, the second moments of the records have a few large directions. They are found and used
in four releases, each a sum over records of ``outer(left, right)`` with bounded factors
(:func:`dpvae.privacy.mechanisms.noisy_products`):

    target     f x onehot(y)         how each target value moves each column
    subspace   f x (u / |u|)         u = V'f: a noisy power method (Hardt and Price 2014, arXiv 1311.2495), some rounds
    moments    u x u                 how far each direction stands out of the noise of independent columns, which is 1
    codes      (1, u) x onehot(k)    k = the nearest of K points: private k-means in the subspace, some rounds

with f the record's contrasts (:mod:`dpvae.train.contrasts`), normalised by its length. A record's direction and code
are functions of that record and of what is released before. Last comes a table of counts, code by target value.
Then each (code, target value) becomes a point of the VAE's codebook. Its columns are the released one-way tables,
exponentially tilted to the mean that f has there (Wiener-shrunk along the subspace, James-Stein-shrunk beside it).

Shapes: N records, F contrasts, Z directions, K codes, L target values (1 without a target), W one-hot width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpvae.models.vae import VAE
from dpvae.privacy.mechanisms import noisy_counts, noisy_products
from dpvae.privacy.noise import SecretKey
from dpvae.privacy.plan import LATENT_WHAT, LatentPlan
from dpvae.train.anchor import TARGET_VALUES, Anchors
from dpvae.train.contrasts import Numbers, contrasts, rows_of, shares

PHASE = "latent"
RECORDS_AT_ONCE = 4096
REACH = 2.5  # a record's place in the subspace is cut at this many times the length of an independent one's
FAINT = 1.05  # a direction whose variance is below this is not told from noise
TILT_SD = 2.0  # prior scale of a tilt: keeps a column from being certain because of a noisy mean
SPREAD = 0.8  # the first codes, in standard deviations of the signal
UNSEEN = -20.0  # log-weight of a code that nobody seems to have
SURE = 6.0  # log-odds of the target's value at a point that stands for it


@dataclass(frozen=True)
class Codes:
    """What was released: enough to write a decoder."""

    maps: list[Numbers]  # of the features, in order
    features: list[int]
    means: Numbers  # (K, F): of the contrasts given the code, shrunk
    beside: Numbers  # (L, F): what the target's value adds
    weights: Numbers  # (K, L), sums to one


class Latent:
    """One measurement under way; ``codes`` is private, everything else is released or public."""

    def __init__(self, codes: NDArray[np.integer], anchors: Anchors, orders: Sequence[Numbers | None], *,
                 plan: LatentPlan, key: SecretKey, rng: np.random.Generator,
                 progress: Callable[[int], None] = lambda step: None) -> None:
        self.codes, self.anchors, self.plan, self.key, self.rng = codes, anchors, plan, key, rng
        self.rows, self.target, self.progress = anchors.rows, anchors.target, progress
        self.features = [j for j in range(codes.shape[1]) if j != anchors.target]
        maps = contrasts([anchors.one_way[j] for j in self.features], [orders[j] for j in self.features])
        self.maps = maps
        self.size = sum(table.shape[1] for table in maps)
        self.norm = math.sqrt(self.size)  # of an average record: the variances add up to it
        self.directions = min(plan.directions, self.size)
        self.levels = 1 if self.target is None else len(anchors.one_way[self.target])

    # -- the private rows are touched in this part and nowhere else -------------------------------------------------

    def _blocks(self) -> Iterator[tuple[NDArray[np.integer], Numbers]]:
        """Codes and contrasts, some records at a time; one empty block where there are none."""
        for start in range(0, max(len(self.codes), 1), RECORDS_AT_ONCE):
            part = self.codes[start:start + RECORDS_AT_ONCE]
            rows = rows_of(part[:, self.features], self.maps)
            yield part, rows * np.minimum(1.0, self.norm / np.maximum(np.linalg.norm(rows, axis=1), 1e-12))[:, None]

    def _products(self, name: str, number: int, left_norm: float, right_norm: float,
                  factors: Callable[[NDArray[np.integer], Numbers], tuple[Numbers, Numbers]]) -> tuple[Numbers, float]:
        blocks = (factors(part, rows) for part, rows in self._blocks())
        released, sd, _ = noisy_products(
            blocks, left_norm=left_norm, right_norm=right_norm, noise_multiplier=self.plan.noise[name],
            stream=self.key.stream(PHASE, name, number), phase=PHASE, what=LATENT_WHAT[name])
        self.progress(1)
        return released, sd

    def _target_sums(self) -> tuple[Numbers, float]:
        """(F, L): sums of the contrasts by target value."""
        assert self.target is not None
        eye, target = np.eye(self.levels), self.target
        return self._products("target", 0, self.norm, 1.0, lambda part, rows: (rows, eye[part[:, target]]))

    def _power(self, number: int, basis: Numbers) -> Numbers:
        """(F, Z): sums of f x (u / |u|)."""
        return self._products("subspace", number, self.norm, 1.0,
                              lambda part, rows: (rows, _unit(rows @ basis)))[0]

    def _moments(self, basis: Numbers) -> Numbers:
        reach = REACH * math.sqrt(self.directions)
        return self._products("moments", 0, reach, reach, lambda part, rows: (rows @ basis, rows @ basis))[0]

    def _code_sums(self, number: int, basis: Numbers, centres: Numbers, reach: float) -> tuple[Numbers, float]:
        """(1 + Z, K): how many records have each code, and the sum of their places in units of ``reach``."""
        eye = np.eye(len(centres))

        def factors(part: NDArray[np.integer], rows: Numbers) -> tuple[Numbers, Numbers]:
            places = rows @ basis / reach
            places = places / np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1.0)
            return np.column_stack([np.ones(len(rows)), places]), eye[_nearest(rows @ basis, centres)]

        return self._products("codes", number, math.sqrt(2), 1.0, factors)

    def _table(self, basis: Numbers, centres: Numbers) -> NDArray[np.int64]:
        """(K, L): noisy counts of code by target value."""
        counts = np.zeros((len(centres), self.levels), dtype=np.int64)
        for part, rows in self._blocks():
            level = part[:, self.target].astype(np.int64) if self.target is not None else np.zeros(len(part), np.int64)
            np.add.at(counts, (_nearest(rows @ basis, centres), level), 1)
        (table,), _ = noisy_counts([counts], noise_multiplier=self.plan.noise["table"],
                                   stream=self.key.stream(PHASE, "table"), phase=PHASE, what=LATENT_WHAT["table"])
        self.progress(1)
        return table

    # -- what the releases mean: from here on everything is public ---------------------------------------------------

    def measure(self) -> Codes:
        """All releases of the plan, in order."""
        by_target, sd = self._by_target()
        basis = self._subspace(by_target)
        basis, gain = self._rotate(basis)
        centres, reach = self._start(gain)
        pulled = basis * gain  # a record's place: the posterior mean of its signal
        for number in range(self.plan.code_rounds):
            sums, noise = self._code_sums(number, pulled, centres, reach)
            centres = self._moved(centres, sums, noise, reach, last=number == self.plan.code_rounds - 1)
        table = self._table(pulled, centres)
        weights = np.maximum(table, 0.0) + 1e-9
        weights /= weights.sum()
        means = centres @ basis.T
        beside = self._beside(by_target, sd, means, weights)
        return Codes(self.maps, self.features, means, beside, weights)

    def _by_target(self) -> tuple[Numbers, Numbers]:
        """Mean contrasts given the target's value, (L, F), and the sd of one of them, (L,)."""
        if self.target is None:
            return np.zeros((1, self.size)), np.zeros(1)
        sums, sd = self._target_sums()
        held = np.maximum(self.anchors.one_way[self.target].astype(np.float64), 1.0)
        return (sums / held).T, sd / held

    def _subspace(self, by_target: Numbers) -> Numbers:
        """An orthonormal basis, (F, Z). The rounds add up: each is carried over into the next one's coordinates."""
        wanted = self.directions
        told = by_target[1:, :].T[:, :wanted // 2]  # where the target already points
        basis = np.linalg.qr(np.column_stack([told, self.rng.standard_normal((self.size, wanted - told.shape[1]))]))[0]
        alone = math.sqrt(wanted - 0.5) / wanted  # what independent columns would give along the basis itself
        total, before = np.zeros((self.size, wanted)), basis
        for number in range(self.plan.subspace_rounds):
            excess = self._power(number, basis) / self.rows - alone * basis
            total = total @ (before.T @ basis) + excess
            before, basis = basis, np.linalg.svd(total, full_matrices=False)[0]
        return np.asarray(basis)

    def _rotate(self, basis: Numbers) -> tuple[Numbers, Numbers]:
        """The basis along its principal axes, and by how much a place on each is signal: (variance - 1) / variance."""
        moments = self._moments(basis) / self.rows
        variance, axes = np.linalg.eigh((moments + moments.T) / 2)
        gain = np.where(variance > FAINT, 1 - 1 / np.maximum(variance, FAINT), 0.0)
        return basis @ axes, gain

    def _start(self, gain: Numbers) -> tuple[Numbers, float]:
        """First centres, (K, Z), and the reach of a record's place."""
        spread = np.sqrt(gain)  # pulled places have variance gain^2 / (1 - gain); this is near it for clear signals
        reach = REACH * math.sqrt(max(float(np.square(spread / np.sqrt(np.maximum(1 - gain, 0.05)) * spread).sum()),
                                      0.05))
        return self.rng.standard_normal((self.plan.codes, len(gain))) * spread * SPREAD, reach

    def _moved(self, centres: Numbers, sums: Numbers, noise: float, reach: float, *, last: bool) -> Numbers:
        """Centres at their noisy means; one that hardly anybody chose starts anew beside a large one."""
        held, places = sums[0], sums[1:].T * reach
        seen = held > 4 * noise
        moved = np.where(seen[:, None], places / np.maximum(held, 1.0)[:, None], centres)
        if not last and seen.any():
            crowded = np.argsort(-held)[:len(centres)]
            for place, empty in enumerate(np.flatnonzero(~seen)):
                near = moved[crowded[place % max(int(seen.sum()), 1)]]
                moved[empty] = near + 0.3 * self.rng.standard_normal(len(near)) * np.sqrt(np.square(moved).mean())
        return np.asarray(moved)

    def _beside(self, by_target: Numbers, sd: Numbers, means: Numbers, weights: Numbers) -> Numbers:
        """What the target's value adds to the codes' means, (L, F), shrunk by its share of noise."""
        given = weights / weights.sum(0, keepdims=True)
        rest = by_target - given.T @ means
        noise = self.size * np.square(sd)
        keep = np.maximum(0.0, 1 - noise / np.maximum(np.square(rest).sum(1), 1e-12))
        return np.asarray(rest * keep[:, None]) if self.target is not None else np.zeros_like(rest)


def _unit(rows: Numbers) -> Numbers:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _nearest(places: Numbers, centres: Numbers) -> NDArray[np.int64]:
    return np.asarray((np.square(centres).sum(1) - 2 * places @ centres.T).argmin(1))


# -- from codes to a decoder -----------------------------------------------------------------------------------------


@torch.no_grad()
def write(vae: VAE, anchors: Anchors, codes: Codes, *, directions: int) -> None:
    """Set prior and linear decoder of ``vae`` to what ``codes`` say; points beyond (code, target value) repeat them.

    The logits are kept to ``directions`` singular directions, so that others stay free. Reads nothing private.
    """
    codebook, layer = vae.codebook, vae.decoder[-1]
    assert codebook is not None
    assert isinstance(layer, nn.Linear)
    logits_GW, log_weights_G = _logits(vae, anchors, codes)
    bias_W = _raked(logits_GW, log_weights_G.exp(), anchors)
    weight = log_weights_G.exp()[:, None].sqrt().clamp_min(1e-6)
    left, scale, right = torch.linalg.svd(weight * logits_GW, full_matrices=False)
    rank = min(directions, vae.prior.dim, len(scale))
    points_GZ = torch.zeros(len(logits_GW), vae.prior.dim, dtype=torch.float64)
    points_GZ[:, :rank] = left[:, :rank] / weight  # unit variance over the codes
    index = torch.arange(len(codebook.points)) % len(logits_GW)
    copies = torch.bincount(index, minlength=len(logits_GW)).clamp_min(1)
    layer.weight.zero_()
    layer.weight[:, :rank] = (scale[:rank, None] * right[:rank]).T.to(layer.weight)
    layer.bias.copy_(bias_W.to(layer.bias))
    codebook.points.copy_(points_GZ[index].to(codebook.points))
    codebook.weights.copy_((log_weights_G - copies.log())[index].clamp_min(UNSEEN).to(codebook.weights))


def _logits(vae: VAE, anchors: Anchors, codes: Codes) -> tuple[Tensor, Tensor]:
    """Tilts of every point, (G, W), relative to the one-way tables, and the points' log-weights, (G,)."""
    count, levels = codes.weights.shape
    split = levels <= TARGET_VALUES  # a point for each target value; else the target is one more column of a code
    mean_GF = (codes.means[:, None, :] + codes.beside[None]).reshape(count * levels, -1) if split else codes.means
    weights = np.maximum((codes.weights if split else codes.weights.sum(1)).reshape(-1), math.exp(UNSEEN))
    logits_GW = np.zeros((len(weights), vae.width))
    start = 0
    for j, table in zip(codes.features, codes.maps, strict=True):
        part = mean_GF[:, start:start + table.shape[1]]
        start += table.shape[1]
        logits_GW[:, vae.likelihood.slice(j)] = tilt(shares(anchors.one_way[j]), table, part) @ table.T
    if anchors.target is not None:
        given = codes.weights / codes.weights.sum(1, keepdims=True)
        likely = np.log(np.maximum(given, 1e-3) / shares(anchors.one_way[anchors.target]))
        sure = SURE * (2 * np.eye(levels) - 1) / 2
        logits_GW[:, vae.likelihood.slice(anchors.target)] = np.tile(sure, (count, 1)) if split else likely
    return torch.as_tensor(logits_GW), torch.as_tensor(np.log(weights / weights.sum()))


def tilt(p: Numbers, table: Numbers, means: Numbers) -> Numbers:
    """Coefficients t, (G, functions), of the tilt p exp(table t) whose mean of ``table`` is ``means``, (G, functions).

    Newton's method on a concave function; t has the prior N(0, TILT_SD^2), so that there always is an answer.
    """
    t = np.zeros_like(means)
    eye = np.eye(table.shape[1]) / TILT_SD**2
    for _ in range(8):
        q = np.log(p) + t @ table.T
        q = np.exp(q - q.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        mean = q @ table
        slope = np.einsum("gc,ca,cb->gab", q, table, table) - mean[:, :, None] * mean[:, None, :] + eye
        step = np.linalg.solve(slope, (means - mean - t / TILT_SD**2)[..., None])[..., 0]
        t = t + np.clip(step, -1.0, 1.0)
    return t


def _raked(logits_GW: Tensor, weights_G: Tensor, anchors: Anchors) -> Tensor:
    """The bias, (W,), with which the points together have the released one-way tables."""
    sizes = [len(table) for table in anchors.one_way]
    goal_W = torch.as_tensor(np.concatenate([shares(table) for table in anchors.one_way]))
    bias_W = goal_W.log()
    for _ in range(12):
        parts = (logits_GW + bias_W).split(sizes, 1)
        model_W = torch.cat([weights_G @ part.softmax(1) for part in parts])
        bias_W = bias_W + (goal_W / model_W.clamp_min(1e-12)).log().clamp(-1, 1)
    return bias_W
