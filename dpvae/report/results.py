"""The part of a report that says how well it works: training, columns, pairs, and what comes out.

    training(numbers) + marginals(numbers) + pairs(numbers) + samples(numbers)

Each section is empty where a kind of data has nothing to show in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dpvae.report import charts
from dpvae.report.charts import Marginal
from dpvae.report.page import facts, figure, heading, light, picture, table

MOST_COLUMNS = 10  # of a sample of rows that lie
LARGEST_PAGE = 900_000  # bytes of charts and pictures; the rest is in report.json


def training(numbers: dict[str, Any]) -> str:
    """The noisy ELBO beside what it cost, and whether the latent is in use."""
    metrics, found = numbers["metrics"], numbers.get("diagnostics")
    if not metrics and not found:
        return ""
    drawn = _curves(metrics, found) if metrics else ""
    return f'{heading("How it trained")}{drawn}{_collapse(metrics, found)}'


def _curves(metrics: Sequence[dict[str, Any]], found: dict[str, Any] | None) -> str:
    labels, unit = _step_labels(metrics), metrics[0]["unit"]
    floor = (f"independent {parts(unit)}", found["independent_elbo"]) if found else None
    elbo = figure(
        charts.series([(label, m["noisy_elbo"], m["sd"]) for label, m in zip(labels, metrics, strict=True)], "elbo",
                      "Noisy ELBO", unit, floor=floor),
        "Evidence lower bound, released with noise and paid for; bars are two standard deviations. Higher is better.",
        table(("phase", "step", f"noisy ELBO, {unit}", "sd", "rate", "epsilon spent"), [
            (m["phase"], m["step"], f'{m["noisy_elbo"]:.4f}', f'{m["sd"]:.4f}',
             "-" if m["rate"] is None else f'{m["rate"]:.4f}', f'{m["epsilon_spent"]:.4f}') for m in metrics]))
    spending = [(label, m["epsilon_spent"], 0.0) for label, m in zip(labels, metrics, strict=True)]
    spent = figure(charts.series(spending, "spent", "Epsilon spent", "epsilon spent, in all"),
                   "Epsilon spent by the time of each release of the ELBO beside it.",
                   table(("release", "epsilon spent"), [(a, f"{b:.4f}") for a, b, _ in spending]))
    return f'<div class="two">{elbo}{spent}</div>'


def _collapse(metrics: Sequence[dict[str, Any]], found: dict[str, Any] | None) -> str:
    """Whether the latent is in use: the normal failure of a private VAE is that it is not."""
    if not found:
        return ""
    unit, said = found["unit"], ""
    named = [("latent units in use", f'{found["active_units"]:.0f} of {found["latent_dim"]:.0f}'),
             ("rate", f'{found["rate"]:.2f} nats'),
             (f"independent {parts(unit)}", f'{found["independent_elbo"]:.2f} nats')]
    if metrics:
        last = metrics[-1]
        gain = last["noisy_elbo"] - found["independent_elbo"]
        named += [("distortion, about", f'{-last["noisy_elbo"] - found["rate"]:.2f} nats'),
                  ("last noisy ELBO", f'{last["noisy_elbo"]:.2f} ± {2 * last["sd"]:.2f} nats')]
        good, name, verdict = _learned(gain, 2 * last["sd"], found["active_units"], parts(unit))
        said = (f'<p>{light(good, name)}Independent {parts(unit)} would reach {found["independent_elbo"]:.2f} '
                f'{escape(unit)}; the last noisy ELBO is {abs(gain):.2f} {"better" if gain > 0 else "worse"}: '
                f'{verdict}. {found["rate"]:.2f} {escape(unit)} pass through '
                f'the latent, and {found["active_units"]:.0f} of its {found["latent_dim"]:.0f} units are '
                "active.</p>")
    return said + facts(named)


def _learned(gain: float, noise: float, units: float, what: str) -> tuple[bool | None, str, str]:
    """Whether a model that is ``gain`` nats better than independence has learned any: yes, no, or hidden by noise."""
    if gain > noise:
        return True, "learned", f"the model has learned how {what} go together"
    if gain > 0 and units >= 1:
        return None, "not known", (f"less than the noise of {noise:.2f}, so this number cannot tell whether the model "
                                   f"has learned how {what} go together")
    return False, "collapsed", f"the latent has collapsed: the model is no better than independent {what}"


def parts(unit: str) -> str:
    """What is independent in the baseline of a kind of data, told by its unit.

    >>> parts("nats per row"), parts("nats per text")
    ('columns', 'parts')
    """
    return "columns" if unit == "nats per row" else "parts"


def _step_labels(metrics: Sequence[dict[str, Any]]) -> list[str]:
    several = len({m["phase"] for m in metrics}) > 1
    return [f'{m["phase"]} {m["step"]}' if several else f'step {m["step"]}' for m in metrics]


def marginals(numbers: dict[str, Any]) -> str:
    """Each column: the noisy counts that were released, and the synthetic rows."""
    items = numbers["marginals"]
    if not items:
        return ""
    drawn, size = [], 0
    for i, item in enumerate(items):
        one = _marginal(item, f"marginal{i}")
        size += len(one.encode())
        if size > LARGEST_PAGE - _weight(numbers):
            break
        drawn.append(one)
    left = (f"<p>{len(items) - len(drawn)} more columns are in report.json.</p>" if len(drawn) < len(items) else "")
    compared = any(item["synthetic"] for item in items)
    bars = " Filled bars: synthetic rows." if compared else ""
    bins = ("" if all(item["kind"] in (*charts.NOMINAL, "text") for item in items) else
            " A number's bins need not be equally wide: where one is wider, it holds more.")
    intro = ("<p>Dots: the real data as it was released, counts with noise; their whiskers are two standard "
             f"deviations of that noise.{bars}{bins}</p>")
    intro += f'<p>{light(False, "guessed")}{escape(said[0].upper() + said[1:])}.</p>' if (
        said := numbers.get("guessed", "")) else ""
    title = "Real against synthetic, column by column" if compared else "The real data, as it was released"
    return f'{heading(title)}{intro}<div class="cards">{"".join(drawn)}</div>{left}{_map(numbers)}'


def _weight(numbers: dict[str, Any]) -> int:
    """Bytes of the page that pictures and texts take."""
    return sum(len(item["png"]) for item in numbers.get("gallery") or ()) + sum(
        len(text.encode()) for text in numbers.get("texts") or ())


def _map(numbers: dict[str, Any]) -> str:
    """Synthetic rows where the latent puts them: groups that the model tells apart."""
    found = numbers.get("map")
    if not found:
        return ""
    chart = charts.scatter(found["x"], found["y"], found["label"], found["labels"])
    coloured = ", coloured by the column to be predicted" if found["label"] is not None else ""
    return "<h3>The latent, from above</h3>" + figure(
        chart, f"Synthetic rows on the two strongest axes of the latent{coloured}. No real row is drawn.")


def _marginal(item: dict[str, Any], ident: str) -> str:
    data, synthetic = Marginal.of(item), item["synthetic"]
    caption = (f'Distance {item["distance"]:.3f}; noise alone would show about {item["distance_of_noise_alone"]:.3f}.'
               if synthetic else f'The noise of a count: {100 * item["sd"]:.2g} % of all.')
    if item["kind"] == "text":
        caption = f"How long the texts are, in bytes. {caption}"
    rows = [(label, f"{item['noisy'][i]:.4f}", f"{item['sd']:.4f}", f"{synthetic[i]:.4f}" if synthetic else "-")
            for i, label in enumerate(item["labels"])]
    return figure(charts.marginal(data, ident), caption, table(("value", "noisy real", "sd", "synthetic"), rows))


def pairs(numbers: dict[str, Any]) -> str:
    """The pairs of columns that the model gets most wrong, as far as noise lets anybody see."""
    found = numbers.get("pairs")
    if not found:
        return ""
    rows = [(f'{p["columns"][0]} by {p["columns"][1]}', p["distance"], p["distance_of_noise_alone"])
            for p in found["worst"]]
    chart = figure(
        charts.pairs(rows), "The distance of the synthetic rows from the noisy released table (bar), and what noise "
        "alone would show (line). The part beyond the line is the model's own error.",
        table(("pair", "distance", "of noise alone"), [(a, f"{b:.4f}", f"{c:.4f}") for a, b, c in rows]))
    return (f'{heading("The worst pairs of columns")}<p>Of {found["measured"]:,} pairs whose tables were released with '
            f"noise; first those that are furthest off beyond what noise explains.</p>{chart}")


# -- what came of it -------------------------------------------------------------------------------------------------


def samples(numbers: dict[str, Any]) -> str:
    """What comes out: pictures, texts, rows, whichever a kind of data has."""
    body = _pictures(numbers) + _texts(numbers) + _rows(numbers) + _lines(numbers)
    return heading("What comes out") + body if body else ""


def _pictures(numbers: dict[str, Any]) -> str:
    items, drawn, size = numbers.get("gallery") or (), [], 0
    for item in items:
        size += len(item["png"])
        if size <= LARGEST_PAGE:
            drawn.append(picture(item["png"], item["alt"], item.get("title", ""), item.get("caption", "")))
    left = f"<p>{len(items) - len(drawn)} more pictures are in report.json.</p>" if len(drawn) < len(items) else ""
    return f'<div class="cards">{"".join(drawn)}</div>{left}' if items else ""


def _texts(numbers: dict[str, Any]) -> str:
    texts = numbers.get("texts") or ()
    quoted = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in texts)
    return f"<h3>Synthetic texts</h3><p>Drawn from the model, not copied from the data.</p>{quoted}" if texts else ""


def _lines(numbers: dict[str, Any]) -> str:
    """Texts drawn at places between two latents, with the same random numbers."""
    items = [f"<p>{escape(item['title'])}</p><ol>{''.join(f'<li>{escape(text)}</li>' for text in item['texts'])}</ol>"
             for item in numbers.get("lines") or ()]
    return (f"<h3>Along the latent</h3><p>From the latent of one synthetic text to that of another: only the latent "
            f"changes from line to line.</p>{''.join(items)}" if items else "")


def _rows(numbers: dict[str, Any]) -> str:
    sample = numbers["sample"]
    if not sample:
        return ""
    names, label = list(sample[0]), "Sample of synthetic rows"
    rows = [["" if row.get(name) is None else row[name] for name in names] for row in sample]
    upright = len(names) > MOST_COLUMNS  # what is too wide for a page stands on its side
    cells = (table(["column", *range(1, len(rows) + 1)], zip(names, *rows, strict=True), "side", False, label)
             if upright else table(names, rows, "cells", False, label))
    released = numbers["rows_released"]
    where = f"Of {released:,} released. " if released else ""
    side = " Each stands in a column." if upright else ""
    return (f"<h3>Ten synthetic rows</h3><p>{where}Drawn from the model, not copied from the data; an empty cell is a "
            f"missing value.{side}</p>{cells}")
