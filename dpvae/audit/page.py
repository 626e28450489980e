"""The audit as one page that a privacy officer reads from top to bottom: the verdict, the claim with what was proved
under it, each test as a sentence with its light, the attacks, the proof of power, and what was left out.

    Path("audit.html").write_text(render(json.loads(Path("audit.json").read_text())))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dpvae.report.canvas import Canvas, number, ticks
from dpvae.report.html import CSS
from dpvae.report.meaning import decimals

STYLE = CSS + """
.light{display:inline-block;width:.85em;height:.85em;border-radius:50%;margin-right:.55em;vertical-align:-.06em}
.good{background:var(--c2)}.poor{background:var(--c5)}.open{background:var(--grid)}
.claim.ok{border-color:var(--c2)}
.tests{list-style:none;padding:0;max-width:none}.tests>li{border-top:1px solid var(--grid);padding:10px 0;margin:0}
.tests b{font-weight:600}.tests .asked{color:var(--muted);font-size:.85rem}.tests .bad{color:var(--c5)}
"""
POWER = {
    "A1": "an epsilon that does not follow from the events, an accountant that under-reports, a known seed",
    "T1": "clipping the batch, not the record; a layer left out of the norm; NaN that slips through; batch statistics",
    "T2": "noise halved, forgotten on a layer or a rank, repeated, from a known seed, of another law",
    "T3": "shuffled epochs, batches of a fixed size, rows dropped or counted twice, a wrong rate",
    "T4": "a leak that anybody could use, whatever its cause",
    "T5": "steps that nobody booked, a ledger written afterwards, a resume that draws again, an uncharged sweep",
    "T6": "an exact row count in the divisor, the rate or the number of steps",
    "T7": "an unknown fault of noise, coins or sum, from the trace that planted records leave",
    "P1": "an encoder trained on raw rows, bounds or categories of the data, a private stop rule, a seed in a log",
    "M1": "counts that hold a person twice, means without a clip, categories of one person",
    "M2": "less noise on counts than was booked, empty cells without noise, tables that share theirs",
    "A2": "a table that gives its members away",
}


def render(numbers: Mapping[str, Any]) -> str:
    """One self-contained page for the numbers of :func:`dpvae.audit.run.audit_run`."""
    title = f"dpvae audit of run {numbers['run']}"
    verdict = "ok" if numbers["passed"] else "bad"
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
            f"<style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
            f'<p class="claim {verdict}">{escape(numbers["sentence"])}</p>'
            f"{_claim(numbers)}{_tests(numbers)}{_attacks(numbers)}{_power(numbers)}{_limits(numbers)}"
            "</main></body></html>\n")


def _claim(numbers: Mapping[str, Any]) -> str:
    claim = numbers["claim"]
    upper = decimals(claim["upper"], up=True) if claim["upper"] is not None else "not priced"
    lower = decimals(claim["lower"], up=False) if claim["lower"] is not None else "-"
    facts = [("epsilon, claimed", f"at most {upper}"), ("interval", f"{lower} to {upper}"),
             ("delta", f"{claim['delta']:.3g}"), ("trainer", str(claim["trainer"])),
             ("false alarms", f"1 in {1 / numbers['alpha']:,.0f} audits")]
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    chart = ""
    if numbers["bounds"]:
        chart = (f"<figure>{_bars(numbers['bounds'])}<figcaption>What planted records prove about the DP-SGD steps of "
                 "the twin, from below (95 %), and what the accountant claims for the same steps. A bar past the line "
                 "would be a broken promise; a short bar is a weak attack, not a better guarantee.</figcaption>"
                 f"{_bound_table(numbers['bounds'])}</figure>")
    return f'<h2>The claim</h2><dl class="facts">{cells}</dl>{chart}'


def _bars(bounds: Sequence[Mapping[str, Any]]) -> str:
    """Lower bounds as bars, the claim as a line."""
    claim = max(b["claim"] for b in bounds)
    top = 1.15 * max([claim, *(b["epsilon"] for b in bounds)])
    left, right, row = 110.0, 510.0, 26.0
    canvas = Canvas(520, 46 + row * len(bounds))
    scale = (right - left) / max(top, 1e-9)
    bottom = 22 + row * len(bounds)
    for tick in ticks(0, top, 5):
        canvas.line(left + tick * scale, 16, left + tick * scale, bottom, "grid")
        canvas.text(left + tick * scale, bottom + 14, number(tick), "m", "middle")
    for i, bound in enumerate(bounds):
        y = 22 + i * row
        style = "c2" if bound["epsilon"] <= bound["claim"] else "c5"
        canvas.text(left - 8, y + 14, bound["method"], "t", "end")
        canvas.rect(left, y + 3, max(bound["epsilon"] * scale, 1.0), row - 10, style)
        canvas.text(left + bound["epsilon"] * scale + 5, y + 14, f"{bound['epsilon']:.2f}", "t")
    canvas.line(left + claim * scale, 8, left + claim * scale, bottom, "whisker")
    canvas.text(left + claim * scale - 4, 10, f"claimed {claim:.2f}", "h", "end")
    return canvas.svg("bounds", "Lower bounds under the claim", "; ".join(
        f"{b['method']}: {b['epsilon']:.2f} of {b['claim']:.2f}" for b in bounds))


def _bound_table(bounds: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(f"<tr><td>{escape(b['method'])}</td><td class=r>{b['epsilon']:.4f}</td><td class=r>{b['claim']:.4f}"
                   f"</td><td class=r>{b['canaries']}</td><td>{escape(b['note'])}</td></tr>" for b in bounds)
    return ("<details><summary>Numbers</summary><div class=wide tabindex=0 role=region aria-label=Bounds><table><thead>"
            "<tr><th>method</th><th class=r>proved</th><th class=r>claimed</th><th class=r>canaries</th>"
            f"<th>holds for</th></tr></thead><tbody>{rows}</tbody></table></div></details>")


def _tests(numbers: Mapping[str, Any]) -> str:
    items = "".join(_test(test) for test in numbers["tests"])
    return f'<h2>What was asked</h2><ul class="tests">{items}</ul>'


def _test(test: Mapping[str, Any]) -> str:
    light, word = ("good", "holds") if test["passed"] else ("poor", "does not hold")
    asked = f"{test['asked']} questions"
    if test["of"]:
        asked += f"; the smallest of {test['of']} p-values is {test['smallest_p']:.2g}"
    failed = "".join(f'<br><span class="bad">{escape(text)}</span>' for text in test["failed"][:6])
    caught = "".join(f"<li>{escape(text)}</li>" for text in test["catches"])
    power = (f"<details><summary>caught here in the self-test ({len(test['catches'])})</summary><ul>{caught}</ul>"
             "</details>" if caught else "")
    return (f'<li><span class="light {light}" role="img" aria-label="{word}"></span><b>{escape(test["says"])}.</b> '
            f'<span class="asked">{test["test"]}, {asked}.</span>{failed}<br><span class="asked">Would have caught: '
            f'{escape(POWER[test["test"]])}.</span>{power}</li>')


def _attacks(numbers: Mapping[str, Any]) -> str:
    found = numbers["attacks"]
    if not found:
        return ""
    risks = "".join(
        f"<tr><td>{escape(r['attack'])}</td><td class=r>{_rate(r['members'])}</td>"
        f"<td class=r>{_rate(r['control'])}</td><td class=r>{_rate(r['risk'])}</td><td>{escape(r['says'])}</td></tr>"
        for r in found["risks"])
    members = "".join(f"<tr><td>{escape(m['attack'])}</td><td class=r>{m['auc']['value']:.3f} "
                      f"({m['auc']['low']:.3f} to {m['auc']['high']:.3f})</td><td class=r>{_rate(m['found'])}</td>"
                      f"<td class=r>{m['epsilon']:.3f}</td></tr>" for m in found["membership"])
    near = found["closest"]
    return (
        "<h2>Attacks on a released table</h2><p>On the table of a twin: members against a control group that the twin "
        "never saw. The risk is what works on members beyond what works on everybody.</p>"
        "<div class=wide tabindex=0 role=region aria-label=Attacks><table><thead><tr><th>attack</th><th class=r>members"
        f"</th><th class=r>control</th><th class=r>risk</th><th></th></tr></thead><tbody>{risks}</tbody></table></div>"
        "<div class=wide tabindex=0 role=region aria-label=Membership><table><thead><tr><th>membership by</th>"
        "<th class=r>area under the curve</th><th class=r>found, 10 % accused</th><th class=r>epsilon proved</th></tr>"
        f"</thead><tbody>{members}</tbody></table></div>"
        f"<p>Planted outliers found by the strongest attack ({escape(found['strongest'])}): {_rate(found['canaries'])}."
        f" Distance to the closest released row: {near[0]:.3f} for members, {near[1]:.3f} for the control group; "
        f"{escape(found['warning'])}.</p>")


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _power(numbers: Mapping[str, Any]) -> str:
    test = numbers["self_test"]
    if not test["tried"]:
        return ('<h2>Power</h2><p><span class="light open"></span>Not proved in this audit. '
                "<code>dpvae audit self_test=true</code> does.</p>")
    light = "poor" if test["missed"] else "good"
    lines = "\n".join(escape(line) for line in test["lines"])
    missed = f" Missed: {escape(', '.join(test['missed']))}." if test["missed"] else ""
    return (f'<h2>Power</h2><p><span class="light {light}"></span>Before it judged this run, the audit was tried on '
            f"{test['tried']} programs that were broken on purpose. It caught {test['caught']}.{missed}</p>"
            f"<details><summary>Each of them, and the test that caught it</summary><pre>{lines}</pre></details>")


def _limits(numbers: Mapping[str, Any]) -> str:
    out = "".join(f"<li>{escape(text)}</li>" for text in numbers["left_out"])
    left = f"<p>Left out this time:</p><ul>{out}</ul>" if out else ""
    return ("<h2>What this cannot show</h2><p>Tests on twins show what the program does, not that this very release "
            "was made by it: that is what the signature is for. Timing, memory and faults of the machine are not "
            f"looked at. A p-value that is not small proves nothing by itself.</p>{left}"
            f"<p>{numbers['cpu_seconds']:.0f} seconds of one core. "
            'The same numbers: <a href="audit.json">audit.json</a>.</p>')
