"""Secret randomness: the right cipher, the right laws, and nothing that can be guessed, printed or repeated."""

from __future__ import annotations

import copy
import ctypes
import hashlib
import hmac
import itertools
import math
import pickle
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpvae.errors import ConfigError, RunError
from dpvae.privacy.native import NativeNoise
from dpvae.privacy.noise import BoxMuller, SecretKey, SecretStream, box_muller

ALARM = 1e-4  # keys are fixed, so a passing test passes forever
FIXED = SecretKey.from_bytes(bytes(range(32)))

# NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt
NIST_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NIST_COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
NIST_PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
                           "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710")
NIST_CIPHER = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
                            "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6")


def test_the_keystream_is_aes_256_in_counter_mode_by_the_nist_vectors() -> None:
    stream = SecretStream(NIST_KEY, NIST_COUNTER)
    got = stream.bytes(5) + stream.bytes(59)
    assert bytes(a ^ b for a, b in zip(got, NIST_PLAIN, strict=True)) == NIST_CIPHER


def test_a_stream_key_is_hkdf_sha256_of_the_master_and_the_encoded_names() -> None:
    info = b"dpvae/1/stream/" + b"s" + (5).to_bytes(8, "big") + b"dpsgd" + b"i" + (1).to_bytes(8, "big") + b"7"
    extracted = hmac.new(bytes(32), bytes(range(32)), hashlib.sha256).digest()
    derived = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    assert FIXED.stream("dpsgd", 7).bytes(32) == SecretStream(derived).bytes(32)


def test_streams_of_different_names_never_coincide() -> None:
    """jax#3646: one key used for two draws gives equal noise, and their difference shows the data."""
    names = [("a",), ("b",), ("a", "b"), ("ab",), ("a", ""), ("", "a"), ("1",), (1,), ("a", 1), ("a", "1"), (-1,),
             (11,), (1, 1), ("a/b",), ("i1",)]
    heads = [FIXED.stream(*name).bytes(16) for name in names]
    assert len(set(heads)) == len(names)
    assert FIXED.stream("a").bytes(16) != SecretKey.from_bytes(bytes(range(1, 33))).stream("a").bytes(16)
    with pytest.raises(ConfigError, match="at least one name"):
        FIXED.stream()


def test_a_stream_never_repeats_itself_and_always_starts_the_same() -> None:
    stream = FIXED.stream("noise")
    first, second = stream.normal(1000), stream.normal(1000)
    assert not np.intersect1d(first, second).size
    np.testing.assert_array_equal(FIXED.stream("noise").normal(1000), first)


@pytest.mark.usefixtures("real_keys")
def test_generated_keys_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SecretKey.generate().tag(b"x") != SecretKey.generate().tag(b"x")
    monkeypatch.setattr("os.urandom", lambda n: bytes(n))
    assert SecretKey.generate().tag(b"x") == SecretKey.from_bytes(bytes(32)).tag(b"x")


def test_nothing_shows_pickles_or_copies_a_key() -> None:
    stream = FIXED.stream("a")
    for secret in (FIXED, stream):
        assert "secret" in f"{secret!r} {secret} {secret!s}"
        assert not any(part in repr(secret) for part in ("00", "01", "\\x"))
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled or copied"):
                leak(secret)
        with pytest.raises(AttributeError):
            secret.note = 1  # type: ignore[union-attr]


def test_a_saved_key_is_its_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    FIXED.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretKey.load(path).tag(b"x") == FIXED.tag(b"x")
    with pytest.raises(RunError, match="a key already"):
        SecretKey.generate().save(path)
    assert SecretKey.load(path).tag(b"x") == FIXED.tag(b"x")


def test_half_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"short")
    with pytest.raises(RunError, match="expected 32 bytes, found 5"):
        SecretKey.load(path)
    with pytest.raises(RunError, match="cannot be read"):
        SecretKey.load(tmp_path / "none")
    for bad in (b"", bytes(31), bytes(33), "x" * 32):
        with pytest.raises(ConfigError, match="32 secret bytes"):
            SecretKey.from_bytes(bad)  # type: ignore[arg-type]

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        FIXED.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_tags_depend_on_key_and_data_and_are_not_a_bare_hash() -> None:
    """A bare hash of a small table confirms a guess of its content."""
    assert FIXED.tag(b"table") != FIXED.tag(b"tablf")
    assert FIXED.tag(b"table") != SecretKey.from_seed(1).tag(b"table")
    assert FIXED.tag(b"table") != hashlib.sha256(b"table").hexdigest()
    assert len(bytes.fromhex(FIXED.tag(b""))) == 32


def normal_law(draw: np.ndarray) -> float:
    """The smaller p-value of a KS test and of a chi-square test of the variance; draws of a standard normal."""
    spread = stats.chi2(draw.size).cdf(float(draw @ draw))
    return min(stats.kstest(draw, "norm").pvalue, 2 * min(spread, 1 - spread))


def test_normals_are_standard_normal() -> None:
    draw = FIXED.stream("normal").normal(400_000)
    assert normal_law(draw) > ALARM
    lag = np.corrcoef(draw[:-1], draw[1:])[0, 1] * math.sqrt(draw.size)
    halves = np.corrcoef(draw[:200_000] ** 2, draw[200_000:] ** 2)[0, 1] * math.sqrt(200_000)
    assert abs(lag) < 4
    assert abs(halves) < 4


@pytest.mark.parametrize(
    "mutant",
    [
        lambda s, n: s.normal(n) / math.sqrt(2),
        lambda s, n: s.normal(n) * 0.99,
        lambda s, n: (s.uniform(n) - 0.5) * math.sqrt(12),
        lambda s, n: np.full(n, s.normal(1)[0]),
        lambda s, n: s.normal(n) + 0.01,
    ],
    ids=["half the variance", "1 % too little", "uniform", "one scalar for all", "biased"],
)
def test_the_law_test_catches_wrong_noise(mutant: object) -> None:
    assert normal_law(mutant(FIXED.stream("normal"), 400_000)) < ALARM  # type: ignore[operator]


@pytest.mark.parametrize("shape", [0, 1, 3, 7, (2, 3), (5, 0), (1, 1, 3), 131_073, 262_147])
def test_draws_have_the_shape_asked_for(shape: int | tuple[int, ...]) -> None:
    expected = shape if isinstance(shape, tuple) else (shape,)
    stream = FIXED.stream("a")
    for draw in (stream.normal(shape), stream.uniform(shape), stream.integers(5, shape)):
        assert draw.shape == expected
    assert np.isfinite(FIXED.stream("a").normal(shape)).all()


class _Words(SecretStream):
    """A stream whose next words are given: the extreme draws that chance would never show."""

    __slots__ = ("_given",)

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32))
        self._given = itertools.chain(words, itertools.repeat(0))

    def _keystream(self, n: int) -> np.ndarray:
        return np.array([next(self._given) for _ in range(n // 8)], dtype="<u8").view(np.uint8)


@pytest.mark.parametrize("word", [0, 1, 2**11 - 1, 2**63, 2**64 - 2**11, 2**64 - 1])
def test_extreme_words_give_finite_normals_and_uniforms_inside_the_open_interval(word: int) -> None:
    assert 0 < _Words(word).uniform(1)[0] < 1
    assert np.isfinite(_Words(word, word).normal(2)).all()
    assert _Words(0, 0).normal(2)[0] == pytest.approx(math.sqrt(2 * 65 * math.log(2)))  # 9.49 sd


def test_uniforms_are_uniform() -> None:
    assert stats.kstest(FIXED.stream("uniform").uniform(200_000), "uniform").pvalue > ALARM


@pytest.mark.parametrize("rate", [0.5, 0.0625, 1e-3])
def test_masks_hit_each_record_independently_at_the_rate(rate: float) -> None:
    n, steps = 2000, 400
    stream = FIXED.stream("mask", str(rate))
    masks = np.array([stream.mask(n, rate) for _ in range(steps)])
    assert stats.binomtest(int(masks.sum()), n * steps, rate).pvalue > ALARM
    batches, hits = masks.sum(1), masks.sum(0)  # fixed-size batches or shuffled epochs would show here
    for counts, trials in ((batches, n), (hits, steps)):
        dispersion = float(((counts - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))
        law = stats.chi2(counts.size)
        assert ALARM < law.cdf(dispersion) < 1 - ALARM


def test_masks_compare_whole_words_with_the_exact_threshold() -> None:
    rate = 0.3
    edge = int(rate * 2.0**64)
    assert edge == math.floor(rate.as_integer_ratio()[0] * 2**64 / rate.as_integer_ratio()[1])
    assert _Words(edge - 1, edge).mask(2, rate).tolist() == [True, False]
    assert _Words(2**64 - 1, 0).mask(2, 1.0).tolist() == [True, True]
    assert _Words(0, 5).mask(2, 0.0).tolist() == [False, False]
    assert _Words(2**64 - 1).mask(1, 1 - 2**-53).tolist() == [False]


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_outside_the_unit_interval_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        FIXED.stream("a").mask(3, rate)


def test_integers_are_uniform_and_biased_words_are_redrawn() -> None:
    counts = np.bincount(FIXED.stream("integers").integers(7, 70_000), minlength=7)
    assert stats.chisquare(counts).pvalue > ALARM
    high = 2**63  # the largest: every word is good
    assert _Words(2**64 - 1).integers(high, 1)[0] == 2**63 - 1
    assert _Words(2**64 - 1, 2**64 - 1, 5).integers(3, 1)[0] == 5 % 3  # 2**64 % 3 == 1: the last word is one too many
    for bad in (0, -1, 2**63 + 1, 1.5):
        with pytest.raises(ConfigError, match="high"):
            FIXED.stream("a").integers(bad, 1)  # type: ignore[arg-type]


def test_permutations_are_uniform() -> None:
    stream = FIXED.stream("permutation")
    seen = [tuple(stream.permutation(4).tolist()) for _ in range(12_000)]
    counts = [seen.count(p) for p in itertools.permutations(range(4))]
    assert sum(counts) == len(seen)
    assert stats.chisquare(counts).pvalue > ALARM


def test_normals_come_at_more_than_a_million_and_a_half_per_second() -> None:
    stream, best = FIXED.stream("speed"), math.inf
    for _ in range(3):
        start = time.process_time()
        stream.normal(1_000_000)
        best = min(best, time.process_time() - start)
    assert best < 1 / 1.5


def test_bulk_normals_are_box_muller_draws_of_their_words_to_a_relative_error_of_5e_7() -> None:
    pairs = 3000
    drawn = SecretKey.from_seed(11).stream("bulk").bulk_normal(2 * pairs).reshape(2, pairs)
    raw = SecretKey.from_seed(11).stream("bulk").bytes(12 * pairs)
    words, turns = np.frombuffer(raw[: 8 * pairs], dtype="<u8"), np.frombuffer(raw[8 * pairs :], dtype="<i4")
    radius = np.sqrt(-2 * np.log(((words & np.uint64(2**63 - 1)).astype(np.float64) + 0.5) * 2.0**-63))
    angle = turns * (2 * np.pi * 2.0**-32)
    np.testing.assert_allclose(drawn, [radius * np.cos(angle), radius * np.sin(angle)], rtol=5e-7, atol=0)


@pytest.mark.parametrize("by", [box_muller, NativeNoise().box_muller])
def test_draws_are_as_fine_beside_zero_as_their_angles_are(by: BoxMuller) -> None:
    """A cosine taken in single of the angle itself knows 1e-7 about a quarter turn: draws there would be a comb."""
    near = np.arange(-40, 40, dtype=np.int32)
    for vanishes in (2**30, -2**30):  # of the cosine; of the sine: nothing, and half a turn
        turns = np.int32(vanishes) + near
        cosines = by(np.ones(len(near), np.int64), turns)[: len(near)]
        np.testing.assert_allclose(np.abs(cosines), largest() * np.abs(near) * (2 * np.pi * 2.0**-32), rtol=1e-6)
    for vanishes in (0, -2**31):
        with np.errstate(over="ignore"):
            turns = np.int32(vanishes) + near
        sines = by(np.ones(len(near), np.int64), turns)[len(near) :]
        np.testing.assert_allclose(np.abs(sines), largest() * np.abs(near) * (2 * np.pi * 2.0**-32), rtol=1e-6)


def test_the_compiled_program_refuses_vectors_that_do_not_fit_and_numbers_of_another_kind() -> None:
    native, words = NativeNoise(), np.ones(4, np.int64)
    with pytest.raises(ValueError, match="equally long"):
        native.box_muller(words, np.ones(3, np.int32))
    with pytest.raises(ValueError, match="equally long"):
        native.noisy(np.ones(4, np.float32), np.ones(3), 1.0, 0.5)
    with pytest.raises(ctypes.ArgumentError):
        native.box_muller(words, words)
    with pytest.raises(ctypes.ArgumentError):
        native.noisy(np.ones(8, np.float32)[::2], np.ones(4), 1.0, 0.5)


def largest() -> float:
    return float(np.sqrt(2 * (63 * np.log(2) - np.log(1.5))))


@pytest.mark.parametrize("by", [box_muller, NativeNoise().box_muller])
def test_radii_are_as_fine_as_doubles_from_the_smallest_to_the_largest(by: BoxMuller) -> None:
    """Angle nothing: the first of a pair is the radius, sqrt(-2 log u) of u = (word + 1/2) / 2**63."""
    words = np.concatenate([2**63 - 1 - 2 ** np.arange(22, 62), 2 ** np.arange(62), [0]]).astype(np.int64)
    drawn = by(words, np.zeros(len(words), np.int32))[: len(words)]
    exact = [math.sqrt(-2 * math.log1p(-(2**63 - int(word) - 0.5) / 2**63)) if word > 2**62
             else math.sqrt(2 * (63 * math.log(2) - math.log(int(word) + 0.5))) for word in words]
    np.testing.assert_allclose(drawn, exact, rtol=2e-7)
    one, next_ = by(np.array([10**18, 10**18 + 1000]), np.zeros(2, np.int32))[:2]
    assert 0 < one - next_ < 1e-15


@pytest.mark.parametrize("size", [1, 2, 8191, 8193, 600_000, 2_100_001])
def test_bulk_normals_are_standard_normal(size: int) -> None:
    drawn = SecretKey.from_seed(11).stream("bulk", size).bulk_normal(size)
    assert drawn.shape == (size,)
    assert abs(drawn.mean()) < 5 / size**0.5
    assert size < 100 or abs(drawn.var() - 1) < 5 * (2 / size) ** 0.5
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    for lag in (1, (size + 1) // 2):  # the other of its pair lies half the draws further
        assert size < 2 * lag + 100 or abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 5 / size**0.5
