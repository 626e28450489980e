"""The report as one HTML page, ordered for three readers: what is guaranteed, what that means and whether it is true;
how well it works; what it does not cover and how to check it. Behind each chart stands the table of its numbers.

    page = render(gather(source, check, subject="This run"))

What a kind of data adds has a place of its own: ``gallery`` (a list of ``{title, caption, png, alt}``, each ``png`` a
data URI) and ``texts`` (a list of texts) are shown where they are; marginals, pairs, map and rows where there are any.
"""

from __future__ import annotations

from html import escape
from typing import Any

from dpvae.config import RECORDS
from dpvae.report import charts, meaning, results
from dpvae.report.page import details, document, facts, figure, heading, light, table

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
        ("audit", "Audit", _audit(numbers)), ("training", "Training", results.training(numbers)),
        ("marginals", "Marginals", results.marginals(numbers)), ("pairs", "Pairs", results.pairs(numbers)),
        ("rows", "Samples", results.samples(numbers)), ("limits", "Limits", _limits(numbers)),
        ("check", "Check", _check(numbers))], mood="" if numbers["private"] else "bad")


# -- what is guaranteed ----------------------------------------------------------------------------------------------


def _guarantee(numbers: dict[str, Any]) -> str:
    claim, prices = numbers["claim"], numbers["accountants"]
    relation = meaning.RELATIONS.get(claim["neighbouring"], claim["neighbouring"])
    named = facts([
        ("epsilon, at most", upper := meaning.decimals(claim["upper"], up=True)),
        ("interval", f'{meaning.decimals(claim["lower"], up=False)} to {upper}'),
        ("delta", f'{claim["delta"]:.3g}'), ("unit", f'one {claim["unit"]}, {relation}'),
        (f'{claim["unit"]}s' if claim["unit"] in RECORDS.values() else "units",
         f'{claim["rows"]:,.0f} ({claim["rows_source"]})'),
        *([("rows that take part", claim["where"])] if "where" in claim else []),
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
    odds = table((f"an attacker who knows all but one {claim['unit']}", "reaches at most"), rows, label="Odds")
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
        command = next((line for line in numbers["reproduce"] if line.startswith("dpvae audit")), "dpvae audit run=...")
        return heading("What an audit found") + (
            f'<p>{light(None, "open")}This run has not been audited. <code>{escape(command)}</code> trains twins of '
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


# -- what is left out ------------------------------------------------------------------------------------------------


def _limits(numbers: dict[str, Any]) -> str:
    items = "".join(f'<li><b>{escape(gap["topic"])}.</b> {escape(gap["statement"])}</li>'
                    for gap in numbers["not_covered"])
    return f'{heading("What is not covered")}<ul>{items}</ul>'


def _check(numbers: dict[str, Any]) -> str:
    lines = "\n".join(escape(line) for line in numbers["reproduce"])
    body = f'<pre tabindex="0">{lines}</pre>' if lines else ""
    return (f'{heading("How to check and to reproduce")}{body}<p>The same numbers as JSON: '
            '<a href="report.json">report.json</a>.</p>')
