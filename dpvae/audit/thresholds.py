"""Values above a threshold, released once (:func:`~dpvae.privacy.mechanisms.frequent_values`), asked many times over.

M1: one record moves the counts by at most what their noise was set for; a value of one person stays below its
threshold, which follows from public facts alone; the order tells nothing. M2: noise of the scale that was priced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpvae.audit.instruments import Release, seeded
from dpvae.audit.laws import REPEATS, normal_scores, two_sided
from dpvae.audit.verdict import Finding
from dpvae.privacy.events import Threshold
from dpvae.privacy.mechanisms import cell_sd, publication_threshold


def values(release: Release, event: Threshold, where: str, seed: int) -> Iterator[Finding]:
    """Thresholded counts: the noise of frequent values, and the fate of a value held by one."""
    held = release.rows
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
        z = normal_scores(noise, np.array([sd[c] for c, _, _ in frequent]), 1.0)
        yield Finding("M2", "its noise has the scale that the ledger priced", float(two_sided((z**2).sum(), z.size)),
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
    wrong = [table for table in release.on([held for _ in release.rows]).repeat(seeded(7))[0]
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
        call = release.on([{**held, "a crowd": crowd} for _ in release.rows])
        published = call.repeat(seeded(1, silent=True))[0]
        thresholds.append([min((held[v] for v in table if v in held), default=top) for table in published])
    return Finding("M1", "a value is published by its own count alone", float(
        thresholds[0] == thresholds[1] and max(thresholds[0], default=0) < top),
                   f"from {min(thresholds[0], default=0)} and {min(thresholds[1], default=0)} on", where)


def _lone(release: Release, event: Threshold, where: str) -> Finding:
    """The fate of values that one record holds, with noise that is almost enough."""
    held = release.rows
    _, sd, least = _by_column(release, event)
    lone = {c: values for c, counts in enumerate(held) if (values := [v for v, n in counts.items() if n == 1])}
    almost = {c: release.repeat(seeded(1, constant=(least[c] - 1.6) / sd[c]))[0][c] for c in lone}
    above = [value for c, values in lone.items() for value in values if value in almost[c]]
    return Finding("M1", "a value that one record holds stays below its threshold", float(not above),
                   f"{sum(map(len, lone.values()))} such values" if not above else f"{len(above)} published", where)


def _by_column(release: Release, event: Threshold) -> tuple[list[float], list[float], list[float]]:
    """By column: of how many equal ones it is one, the sd of its noise, the least count that is published."""
    columns, shares = len(release.rows), release.kwargs.get("shares")
    among = [1 / share for share in shares] if shares else [float(columns)] * columns
    return (among, [cell_sd(event.noise_multiplier, equal) for equal in among],
            [publication_threshold(event.noise_multiplier, equal, event.delta) for equal in among])


def values_moved(release: Release, other: Release, event: Threshold, where: str) -> Iterator[Finding]:
    """M1: what one person more moves."""
    held, theirs = release.rows, other.rows
    moves = [{v: more.get(v, 0) - own.get(v, 0) for v in {*own, *more}} for own, more in zip(held, theirs, strict=True)]
    moved = math.sqrt(sum(step**2 / equal for equal, column in zip(_by_column(release, event)[0], moves, strict=True)
                          for step in column.values()))
    yield Finding("M1", "one record moves it by at most what its noise was set for", float(moved <= 1 + 1e-6),
                  f"{moved:.4g}", where)
    yield Finding("M1", "its scale and its price do not depend on the rows",
                  float(release.kwargs.get("shares") == other.kwargs.get("shares")), "", where)
    yield _lone(other, event, where)
