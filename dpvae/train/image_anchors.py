"""Noisy moments of labelled images, and the prior and linear decoder that follow from them.

Everything here is eight kinds of Gaussian release (:mod:`dpvae.privacy.image_plan` splits the budget), each a sum over
images of an outer product of two bounded vectors (:func:`~dpvae.privacy.mechanisms.noisy_products`): one image moves it
by at most the product of the bounds. What an image adds depends on it and on earlier releases alone: the mean of its
class, the released directions, the centre nearest to it. Where images of a class lean as handwriting does (the noisy
poses say so), an image is its pixels redrawn in the frame of its class, and its pose beside them, from the means on
(:mod:`dpvae.models.pose`).

    pose        one-hot class x (pose in [-1, 1])                         bound  1 x sqrt(P): nothing is cut
    lean        one x slant squared, whatever the class                   bound  1 x the square of the steepest
    means       one-hot class x low frequencies of (image - 1/2)          bound  1 x sqrt(D) / 2: nothing is cut
    moments     residual x residual                                       bound  R x R
    clusters    one-hot (class, nearest centre) x (coordinates, R / 2)    bound  1 x R sqrt(5) / 2
    spread      one-hot class (x) rest x rest                             bound  B x B
    shape       one-hot (class, nearest centre) x (white rest, squared)   bound  1 x S S
    stretch     one-hot class x one-hot length of the white rest          bound  1 x 1: nothing is cut

R follows from the size of an image, B from what the rest of an image has been released to be on average. The white rest
is what an image adds to its centre, along the principal axes of its class's spread (the first F for a shape, which then
reshapes it) and in units of it. How many
directions, clusters and axes are kept follows from what was released and its known noise. Afterwards the data is not
looked at again. Shapes: n images, C classes, K clusters, Z directions, F axes, S stretches, Q frequencies, D pixels, P
numbers of a pose, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dpvae.models.images import ImageVAE
from dpvae.models.pose import MIDDLE, POSE, REACH, SLANT, poses, seen_in
from dpvae.privacy.events import Gaussian
from dpvae.privacy.image_plan import ROUNDS
from dpvae.privacy.mechanisms import noisy_products
from dpvae.privacy.noise import SecretKey
from dpvae.train import stretch
from dpvae.train.frequencies import Frequencies

Array = NDArray[np.float64]
RADIUS = 0.25  # of a residual, times sqrt(D): longer ones are cut
MOST_DIRECTIONS, MOST_CLUSTERS = 100, 40
RECORDS_PER_CLUSTER = 8.0  # in units of the noise of a cluster's sum
BORN = 0.7  # of the spread of a class: where centres start, and what a cluster's mean may be away from it
TAIL = 1.5  # squared norm of a white rest, in units of its expectation: longer ones are cut
AXES_NOISE, MOST_AXES = 0.35, 40  # noise of a cluster's shape that is borne for one axis more
LEAST_SPREAD = 0.25  # of the variance of all classes along an axis, that of one class: noise hides less
LEAST_SHAPE = 0.05
LEAST_REST = 0.1  # of the variance of all images, that inside clusters: noise in their centres may say less
QUIET = 0.02  # of the trace of a class's spread: noise that is borne for the sake of the longest rests
CELLS = 2**22  # numbers of a block of vectors: bounds memory
STEEPEST = 0.6  # slant that counts: as much for a steeper one
LEANING = 0.18  # spread of slants inside classes from which images are redrawn: 0.25 in MNIST, 0.13 in Fashion-MNIST
AT_ONCE = 2048  # images that are redrawn together


@dataclass(frozen=True)
class Images:
    """Private images: ``pixels`` uint8 (n, D), class numbers ``labels`` (n,), and numbers ``beside`` them (n, P)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    beside: Array | None = None

    def blocks(self, width: int = 0) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """(pixels in [0, 1] and what is beside them, labels) in parts; one empty part where there is no image.
        ``width`` is that of the longest vector that is made of an image."""
        at_once = max(CELLS // max(width, self.pixels.shape[1], 1024), 1)
        for part in _parts(max(len(self.pixels), 1), at_once):
            pixels = self.pixels[part].astype(np.float64) / 255
            yield pixels if self.beside is None else np.hstack([pixels, self.beside[part]]), self.labels[part]

    def redrawn(self, frames: Array, size: tuple[int, int, int]) -> Images:
        """The images in the frames (C, P) of their classes, each by itself."""
        pixels, beside = np.empty_like(self.pixels), np.empty((len(self.pixels), POSE))
        for part in _parts(len(pixels), AT_ONCE):
            x_NE = seen_in(torch.as_tensor(self.pixels[part] / np.float32(255)),
                           torch.as_tensor(frames[self.labels[part]]), size).numpy()
            pixels[part], beside[part] = np.rint(x_NE[:, :-POSE] * 255), x_NE[:, -POSE:]
        return Images(pixels, self.labels, beside)


def _parts(rows: int, at_once: int) -> Iterator[slice]:
    return (slice(start, start + at_once) for start in range(0, rows, at_once))


@dataclass(frozen=True)
class Released:
    """All that was learned, as it may be published."""

    frames: Array  # (C, P)
    means: Array  # (C, D + P)
    basis: Array  # (Z, D + P)
    rest: Array  # (D,): log scale of a logistic law of what no direction holds
    power: Array  # (height, width): mean square of a residual's frequencies; 0 where noise hides it
    weights: Array  # (C, K)
    centres: Array  # (C, K, Z)
    factors: Array  # (C, Z, Z): principal axes of a class's spread as columns, longest first
    shapes: Array  # (C, K, F, F), lower: what a cluster makes of the first F axes
    stretches: Array  # (S,): what a rest may be multiplied by
    shares: Array  # (C, S): how often it is

    def model(self, counts: Array, size: tuple[int, int, int], hidden: int, generator: torch.Generator) -> ImageVAE:
        """The VAE that these moments are, with a decoder that has learned nothing yet."""
        classes, clusters, directions = self.centres.shape
        vae = ImageVAE(size, classes=classes, clusters=clusters, directions=directions, axes=self.shapes.shape[2],
                       stretches=len(self.stretches), posed=self.frames.shape[1] > 0, hidden=hidden,
                       generator=generator)
        with np.errstate(divide="ignore"):
            log_weights, log_shares = np.log(self.weights), np.log(self.shares)
        for name, value in {"frames": self.frames, "means": self.means, "basis": self.basis,
                            "rest": self.rest, "power": self.power, "log_labels": np.log(counts / counts.sum()),
                            "log_weights": log_weights, "centres": self.centres,
                            "factors": self.factors, "shapes": self.shapes,
                            "stretches": self.stretches, "log_shares": log_shares}.items():
            getattr(vae, name).copy_(torch.as_tensor(value))
        return vae


def measure(images: Images, counts: Array, size: tuple[int, int, int], *, noise: Mapping[str, float], epsilon: float,
            key: SecretKey, rng: np.random.Generator,
            most: tuple[int, int] = (MOST_DIRECTIONS, MOST_CLUSTERS)) -> tuple[Released, tuple[Gaussian, ...]]:
    """Moments of private ``images``, and the events that pay for them, one for each entry of ``noise``.

    ``counts`` (C,) are the released numbers of images of each class, all above zero; ``most`` bounds the directions and
    the clusters of a class.
    """
    work = _Measure(images, counts, size, dict(noise), epsilon, key, rng, most)
    frames = work.frames() if "pose" in noise else np.zeros((len(counts), 0))
    means = work.means()
    basis, variances, rest, power = work.directions(means)
    weights, centres = work.clusters(means, basis, variances)
    factors = _axes(work.spread(means, basis, weights, centres, variances))
    shapes = np.ones((*weights.shape, 1, 1))
    if "shape" in noise:
        shapes = work.shapes(means, basis, weights, centres, factors)
    stretches, shares = np.ones(1), np.ones((len(counts), 1))
    if "stretch" in noise:
        stretches, shares = work.stretches(means, basis, weights, centres, factors, shapes)
    return (Released(frames, means, basis, rest, power, weights, centres, factors, shapes, stretches, shares),
            tuple(work.events))


class _Measure:
    """One measurement under way."""

    def __init__(self, images: Images, counts: Array, size: tuple[int, int, int], noise: dict[str, float],
                 epsilon: float, key: SecretKey, rng: np.random.Generator, most: tuple[int, int]) -> None:
        self.most_directions, self.most_clusters = most
        self.images, self.counts, self.noise, self.key, self.rng = images, counts, noise, key, rng
        self.rows, self.size = float(counts.sum()), size
        self.pixels = math.prod(size)
        self.radius = RADIUS * math.sqrt(self.pixels)
        self.frequencies = Frequencies.of(size, self.rows, epsilon)
        self.cosines = self.low = self.frequencies.cosines  # low: of all that an image is
        self.events: list[Gaussian] = []

    def _release(self, name: str, blocks: Iterator[tuple[Array, Array]], left: float,
                 right: float) -> tuple[Array, float]:
        """A noisy sum of products, and the noise's standard deviation."""
        total, sd, event = noisy_products(blocks, left_norm=left, right_norm=right, noise_multiplier=self.noise[name],
                                          stream=self.key.stream("anchor", name), phase="anchor",
                                          what=f"noisy {name} tables")
        self.events.append(event)
        return total, sd

    def _per_class(self, name: str, vectors: Iterator[tuple[Array, NDArray[np.int64]]],
                   norm: float) -> tuple[Array, float]:
        """Noisy means by class of vectors of bounded norm, (C, V), and the noise of one number of them on average:
        classes are drawn together where noise is all that tells them apart (James and Stein 1961, number by number)."""
        classes = len(self.counts)
        total, sd = self._release(name, ((_one_hot(labels, classes), v) for v, labels in vectors), 1.0, norm)
        own = total / self.counts[:, None]
        together = total.sum(0) / self.rows
        apart = own - together
        doubt, shared = np.mean((sd / self.counts) ** 2), classes * (sd / self.rows) ** 2
        kept = np.maximum(1 - doubt / np.maximum(np.mean(apart**2, axis=0), 1e-12), 0.0)
        noise = math.sqrt(np.mean(shared + kept**2 * (doubt - shared)))
        return np.asarray(together + kept * apart), noise

    def frames(self) -> Array:
        """The mean pose of each class, (C, P); from here on images are what they look like in these frames. Of no
        numbers, (C, 0), where the noisy spread of slants does not say that images of a class lean differently."""
        middle, reach = np.array(MIDDLE), np.array(REACH)

        posed = [((poses(torch.as_tensor(x), self.size).numpy() - middle) / reach, labels)
                 for x, labels in self.images.blocks()]  # five numbers an image
        found, noise = self._per_class("pose", iter(posed), math.sqrt(POSE))
        steep, line = (STEEPEST / reach[SLANT]) ** 2, (LEANING / reach[SLANT]) ** 2
        squares = ((np.ones((len(pose), 1)), np.minimum(pose[:, [SLANT]] ** 2, steep)) for pose, _ in posed)
        total, sd = self._release("lean", squares, 1.0, steep)
        between = max(self.counts @ found[:, SLANT] ** 2 / self.rows - noise**2, 0.0)  # classes; the rest is inside
        if (total[0, 0] - 2 * sd) / self.rows - between < line:
            return np.zeros((len(found), 0))
        frames = middle + reach * np.clip(found, -1, 1)
        self.images = self.images.redrawn(frames, self.size)
        self.low = np.block([[self.cosines, np.zeros((len(self.cosines), POSE))],
                             [np.zeros((POSE, self.pixels)), np.eye(POSE)]])
        return frames

    def means(self) -> Array:
        """The mean image of each class in low frequencies, and no pose beside it, (C, D + P)."""
        classes = len(self.counts)
        found, _ = self._per_class("mean-image", (((x[:, :self.pixels] - 0.5) @ self.cosines.T, labels)
                                                  for x, labels in self.images.blocks(classes)),
                                   math.sqrt(self.pixels) / 2)
        pixels = np.clip((found + 0.5 * self.cosines.sum(1)) @ self.cosines, 0.0, 1.0)  # with the gray again
        return np.hstack([pixels, np.zeros((classes, self.low.shape[1] - self.pixels))])

    def _residuals(self, means: Array) -> Iterator[Array]:
        for x, labels in self.images.blocks():
            yield (x - means[labels]) @ self.low.T

    def directions(self, means: Array) -> tuple[Array, Array, Array, Array]:
        """Orthonormal directions (Z, D + P) in which images vary more than the noise does, their variances (Z,), the
        log scales (D,) of what they leave of each pixel, and the power (height, width) of all that means leave."""
        total, sd = self._release("second-moment", ((r, r) for r in self._residuals(means)), self.radius, self.radius)
        values, vectors = np.linalg.eigh((total + total.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        edge = math.sqrt(2 * len(total)) * sd  # of the spectrum of the noise alone: 2 sqrt(Q) sd / sqrt(2)
        kept = int(np.clip((values > edge).sum(), min(2, self.most_directions), self.most_directions))
        clean = np.maximum(values[:kept] - edge**2 / 4 / np.maximum(values[:kept], edge), 0.1 * edge)
        held = np.sqrt(np.maximum(values[:kept] ** 2 - edge**2, 0))  # along a direction as it was found, noise and all
        left = total - (vectors[:, :kept] * held) @ vectors[:, :kept].T
        rest = self.frequencies.rest(left / self.rows, sd / self.rows)
        power = self.frequencies.power(np.diag(total) / self.rows, sd / self.rows)
        return vectors[:, :kept].T @ self.low, clean / self.rows, rest, power

    def clusters(self, means: Array, basis: Array, variances: Array) -> tuple[Array, Array]:
        """Rounds of clustering inside each class: weights (C, K) and centres (C, K, Z)."""
        names = [f"cluster-{i + 1}" for i in range(ROUNDS)]
        noise = max(self.noise[name] for name in names) * self.radius
        sizes = np.clip(self.counts / (RECORDS_PER_CLUSTER * noise), 1, self.most_clusters).round().astype(int)
        most, spread = int(sizes.max()), np.sqrt(variances)
        centres = self.rng.normal(size=(len(sizes), most, len(variances))) * spread * BORN
        held = np.arange(most) < sizes[:, None]  # a class has as many clusters as its noise lets one tell apart
        weights = held / sizes[:, None]
        for name in names:
            weights, centres = self._round(name, means, basis, variances, held, centres)
        return weights, centres

    def _round(self, name: str, means: Array, basis: Array, variances: Array, held: NDArray[np.bool_],
               centres: Array) -> tuple[Array, Array]:
        classes, most, size = centres.shape
        extra = self.radius / 2

        def blocks() -> Iterator[tuple[Array, Array]]:
            for z, place in self._placed(means, basis, centres, held, width=classes * most):
                z = z * np.minimum(1.0, self.radius / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12))
                yield _one_hot(place, classes * most), np.concatenate([z, np.full((len(z), 1), extra)], 1)

        total, sd = self._release(name, blocks(), 1.0, math.hypot(self.radius, extra))
        table = total.reshape(classes, most, size + 1)
        doubt = sd / extra
        found = np.where(held, table[..., -1] / extra, 0.0)
        count = np.maximum(found, doubt)
        mean = table[..., :-1] / count[..., None]
        known = BORN**2 * variances
        new = mean * known / (known + (sd / count[..., None]) ** 2)
        weights = np.where(held, np.maximum(found, 0.0), 0.0) + 1e-3 * held
        for c, j in zip(*np.nonzero(held & (found < 2 * doubt)), strict=True):  # nobody's: beside the largest
            new[c, j] = new[c, weights[c].argmax()] + self.rng.normal(size=size) * np.sqrt(variances) * BORN / 2
        return weights / weights.sum(1, keepdims=True), new

    def _placed(self, means: Array, basis: Array, centres: Array, held: NDArray[np.bool_],
                width: int) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """(coordinates, number of the (class, nearest centre)) of every image."""
        far = np.where(held, 0.0, np.inf)
        for x, labels in self.images.blocks(width):
            z = (x - means[labels]) @ basis.T
            place = np.zeros(len(z), dtype=np.int64)
            for c in np.unique(labels):
                of_c = labels == c
                apart = (centres[c] ** 2).sum(1) - 2 * z[of_c] @ centres[c].T + far[c]
                place[of_c] = c * held.shape[1] + apart.argmin(1)
            yield z, place

    def spread(self, means: Array, basis: Array, weights: Array, centres: Array, variances: Array) -> Array:
        """The covariance inside the clusters of each class, (C, Z, Z): its own where it stands out of its noise, drawn
        towards that of all classes, and along no axis less than :data:`LEAST_SPREAD` of that."""
        classes, most, size = centres.shape
        flat, bound = centres.reshape(classes * most, size), self._rest_bound(weights, centres, variances)

        def blocks() -> Iterator[tuple[Array, Array]]:
            for z, place in self._placed(means, basis, centres, weights > 0, width=classes * size):
                rest = z - flat[place]
                rest *= np.minimum(1.0, bound / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12))
                left = np.zeros((len(z), classes, size))
                left[np.arange(len(z)), place // most] = rest
                yield left.reshape(len(z), classes * size), rest

        total, sd = self._release("spread", blocks(), bound, bound)
        tables = total.reshape(classes, size, size)
        tables = (tables + tables.transpose(0, 2, 1)) / 2
        pooled = _positive(tables.sum(0) / self.rows, variances.min())  # clusters take little from the last directions
        root = np.linalg.cholesky(pooled)
        likely = 0.09 * np.outer(np.diag(pooled), np.diag(pooled))  # how far a class's own may be away, squared
        found = []
        for c in range(classes):
            doubt = (sd / self.counts[c]) ** 2 / 2
            apart = (tables[c] / self.counts[c] - pooled) * likely / (likely + doubt)
            white = np.linalg.solve(root, np.linalg.solve(root, apart).T)
            found.append(root @ _positive(np.eye(size) + white, LEAST_SPREAD) @ root.T)
        return np.stack(found)

    def _rest_bound(self, weights: Array, centres: Array, variances: Array) -> float:
        """Where the rest of an image is cut, since noise grows with the square of that: at the root of its mean square,
        as far as released variances and centres tell it, and further out where noise is little."""
        classes, _, size = centres.shape
        between = self.counts @ (weights * (centres**2).sum(2)).sum(1) / self.rows
        square = max(variances.sum() - between, LEAST_REST * variances.sum())
        quiet = QUIET * self.rows / (classes * size * self.noise["spread"])
        return min(self.radius, math.sqrt(square * max(1.0, quiet)))

    def shapes(self, means: Array, basis: Array, weights: Array, centres: Array, factors: Array) -> Array:
        """The spread of each cluster in the white axes of its class, as lower factors (C, K, F, F): its own as far as
        clusters were found to differ more than the noise does, and the class's otherwise."""
        classes, most, size = centres.shape
        held = np.maximum(weights * self.counts[:, None], 1.0)
        per_cluster = self.rows / (weights > 0).sum()
        kept = int(np.clip(AXES_NOISE * per_cluster / (TAIL * self.noise["shape"]), 1, min(size, MOST_AXES)))
        longest = math.sqrt(TAIL * kept)
        rows, columns = np.triu_indices(kept)
        scale = np.where(rows == columns, 1.0, math.sqrt(2))

        def blocks() -> Iterator[tuple[Array, Array]]:
            for axes, place in self._white(means, basis, weights, centres, factors, max(classes * most, len(rows))):
                axes = axes[:, :kept]
                axes = axes * np.minimum(1.0, longest / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-12))
                yield _one_hot(place, classes * most), axes[:, rows] * axes[:, columns] * scale

        total, sd = self._release("shape", blocks(), 1.0, longest**2)
        own = total.reshape(classes, most, len(rows)) / held[..., None] - (rows == columns)
        doubt = (sd / held) ** 2
        precision = np.where(weights > 0, 1 / doubt**2, 0.0)
        differ = max(float((precision * ((own**2).mean(2) - doubt)).sum() / precision.sum()), 0.0)
        own *= (differ / (differ + doubt))[..., None] / scale
        found = np.zeros((classes, most, kept, kept))
        found[..., rows, columns] = found[..., columns, rows] = own
        return np.asarray(np.linalg.cholesky(_positive(np.eye(kept) + found, LEAST_SHAPE)), dtype=np.float64)

    def _white(self, means: Array, basis: Array, weights: Array, centres: Array, factors: Array,
               width: int) -> Iterator[tuple[Array, NDArray[np.int64]]]:
        """(what its centre leaves of an image along the axes of its class, (n, Z); (class, nearest centre))."""
        white, most = np.linalg.inv(factors), centres.shape[1]
        for z, place in self._placed(means, basis, centres, weights > 0, width):
            rest, labels = z - centres.reshape(-1, z.shape[1])[place], place // most
            for c in np.unique(labels):
                rest[labels == c] = rest[labels == c] @ white[c].T
            yield rest, place

    def stretches(self, means: Array, basis: Array, weights: Array, centres: Array, factors: Array,
                  shapes: Array) -> tuple[Array, Array]:
        """How often the rest of an image of each class is so many times as long as a normal one: factors (S,) and
        shares (C, S); see :mod:`dpvae.train.stretch`."""
        axes = shapes.shape[2]
        inverse = np.linalg.inv(shapes).reshape(-1, axes, axes)

        def vectors() -> Iterator[tuple[Array, NDArray[np.int64]]]:
            for white, place in self._white(means, basis, weights, centres, factors, axes * axes):
                white[:, :axes] = np.einsum("nfg,ng->nf", inverse[place], white[:, :axes])
                yield _one_hot(stretch.length_of(white), len(stretch.SQUARES)), place // centres.shape[1]

        counted, doubt = self._per_class("stretch", vectors(), 1.0)
        return stretch.stretches(counted, doubt, len(basis))


def _axes(covariances: Array) -> Array:
    """Principal axes as columns, longest first, as long as the standard deviation along them."""
    values, vectors = np.linalg.eigh(covariances)
    return np.ascontiguousarray((vectors * np.sqrt(values)[:, None])[..., ::-1])


def _one_hot(places: NDArray[np.int64], count: int) -> Array:
    rows = np.zeros((len(places), count))
    rows[np.arange(len(places)), places] = 1.0
    return rows


def _positive(matrix: Array, least: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, least)[..., None, :]) @ np.swapaxes(vectors, -1, -2))
