"""One-shot releases (mechanisms that run once, not in steps as DP-SGD does), many times over: counts, sums and means
here, values above a threshold in :mod:`dpvae.audit.thresholds`, private choices in :mod:`dpvae.audit.choices`.

    findings, left_out = one_shot(releases, {"a newcomer": other_releases}, ledger)

The exact answers behind each release move by at most what its noise was set for (M1), and its noise, drawn again and
again, follows the law that the *ledger* priced, not the one the code says it uses (M2); a value of one person never
passes its threshold by more luck than was paid for. Reads no private row of anybody: the tables are the auditor's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dpvae.audit.choices import choice, choice_moved
from dpvae.audit.instruments import PRIVATE, Floats, Release, seeded
from dpvae.audit.laws import REPEATS, noise_law, normal_scores, two_sided
from dpvae.audit.thresholds import values, values_moved
from dpvae.audit.verdict import Finding
from dpvae.privacy.events import Event, Gaussian, PureDP, Threshold
from dpvae.privacy.mechanisms import cell_sd
from dpvae.rng import stream

Stage = tuple[list[Finding], list[str]]
COORDINATES = 4096  # of a release whose noise is looked at
VECTORS = ("noisy_counts", "noisy_mean_clipped", "noisy_sums", "noisy_sparse_sums", "noisy_products")
STEADY = 1000.0  # what every normal is, once: the noise is so many standard deviations, to the last one


def one_shot(releases: Sequence[Release], neighbours: Mapping[str, Sequence[Release]], ledger: Sequence[Event],
             where: str = "", *, seed: int = 0) -> tuple[list[Finding], list[str]]:
    """M1 and M2 for every release of a run, and what is left out.

    Args:
        releases: in the order in which the run made them.
        neighbours: the same of runs on tables with one person more, by who that is.
        ledger: what was booked for them.
        where: put before the place of every finding.
    """
    several = [*alone(releases, ledger, where, seed=seed), beside(releases, neighbours, ledger, where)]
    return [f for found, _ in several for f in found], [text for _, left_out in several for text in left_out]


def beside(releases: Sequence[Release], neighbours: Mapping[str, Sequence[Release]], ledger: Sequence[Event],
           where: str = "") -> Stage:
    """What :func:`one_shot` asks of a run and its neighbours: what one person moves."""
    found: list[Finding] = []
    for number, release in enumerate(releases):
        event = _booked_for(release, ledger)
        for who, other in neighbours.items():
            if event is not None and number < len(other):
                at = f"{where} {'/'.join(map(str, release.names))}, {who}".strip()
                found += _moves(release, other[number], event, at)
    return found, []


def alike(releases: Sequence[Release], others: Sequence[Release], where: str = "") -> list[Finding]:
    """M1 and M2 of a run on another table altogether, given the same releases: all that a release is told besides the
    rows is the same, and so is its noise."""
    found = []
    for release, other in zip(releases, others, strict=False):
        at = f"{where} {'/'.join(map(str, release.names))}".strip()
        found.append(Finding("M1", "all that it is told besides the rows is the same for any rows",
                             float(_told(release) == _told(other)), "", at))
        if release.name in VECTORS:
            found += _same_noise(release, other, at)
    return found


def _told(release: Release) -> Any:
    """Arguments that are not rows, and the shape of those that are."""
    shape = [np.shape(table) for table in release.rows] if release.name == "noisy_counts" else (
        len(release.rows) if release.name == "frequent_values" else None)
    kept = {name: value for name, value in release.kwargs.items() if name not in ("stream", *PRIVATE)}
    return kept, release.args[1:], shape


def alone(releases: Sequence[Release], ledger: Sequence[Event], where: str = "", *, seed: int = 0) -> Iterator[Stage]:
    """What :func:`one_shot` asks of a run by itself, release after release, and last of all of them together."""
    noises: list[Floats] = []
    for release in releases:
        found: list[Finding] = []
        left_out: list[str] = []
        event = _booked_for(release, ledger)
        if event is None:
            continue  # T5 says so
        where_ = f"{where} {'/'.join(map(str, release.names))}".strip()
        if release.name == "frequent_values" and isinstance(event, Threshold):
            found += values(release, event, where_, seed)
        elif release.name in VECTORS and isinstance(event, Gaussian):
            found += _vector(release, event, where_, noises, seed)
        elif release.name == "noisy_choice" and isinstance(event, PureDP):
            found += choice(release, event, where_, seed)
        else:
            left_out.append(f"M1, M2: {release.name} ({release.what}) is not a mechanism this audit knows")
        yield found, left_out
    if noises:
        yield noise_law(np.concatenate(noises, axis=1), test="M2", where=f"{where} all statistics".strip()), []


def _booked_for(release: Release, ledger: Sequence[Event]) -> Event | None:
    return next((e for e in ledger if (e.phase, e.what) == (release.phase, release.what)), None)


def _exact(release: Release) -> Floats:
    return _flat(release.repeat(seeded(1, silent=True)))


def _flat(result: Any) -> Floats:
    """The released numbers, in the unit of one record's part of one table."""
    first = result[0]
    if isinstance(first, (int, float)):
        return np.array([first / _unit(result)])
    if isinstance(first, np.ndarray):  # a sum of vectors, of length 1 or in the unit that its sd tells
        return np.asarray(first.ravel() / (_unit(result) if len(result) > 2 else 1.0), dtype=np.float64)
    return np.concatenate([np.asarray(table, dtype=np.float64).ravel() for table in first])


def _unit(result: Any) -> float:
    """Of a mean: what one record moves it by at most, which is its noise's sd over the multiplier it states."""
    return float(result[1] / result[2].noise_multiplier)


def _moves(release: Release, other: Release, event: Event, where: str) -> Iterator[Finding]:
    """M1 of one release, and of the same with one person more."""
    if release.name == "frequent_values" and isinstance(event, Threshold):
        yield from values_moved(release, other, event, where)
    elif release.name in VECTORS and isinstance(event, Gaussian):
        yield from _vector_moved(release, other, where)
    elif release.name == "noisy_choice" and isinstance(event, PureDP):
        yield choice_moved(release, other, where)


def _vector_moved(release: Release, other: Release, where: str) -> Iterator[Finding]:
    exact, theirs = _exact(release), _exact(other)
    tables = len(release.result[0]) if isinstance(release.result[0], list) else 1
    moved = float(np.linalg.norm(theirs - exact)) / math.sqrt(tables) if theirs.shape == exact.shape else math.inf
    yield Finding("M1", "one record moves it by at most what its noise was set for", float(moved <= 1 + 1e-6),
                  f"{moved:.4g}", where)
    yield from _same_noise(release, other, where)


def _same_noise(release: Release, other: Release, where: str) -> Iterator[Finding]:
    exact, theirs = _exact(release), _exact(other)
    yield Finding("M1", "its scale and its price do not depend on the rows",
                  float(release.result[1:] == other.result[1:]), "", where)
    same = theirs.shape == exact.shape and np.allclose(
        _flat(other.repeat(seeded(99))) - theirs, _flat(release.repeat(seeded(99))) - exact, atol=1e-4)
    yield Finding("M2", "its noise does not depend on the rows", float(same), "", where)


def _vector(release: Release, event: Gaussian, where: str, noises: list[Floats], seed: int) -> Iterator[Finding]:
    first = release.result[0]
    whole = isinstance(first, list)  # counts, with noise in whole numbers
    tables = len(first) if whole else 1
    exact = _exact(release)
    if isinstance(first, (int, float)):
        yield _fuzzed(release, exact, where)
    if whole and release.args:
        yield from _of_any_size(release, exact, where)
    seen = stream(seed, "coordinates").permutation(len(exact))[:COORDINATES]  # of a long vector, some
    exact = exact[seen]
    drawn = np.stack([_flat(release.repeat(seeded(100 + i + 1000 * seed)))[seen] for i in range(REPEATS)]) - exact
    sd = cell_sd(event.noise_multiplier, tables)
    steady = (_flat(release.repeat(seeded(1, constant=STEADY)))[seen] - exact) / STEADY / sd
    yield Finding("M2", "every number gets noise of the scale that the ledger priced",
                  float(np.abs(steady - 1).max() <= 1e-3), f"{steady.min():.4f} to {steady.max():.4f} of it", where)
    kinds = {column.tobytes() for column in np.abs(drawn).T}
    yield Finding("M2", "no two numbers share their noise", float(len(kinds) == drawn.shape[1]),
                  f"{len(kinds)} of {drawn.shape[1]} differ", where)
    own = (_flat(release.result)[seen] - exact)[None]
    unit = 1.0 if whole else 0.0
    z = normal_scores(np.concatenate([drawn, own]), sd, unit)
    noises.append(z[:REPEATS])
    yield Finding("M2", "its noise has the scale that the ledger priced", float(two_sided((z**2).sum(), z.size)),
                  f"{float(np.sqrt((z**2).mean())):.3f} of it", where)
    once = float(two_sided((z[-1] ** 2).sum(), z.shape[1]))
    yield Finding("M2", "so had the noise of the run itself", once, "", where)


def _of_any_size(release: Release, exact: Floats, where: str) -> Iterator[Finding]:
    """The same call on tables that hold nobody, and on crowded ones: a cell has the noise that it has with the run's
    records, whatever it counts."""
    noise = _flat(release.repeat(seeded(99))) - exact
    empty = [np.zeros_like(table) for table in release.rows]
    crowded = [10 ** (np.arange(table.size) % 10).reshape(table.shape) for table in release.rows]
    for law, tables in (("an empty cell has the noise of any other", empty), ("so has a cell of any size", crowded)):
        call = release.on(tables)
        counted = np.concatenate([table.ravel() for table in tables])
        same = np.array_equal(_flat(call.repeat(seeded(99))) - counted, noise)
        yield Finding("M2", law, float(same), "", where)


def _fuzzed(release: Release, exact: Floats, where: str) -> Finding:
    """A mean: whatever one more record's number is, it moves the release by at most what its noise was set for."""
    values = np.asarray(release.rows, dtype=np.float64)
    moved = {}
    for evil in (math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0):
        with np.errstate(all="ignore"):
            moved[evil] = float(np.abs(_exact(release.on(np.append(values, evil))) - exact)[0])
    worst = max(moved, key=lambda evil: np.inf if np.isnan(moved[evil]) else moved[evil])
    return Finding("M1", "no number, however wild, moves it further", float(moved[worst] <= 1 + 1e-6),
                   f"{moved[worst]:.4g} for {worst}", where)
