"""Secret randomness: what protects people, so it must never be guessed or repeated.

A known noise seed voids differential privacy entirely (subtract the noise and read the data). All noise and all
sampling masks therefore come from a 256-bit key of the operating system's generator, expanded by HKDF-SHA256 into
one key per named stream and by AES-256 in counter mode into bytes. Public seeds live in :mod:`dpvae.rng`.

A stream is a function of (key, names) alone, so a resumed run redraws *identical* noise for a step that was
interrupted: a replay, not a second spend. The other side of that coin: never use the same names for two releases.

>>> key = SecretKey.generate()
>>> key
SecretKey(<secret>)
>>> noise = key.stream("anchor", "counts").normal((2, 3))
>>> bool((noise == key.stream("anchor", "counts").normal((2, 3))).all())
True
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from dpvae import checks
from dpvae.errors import ConfigError, RunError

KEY_BYTES = 32
_CHUNK = 1 << 16  # normals per pass: stays in the cache
_PAIRS = 1 << 12  # worked out at once: arrays that stay in the cache
_MOST_PAIRS = 1 << 20  # whose random words are drawn together
_QUARTER = np.int32(1 << 30)  # of a turn
_RADIANS = np.float32(2 * math.pi * 2.0**-32)
_ZEROS = bytes(1 << 16)  # what the cipher turns into its keystream
_ROOM = 15  # bytes that the cipher wants behind its output
Shape = int | tuple[int, ...]
BoxMuller = Callable[[NDArray[np.int64], NDArray[np.int32]], NDArray[np.float64]]


def _encode(names: tuple[str | int, ...]) -> bytes:
    """Different name tuples give different bytes: each name carries its type and its length."""
    if not names:
        raise ConfigError("names=(): expected at least one name for a secret stream")
    parts = []
    for name in names:
        kind, text = (b"i", str(int(name))) if isinstance(name, (int, np.integer)) else (b"s", name)
        raw = text.encode()
        parts.append(kind + len(raw).to_bytes(8, "big") + raw)
    return b"".join(parts)


class SecretKey:
    """The master key of a run. Printing, pickling and copying it are refused; only :meth:`save` writes it."""

    __slots__ = ("_expand", "_master")

    def __init__(self, master: bytes) -> None:
        if not isinstance(master, bytes) or len(master) != KEY_BYTES:
            raise ConfigError(f"master: expected {KEY_BYTES} secret bytes; use SecretKey.generate()")
        self._master = master
        self._expand = hmac.new(hmac.digest(bytes(KEY_BYTES), master, "sha256"), digestmod="sha256")

    @classmethod
    def generate(cls) -> SecretKey:
        """A fresh key from the operating system's generator."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_bytes(cls, master: bytes) -> SecretKey:
        """The key with these 32 bytes."""
        return cls(master)

    @classmethod
    def from_seed(cls, seed: int) -> SecretKey:
        """A key that anyone can guess: for tests and for runs stamped NOT PRIVATE."""
        checks.whole(0, secret_seed=seed)
        return cls(hashlib.sha256(f"dpvae NOT PRIVATE {seed}".encode()).digest())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SecretKey:
        """The key that :meth:`save` wrote."""
        try:
            master = Path(path).read_bytes()
        except OSError as error:
            raise RunError(f"key={str(path)!r}: cannot be read ({error.strerror}); the run cannot go on") from None
        if len(master) != KEY_BYTES:
            raise RunError(f"key={str(path)!r}: expected {KEY_BYTES} bytes, found {len(master)}; start a new run")
        return cls(master)

    @classmethod
    def shared(cls, path: Path) -> SecretKey:
        """The key in a file that is made on first use; of several processes that make it, the first one's holds."""
        if not path.exists():
            draft = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                cls.generate().save(draft)
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            except OSError as error:
                raise RunError(f"key={str(path)!r}: cannot be made ({error.strerror}); choose a place you may write to"
                               ) from None
            finally:
                draft.unlink(missing_ok=True)
        return cls.load(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the key, readable by its owner only; an existing file is never overwritten."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RunError(f"key={str(path)!r}: there is a key already; use SecretKey.load") from None
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._master)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(path)  # disk full: half a key would make every resume fail
            raise

    def stream(self, *names: str | int) -> SecretStream:
        """The stream called ``names``, from its beginning; different names are independent."""
        return SecretStream(self._derive(b"stream", _encode(names)))

    def tag(self, data: bytes) -> str:
        """Keyed digest of ``data`` in hex: recognises private content without confirming a guess of it."""
        return hmac.new(self._derive(b"tag", b""), data, hashlib.sha256).hexdigest()

    def _derive(self, purpose: bytes, info: bytes) -> bytes:
        """HKDF (RFC 5869): one block of it. The library's takes as long as drawing 30,000 numbers."""
        block = self._expand.copy()
        block.update(b"dpvae/1/" + purpose + b"/" + info + b"\x01")
        return block.digest()

    def __repr__(self) -> str:
        return "SecretKey(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is not pickled or copied; use save and load")


def box_muller(words: NDArray[np.int64], turns: NDArray[np.int32]) -> NDArray[np.float64]:
    """Standard normals from random words and angles, (pairs,) each; two from every pair (Box and Muller 1958).

    Radii are worked out in double precision from 63 bits, so tails reach 9.3 sd. Sines and cosines are worked out in
    single, from 32 bits: both as the sine of an angle's distance from where it vanishes, a whole number of steps, so
    that the error is 2e-7 of every draw, however small.
    """
    out = np.empty((2, len(words)))
    for start in range(0, len(words), _PAIRS):
        some = slice(start, start + _PAIRS)
        turn, radius = turns[some], out[1, some]
        np.copyto(radius, words[some] & np.int64(2**63 - 1), casting="unsafe")
        radius += 0.5
        radius *= 2.0**-63
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        np.multiply(radius, _cosine(turn), out=out[0, some])
        radius *= _cosine(turn - _QUARTER)
    return out.reshape(-1)


def _cosine(turn: NDArray[np.int32]) -> NDArray[np.float32]:
    """Cosine of ``turn`` 2**-32ths of a turn: sin(quarter - |turn|); what leaves 32 bits comes back a turn later."""
    angle = (_QUARTER - np.abs(turn)).astype(np.float32)
    angle *= _RADIANS
    return np.sin(angle, out=angle)


class SecretStream:
    """An endless keystream, read from the front; every draw advances it."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes, counter: bytes = bytes(16)) -> None:
        self._cipher = Cipher(AES256(key), CTR(counter)).encryptor()

    def bytes(self, n: int) -> bytes:
        """The next ``n`` bytes."""
        return self._keystream(n).tobytes()

    def _keystream(self, n: int) -> NDArray[np.uint8]:
        """The next ``n`` bytes, where they may be written over."""
        out = np.empty(n + _ROOM, np.uint8)
        room = out.data
        for start in range(0, n, len(_ZEROS)):
            size = min(n - start, len(_ZEROS))
            self._cipher.update_into(_ZEROS[:size], room[start:start + size + _ROOM])
        return out[:n]

    def _words(self, n: int) -> NDArray[np.uint64]:
        return self._keystream(8 * n).view("<u8")

    def uniform(self, shape: Shape) -> NDArray[np.float64]:
        """53-bit uniforms strictly between 0 and 1."""
        halves = (self._words(_size(shape)) >> np.uint64(11)).astype(np.float64) + 0.5
        return np.minimum(halves * 2.0**-53, 1 - 2.0**-53).reshape(shape)

    def normal(self, shape: Shape) -> NDArray[np.float64]:
        """Standard normals by Box-Muller; the radius uses 64 bits, so tails reach 9.4 sd (2e-20 of the mass)."""
        size = _size(shape)
        out = np.empty(size + size % 2)
        for start in range(0, out.size, 2 * _CHUNK):
            block = out[start : start + 2 * _CHUNK]
            half = block.size // 2
            words = self._words(2 * half)
            radius = np.sqrt(-2 * np.log((words[:half].astype(np.float64) + 0.5) * 2.0**-64))
            angle = (words[half:] >> np.uint64(11)).astype(np.float64) * (2 * np.pi * 2.0**-53)
            np.multiply(radius, np.cos(angle), out=block[:half])
            np.multiply(radius, np.sin(angle), out=block[half:])
        return out[:size].reshape(shape)

    def bulk_normal(self, size: int, *, by: BoxMuller = box_muller) -> NDArray[np.float64]:
        """``size`` standard normals for noise on many numbers at once, three times as fast as :meth:`normal`.

        ``by`` works them out from the random words: :func:`box_muller`, or a faster program for the same. Whoever adds
        them to something rounds both to one grid: the digits of a draw in floating point tell what it was added to.
        """
        parts = []
        for start in range(0, size, 2 * _MOST_PAIRS):
            pairs = (min(size - start, 2 * _MOST_PAIRS) + 1) // 2
            raw = self._keystream(12 * pairs)
            parts.append(by(raw[:8 * pairs].view("<i8"), raw[8 * pairs:].view("<i4")))
        return (parts[0] if len(parts) == 1 else np.concatenate([np.empty(0), *parts]))[:size]

    def mask(self, n: int, rate: float) -> NDArray[np.bool_]:
        """``n`` independent coins of probability ``floor(rate * 2**64) / 2**64``: exact, or below by under 2**-64."""
        checks.share(rate=rate)
        if rate == 1:
            return np.ones(n, dtype=bool)
        return self._words(n) < np.uint64(int(rate * 2.0**64))

    def integers(self, high: int, shape: Shape) -> NDArray[np.int64]:
        """Integers of [0, ``high``), exactly uniform: words past the last whole multiple of ``high`` are redrawn."""
        checks.whole(1, high=high)
        if high > 2**63:
            raise ConfigError(f"high={high}: expected at most 2**63")
        last = np.uint64(2**64 - 2**64 % high - 1)
        words = self._words(_size(shape)).copy()
        while (again := np.flatnonzero(words > last)).size:
            words[again] = self._words(again.size)
        return (words % np.uint64(high)).astype(np.int64).reshape(shape)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform permutation of range(``n``), by sorting random words (a tie has probability n**2 / 2**65)."""
        return np.argsort(self._words(n), kind="stable").astype(np.int64)

    def __repr__(self) -> str:
        return "SecretStream(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretStream is not pickled or copied; derive it again from its key and names")


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))
