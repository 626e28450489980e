"""One-shot releases (mechanisms that run once, not in steps as DP-SGD does), many times over: counts, sums, means,
values above a threshold, private choices.

    findings, left_out = one_shot(releases, {"a newcomer": other_releases}, ledger)

The exact answers behind each release move by at most what its noise was set for (M1), and its noise, drawn again and
again, follows the law that the *ledger* priced, not the one the code says it uses (M2); a value of one person never
passes its threshold by more luck than was paid for. Reads no private row of anybody: the tables are the auditor's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from dpvae.audit.instruments import Floats, Release, seeded
from dpvae.audit.laws import SAFETY, noise_law
from dpvae.audit.verdict import Finding
from dpvae.privacy.events import Event, Gaussian, PureDP, Threshold
from dpvae.privacy.mechanisms import cell_sd, publication_threshold
from dpvae.rng import stream

REPEATS = 60
Stage = tuple[list[Finding], list[str]]
COORDINATES = 4096  # of a release whose noise is looked at
ROWS = ("tables", "values", "blocks", "contributions", "parts", "histograms")  # arguments that are private
VECTORS = ("noisy_counts", "noisy_mean_clipped", "noisy_sums", "noisy_sparse_sums", "noisy_products")
LADDER = 40, 24  # candidates of the auditor's own, in two blocks, from which a private choice is made again
CHOICES = 1000  # times
STEADY = 1000.0  # what every normal is, once: the noise is so many standard deviations, to the last one
SCORES = 4_000_000  # that are drawn for again at most, where a run has very many candidates


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
    rows: Any = release.args[0] if release.args else next(
        (release.kwargs[name] for name in ROWS if name in release.kwargs), None)
    shape = [np.shape(table) for table in rows] if release.name == "noisy_counts" else (
        len(rows) if release.name == "frequent_values" else None)
    kept = {name: value for name, value in release.kwargs.items() if name not in ("stream", *ROWS)}
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
            found += _values(release, event, where_, seed)
        elif release.name in VECTORS and isinstance(event, Gaussian):
            found += _vector(release, event, where_, noises, seed)
        elif release.name == "noisy_choice" and isinstance(event, PureDP):
            found += _choice(release, event, where_, seed)
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
        yield from _values_moved(release, other, event, where)
    elif release.name in VECTORS and isinstance(event, Gaussian):
        yield from _vector_moved(release, other, where)
    elif release.name == "noisy_choice" and isinstance(event, PureDP):
        own, theirs = _scores(release), _scores(other)
        moved = float(np.abs(theirs - own).max(initial=0.0)) if own.shape == theirs.shape else math.inf
        yield Finding("M1", "one record moves no score by more than its noise was set for", float(moved <= 1 + 1e-6),
                      f"{moved:.4g}", where)


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


def _values_moved(release: Release, other: Release, event: Threshold, where: str) -> Iterator[Finding]:
    held, theirs = _histograms(release), _histograms(other)
    moves = [{v: more.get(v, 0) - own.get(v, 0) for v in {*own, *more}} for own, more in zip(held, theirs, strict=True)]
    moved = math.sqrt(sum(step**2 / equal for equal, column in zip(_by_column(release, event)[0], moves, strict=True)
                          for step in column.values()))
    yield Finding("M1", "one record moves it by at most what its noise was set for", float(moved <= 1 + 1e-6),
                  f"{moved:.4g}", where)
    yield Finding("M1", "its scale and its price do not depend on the rows",
                  float(release.kwargs.get("shares") == other.kwargs.get("shares")), "", where)
    yield _lone(other, event, where)


def _histograms(release: Release) -> Any:
    return release.args[0] if release.args else release.kwargs["histograms"]


def _by_column(release: Release, event: Threshold) -> tuple[list[float], list[float], list[float]]:
    """By column: of how many equal ones it is one, the sd of its noise, the least count that is published."""
    columns, shares = len(_histograms(release)), release.kwargs.get("shares")
    among = [1 / share for share in shares] if shares else [float(columns)] * columns
    return (among, [cell_sd(event.noise_multiplier, equal) for equal in among],
            [publication_threshold(event.noise_multiplier, equal, event.delta) for equal in among])


def _lone(release: Release, event: Threshold, where: str) -> Finding:
    """The fate of values that one record holds, with noise that is almost enough."""
    held = _histograms(release)
    _, sd, least = _by_column(release, event)
    lone = {c: values for c, counts in enumerate(held) if (values := [v for v, n in counts.items() if n == 1])}
    almost = {c: release.repeat(seeded(1, constant=(least[c] - 1.6) / sd[c]))[0][c] for c in lone}
    above = [value for c, values in lone.items() for value in values if value in almost[c]]
    return Finding("M1", "a value that one record holds stays below its threshold", float(not above),
                   f"{sum(map(len, lone.values()))} such values" if not above else f"{len(above)} published", where)


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
    z = _normal_scores(np.concatenate([drawn, own]), sd, unit)
    noises.append(z[:REPEATS])
    yield Finding("M2", "its noise has the scale that the ledger priced", float(_two_sided((z**2).sum(), z.size)),
                  f"{float(np.sqrt((z**2).mean())):.3f} of it", where)
    once = float(_two_sided((z[-1] ** 2).sum(), z.shape[1]))
    yield Finding("M2", "so had the noise of the run itself", once, "", where)


def _of_any_size(release: Release, exact: Floats, where: str) -> Iterator[Finding]:
    """The same call on tables that hold nobody, and on crowded ones: a cell has the noise that it has with the run's
    records, whatever it counts."""
    noise = _flat(release.repeat(seeded(99))) - exact
    empty = [np.zeros_like(table) for table in release.args[0]]
    crowded = [10 ** (np.arange(table.size) % 10).reshape(table.shape) for table in release.args[0]]
    for law, tables in (("an empty cell has the noise of any other", empty), ("so has a cell of any size", crowded)):
        call = replace(release, args=(tables, *release.args[1:]))
        counted = np.concatenate([table.ravel() for table in tables])
        same = np.array_equal(_flat(call.repeat(seeded(99))) - counted, noise)
        yield Finding("M2", law, float(same), "", where)


def _choice(release: Release, event: PureDP, where: str, seed: int) -> Iterator[Finding]:
    """A private choice: the winners are those of the exponential mechanism, peeled, at the booked epsilon: from the
    run's own scores, and from a ladder of scores whose ends differ by 8 / epsilon, on which half of the noise would be
    plain to see."""
    own = _scores(release)
    yield Finding("M1", "no more is chosen than was booked", float(len(release.result[0]) <= event.count),
                  f"{len(release.result[0])} of {event.count}", where)
    rungs = stream(5, "ladder").permutation(np.linspace(0.0, 8.0 / event.epsilon, sum(LADDER)))
    few = max(4, min(REPEATS, SCORES // max(len(own), 1)))
    for scores, times, says in ((own, few, "its noise has the law that the ledger priced"),
                                (rungs, CHOICES, "so it has for any scores")):
        call = _with_scores(release, np.split(scores, LADDER[:1]))
        chosen = [call.repeat(seeded(100 + i + 1000 * seed))[0] for i in range(times)]
        places, surer = _places(scores * (event.epsilon / 2), chosen, seed)
        yield Finding("M2", says, float(stats.kstest(places, "uniform").pvalue) if len(places) else 1.0,
                      f"winners at {places.mean():.3f} of the law, 0.5 expected" if len(places) else "nothing chosen",
                      where)
    p = min(1.0, SAFETY * 2 * float(stats.norm.sf(abs(surer))))
    yield Finding("M2", "and no winner is surer than was booked", p, f"{surer:.1f} sd, on a ladder of scores", where)


def _scores(call: Release) -> Floats:
    blocks = call.args[0] if call.args else call.kwargs["blocks"]
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(block, dtype=np.float64)) for block in blocks)])


def _with_scores(call: Release, blocks: Sequence[Floats]) -> Release:
    if call.args:
        return replace(call, args=(blocks, *call.args[1:]))
    return replace(call, kwargs={**call.kwargs, "blocks": blocks})


def _places(logits: Floats, chosen: Sequence[Sequence[int]], seed: int) -> tuple[Floats, float]:
    """Where every winner lies in the law it was drawn from, the best candidates first: independent and uniform, if the
    next of those that are left is i with probability exp(logits_i) over their sum (Plackett-Luce). And how much better
    winners are than that law's, in standard deviations: what tells best whether epsilon is another."""
    weight = np.exp(logits - logits.max(initial=0.0))
    above = np.empty_like(weight)
    order = np.argsort(-weight, kind="stable")
    above[order] = np.cumsum(weight[order]) - weight[order]
    logits = np.where(weight > 0, logits, 0.0)  # or nothing times infinity
    first, second = weight @ logits, weight @ logits**2
    jitter, places, better, spread = stream(seed, "places"), [], 0.0, 0.0
    for winners in chosen:
        for rank, winner in enumerate(winners):
            gone = np.asarray(winners[:rank], dtype=np.int64)
            before = float(above[winner] - weight[gone[above[gone] < above[winner]]].sum())
            left = float(weight.sum() - weight[gone].sum())
            places.append((before + jitter.random() * weight[winner]) / left)
            mean = float(first - weight[gone] @ logits[gone]) / left
            better += float(logits[winner]) - mean
            spread += float(second - weight[gone] @ logits[gone] ** 2) / left - mean**2
    return np.asarray(places), better / math.sqrt(spread) if spread > 0 else 0.0


def _fuzzed(release: Release, exact: Floats, where: str) -> Finding:
    """A mean: whatever one more record's number is, it moves the release by at most what its noise was set for."""
    values = np.asarray(release.args[0] if release.args else release.kwargs["values"], dtype=np.float64)
    moved = {}
    for evil in (math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0):
        with np.errstate(all="ignore"):
            more = np.append(values, evil)
            changed = (replace(release, args=(more, *release.args[1:])) if release.args else
                       replace(release, kwargs={**release.kwargs, "values": more}))
            moved[evil] = float(np.abs(_exact(changed) - exact)[0])
    worst = max(moved, key=lambda evil: np.inf if np.isnan(moved[evil]) else moved[evil])
    return Finding("M1", "no number, however wild, moves it further", float(moved[worst] <= 1 + 1e-6),
                   f"{moved[worst]:.4g} for {worst}", where)


def _two_sided(statistic: Any, freedom: int) -> Any:
    return min(1.0, 2 * min(stats.chi2.cdf(statistic, freedom), stats.chi2.sf(statistic, freedom)))


def _normal_scores(noise: Floats, sd: float | Floats, step: float) -> Floats:
    """Rounded Gaussian noise as standard normals: a random point of each step's share of the law, mapped back."""
    if not step:
        return noise / sd
    low, high = stats.norm.cdf((noise - step / 2) / sd), stats.norm.cdf((noise + step / 2) / sd)
    upper = noise > 0  # the far tail keeps its digits on the other side
    low = np.where(upper, stats.norm.sf((noise + step / 2) / sd), low)
    high = np.where(upper, stats.norm.sf((noise - step / 2) / sd), high)
    place = low + stream(3, "rounding").random(noise.shape) * (high - low)
    return np.asarray(np.where(upper, stats.norm.isf(place), stats.norm.ppf(place)))


def _values(release: Release, event: Threshold, where: str, seed: int) -> Iterator[Finding]:
    """Thresholded counts: the noise of frequent values, and the fate of a value held by one."""
    held = _histograms(release)
    _, sd, least = _by_column(release, event)
    floor = release.kwargs.get("floor", 0)
    yield _lone(release, event, where)
    yield _in_public_order(release, 3 * max(*least, floor), where)
    yield _one_threshold(release, max(*least, floor), where)
    frequent = [(c, v, n) for c, counts in enumerate(held) for v, n in counts.items()
                if n > max(least[c], floor) + 7 * sd[c]]
    if frequent:
        again = [release.repeat(seeded(100 + i + 1000 * seed))[0] for i in range(REPEATS)]
        noise = np.array([[tables[c].get(v, 0) - n for c, v, n in frequent] for tables in again], dtype=np.float64)
        z = _normal_scores(noise, np.array([sd[c] for c, _, _ in frequent]), 1.0)
        yield Finding("M2", "its noise has the scale that the ledger priced", float(_two_sided((z**2).sum(), z.size)),
                      f"{float(np.sqrt((z**2).mean())):.3f} of it", where)
    shift = release.repeat(seeded(1, constant=50.0))
    scale = [(shift[0][c][v] - n) / 50.0 / sd[c] for c, counts in enumerate(held) for v, n in counts.items()
             if v in shift[0][c]]
    right = (bool(scale) and max(abs(s - 1) for s in scale) < 0.02 + 0.02 / min(sd)) or not any(held)
    yield Finding("M2", "every value gets noise of that scale", float(right), "", where)


def _in_public_order(release: Release, most: float, where: str) -> Finding:
    """The auditor's own values, of about equal counts: they come in an order that the published numbers give, or their
    names, not in that of the rows or of the exact counts."""
    held = {f"{7 * i % 40}": int(most) + i for i in range(40)}
    wrong = [table for table in _of_histogram(release, held).repeat(seeded(7))[0]
             if [*table] not in (sorted(table, key=repr), sorted(table, key=lambda v: (-table[v], repr(v))))]
    return Finding("M1", "values are published in an order that tells nothing", float(not wrong),
                   f"{len(wrong)} columns", where)


def _one_threshold(release: Release, least: float, where: str) -> Finding:
    """The auditor's own histograms, counts of one, two, three, ...: what is published of them says where the threshold
    is, and a value that a crowd holds does not move it."""
    top = 3 * int(least)
    held: dict[Any, int] = {f"held by {count}": count for count in range(1, top)}
    thresholds = []
    for crowd in (1, 10**6 * top):
        call = _of_histogram(release, {**held, "a crowd": crowd})
        published = call.repeat(seeded(1, silent=True))[0]
        thresholds.append([min((held[v] for v in table if v in held), default=top) for table in published])
    return Finding("M1", "a value is published by its own count alone", float(
        thresholds[0] == thresholds[1] and max(thresholds[0], default=0) < top),
                   f"from {min(thresholds[0], default=0)} and {min(thresholds[1], default=0)} on", where)


def _of_histogram(release: Release, held: dict[Any, int]) -> Release:
    """The same call on columns that all hold these values."""
    tables = [held for _ in _histograms(release)]
    if release.args:
        return replace(release, args=(tables, *release.args[1:]))
    return replace(release, kwargs={**release.kwargs, "histograms": tables})
