"""The report as one HTML page, ordered for three readers: what is guaranteed, what that means and whether it is true;
how well it works; what it does not cover and how to check it. Behind each chart stands the table of its numbers.

    page = render(gather(source, check, subject="This run"))

What a kind of data adds has a place of its own: ``gallery`` (a list of ``{title, caption, png, alt}``, each ``png`` a
data URI) and ``texts`` (a list of texts) are shown where they are; marginals, pairs, map and rows where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dpvae.report import charts, meaning
from dpvae.report.charts import Marginal
from dpvae.report.page import details, document, facts, figure, heading, light, picture, table

LARGEST_PAGE = 900_000  # bytes of charts and pictures; the rest is in report.json

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
    return document(numbers["title"], numbers["sentence"], [
        ("guarantee", "Guarantee", _guarantee(numbers)), ("meaning", "Meaning", _meaning(numbers)),
        ("audit", "Audit", _audit(numbers)), ("training", "Training", _training(numbers)),
        ("marginals", "Marginals", _marginals(numbers)), ("pairs", "Pairs", _pairs(numbers)),
        ("rows", "Samples", _samples(numbers)), ("limits", "Limits", _limits(numbers)),
        ("check", "Check", _check(numbers))], mood="" if numbers["private"] else "bad")


# -- what is guaranteed ----------------------------------------------------------------------------------------------


def _guarantee(numbers: dict[str, Any]) -> str:
    claim, prices = numbers["claim"], numbers["accountants"]
    relation = meaning.RELATIONS.get(claim["neighbouring"], claim["neighbouring"])
    named = facts([
        ("epsilon, at most", upper := meaning.decimals(claim["upper"], up=True)),
        ("interval", f'{meaning.decimals(claim["lower"], up=False)} to {upper}'),
        ("delta", f'{claim["delta"]:.3g}'), ("unit", f'one {claim["unit"]}, {relation}'),
        ("rows", f'{claim["rows"]:,.0f} ({claim["rows_source"]})'),
    ])
    rows = [("PLD", prices["pld"], prices["pld"]), ("PRV bracket", prices["prv_lower"], prices["prv_upper"]),
            ("RDP", prices["rdp"], prices["rdp"])]
    accountants = figure(
        charts.interval(rows, claim["target"]),
        "The same events priced by three accountants. PLD is the claim; it lies above PRV's lower end and below RDP.",
        table(("accountant", "low", "high"), [(name, f"{a:.5f}", f"{b:.5f}") for name, a, b in rows]))
    title = "What is guaranteed" if numbers["private"] else "Nothing is guaranteed; what secret noise would have cost"
    return f'{heading(title)}{named}<div class="two">{_budget(numbers)}{accountants}</div>{_accesses(numbers)}'


def _budget(numbers: dict[str, Any]) -> str:
    """Spent by phase, what is left, and what the data set has paid for altogether."""
    claim, everything = numbers["claim"], numbers.get("cumulative")
    caption = "What each phase added to epsilon, in the order spent; alone, a phase would cost more than it added."
    if everything:
        caption += (f' The data set {everything["dataset"]} had spent {everything["epsilon"]:.4f} in all when this run '
                    "ended, this run included.")
    return figure(
        charts.budget([(p["phase"], p["added"]) for p in numbers["phases"]], claim["target"],
                      cumulative=everything["epsilon"] if everything else None), caption,
        table(("phase", "accesses", "added", "epsilon after"), [
            (p["phase"], p["accesses"], f'{p["added"]:.4f}', f'{p["after"]:.4f}') for p in numbers["phases"]]))


def _accesses(numbers: dict[str, Any]) -> str:
    rows = [(a["phase"], a["what"], a["type"], _knobs(a)) for a in numbers["accesses"]]
    return details(f"Every access to private data ({len(rows)})",
                   table(("phase", "what was released", "mechanism", "with"), rows, right=False, label="Accesses"))


def _knobs(access: dict[str, Any]) -> str:
    own = "; ".join(f"{key} {value:.6g}" for key, value in access.items() if isinstance(value, (int, float)))
    trial = [f"{part['what']} ({_knobs(part)})" for part in access.get("trial", ())]  # one run of a private selection
    return f"{own}; each run: {', '.join(trial)}" if trial else own


def _meaning(numbers: dict[str, Any]) -> str:
    if not numbers["private"]:
        return ""
    risk, claim = numbers["risk"], numbers["claim"]
    curve = [(p["false_positive_rate"], p["true_positive_rate"]) for p in risk["trade_off"]]
    chart = figure(charts.trade_off(curve),
                   "Any attack on membership stays below the line. On the dashed line it tosses a coin.",
                   table(("wrongly accused", "found, at most"), [(f"{x:.3f}", f"{y:.6f}") for x, y in curve]))
    floor = risk["posterior_evidence_at_least"]
    rows = [(words, meaning.percent(risk[name], places)) for words, name, places in ODDS]
    odds = table(("an attacker who knows all but one row", "reaches at most"), rows, label="Odds")
    text = (f'<p>These follow from the whole curve of (epsilon, delta) through '
            f'{meaning.decimals(claim["upper"], up=True)} and {claim["delta"]:.3g}, against an attacker who '
            "sees every noisy number. Certainty is stated for evidence that would "
            f"turn up at least {meaning.percent(floor)} of the time without the person.</p>")
    return f'{heading("What it means")}<div class="two">{chart}<div>{odds}{text}</div></div>'


# -- whether it is true ----------------------------------------------------------------------------------------------


def _audit(numbers: dict[str, Any]) -> str:
    """The audit's verdict, its lights, and what planted records proved under the claim."""
    found = numbers.get("audit")
    if not found:
        return heading("What an audit found") + (
            f'<p>{light(None, "open")}This run has not been audited. <code>dpvae audit run=...</code> trains twins of '
            "it on made-up rows, plants records, tries to prove more than the claim, and adds its verdict here.</p>")
    test, mood = found["self_test"], "ok" if found["passed"] else "bad"
    lights = "".join(
        f'<li>{light(each["passed"], "holds" if each["passed"] else "does not hold")}{escape(each["says"])} '
        f'<span class="asked">({escape(each["test"])}, {each["asked"]} questions)</span></li>'
        for each in found["tests"])
    power = (f'Before it judged, the audit caught {test["caught"]} of {test["tried"]} programs that were broken on '
             "purpose." if test["tried"] else "The audit's own power was not proved this time.")
    left = f' Left out: {", ".join(found["left_out"])}.' if found["left_out"] else ""
    note = f"<p>{escape(power + left)}{_more(numbers)}</p>"
    return (f'{heading("What an audit found")}<p class="claim {mood}">{escape(found["sentence"])}</p>'
            f'<div class="two"><ul class="lights">{lights}</ul>{_bounds(found)}</div>{note}')


def _more(numbers: dict[str, Any]) -> str:
    return ' The whole audit: <a href="audit.html">audit.html</a>.' if numbers["audit"].get("page") else ""


def _bounds(found: dict[str, Any]) -> str:
    bounds = found["bounds"]
    if not bounds:
        return "<p>No records were planted: this trainer takes no DP-SGD steps.</p>"
    rows = [(b["method"], f'{b["epsilon"]:.4f}', f'{b["claim"]:.4f}', b["canaries"], b["note"]) for b in bounds]
    return figure(
        charts.bounds([(b["method"], b["epsilon"]) for b in bounds], max(b["claim"] for b in bounds)),
        "What planted records proved, from below (95 %), about the DP-SGD steps of a twin, under what is claimed for "
        "the same steps. A bar past the line would be a broken promise; a short one is a weak attack, not a better "
        "guarantee.",
        table(("method", "proved", "claimed", "records", "holds for"), rows, label="Bounds"))


# -- how well it works -----------------------------------------------------------------------------------------------


def _training(numbers: dict[str, Any]) -> str:
    metrics, found = numbers["metrics"], numbers.get("diagnostics")
    if not metrics and not found:
        return ""
    drawn = _curves(metrics, found) if metrics else ""
    return f'{heading("How it trained")}{drawn}{_collapse(metrics, found)}'


def _curves(metrics: Sequence[dict[str, Any]], found: dict[str, Any] | None) -> str:
    labels, unit = _step_labels(metrics), metrics[0]["unit"]
    floor = ("independent columns", found["independent_elbo"]) if found and "independent_elbo" in found else None
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
             (f"rate, {unit}", f'{found["rate"]:.2f}'),
             (f"independent columns, {unit}", f'{found["independent_elbo"]:.2f}')]
    if metrics:
        last = metrics[-1]
        gain = last["noisy_elbo"] - found["independent_elbo"]
        named += [(f"distortion, about, {unit}", f'{-last["noisy_elbo"] - found["rate"]:.2f}'),
                  (f"last noisy ELBO, {unit}", f'{last["noisy_elbo"]:.2f} ± {2 * last["sd"]:.2f}')]
        verdict = "the model has learned how columns go together" if gain > 2 * last["sd"] else (
            "the latent has collapsed: the model is no better than independent columns")
        said = (f'<p>{light(gain > 2 * last["sd"], "learned" if gain > 2 * last["sd"] else "collapsed")}Independent '
                f'columns would reach {found["independent_elbo"]:.2f} {escape(unit)}; the last noisy ELBO is '
                f'{abs(gain):.2f} {"better" if gain > 0 else "worse"}: {verdict}. {found["rate"]:.2f} {escape(unit)} '
                f'pass through the latent, and {found["active_units"]:.0f} of its {found["latent_dim"]:.0f} units are '
                "active.</p>")
    return said + facts(named)


def _step_labels(metrics: Sequence[dict[str, Any]]) -> list[str]:
    several = len({m["phase"] for m in metrics}) > 1
    return [f'{m["phase"]} {m["step"]}' if several else f'step {m["step"]}' for m in metrics]


def _marginals(numbers: dict[str, Any]) -> str:
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
    bars = " Filled bars: synthetic rows." if any(item["synthetic"] for item in items) else ""
    intro = ("<p>Dots: the real table as it was released, counts with noise; their bars are two standard deviations of "
             f"that noise.{bars}</p>")
    return (f'{heading("Real against synthetic, column by column")}{intro}<div class="cards">{"".join(drawn)}</div>'
            f"{left}{_map(numbers)}")


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
    return "<h3>The latent, from above</h3>" + figure(
        chart, "Synthetic rows on the two strongest axes of the latent, coloured by the column to be predicted. No "
        "real row is drawn.")


def _marginal(item: dict[str, Any], ident: str) -> str:
    data, synthetic = Marginal.of(item), item["synthetic"]
    caption = (f'Distance {item["distance"]:.3f}; noise alone would show about {item["distance_of_noise_alone"]:.3f}.'
               if synthetic else f'Noise: {item["sd"]:.2%} per bar.')
    rows = [(label, f"{item['noisy'][i]:.4f}", f"{item['sd']:.4f}", f"{synthetic[i]:.4f}" if synthetic else "-")
            for i, label in enumerate(item["labels"])]
    return figure(charts.marginal(data, ident), caption, table(("value", "noisy real", "sd", "synthetic"), rows))


def _pairs(numbers: dict[str, Any]) -> str:
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
            f"noise, these are furthest off, beyond what noise explains.</p>{chart}")


# -- what came of it -------------------------------------------------------------------------------------------------


def _samples(numbers: dict[str, Any]) -> str:
    body = _pictures(numbers) + _texts(numbers) + _rows(numbers)
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


def _rows(numbers: dict[str, Any]) -> str:
    sample = numbers["sample"]
    if not sample:
        return ""
    names = list(sample[0])
    cells = table(names, [["" if row.get(name) is None else row[name] for name in names] for row in sample],
                  style="cells", right=False, label="Sample of synthetic rows")
    released = numbers["rows_released"]
    where = f"Of {released:,} released. " if released else ""
    return (f"<h3>Ten synthetic rows</h3><p>{where}Drawn from the model, not copied from the data; an empty cell is a "
            f"missing value.</p>{cells}")


def _limits(numbers: dict[str, Any]) -> str:
    items = "".join(f'<li><b>{escape(gap["topic"])}.</b> {escape(gap["statement"])}</li>'
                    for gap in numbers["not_covered"])
    return f'{heading("What is not covered")}<ul>{items}</ul>'


def _check(numbers: dict[str, Any]) -> str:
    lines = "\n".join(escape(line) for line in numbers["reproduce"])
    body = f'<pre tabindex="0">{lines}</pre>' if lines else ""
    return (f'{heading("How to check and to reproduce")}{body}<p>The same numbers as JSON: '
            '<a href="report.json">report.json</a>.</p>')
