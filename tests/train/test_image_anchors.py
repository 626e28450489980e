"""One image moves a noisy moment by what it was priced for, and without noise the moments are those of the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ScriptedKey, silent

from dpvae.models.pose import poses
from dpvae.privacy.image_plan import ROUNDS
from dpvae.privacy.mechanisms import noisy_products
from dpvae.privacy.noise import SecretKey
from dpvae.rng import stream
from dpvae.train import image_anchors
from dpvae.train.frequencies import Frequencies, cosines
from dpvae.train.image_anchors import Images, measure

SIZE, CLASSES = (1, 8, 8), 3
NOISE = {"mean-image": 2.0, "second-moment": 3.0, **{f"cluster-{i + 1}": 4.0 for i in range(ROUNDS)}, "spread": 5.0,
         "shape": 6.0, "stretch": 2.0}
POSED = {"pose": 1.0, "lean": 1.0} | NOISE
BOTH = pytest.mark.parametrize("noise", [NOISE, POSED], ids=["as they are", "posed"])


def some_images(rows: int, seed: int = 0) -> Images:
    """Stripes, by class in another direction, of random strength."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    wave = np.stack([np.sin(np.arange(64) % 8), np.sin(np.arange(64) // 8), np.cos(np.arange(64) // 9)])
    strength = rng.uniform(20, 90, (rows, 1))
    pixels = 128 + strength * wave[labels] + rng.normal(0, 8, (rows, 64))
    return Images(np.clip(pixels, 0, 255).astype(np.uint8), labels)


def measured(images: Images, key: Any, noise: dict[str, float] = NOISE, epsilon: float = 1.0,
             size: tuple[int, int, int] = SIZE) -> Any:
    counts = np.array([40.0, 40.0, 40.0])
    return measure(images, counts, size, noise=noise, epsilon=epsilon, key=key, rng=stream(0, "test"))


def sums_of(images: Images, monkeypatch: pytest.MonkeyPatch, releases: list[Any] | None = None,
            noise: dict[str, float] = NOISE, size: tuple[int, int, int] = SIZE) -> list[Any]:
    """What each release adds up before its noise, with its bound; later releases see ``releases`` instead of it."""
    found: list[Any] = []

    def record(blocks: Iterator[Any], *, left_norm: float, right_norm: float, noise_multiplier: float, stream: Any,
               phase: str, what: str) -> Any:
        total = sum(left.T @ right for left, right in spied(blocks, left_norm, right_norm))
        found.append((total, left_norm * right_norm))
        shown = total if releases is None else releases[len(found) - 1][0]
        return shown, 1e-3, image_anchors.Gaussian(phase, what, noise_multiplier)

    monkeypatch.setattr(image_anchors, "noisy_products", record)
    monkeypatch.setattr(image_anchors, "LEANING", 0.0)  # whatever leans at all is redrawn
    measured(images, ScriptedKey(), noise, size=size)
    return found


def spied(blocks: Iterator[Any], left_norm: float, right_norm: float) -> Iterator[Any]:
    for left, right in blocks:
        cut = [np.minimum(1, norm / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12))
               for part, norm in ((left, left_norm), (right, right_norm))]
        yield left * cut[0], right * cut[1]


def joined(images: Images, pixels: np.ndarray, label: int) -> Images:
    return Images(np.concatenate([images.pixels, pixels[None]]), np.append(images.labels, label))


PEOPLE = {"black": np.zeros(64, np.uint8), "white": np.full(64, 255, np.uint8),
          "noise": np.random.default_rng(9).integers(0, 256, 64).astype(np.uint8),
          "checkers": np.where(np.indices((8, 8)).sum(0).ravel() % 2, 255, 0).astype(np.uint8),
          "leaning": np.eye(8, dtype=np.uint8).ravel() * 255}


@BOTH
@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("pixels", PEOPLE.values(), ids=PEOPLE)
def test_one_image_moves_no_sum_by_more_than_its_bound(pixels: np.ndarray, label: int, noise: dict[str, float],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(120)
    without = sums_of(images, monkeypatch, noise=noise)
    with_one = sums_of(joined(images, pixels, label), monkeypatch, releases=without, noise=noise)
    assert len(without) == len(noise)
    assert (without[list(noise).index("second-moment")][0].shape[1] == 64 + 5) is ("pose" in noise)
    for (before, bound), (after, same) in zip(without, with_one, strict=True):
        assert same == bound
        assert np.linalg.norm(after - before) <= bound * (1 + 1e-9)


@BOTH
def test_the_bounds_are_tight_for_some_image(noise: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(120)
    without = sums_of(images, monkeypatch, noise=noise)
    joining = [sums_of(joined(images, pixels, 1), monkeypatch, without, noise) for pixels in PEOPLE.values()]
    moved = [max(np.linalg.norm(sums[i][0] - before) / bound for sums in joining)
             for i, (before, bound) in enumerate(without)]
    assert min(moved) > 0.4, "noise for a bound that nobody reaches is wasted"


def mirrored(self: Any, means: np.ndarray) -> Iterator[np.ndarray]:
    """A mutant: every image counts twice, once as its mirror image."""
    for x, labels in self.images.blocks():
        for seen in (x, x.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64)):
            yield (seen - means[labels]) @ self.cosines.T


def rescaled(placed: Any) -> Any:
    """A mutant: coordinates in units of their private spread, which every image moves a little."""
    def scaled(self: Any, *args: Any, **more: Any) -> Iterator[Any]:
        for z, place in placed(self, *args, **more):
            yield z / z.std(0), place

    return scaled


def twice(redrawn: Any) -> Any:
    """A mutant: every image counts as it was and redrawn."""
    def both(self: Images, frames: np.ndarray, size: tuple[int, int, int]) -> Images:
        found = redrawn(self, frames, size)
        return Images(np.vstack([self.pixels, found.pixels]), np.tile(self.labels, 2), np.tile(found.beside, (2, 1)))

    return both


def test_a_redrawn_image_beside_the_one_it_was_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "redrawn", twice(Images.redrawn))
    images = some_images(120)
    without = sums_of(images, monkeypatch, noise=POSED)
    second = list(POSED).index("second-moment")
    sums = [sums_of(joined(images, pixels, 1), monkeypatch, without, POSED) for pixels in PEOPLE.values()]
    moved = [np.linalg.norm(found[second][0] - without[second][0]) for found in sums]
    assert max(moved) > 1.2 * without[second][1]


@pytest.mark.parametrize(("broken", "release"), [("_residuals", 1), ("_placed", 2), ("_placed", 6)])
def test_a_measurement_that_lets_one_image_count_for_more_is_caught(broken: str, release: int,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    images, kind = some_images(2000), image_anchors._Measure
    monkeypatch.setattr(kind, broken, mirrored if broken == "_residuals" else rescaled(kind._placed))
    without = sums_of(images, monkeypatch)
    moved = [np.linalg.norm(sums_of(joined(images, pixels, 1), monkeypatch, without)[release][0] - without[release][0])
             for pixels in PEOPLE.values()]
    assert max(moved) > 1.2 * without[release][1]


@BOTH
def test_what_is_drawn_is_one_event_for_each_noise_in_order(noise: dict[str, float]) -> None:
    key = ScriptedKey()
    _, events = measured(some_images(120), key, noise)
    assert [(e.what, e.noise_multiplier) for e in events] == [(f"noisy {n} tables", nm) for n, nm in noise.items()]
    assert [draw.names for draw in key.draws] == [("anchor", name) for name in noise]


def test_without_noise_means_directions_and_spread_are_those_of_the_images() -> None:
    images = some_images(3000)
    counts = np.bincount(images.labels).astype(float)
    released, _ = measure(images, counts, SIZE, noise=dict.fromkeys(NOISE, 1e-6), epsilon=20.0,
                          key=ScriptedKey(normal=silent), rng=stream(0, "test"))
    x = images.pixels / 255
    means = np.stack([x[images.labels == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(released.means, means, atol=2e-3)
    np.testing.assert_allclose(released.basis @ released.basis.T, np.eye(len(released.basis)), atol=1e-9)
    z = (x - means[images.labels]) @ released.basis.T
    for c in range(CLASSES):
        drawn = released.weights[c] @ released.centres[c]
        np.testing.assert_allclose(drawn, z[images.labels == c].mean(0), atol=0.05)
        between = (released.weights[c][:, None] * (released.centres[c] - drawn) ** 2).sum(0)
        inside = np.diag(released.factors[c] @ released.factors[c].T)
        total = z[images.labels == c].var(0)
        assert abs((between + inside)[:3] - total[:3]).max() < 0.15 * total[:3].max()


def test_widths_of_pixels_that_noise_hides_are_those_of_all_pixels_together() -> None:
    """Half of the pixels vary by more than two directions hold; with much noise nobody knows which half."""
    rng = np.random.default_rng(4)
    pixels = 128 + rng.normal(0, 1, (4000, 64)) * np.where(np.arange(64) < 32, 20, 4)
    images = Images(np.rint(pixels).astype(np.uint8), np.zeros(4000, np.int64))
    wanted = {1e-6: np.where(np.arange(64) < 32, 20, 4), 10.0: np.full(64, np.sqrt((400 + 16) / 2))}
    for noise, sd in wanted.items():
        released, _ = measure(images, np.array([4000.0]), SIZE, noise=NOISE | {"second-moment": noise}, epsilon=20.0,
                              key=ScriptedKey(), rng=stream(0, "test"), most=(1, 2))
        np.testing.assert_allclose(np.exp(released.rest) * np.pi / np.sqrt(3) * 255, sd, rtol=0.3)


def test_a_rest_is_cut_at_its_root_mean_square_and_further_out_where_noise_is_little(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed form: 4000 images of 64 pixels of variance v each; a class's noise may be 0.02 of the trace 64 v."""
    images = Images(np.rint(128 + np.random.default_rng(7).normal(0, 20, (4000, 64))).astype(np.uint8),
                    np.zeros(4000, np.int64))
    bounds: list[float] = []
    wrapped = image_anchors.noisy_products

    def spied(blocks: Iterator[Any], *, left_norm: float, **more: Any) -> Any:
        bounds.append(left_norm)
        return wrapped(blocks, left_norm=left_norm, **more)

    monkeypatch.setattr(image_anchors, "noisy_products", spied)
    for spread in (5.0, 0.3, 1e-6):
        measure(images, np.array([4000.0]), SIZE, noise=dict.fromkeys(NOISE, 1e-6) | {"spread": spread}, epsilon=20.0,
                key=ScriptedKey(normal=silent), rng=stream(0, "test"), most=(64, 1))
    root = 8 * 20 / 255
    assert bounds[5::8] == pytest.approx([root, root * (0.02 * 4000 / 64 / 0.3) ** 0.5, 0.25 * 8], rel=0.02)


def test_the_power_of_a_frequency_is_its_own_or_that_of_its_ring_or_zero_as_noise_lets_one_know() -> None:
    images = some_images(3000)
    counts = np.bincount(images.labels).astype(float)
    ring = np.maximum(*np.indices((8, 8)))
    found = []
    for noise in (1e-6, 1e4):
        released, _ = measure(images, counts, SIZE, noise=NOISE | {"mean-image": 1e-6, "second-moment": noise},
                              epsilon=20.0, key=ScriptedKey(), rng=stream(0, "test"), most=(2, 1))
        left = images.pixels / 255 - released.means[images.labels]
        square = ((cosines(SIZE, (8, 8)) @ left.T) ** 2).mean(1).reshape(8, 8)
        mean = np.array([square[ring == r].mean() for r in range(8)])[ring]
        found.append((released.power, np.maximum(square, 0.1 * mean)))
    np.testing.assert_allclose(*found[0], rtol=0.02)
    assert (found[1][0] == 0).all()


def test_a_frequency_that_its_noise_does_not_tell_from_those_around_it_has_their_power() -> None:
    noisy = 1.0 + 0.1 * np.random.default_rng(1).normal(size=(8, 8))
    noisy[4, 4] = 9.0
    quiet, loud = (Frequencies(SIZE, (8, 8)).power(noisy.ravel(), sd) for sd in (1e-6, 0.1))
    np.testing.assert_allclose(quiet, noisy, rtol=1e-6)
    assert loud[4, 4] == pytest.approx(9.0, abs=0.01)
    assert abs(loud[:3] - 1.0).mean() < 0.7 * abs(noisy[:3] - 1.0).mean()


def test_a_class_that_does_not_vary_along_an_axis_has_a_quarter_of_what_all_classes_have_there() -> None:
    """Closed form without noise: variances of 0.04 in two of three classes of one size, and none in the third."""
    rng = np.random.default_rng(5)
    basis, labels = np.linalg.qr(rng.normal(size=(64, 2)))[0].T, np.arange(6000) % 3
    z = rng.normal(size=(6000, 2)) * np.stack([np.full(6000, 0.3), np.where(labels == 2, 0, 0.2)], 1)
    images = Images(np.rint((0.5 + z @ basis) * 255).astype(np.uint8), labels)
    released, _ = measure(images, np.full(3, 2000.0), SIZE, noise=dict.fromkeys(NOISE, 1e-6), epsilon=20.0,
                          key=ScriptedKey(normal=silent), rng=stream(0, "test"), most=(2, 1))
    covariance = released.factors @ np.swapaxes(released.factors, 1, 2)
    along = np.einsum("z,czy,y->c", released.basis @ basis[1], covariance, released.basis @ basis[1])
    np.testing.assert_allclose(along, [0.04, 0.04, 0.25 * 0.04 * 2 / 3], rtol=0.08)


def two_spreads(rows: int) -> Images:
    """Two clusters in each class, apart along one direction, and long in different others."""
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.normal(size=(64, 4)))[0].T
    place = rng.integers(0, 2, rows)
    z = rng.normal(size=(rows, 4)) * np.array([[0.3, 0.1, 0.05, 0.05], [0.1, 0.3, 0.05, 0.05]])[place]
    z[:, 2] += np.where(place, 0.8, -0.8)
    return Images(np.rint(np.clip(0.5 + z @ basis, 0, 1) * 255).astype(np.uint8), rng.integers(0, CLASSES, rows))


def test_clusters_of_different_spread_keep_their_own_and_noise_draws_them_to_their_class() -> None:
    images = two_spreads(6000)
    counts = np.bincount(images.labels).astype(float)
    clusters = {name: 60.0 for name in NOISE if name.startswith("cluster")}  # so much that a class keeps few of them
    for shape, own in ((1e-6, True), (1e5, False)):
        released, _ = measure(images, counts, SIZE, noise=dict.fromkeys(NOISE, 1e-6) | clusters | {"shape": shape},
                              epsilon=20.0, key=ScriptedKey(normal=silent), rng=stream(0, "test"))
        kept = released.shapes.shape[2]
        apart = np.abs(released.shapes @ np.swapaxes(released.shapes, -1, -2) - np.eye(kept)).max((-1, -2))
        assert (apart[released.weights > 0.1].min() > 0.4) == own
        if own:
            assert released.shapes.shape[1] > 1


def of_two_lengths(rows: int) -> Images:
    """Normal images along six directions; in the first class a fifth of them are four times as long as the others."""
    rng = np.random.default_rng(8)
    basis, labels = np.linalg.qr(rng.normal(size=(64, 6)))[0].T, rng.integers(0, 2, rows)
    long = np.where((labels == 0) & (rng.random(rows) < 0.2), 4.0, 1.0)
    z = 0.1 * long[:, None] * rng.normal(size=(rows, 6))
    return Images(np.rint(np.clip(0.5 + z @ basis, 0, 1) * 255).astype(np.uint8), labels)


def test_a_class_whose_images_differ_in_length_is_drawn_so_unless_noise_hides_it() -> None:
    images = of_two_lengths(20_000)
    counts = np.bincount(images.labels).astype(float)
    quiet = dict.fromkeys(NOISE, 1e-6)
    for noise, told in ((1e-6, True), (30.0, True), (1e5, False)):
        key = ScriptedKey(normal=silent) if noise < 1 else ScriptedKey()
        released, _ = measure(images, counts, SIZE, noise=quiet | {"stretch": noise}, epsilon=20.0, key=key,
                              rng=stream(0, "test"), most=(6, 1))
        np.testing.assert_allclose(released.shares.sum(1), 1.0)
        assert (len(released.stretches) > 1) is told
        if told:
            square = released.stretches**2
            axes = released.factors @ released.shapes[:, 0]
            spread = np.trace(axes @ np.swapaxes(axes, 1, 2), axis1=1, axis2=2) / 6
            mean = released.shares @ square * spread
            assert mean == pytest.approx([0.01 * (0.8 + 0.2 * 16), 0.01], rel=0.12), "as long as they are on average"
            varied = released.shares @ square**2 / (released.shares @ square) ** 2
            # E s^4 / (E s^2)^2 of the two lengths, and of one; six axes tell lengths of one image only roughly
            assert varied == pytest.approx([(0.8 + 0.2 * 256) / (0.8 + 0.2 * 16) ** 2, 1.0], rel=0.35)


def test_lengths_in_units_of_their_private_mean_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    images, release, kind = some_images(2000), list(NOISE).index("stretch"), image_anchors._Measure
    white = kind._white

    def scaled(self: Any, *args: Any) -> Iterator[Any]:
        for axes, place in white(self, *args):
            yield axes / np.sqrt((axes**2).mean()), place

    monkeypatch.setattr(kind, "_white", scaled)
    without = sums_of(images, monkeypatch)
    moved = [np.linalg.norm(sums_of(joined(images, pixels, 1), monkeypatch, without)[release][0] - without[release][0])
             for pixels in PEOPLE.values()]
    assert max(moved) > 1.2 * without[release][1]


def test_where_no_shape_is_measured_a_cluster_has_that_of_its_class() -> None:
    released, events = measured(some_images(120), ScriptedKey(), {n: nm for n, nm in NOISE.items() if n != "shape"})
    assert [event.what for event in events] == [f"noisy {name} tables" for name in NOISE if name != "shape"]
    np.testing.assert_array_equal(released.shapes, np.ones((*released.weights.shape, 1, 1)))


def spots(rows: int, leaning: float, side: int = 18) -> Images:
    """Spots whose place, size and slant are their own, wider and further to the right by class."""
    rng = np.random.default_rng(6)
    labels, at = rng.integers(0, CLASSES, rows), np.arange(side) - (side - 1) / 2
    across, down, size = (2 * rng.normal(size=rows) * scale for scale in (0.8, 0.8, 0.1))
    across += labels - 1
    right, below = at[None, None] - across[:, None, None], at[:, None] - down[:, None, None]
    right = right - leaning * rng.normal(size=(rows, 1, 1)) * below
    wide, tall = np.exp(size)[:, None, None] * (1.2 + labels[:, None, None] / 4), np.exp(size)[:, None, None] * 2.5
    mass = np.exp(-0.5 * ((right / wide) ** 2 + (below / tall) ** 2))
    return Images(np.rint(255 * mass).astype(np.uint8).reshape(rows, -1), labels)


def test_in_the_frame_of_its_class_a_spot_is_its_pose_and_the_model_draws_spots_of_all_poses() -> None:
    images, size = spots(3000, leaning=0.4), (1, 18, 18)
    counts = np.bincount(images.labels).astype(float)
    quiet = {"noise": dict.fromkeys(POSED, 1e-6), "epsilon": 20.0, "rng": stream(0, "test")}
    plain, posed = (measure(images, counts, size, key=ScriptedKey(normal=silent), **(quiet | {"noise": noise}))[0]
                    for noise in (dict.fromkeys(NOISE, 1e-6), quiet["noise"]))
    seen = images.redrawn(posed.frames, size)
    apart = [np.square(x / 255 - released.means[images.labels, :324]).sum(1).mean()
             for x, released in ((images.pixels, plain), (seen.pixels, posed))]
    assert apart[1] < 0.2 * apart[0], "redrawn in one frame, spots of a class are one spot"
    model = posed.model(counts, size, 4, torch.Generator().manual_seed(0))
    label = torch.zeros(2000, dtype=torch.long)
    drawn = model.sample(label, generator=torch.Generator().manual_seed(1)).flatten(1) / 255
    wanted, found = (poses(torch.as_tensor(x), size) for x in (images.pixels[images.labels == 0] / 255, drawn))
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(found.std(0), wanted.std(0), atol=0.05, rtol=0)


def test_how_images_of_a_class_lean_is_known_from_a_thousand_of_them() -> None:
    # deviation of the noise: 30 x (0.6 / 1.5)^2 / 1000 of a squared slant / 1.5^2, that is 0.011 of a squared slant
    quiet = dict.fromkeys(POSED, 1e-6) | {"lean": 30.0}
    for leaning, posed in ((0.35, True), (0.1, False)):
        images, frames = spots(1000, leaning), []
        for seed in range(5):
            released, _ = measure(images, np.bincount(images.labels).astype(float), (1, 18, 18), noise=quiet,
                                  epsilon=20.0, key=SecretKey.from_seed(seed), rng=stream(0, "test"))
            frames.append(released.frames.shape == (CLASSES, 5))
        assert frames == [posed] * 5


def framed(images: Images, monkeypatch: pytest.MonkeyPatch, told: list[Any] | None = None) -> tuple[list[Any], bool]:
    """What is released to know whether images are redrawn, and whether they are; ``told``: that of other images."""
    released: list[Any] = []

    def answer(blocks: Iterator[Any], **facts: Any) -> Any:
        held = list(blocks)
        released.append(noisy_products(iter(held), **facts) if told is None else told[len(released)])
        return released[-1]

    monkeypatch.setattr(image_anchors, "noisy_products", answer)
    work = image_anchors._Measure(images, np.full(CLASSES, 200.0), (1, 18, 18), dict.fromkeys(POSED, 1e-6), 20.0,
                                  ScriptedKey(normal=silent), stream(0, "test"), (10, 10))
    return released, work.frames().size > 0


NOBODY = Images(np.zeros((0, 324), np.uint8), np.zeros(0, np.int64))


def asked_of_others(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, ...]]:
    """Of images that lean and of some that do not: whether they are redrawn, and whether others would be, among them
    nobody, who are told the same."""
    leaning, upright = spots(600, 0.4), spots(600, 0.05)
    found = []
    for images, others in ((leaning, upright), (upright, leaning)):
        told, redrawn = framed(images, monkeypatch)
        found.append((redrawn, *(framed(other, monkeypatch, told)[1] for other in (others, NOBODY))))
    return found


def test_whether_images_are_redrawn_follows_from_what_was_released_whosever_images_they_are(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_others(monkeypatch) == [(True,) * 3, (False,) * 3]


def test_a_choice_by_the_exact_spread_of_slants_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_anchors._Measure.frames

    def looked(self: Any) -> Any:
        slants = [poses(torch.as_tensor(x), self.size)[:, 4].numpy() for x, _ in self.images.blocks()]
        exact = np.concatenate(slants).std() if len(self.images.pixels) else 0.0
        monkeypatch.setattr(image_anchors, "LEANING", 0.0 if exact > 0.18 else np.inf)
        return real(self)

    monkeypatch.setattr(image_anchors._Measure, "frames", looked)
    assert asked_of_others(monkeypatch) == [(True, False, False), (False, True, False)]


def redrawn_in_the_mean_pose(redrawn: Any) -> Any:
    """A mutant: the frame is the exact mean pose of all images, which each of them moves."""
    def moving(self: Images, frames: np.ndarray, size: tuple[int, int, int]) -> Images:
        middle = poses(torch.as_tensor(self.pixels / 255), size).mean(0).numpy()
        return redrawn(self, np.broadcast_to(middle, frames.shape).copy(), size)

    return moving


def test_images_redrawn_in_their_own_mean_pose_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "redrawn", redrawn_in_the_mean_pose(Images.redrawn))
    images = some_images(120)
    without = sums_of(images, monkeypatch, noise=POSED)
    moved = [np.linalg.norm(a - b) / bound for pixels in PEOPLE.values() for (b, bound), (a, _) in zip(
        without, sums_of(joined(images, pixels, 1), monkeypatch, without, POSED), strict=True)]
    assert max(moved) > 1.2


def of_colours(images: Images) -> Images:
    """The same stripes in three colours, each image in a mixture of its own."""
    mixture = np.random.default_rng(3).uniform(0, 1, (len(images.pixels), 3, 1))
    return Images(np.rint(images.pixels[:, None] * mixture).astype(np.uint8).reshape(len(mixture), -1), images.labels)


COLOURS = {"white": np.full(192, 255, np.uint8), "red": np.repeat([255, 0, 0], 64).astype(np.uint8),
           "blue and yellow": np.concatenate([PEOPLE["checkers"], PEOPLE["checkers"], 255 - PEOPLE["checkers"]]),
           "noise": np.random.default_rng(8).integers(0, 256, 192).astype(np.uint8)}


@BOTH
@pytest.mark.parametrize("pixels", COLOURS.values(), ids=COLOURS)
def test_one_image_of_colours_moves_no_sum_by_more_than_its_bound(pixels: np.ndarray, noise: dict[str, float],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    images = of_colours(spots(120, 0.4, 8))  # they lean, whatever their colour
    without = sums_of(images, monkeypatch, noise=noise, size=(3, 8, 8))
    with_one = sums_of(joined(images, pixels, 1), monkeypatch, without, noise, (3, 8, 8))
    assert without[list(noise).index("second-moment")][0].shape[1] == 64 + 2 * 16 + 5 * ("pose" in noise)
    assert max(np.linalg.norm(after - before) / bound for (before, bound), (after, _) in zip(
        without, with_one, strict=True)) <= 1 + 1e-9
    mean = (pixels / 255 - 0.5) @ cosines((3, 8, 8), (8, 8)).T
    assert np.linalg.norm(mean) <= np.sqrt(192) / 2 + 1e-9, "the mean image is released whole: nothing of it is cut"


def test_images_that_do_not_lean_or_whose_leaning_is_lost_in_noise_stay_as_they_are() -> None:
    for leaning, noise, posed in ((0.4, 1e-6, True), (0.05, 1e-6, False), (0.4, 1e3, False)):
        images = spots(1000, leaning)
        released, events = measure(images, np.bincount(images.labels).astype(float), (1, 18, 18),
                                   noise=dict.fromkeys(POSED, 1e-6) | {"lean": noise}, epsilon=20.0,
                                   key=ScriptedKey(normal=silent), rng=stream(0, "test"))
        assert released.frames.shape == (CLASSES, 5 * posed)
        assert released.means.shape == (CLASSES, 324 + 5 * posed)
        assert len(events) == len(POSED), "known or not, it was paid for"


@BOTH
def test_an_empty_set_is_measured_like_any_other(noise: dict[str, float]) -> None:
    nobody = Images(np.zeros((0, 64), np.uint8), np.zeros(0, np.int64))
    released, events = measured(nobody, ScriptedKey(), noise)
    assert len(events) == len(noise)
    assert np.isfinite(released.factors).all()
    assert np.isfinite(released.shapes).all()


def test_cosines_are_orthonormal_and_hold_constant_images_exactly() -> None:
    basis = cosines((3, 9, 10), (4, 5))
    np.testing.assert_allclose(basis @ basis.T, np.eye(20 + 2 * 6), atol=1e-12)
    gray = np.full(270, 0.5)
    np.testing.assert_allclose(gray @ basis.T @ basis, gray, atol=1e-12)


def test_the_power_of_colour_images_is_that_of_their_light_and_of_their_coarse_colour() -> None:
    """Closed form: where colour is measured the mean over channels; where it is not, a third of that of the light."""
    rng, size = np.random.default_rng(2), (3, 8, 8)
    pixels = np.rint(128 + rng.normal(0, 20, (4000, 192))).astype(np.uint8)
    released, _ = measure(Images(pixels, np.zeros(4000, np.int64)), np.array([4000.0]), size, epsilon=20.0,
                          noise=dict.fromkeys(NOISE, 1e-6), key=ScriptedKey(normal=silent), rng=stream(0, "test"),
                          most=(2, 1))
    wanted = np.full((8, 8), (20 / 255) ** 2 / 3)
    wanted[:4, :4] *= 3
    np.testing.assert_allclose(released.power, wanted, rtol=0.15)
    gray = np.tile(rng.random(64), 3)
    coefficients = cosines(size, (8, 8)) @ gray
    assert np.abs(coefficients[64:]).max() < 1e-12, "a gray image has no colour"
