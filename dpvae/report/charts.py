"""The charts of a report, drawn from released numbers only.

    report = json.loads(Path("release/adult/report.json").read_text())
    Path("docs/marginals.svg").write_text(marginals([Marginal.of(item) for item in report["marginals"]]))

Everything private arrives here with noise and is drawn with its error bar (two standard deviations, so about 95 %
of bars cover the true value). A marginal shows the synthetic rows as bars and the noisy counts they were fitted to
as dots: where a bar leaves its whisker the model errs, where whiskers are long the budget was small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpvae.report.canvas import Canvas, number, shorten, ticks

WIDTH = 400  # small, so that text stays readable on a telephone
NOMINAL = ("categorical", "boolean")
MOST_BARS = 60
LETTER = 6.4  # width of a letter, generously
NAME = 7.0  # the same in a row's name, which nothing may cut


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """One column: shares per label, each noisy one with the standard deviation of its noise."""

    column: str
    kind: str
    labels: tuple[str, ...]
    noisy: tuple[float, ...]
    sd: tuple[float, ...]
    synthetic: tuple[float, ...] | None = None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Marginal:
        """From an entry of ``marginals`` in a report.json."""
        synthetic = item["synthetic"]
        return cls(column=item["column"], kind=item["kind"], labels=tuple(item["labels"]),
                   noisy=tuple(item["noisy"]), sd=(item["sd"],) * len(item["labels"]),
                   synthetic=None if synthetic is None else tuple(synthetic))


def scatter(x: Sequence[float], y: Sequence[float], label: Sequence[int] | None, labels: Sequence[str]) -> str:
    """Synthetic rows on two axes of the latent, coloured by ``label``; a legend names the first six ``labels``."""
    shown = list(labels)[:6] if label is not None else []
    height = 300 + 18 * len(shown)
    canvas = Canvas(WIDTH, height)
    wide, high = max(max(x) - min(x), 1e-9), max(max(y) - min(y), 1e-9)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        style = f"c{label[i] % 6}" if label is not None else "c0"
        canvas.dot(8 + (a - min(x)) / wide * (WIDTH - 16), 288 - (b - min(y)) / high * 276, 2, style)
    for i, name in enumerate(shown):
        canvas.rect(0, 300 + 18 * i, 10, 10, f"c{i}").text(18, 309 + 18 * i, shorten(name, 40), full=name)
    return canvas.svg("map", "Map of synthetic rows", f"{len(x)} rows on the two strongest axes of the latent.")


def budget(phases: Sequence[tuple[str, float]], target: float, cumulative: float | None = None) -> str:
    """``phases``: (name, epsilon it added), in the order spent; the rest up to ``target`` stays unspent.

    ``cumulative`` is what all runs on the data set have spent together: a second bar on the same scale.
    """
    spent = sum(cost for _, cost in phases)
    most = max(target, spent, cumulative or 0.0, 1e-12)
    scale = WIDTH / most
    top = 30 if cumulative is None else 74
    canvas, x = Canvas(WIDTH, top + 4 + 18 * (len(phases) + 1)), 0.0
    canvas.rect(0, 0, target * scale, 22, "rest")
    rows = [(name, cost, f"c{i % 6}") for i, (name, cost) in enumerate(phases)]
    rows.append(("left", max(target - spent, 0.0), "rest"))
    for i, (name, cost, style) in enumerate(rows):
        canvas.rect(x, 0, cost * scale, 22, style)
        x += cost * scale
        y = top + 12 + 18 * i
        canvas.rect(0, y - 9, 10, 10, style).text(18, y, shorten(name, 24), full=name)
        canvas.text(210, y, f"{cost:.4f}", "t", "end").text(216, y, f"{100 * cost / max(target, spent):.1f} %", "m")
    if cumulative is not None:
        canvas.text(0, 42, f"every run on the data set so far: {cumulative:.4f}", "m")
        canvas.rect(0, 48, cumulative * scale, 10, "bar")
    return canvas.svg("budget", "Epsilon by phase",
                      f"{spent:.4f} of {target:g}: " + ", ".join(f"{name} {cost:.4f}" for name, cost, _ in rows)
                      + (f"; the data set in all {cumulative:.4f}" if cumulative is not None else ""))


def interval(prices: Sequence[tuple[str, float, float]], target: float) -> str:
    """``prices``: (accountant, low, high); a price without doubt has low = high."""
    values = [target, *(v for _, low, high in prices for v in (low, high))]
    pad = max(max(values) - min(values), 0.02 * target) * 0.12
    low, high = max(min(values) - pad, 0.0), max(values) + pad
    left, right, height = 92, WIDTH - 14, 24 + 22 * len(prices) + 24
    canvas = Canvas(WIDTH, height)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    for tick in ticks(low, high):
        canvas.line(x(tick), 18, x(tick), height - 18, "grid").text(x(tick), height - 5, number(tick), "m", "middle")
    canvas.line(x(target), 14, x(target), height - 18, "dash").text(
        min(max(x(target), left + 24), right - 24), 10, f"target {target:g}", "m", "middle")
    for i, (name, a, b) in enumerate(prices):
        y = 32 + 22 * i
        canvas.text(left - 8, y + 4, name, "t", "end")
        if b > a:
            canvas.whisker(x(a), y, x(b), y, cap=4)
        else:
            canvas.dot(x(a), y, 4)
    return canvas.svg("accountants", "Epsilon by three accountants", "; ".join(
        f"{name} {a:.4f}" + (f" to {b:.4f}" if b > a else "") for name, a, b in prices) + f"; target {target:g}")


def trade_off(points: Sequence[tuple[float, float]]) -> str:
    """``points``: (false positive rate, largest true positive rate), increasing."""
    size, left, top = 320, 52, 26
    canvas = Canvas(WIDTH, size + top + 42)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    for tick in (0, 0.25, 0.5, 0.75, 1):
        canvas.line(*at(tick, 0), *at(tick, 1), "grid").line(*at(0, tick), *at(1, tick), "grid")
        canvas.text(left + tick * size, top + size + 15, f"{tick:.0%}", "m", "middle")
        canvas.text(left - 6, at(0, tick)[1] + 4, f"{tick:.0%}", "m", "end")
    curve = [at(0, 0), *(at(x, y) for x, y in points)]
    canvas.path([*curve, at(1, 1), at(0, 0)], "soft", closed=True).path(curve, "line")
    canvas.line(*at(0, 0), *at(1, 1), "dash")
    canvas.text(left + size / 2, top + size + 32, "outsiders wrongly accused", "m", "middle")
    canvas.text(left + 0.60 * size, top + 0.52 * size, "coin toss", "m")
    canvas.text(6, 12, "insiders found, at most", "m")
    return canvas.svg("tradeoff", "What an attacker can reach", "Largest true positive rate by false positive rate; "
                      "random guessing is the diagonal. " + ", ".join(f"{x:.3g}: {y:.4f}" for x, y in points))


def series(points: Sequence[tuple[str, float, float]], ident: str, title: str, unit: str,
           floor: tuple[str, float] | None = None) -> str:
    """``points``: (label, value, sd) in time order, drawn with bars of two standard deviations; ``floor``: the name and
    the height of a dashed line, for what must be surpassed."""
    left, right, top, bottom = 58, WIDTH - 12, 24, 170
    marks = [floor[1]] if floor else []
    low = min([*marks, *(v - 2 * sd for _, v, sd in points)])
    high = max([*marks, *(v + 2 * sd for _, v, sd in points)])
    pad = max(high - low, abs(high) * 0.01, 1e-9) * 0.08
    low, high = low - pad, high + pad
    canvas = Canvas(WIDTH, 206)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    for tick in ticks(low, high):
        canvas.line(left, y(tick), right, y(tick), "grid").text(left - 6, y(tick) + 4, number(tick), "m", "end")
    if floor:
        canvas.line(left, y(floor[1]), right, y(floor[1]), "dash")
        canvas.text(right, y(floor[1]) - 5, floor[0], "m", "end")
    xs = [left + (i + 0.5) * (right - left) / len(points) for i in range(len(points))]
    canvas.path([(x, y(v)) for x, (_, v, _) in zip(xs, points, strict=True)], "line")
    every = math.ceil(len(points) / 6)
    for i, (x, (label, value, sd)) in enumerate(zip(xs, points, strict=True)):
        if sd:
            canvas.whisker(x, y(value - 2 * sd), x, y(value + 2 * sd), cap=4)
        canvas.dot(x, y(value))
        if i % every == 0:
            canvas.text(x, bottom + 16, shorten(label, 14), "m", "middle", full=label)
    canvas.text(left - 46, 12, unit, "m")
    return canvas.svg(ident, title, "; ".join(
        f"{label}: {value:.4g}" + (f" plus or minus {2 * sd:.2g}" if sd else "") for label, value, sd in points))


def bounds(found: Sequence[tuple[str, float]], claim: float) -> str:
    """``found``: (method, epsilon it proved); the claim for the same steps is a line that no bar may pass."""
    top = 1.15 * max([claim, *(epsilon for _, epsilon in found)], default=1.0)
    left, right, row = 92.0, WIDTH - 14.0, 26.0
    canvas = Canvas(WIDTH, 46 + row * len(found))
    scale, bottom = (right - left) / max(top, 1e-9), 22 + row * len(found)
    for tick in ticks(0, top, 5):
        canvas.line(left + tick * scale, 16, left + tick * scale, bottom, "grid")
        canvas.text(left + tick * scale, bottom + 14, number(tick), "m", "middle")
    for i, (method, epsilon) in enumerate(found):
        y = 22 + i * row
        canvas.text(left - 8, y + 14, method, "t", "end")
        canvas.rect(left, y + 3, max(epsilon * scale, 1.0), row - 10, "c2" if epsilon <= claim else "c5")
        canvas.text(left + epsilon * scale + 5, y + 14, f"{epsilon:.2f}", "t")
    canvas.line(left + claim * scale, 8, left + claim * scale, bottom, "whisker")
    canvas.text(left + claim * scale - 4, 10, f"claimed {claim:.2f}", "h", "end")
    return canvas.svg("bounds", "Lower bounds under the claim", "; ".join(
        f"{method}: {epsilon:.2f} of {claim:.2f}" for method, epsilon in found))


def pairs(found: Sequence[tuple[str, float, float]]) -> str:
    """``found``: (pair, distance, distance that noise alone would show), the worst first."""
    top = 1.1 * max([1e-9, *(max(a, b) for _, a, b in found)])
    left, right, row = 6.0, WIDTH - 50.0, 34.0
    canvas, scale = Canvas(WIDTH, row * len(found) + 6), (right - left) / top
    for i, (name, distance, noise) in enumerate(found):
        y = i * row
        canvas.text(left, y + 12, shorten(name, 58), "t", full=name)
        canvas.rect(left, y + 17, distance * scale, 11, "bar")
        canvas.line(left + noise * scale, y + 14, left + noise * scale, y + 31, "whisker")
        canvas.text(left + max(distance, noise) * scale + 6, y + 27, f"{distance:.3f}", "m")
    return canvas.svg("pairs", "The worst pairs of columns", "; ".join(
        f"{name}: {distance:.3f}, noise alone {noise:.3f}" for name, distance, noise in found))


def marginal(data: Marginal, ident: str) -> str:
    """One column, as tall as it needs to be."""
    height = 30 + 17 * min(len(data.labels), 12) + 16 if data.kind in NOMINAL else 190
    return panel(data, 340, height).svg(ident, f"Column {data.column}", describe(data))


def marginals(columns: Sequence[Marginal], across: int = 3) -> str:
    """A picture of its own (an SVG file): one small panel per column, ``across`` in a row; used by the README."""
    width, height, gap = 290, 170, 14
    down = math.ceil(len(columns) / across)
    sheet = Canvas(across * (width + gap) + gap, down * (height + gap) + gap + 30)
    sheet.rect(gap, 12, 14, 10, "bar").text(gap + 20, 21, "synthetic rows")
    sheet.whisker(gap + 118, 17, gap + 142, 17).dot(gap + 130, 17)
    sheet.text(gap + 150, 21, "real rows: noisy count, ± 2 standard deviations of its noise")
    for i, column in enumerate(columns):
        sheet.place(panel(column, width, height), gap + (i % across) * (width + gap),
                    30 + gap + (i // across) * (height + gap))
    return sheet.svg("marginals", "Real against synthetic marginals", "Shares per value of "
                     + ", ".join(column.column for column in columns), standalone=True)


def panel(data: Marginal, width: float, height: float) -> Canvas:
    """One marginal: nominal columns lie (names need room), numeric ones stand."""
    canvas = Canvas(width, height)
    canvas.text(0, 12, shorten(data.column, 36), "h", full=data.column)
    if data.kind in NOMINAL:
        _lying(canvas, largest(data, max(2, int((height - 40) // 17))))
    else:
        _standing(canvas, grouped(ordered(data), MOST_BARS))
    return canvas


def _top(data: Marginal) -> float:
    return max(*(v + 2 * sd for v, sd in zip(data.noisy, data.sd, strict=True)), *(data.synthetic or (0.0,)), 1e-9)


def _lying(canvas: Canvas, data: Marginal) -> None:
    names = [shorten(label, 16) for label in data.labels]
    left, right, bottom = 12 + NAME * max(map(len, names)), canvas.width - 20, canvas.height - 14
    scale = (right - left) / _top(data)
    row = (bottom - 24) / len(data.labels)
    thick = min(0.72 * row, 20.0)
    for tick in ticks(0, _top(data), 3):
        canvas.line(left + tick * scale, 22, left + tick * scale, bottom, "grid")
        canvas.text(left + tick * scale, canvas.height - 2, f"{tick * 100:.3g} %", "m", "middle")
    for i, label in enumerate(data.labels):
        y = 24 + (i + 0.5) * row
        canvas.text(left - 6, y + 4, names[i], "t", "end", full=label)
        if data.synthetic:
            canvas.rect(left, y - thick / 2, max(data.synthetic[i], 0.0) * scale, thick, "bar")
        low, high = max(data.noisy[i] - 2 * data.sd[i], 0.0), max(data.noisy[i] + 2 * data.sd[i], 0.0)
        canvas.whisker(left + low * scale, y, left + high * scale, y)
        canvas.dot(left + max(data.noisy[i], 0.0) * scale, y, 2.6)


def _standing(canvas: Canvas, data: Marginal) -> None:
    left, right, top, bottom = 40.0, canvas.width - 6, 24.0, canvas.height - 20
    scale = (bottom - top) / _top(data)
    slot = (right - left) / len(data.labels)
    for tick in ticks(0, _top(data), 3):
        canvas.line(left, bottom - tick * scale, right, bottom - tick * scale, "grid")
        canvas.text(left - 5, bottom - tick * scale + 4, f"{tick * 100:.3g} %", "m", "end")
    for i in range(len(data.labels)):
        x = left + (i + 0.5) * slot
        if data.synthetic:
            tall = max(data.synthetic[i], 0.0) * scale
            canvas.rect(x - 0.4 * slot, bottom - tall, 0.8 * slot, tall, "bar")
        low, high = max(data.noisy[i] - 2 * data.sd[i], 0.0), max(data.noisy[i] + 2 * data.sd[i], 0.0)
        cap = min(2.5, 0.35 * slot)
        canvas.whisker(x, bottom - low * scale, x, bottom - high * scale, cap)
        canvas.dot(x, bottom - max(data.noisy[i], 0.0) * scale, min(2.6, max(1.2, 0.4 * slot)))
    _bin_labels(canvas, data.labels, left, slot)


def _bin_labels(canvas: Canvas, labels: Sequence[str], left: float, slot: float) -> None:
    """As many as fit without touching, evenly spaced."""
    letters = max(4, min(14, max(map(len, labels))))
    every = max(1, math.ceil((letters * LETTER + 6) / slot))
    free = 0.0
    for i in range(0, len(labels), every):
        words = shorten(labels[i], letters)
        start = max(left + (i + 0.5) * slot - len(words) * LETTER / 2, left - 8)
        if start >= free and start + len(words) * LETTER <= canvas.width:
            canvas.text(start, canvas.height - 6, words, "m", full=labels[i])
            free = start + len(words) * LETTER + 5


def largest(data: Marginal, rows: int) -> Marginal:
    """The ``rows`` largest values by noisy share; what does not fit becomes one last row."""
    order = sorted(range(len(data.labels)), key=lambda i: -data.noisy[i])
    if len(order) > rows:
        kept, rest = order[: rows - 1], order[rows - 1:]
        return _merge(data, [[i] for i in kept] + [rest], last=f"{len(rest)} others")
    return _merge(data, [[i] for i in order])


def ordered(data: Marginal) -> Marginal:
    """A number's bins and single values (``20..29``, ``40``) by where they begin; what is no number stays last."""
    def begins(i: int) -> float:
        try:
            return float(data.labels[i].partition("..")[0])
        except ValueError:
            return math.inf

    return _merge(data, [[i] for i in sorted(range(len(data.labels)), key=begins)])


def grouped(data: Marginal, bars: int) -> Marginal:
    """Neighbouring bins joined until at most ``bars`` remain."""
    size = math.ceil(len(data.labels) / bars)
    return _merge(data, [list(range(i, min(i + size, len(data.labels)))) for i in range(0, len(data.labels), size)])


def _merge(data: Marginal, groups: list[list[int]], last: str | None = None) -> Marginal:
    """Sums over groups of labels; independent noises add in squares."""
    labels = [data.labels[group[0]] for group in groups]
    if last:
        labels[-1] = last
    synthetic = data.synthetic
    return Marginal(
        column=data.column, kind=data.kind, labels=tuple(labels),
        noisy=tuple(sum(data.noisy[i] for i in group) for group in groups),
        sd=tuple(math.hypot(*(data.sd[i] for i in group)) for group in groups),
        synthetic=tuple(sum(synthetic[i] for i in group) for group in groups) if synthetic else None)


def describe(data: Marginal) -> str:
    """What a screen reader says of a marginal: the largest values."""
    top = largest(data, 6)
    parts = []
    for i, label in enumerate(top.labels):
        synthetic = f", synthetic {top.synthetic[i] * 100:.1f} %" if top.synthetic else ""
        parts.append(f"{label}: real {top.noisy[i] * 100:.1f} ± {200 * top.sd[i]:.1f} %{synthetic}")
    return "; ".join(parts)
