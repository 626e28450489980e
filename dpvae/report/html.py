"""The report as one HTML page: no script, no network, light or dark, screen or paper.

Ordered for three readers: what is guaranteed, what it means and cost, how well it works, then what it does not
cover and how to check it. Behind each chart stands the table of its numbers.

    page = render(gather(source, check, subject="This run"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from dpvae.report import charts, meaning
from dpvae.report.canvas import STYLE
from dpvae.report.charts import Marginal

LARGEST_PAGE = 900_000  # bytes of charts; the rest of a very wide table is in report.json

CSS = STYLE + """
*{box-sizing:border-box}html{color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.15rem;color:var(--muted);font-weight:600;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:44px 0 6px;padding-top:14px;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:0 0 8px}p{max-width:70ch;margin:6px 0 14px}a{color:var(--c0)}
.claim{font-size:1.25rem;line-height:1.5;max-width:none;border-left:4px solid var(--c0);
padding:2px 0 2px 16px;margin:0 0 18px}
.claim.bad{border-color:var(--c5);color:var(--c5);font-weight:600}
nav{font-size:.9rem;margin:0 0 8px}nav a{display:inline-block;margin:0 14px 4px 0}
.facts{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0 24px;padding:0}
.facts div{background:var(--panel);border-radius:8px;padding:10px 14px;min-width:128px;flex:1}
.facts dt{font-size:.8rem;color:var(--muted)}.facts dd{margin:0;font-size:1.05rem;font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px 28px;align-items:start}
.grid{stroke-width:1}.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:16px}
figure{margin:0;min-width:0}.cards figure{background:var(--panel);border-radius:8px;padding:12px}
svg.chart{display:block;width:100%;height:auto;max-width:520px}
figcaption{font-size:.85rem;color:var(--muted);margin-top:6px}
details{font-size:.85rem;margin-top:6px}summary{cursor:pointer;color:var(--muted)}
summary:focus-visible,a:focus-visible,.wide:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:6px 0}
th,td{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{font-weight:600;color:var(--muted)}td.r,th.r{text-align:right}.cells td,.cells th{white-space:nowrap}
ul{padding-left:20px;max-width:75ch}li{margin:5px 0}
pre{background:var(--panel);border-radius:8px;padding:12px;overflow-x:auto;font-size:.85rem}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--bg);padding:6px}
@media(max-width:480px){main{padding:16px 14px 48px}.claim{font-size:1.08rem;padding-left:12px}}
@media print{body{font-size:11pt}nav,.skip{display:none}figure,tr{break-inside:avoid}@page{size:A4;margin:16mm}}
"""
SECTIONS = (("guarantee", "Guarantee"), ("meaning", "Meaning"), ("training", "Training"), ("marginals", "Marginals"),
            ("rows", "Rows"), ("limits", "Limits"), ("check", "Check"))

ODDS = (  # words, field of the risk, decimals
    ("right guesses about membership, at even odds", "right_guesses_at_even_odds", 2),
    ("insiders found with 1 % of outsiders accused", "true_positive_rate_at_1_percent", 2),
    ("insiders found with 0.1 % of outsiders accused", "true_positive_rate_at_0_1_percent", 3),
    ("certainty, from 50 %", "posterior_from_prior_0_5", 2),
    ("certainty, from 10 %", "posterior_from_prior_0_1", 2),
    ("certainty, from 1 %", "posterior_from_prior_0_01", 2),
)


def render(numbers: dict[str, Any]) -> str:
    """The page for the numbers of :func:`dpvae.report.numbers.gather`."""
    sections = [_guarantee(numbers), _meaning(numbers), _training(numbers), _marginals(numbers), _rows(numbers),
                _limits(numbers), _check(numbers)]
    present = [(ident, name) for (ident, name), body in zip(SECTIONS, sections, strict=True) if body]
    links = "".join(f'<a href="#{ident}">{name}</a>' for ident, name in present)
    claim = f'<p class="claim{"" if numbers["private"] else " bad"}">{_unbroken(escape(numbers["sentence"]))}</p>'
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(numbers["title"])}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<style>{CSS}</style></head><body><a class=\"skip\" href=\"#guarantee\">Skip to the report</a><main>"
            f'<h1>{escape(numbers["title"])}</h1>{claim}<nav aria-label="Sections">{links}</nav>'
            f'{"".join(sections)}</main></body></html>\n')


def _guarantee(numbers: dict[str, Any]) -> str:
    claim, prices = numbers["claim"], numbers["accountants"]
    relation = meaning.RELATIONS.get(claim["neighbouring"], claim["neighbouring"])
    facts = _facts([
        ("epsilon, at most", upper := meaning.decimals(claim["upper"], up=True)),
        ("interval", f'{meaning.decimals(claim["lower"], up=False)} to {upper}'),
        ("delta", f'{claim["delta"]:.3g}'), ("unit", f'one {claim["unit"]}, {relation}'),
        ("rows", f'{claim["rows"]:,.0f} ({claim["rows_source"]})'),
    ])
    bar = _figure(
        charts.budget([(p["phase"], p["added"]) for p in numbers["phases"]], claim["target"]),
        "What each phase added to epsilon, in the order spent; alone, a phase would cost more than it added.",
        _table(("phase", "accesses", "added", "epsilon after"), [
            (p["phase"], p["accesses"], f'{p["added"]:.4f}', f'{p["after"]:.4f}') for p in numbers["phases"]]))
    rows = [("PLD", prices["pld"], prices["pld"]), ("PRV bracket", prices["prv_lower"], prices["prv_upper"]),
            ("RDP", prices["rdp"], prices["rdp"])]
    accountants = _figure(
        charts.interval(rows, claim["target"]),
        "The same events priced by three accountants. PLD is the claim; it lies above PRV's lower end and below RDP.",
        _table(("accountant", "low", "high"), [(name, f"{a:.5f}", f"{b:.5f}") for name, a, b in rows]))
    title = "What is guaranteed" if numbers["private"] else "Nothing is guaranteed; what secret noise would have cost"
    return _section(0, title, f'{facts}<div class="two">{bar}{accountants}</div>{_accesses(numbers)}')


def _accesses(numbers: dict[str, Any]) -> str:
    rows = [(a["phase"], a["what"], a["type"], _knobs(a)) for a in numbers["accesses"]]
    return _details(f"Every access to private data ({len(rows)})",
                    _table(("phase", "what was released", "mechanism", "with"), rows, right=False))


def _knobs(access: dict[str, Any]) -> str:
    own = "; ".join(f"{key} {value:.6g}" for key, value in access.items() if isinstance(value, (int, float)))
    trial = [f"{part['what']} ({_knobs(part)})" for part in access.get("trial", ())]  # one run of a private selection
    return f"{own}; each run: {', '.join(trial)}" if trial else own


def _meaning(numbers: dict[str, Any]) -> str:
    if not numbers["private"]:
        return ""
    risk, claim = numbers["risk"], numbers["claim"]
    curve = [(p["false_positive_rate"], p["true_positive_rate"]) for p in risk["trade_off"]]
    chart = _figure(charts.trade_off(curve),
                    "Any attack on membership stays below the line. On the dashed line it tosses a coin.",
                    _table(("wrongly accused", "found, at most"), [(f"{x:.3f}", f"{y:.6f}") for x, y in curve]))
    floor = risk["posterior_evidence_at_least"]
    rows = [(words, meaning.percent(risk[name], places)) for words, name, places in ODDS]
    odds = _table(("an attacker who knows all but one row", "reaches at most"), rows)
    text = (f'<p>These follow from the whole curve of (epsilon, delta) through '
            f'{meaning.decimals(claim["upper"], up=True)} and {claim["delta"]:.3g}, against an attacker who '
            "sees every noisy number. Certainty is stated for evidence that would "
            f"turn up at least {meaning.percent(floor)} of the time without the person.</p>")
    return _section(1, "What it means", f'<div class="two">{chart}<div>{odds}{text}</div></div>')


def _training(numbers: dict[str, Any]) -> str:
    metrics = numbers["metrics"]
    if not metrics:
        return ""
    labels = _step_labels(metrics)
    unit = metrics[0]["unit"]
    elbo = _figure(
        charts.series([(label, m["noisy_elbo"], m["sd"]) for label, m in zip(labels, metrics, strict=True)], "elbo",
                      "Noisy ELBO", unit),
        "Evidence lower bound, released with noise and paid for; bars are two standard deviations. Higher is better.",
        _table(("phase", "step", f"noisy ELBO, {unit}", "sd", "rate", "epsilon spent"), [
            (m["phase"], m["step"], f'{m["noisy_elbo"]:.4f}', f'{m["sd"]:.4f}',
             "-" if m["rate"] is None else f'{m["rate"]:.4f}', f'{m["epsilon_spent"]:.4f}') for m in metrics]))
    spending = [(label, m["epsilon_spent"], 0.0) for label, m in zip(labels, metrics, strict=True)]
    spent = _figure(charts.series(spending, "spent", "Epsilon spent", "epsilon"),
                    "Epsilon spent by the time of each release.", "")
    return _section(2, "How it trained", f'<div class="two">{elbo}{spent}</div>{_collapse(numbers)}')


def _collapse(numbers: dict[str, Any]) -> str:
    """Whether the latent is in use: the normal failure of a private VAE is that it is not."""
    found = numbers.get("diagnostics")
    if not found:
        return ""
    gain = numbers["metrics"][-1]["noisy_elbo"] - found["independent_elbo"]
    verdict = "the model has learned how columns go together" if gain > 2 * numbers["metrics"][-1]["sd"] else (
        "the latent has collapsed: the model is no better than independent columns")
    unit = escape(found["unit"])
    return (f'<p>Independent columns would reach {found["independent_elbo"]:.2f} {unit}; the last noisy ELBO is '
            f'{abs(gain):.2f} {"better" if gain > 0 else "worse"}: {verdict}. {found["rate"]:.2f} {unit} pass through '
            f'the latent, and {found["active_units"]:.0f} of its {found["latent_dim"]:.0f} units are active.</p>')


def _step_labels(metrics: Sequence[dict[str, Any]]) -> list[str]:
    several = len({m["phase"] for m in metrics}) > 1
    return [f'{m["phase"]} {m["step"]}' if several else f'step {m["step"]}' for m in metrics]


def _marginals(numbers: dict[str, Any]) -> str:
    items = numbers["marginals"]
    if not items:
        return ""
    drawn, size = [], 0
    for i, item in enumerate(items):
        figure = _marginal(item, f"marginal{i}")
        size += len(figure.encode())
        if size > LARGEST_PAGE:
            break
        drawn.append(figure)
    left = (f"<p>{len(items) - len(drawn)} more columns are in report.json.</p>" if len(drawn) < len(items) else "")
    intro = ("<p>Dots: the real table as it was released, counts with noise; their bars are two standard deviations of "
             "that noise. Filled bars: the synthetic rows.</p>")
    return _section(3, "Real against synthetic, column by column",
                    f'{intro}<div class="cards">{"".join(drawn)}</div>{left}{_map(numbers)}')


def _map(numbers: dict[str, Any]) -> str:
    """Synthetic rows where the latent puts them: groups that the model tells apart."""
    found = numbers.get("map")
    if not found:
        return ""
    chart = charts.scatter(found["x"], found["y"], found["label"], found["labels"])
    return _figure(chart, "Synthetic rows on the two strongest axes of the latent, coloured by the column to be "
                   "predicted. No real row is drawn.", "")


def _marginal(item: dict[str, Any], ident: str) -> str:
    data, synthetic = Marginal.of(item), item["synthetic"]
    caption = (f'Distance {item["distance"]:.3f}; noise alone would show about {item["distance_of_noise_alone"]:.3f}.'
               if synthetic else f'Noise: {item["sd"]:.2%} per bar.')
    rows = [(label, f"{item['noisy'][i]:.4f}", f"{item['sd']:.4f}", f"{synthetic[i]:.4f}" if synthetic else "-")
            for i, label in enumerate(item["labels"])]
    return _figure(charts.marginal(data, ident), caption, _table(("value", "noisy real", "sd", "synthetic"), rows))


def _rows(numbers: dict[str, Any]) -> str:
    sample = numbers["sample"]
    if not sample:
        return _section(4, "What the model draws", _gallery(numbers)) if numbers.get("gallery") else ""
    names = list(sample[0])
    table = _table(names, [["" if row.get(name) is None else row[name] for name in names] for row in sample],
                   style="cells", right=False, label="Sample of synthetic rows")
    return _section(4, "Ten synthetic rows", f'<p>Of {numbers["rows_released"]:,} released. '
                    "Drawn from the model, not copied from the data; an empty cell is a missing value.</p>" + table
                    + _gallery(numbers))


def _gallery(numbers: dict[str, Any]) -> str:
    """Pictures that a kind of data has to show, as PNG inside the page."""
    return "".join(
        f'<figure><h3>{escape(item["title"])}</h3><img src="{escape(item["png"])}" alt="{escape(item["alt"])}" '
        f'style="max-width:100%"><figcaption>{escape(item["caption"])}</figcaption></figure>'
        for item in numbers.get("gallery") or () if item["png"].startswith("data:image/png;base64,"))


def _limits(numbers: dict[str, Any]) -> str:
    items = "".join(f'<li><b>{escape(gap["topic"])}.</b> {escape(gap["statement"])}</li>'
                    for gap in numbers["not_covered"])
    return _section(5, "What is not covered", f"<ul>{items}</ul>")


def _check(numbers: dict[str, Any]) -> str:
    lines = "\n".join(escape(line) for line in numbers["reproduce"])
    body = f"<pre>{lines}</pre>" if lines else ""
    return _section(6, "How to check and to reproduce", f"{body}<p>The same numbers as JSON: "
                    '<a href="report.json">report.json</a>.</p>')


def _unbroken(text: str) -> str:
    """Keeps ``1e-05`` and ``50 %`` on one line."""
    return re.sub(r"(?<=\de)-(?=\d)", "\u2011", text).replace(" %", "\u00a0%")


def _section(index: int, title: str, body: str) -> str:
    return f'<section id="{SECTIONS[index][0]}"><h2>{title}</h2>{body}</section>'


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return '<dl class="facts">' + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs) + "</dl>"


def _figure(svg: str, caption: str, table: str) -> str:
    return (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption>"
            + (_details("Numbers", table) if table else "") + "</figure>")


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "", right: bool = True,
           label: str = "Numbers") -> str:
    """All but the first column on the right, where they are numbers; wide tables scroll by keyboard too."""
    def tag(name: str, i: int, value: Any) -> str:
        return f'<{name}{" class=r" if right and i else ""}>{escape(str(value))}</{name}>'

    lines = "".join("<tr>" + "".join(tag("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    top = "".join(tag("th", i, v) for i, v in enumerate(head))
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{style}">'
            f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>")
