"""A density from few rows: a codebook whose points are noisy cluster means (``trainer=density``).

Where pairs of columns have too many cells for the rows there are (tens of numeric columns, a few thousand rows), tables
of counts drown in noise and moments do not. So this trainer measures, and charges as Gaussian releases,

1. the second moments of the rows on each column's own scale, clipped to norm sqrt(D): where clusters may lie;
2. three rounds of expectation-maximisation (DP-EM, Park et al. 2017): each row's posterior over the points is a
   function of that row and of what is already released, and its noisy sums move the points.

A numeric column is normal inside a point, a categorical one has its own frequencies. In natural parameters that is
*linear*: logit(bin) = (mu / s^2) c - c^2 / (2 s^2) + log width, with the bin's middle c. So the points are the latents
of an ordinary :class:`~dpvae.models.vae.VAE` with a codebook prior and a linear decoder whose weights are the
statistics (c, c^2), and everything that is made of such a model works here too.

Shapes: n records, D columns, F features (one per numeric column, one per category), K points, W one-hot width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.data.grid import REACH, spread
from dpvae.data.schema import Column, Schema
from dpvae.models.likelihood import Columns
from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.privacy.events import Gaussian
from dpvae.privacy.mechanisms import noisy_sums
from dpvae.privacy.noise import SecretKey
from dpvae.rng import seed_of, stream

Array = NDArray[np.float64]
LEAST_VARIANCE = 0.2  # of a point, in units of the column's own: what keeps a density smooth between rows
FLOOR = 0.02  # of a category's frequency in a point where it starts
ROUNDS_UNPROTECTED = 25
AT_ONCE = 4096


@dataclass(frozen=True)
class Features:
    """What a code counts as: ``values`` (W,) is its place on its column's scale (numeric codes), ``numeric`` (W,) says
    which these are, ``column`` (W,) whose code it is, ``feature`` (W,) which feature it adds to; ``widths`` (W,)."""

    values: Array
    numeric: NDArray[np.bool_]
    column: NDArray[np.int64]
    feature: NDArray[np.int64]
    widths: Array
    size: int

    @classmethod
    def of(cls, schema: Schema) -> Features:
        """The features of a resolved schema."""
        values, numeric, whose, feature, widths, size = [], [], [], [], [], 0
        for j, column in enumerate(schema.columns):
            value, width = _places(column)
            known = column.values if column.is_numeric and column.values else 0
            first = np.zeros(known, dtype=int)
            rest = np.arange(column.cardinality - known) + bool(known)
            feature.append(size + np.concatenate([first, rest]))
            size += bool(known) + column.cardinality - known
            numeric.append(np.arange(column.cardinality) < known)
            values.append(value)
            widths.append(width)
            whose.append(np.full(column.cardinality, j))
        return cls(np.concatenate(values), np.concatenate(numeric), np.concatenate(whose),
                   np.concatenate(feature).astype(np.int64), np.concatenate(widths), size)

    def rows(self, flat: NDArray[np.int64], limit: float) -> Array:
        """Feature vectors (n, F), clipped to norm ``limit``, of rows of one-hot places ``flat`` (n, D)."""
        out = np.zeros((len(flat), self.size))
        np.put_along_axis(out, self.feature[flat], np.where(self.numeric, self.values, 1.0)[flat], 1)
        norm = np.linalg.norm(out, axis=1, keepdims=True)
        return out * np.minimum(1.0, limit / np.maximum(norm, 1e-12))


def _places(column: Column) -> tuple[Array, Array]:
    """Per code its place on the column's scale (0 for what is no number), and the width of its bin there."""
    value, width = np.zeros(column.cardinality), np.ones(column.cardinality)
    if column.is_numeric and column.values:
        mean, scale = spread(column)
        heaps, edges = np.array(column.heaps or ()), np.clip((np.array(column.edges or ()) - mean) / scale, -9, 9)
        inner = np.diff(edges[1:-1]).mean() if len(edges) > 3 else 1.0
        if len(edges) > 2:  # the outermost bins reach as far as the column does; their rows lie where they begin
            edges[0], edges[-1] = max(edges[0], edges[1] - inner), min(edges[-1], edges[-2] + inner)
        middles = (edges[:-1] + edges[1:]) / 2
        value[:column.values] = np.clip(np.concatenate([(heaps - mean) / scale, middles]), -REACH - 1, REACH + 1)
        width[:column.values] = np.concatenate([np.full(len(heaps), inner), np.maximum(np.diff(edges), 1e-6)])
    return value, width


@dataclass
class Points:
    """The mixture under way: weights (K,), mean features (K, F), variances of the features (K, F)."""

    weights: Array
    means: Array
    variances: Array

    def latents(self, features: Features) -> Array:
        """Natural parameters, (K, 2 F): mu / s^2 and -1 / (2 s^2), or a log frequency and nothing."""
        natural = np.zeros((len(self.weights), 2 * features.size))
        number = np.zeros(features.size, dtype=bool)
        number[features.feature[features.numeric]] = True
        natural[:, :features.size][:, number] = (self.means / self.variances)[:, number]
        natural[:, features.size:][:, number] = (-0.5 / self.variances)[:, number]
        logits = natural @ _statistics(features).T + _bias(features)
        for j in range(features.column.max() + 1):  # a code beside numbers: log odds against all of them together
            of_j = features.column == j
            others = of_j & ~features.numeric
            places = features.feature[others]
            share = np.clip(self.means[:, places], 1e-6, 1.0)
            numbers = logits[:, of_j & features.numeric]
            if numbers.shape[1]:
                total = np.log(np.exp(numbers - numbers.max(1, keepdims=True)).sum(1)) + numbers.max(1)
                share = share / np.maximum(1 - share.sum(1, keepdims=True), 1e-6)
                natural[:, places] = np.log(share) + total[:, None]
            else:
                natural[:, places] = np.log(share)
        return natural

    def mixture(self, features: Features, columns: Columns) -> Mixture:
        """As a mixture of products of ``columns``."""
        logits = self.latents(features) @ _statistics(features).T + _bias(features)
        return Mixture(columns, torch.as_tensor(np.log(self.weights)),
                       columns.log_probs(torch.as_tensor(logits)))


def _statistics(features: Features) -> Array:
    """The decoder's weights, (W, 2 F): c and c^2 for a number, 1 for a category."""
    out = np.zeros((len(features.values), 2 * features.size))
    place = np.arange(len(out))
    out[place, features.feature] = np.where(features.numeric, features.values, 1.0)
    out[place, features.size + features.feature] = np.where(features.numeric, features.values**2, 0.0)
    return out


def _bias(features: Features) -> Array:
    return np.where(features.numeric, np.log(features.widths), 0.0)


def fit(codes: NDArray[np.integer], schema: Schema, *, rows: float, components: int, noise: Mapping[str, float],
        key: SecretKey, seed: int, hidden: int, protected: bool) -> tuple[VAE, tuple[Gaussian, ...]]:
    """A model of private ``codes`` (n, D), and the events that pay for it: one for each entry of ``noise``.

    ``rows`` is the public or released row count. Without protection more rounds are made, exact, from points that are
    rows: for a run stamped NOT PRIVATE.
    """
    features, columns = Features.of(schema), Columns(schema.cardinalities)
    flat = codes.astype(np.int64) + np.array(columns.starts[:-1])
    work = _Fit(features, columns, flat, codes, math.sqrt(len(schema.columns)), rows)
    events = []
    moments, event = work.second_moments(noise["second-moment"], key)
    events.append(event)
    points = work.start(components, moments, seed, protected)
    names = [name for name in noise if name.startswith("cluster")]
    for name in names:
        points, event = work.round(points, moments, noise[name], key, name)
        events.append(event)
    if not protected:
        for _ in range(ROUNDS_UNPROTECTED):
            points = work.exact_round(points)
    return _model(points, features, schema, seed, hidden), tuple(events)


@dataclass
class _Fit:
    """One fit: the private rows, and what is public about their form."""

    features: Features
    columns: Columns
    flat: NDArray[np.int64]
    codes: NDArray[np.integer]
    limit: float  # on a row's norm
    count: float

    def _parts(self) -> list[slice]:
        return [slice(i, i + AT_ONCE) for i in range(0, len(self.flat), AT_ONCE)]

    def second_moments(self, noise_multiplier: float, key: SecretKey) -> tuple[Array, Gaussian]:
        """The noisy mean of (x, 1) (x, 1)', (F + 1, F + 1)."""
        upper = np.triu_indices(self.features.size + 1)
        twice = np.where(upper[0] == upper[1], 1.0, math.sqrt(2))  # an isometry of symmetric matrices
        largest = self.limit**2 + 1.0  # the norm of (x, 1) (x, 1)'

        def contributions() -> Iterator[Array]:
            for part in self._parts():
                x = self.features.rows(self.flat[part], self.limit)
                x = np.concatenate([x, np.ones((len(x), 1))], 1)
                yield x[:, upper[0]] * x[:, upper[1]] * twice / largest

        total, event = noisy_sums(contributions(), len(upper[0]), noise_multiplier=noise_multiplier,
                                  stream=key.stream("density", "moments"), phase="anchor",
                                  what="noisy second-moment tables")
        matrix = np.zeros((self.features.size + 1,) * 2)
        matrix[upper] = total * largest / twice / self.count
        return matrix + np.triu(matrix, 1).T, event

    def start(self, components: int, moments: Array, seed: int, protected: bool) -> Points:
        """Points drawn from the normal law with the noisy moments (from the rows themselves, without protection)."""
        rng, size = stream(seed, "density", "start"), self.features.size
        if protected:
            mean = np.clip(moments[:-1, -1], -REACH, REACH)
            values, vectors = np.linalg.eigh(moments[:-1, :-1] - np.outer(mean, mean))
            spreads = np.sqrt(np.maximum(values, LEAST_VARIANCE / 10))
            drawn = mean + rng.normal(size=(components, size)) * spreads @ vectors.T
        else:
            chosen = rng.choice(len(self.flat), min(components, len(self.flat)), replace=False)
            drawn = self.features.rows(self.flat[chosen], np.inf)
        return Points(np.full(len(drawn), 1 / len(drawn)), self._proper(drawn, FLOOR), np.full(drawn.shape, 0.6))

    def _proper(self, means: Array, floor: float) -> Array:
        """Frequencies that are at least ``floor`` and add up to at most one; numbers within reach."""
        means = means.copy()
        for j in range(self.features.column.max() + 1):
            of_j = self.features.column == j
            places = self.features.feature[of_j & ~self.features.numeric]
            means[:, places] = np.clip(means[:, places], floor, 1.0)
            if not (of_j & self.features.numeric).any():
                means[:, places] /= means[:, places].sum(1, keepdims=True)
        numbers = np.unique(self.features.feature[self.features.numeric])
        means[:, numbers] = np.clip(means[:, numbers], -REACH, REACH)
        return means

    def round(self, points: Points, moments: Array, noise_multiplier: float, key: SecretKey,
              name: str) -> tuple[Points, Gaussian]:
        """One noisy round of expectation-maximisation."""
        mixture, components = points.mixture(self.features, self.columns), len(points.weights)
        largest = self.limit * math.sqrt(2)

        def contributions() -> Iterator[Array]:
            for part in self._parts():
                posterior = mixture.joint(torch.as_tensor(self.codes[part].astype(np.int64))).softmax(1).numpy()
                x = self.features.rows(self.flat[part], self.limit)
                sums = (posterior[:, :, None] * x[:, None, :]).reshape(len(x), -1)
                yield np.concatenate([posterior * self.limit, sums], 1) / largest

        total, event = noisy_sums(contributions(), components * (1 + self.features.size),
                                  noise_multiplier=noise_multiplier, stream=key.stream("density", name),
                                  phase="anchor", what=f"noisy {name} tables")
        sd = noise_multiplier * largest
        held = np.maximum(total[:components] * math.sqrt(2), sd / self.limit)  # a count below its noise says nothing
        sums = (total[components:] * largest).reshape(components, -1)
        doubt = (sd / held[:, None]) ** 2  # of a mean; the prior's variance is the column's own, 1
        middle = np.clip(moments[:-1, -1], -REACH, REACH)
        means = self._proper(middle + (sums / held[:, None] - middle) / (1 + doubt), 1e-3)
        weights = held / held.sum()
        between = weights @ (means - weights @ means) ** 2
        inside = np.clip(np.diag(moments)[:-1] - middle**2 - between, LEAST_VARIANCE, 1.5)
        return Points(weights, means, np.tile(inside, (components, 1))), event

    def exact_round(self, points: Points) -> Points:
        """One round without noise, with variances of each point's own."""
        mixture = points.mixture(self.features, self.columns)
        held, sums, squares = np.full(len(points.weights), 1e-3), 0.0, 0.0
        for part in self._parts():
            posterior = mixture.joint(torch.as_tensor(self.codes[part].astype(np.int64))).softmax(1).numpy()
            x = self.features.rows(self.flat[part], np.inf)
            held, sums, squares = held + posterior.sum(0), sums + posterior.T @ x, squares + posterior.T @ x**2
        means = sums / held[:, None]
        inside = np.maximum(squares / held[:, None] - means**2, 0.0) + LEAST_VARIANCE
        return Points(held / held.sum(), self._proper(means, 1e-4), inside)


def _model(points: Points, features: Features, schema: Schema, seed: int, hidden: int) -> VAE:
    vae = VAE(schema.cardinalities, latent_dim=2 * features.size, hidden=hidden, layers=0,
              components=len(points.weights), generator=torch.Generator().manual_seed(seed_of(seed, "init")))
    assert vae.codebook is not None
    with torch.no_grad():
        vae.codebook.points.copy_(torch.as_tensor(points.latents(features)))
        vae.codebook.weights.copy_(torch.as_tensor(np.log(points.weights)))
        vae.decoder[-1].weight.copy_(torch.as_tensor(_statistics(features)))
        vae.decoder[-1].bias.copy_(torch.as_tensor(_bias(features)))
    return vae
