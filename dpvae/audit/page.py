"""The audit as one page that a privacy officer reads from top to bottom: the verdict, the claim with what was proved
under it, each test as a sentence with its light, the attacks, the proof of power, and what was left out.

    Path("audit.html").write_text(render(json.loads(Path("audit.json").read_text())))
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dpvae.report import charts
from dpvae.report.meaning import decimals
from dpvae.report.page import details, document, facts, figure, heading, light, table

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
    "M2": "less noise on counts or choices than was booked, empty cells without noise, tables that share theirs",
    "A2": "a table that gives its members away",
}


def render(numbers: Mapping[str, Any]) -> str:
    """One self-contained page for the numbers of :func:`dpvae.audit.run.audit_run`."""
    return document(f"{numbers['run']}: audit", numbers["sentence"], [
        ("claim", "Claim", _claim(numbers)), ("tests", "Tests", _tests(numbers)),
        ("attacks", "Attacks", _attacks(numbers)), ("power", "Power", _power(numbers)),
        ("limits", "Limits", _limits(numbers))], mood="ok" if numbers["passed"] else "bad")


def _claim(numbers: Mapping[str, Any]) -> str:
    claim, found = numbers["claim"], numbers["bounds"]
    upper = decimals(claim["upper"], up=True) if claim["upper"] is not None else "not priced"
    lower = decimals(claim["lower"], up=False) if claim["lower"] is not None else "-"
    named = facts([("epsilon, claimed", f"at most {upper}"), ("interval", f"{lower} to {upper}"),
                   ("delta", f"{claim['delta']:.3g}"), ("trainer", str(claim["trainer"])),
                   ("false alarms", f"1 in {1 / numbers['alpha']:,.0f} audits")])
    chart = ""
    if found:
        chart = figure(
            charts.bounds([(b["method"], b["epsilon"]) for b in found], max(b["claim"] for b in found)),
            "What planted records prove about the DP-SGD steps of the twin, from below (95 %), and what the accountant "
            "claims for the same steps. A bar past the line would be a broken promise; a short bar is a weak attack, "
            "not a better guarantee.",
            table(("method", "proved", "claimed", "canaries", "holds for"), [
                (b["method"], f"{b['epsilon']:.4f}", f"{b['claim']:.4f}", b["canaries"], b["note"]) for b in found],
                label="Bounds"))
    return heading("The claim") + named + chart


def _tests(numbers: Mapping[str, Any]) -> str:
    items = "".join(_test(test) for test in numbers["tests"])
    return f'{heading("What was asked")}<ul class="tests">{items}</ul>'


def _test(test: Mapping[str, Any]) -> str:
    asked = f"{test['asked']} questions"
    if test["of"]:
        asked += f"; the smallest of {test['of']} p-values is {test['smallest_p']:.2g}"
    failed = "".join(f'<br><span class="bad">{escape(text)}</span>' for text in test["failed"][:6])
    caught = "".join(f"<li>{escape(text)}</li>" for text in test["catches"])
    power = details(f"caught here in the self-test ({len(test['catches'])})", f"<ul>{caught}</ul>") if caught else ""
    mark = light(test["passed"], "holds" if test["passed"] else "does not hold")
    return (f'<li>{mark}<b>{escape(test["says"])}.</b> '
            f'<span class="asked">{test["test"]}, {asked}.</span>{failed}<br><span class="asked">Would have caught: '
            f'{escape(POWER[test["test"]])}.</span>{power}</li>')


def _attacks(numbers: Mapping[str, Any]) -> str:
    found = numbers["attacks"]
    if not found:
        return ""
    risks = table(("attack", "members", "control", "risk", ""), [
        (r["attack"], _rate(r["members"]), _rate(r["control"]), _rate(r["risk"]), r["says"]) for r in found["risks"]],
        label="Attacks")
    members = table(("membership by", "area under the curve", "found, 10 % accused", "epsilon proved"), [
        (m["attack"], f"{m['auc']['value']:.3f} ({m['auc']['low']:.3f} to {m['auc']['high']:.3f})", _rate(m["found"]),
         f"{m['epsilon']:.3f}") for m in found["membership"]], label="Membership")
    near = found["closest"]
    return (
        f"{heading('Attacks on a released table')}<p>On the table of a twin: members against a control group that the "
        "twin never saw. The risk is what works on members beyond what works on everybody.</p>"
        f"{risks}{members}"
        f"<p>Planted outliers found by the strongest attack ({escape(found['strongest'])}): {_rate(found['canaries'])}."
        f" Distance to the closest released row: {near[0]:.3f} for members, {near[1]:.3f} for the control group; "
        f"{escape(found['warning'])}.</p>")


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _power(numbers: Mapping[str, Any]) -> str:
    test = numbers["self_test"]
    if not test["tried"]:
        return (f'{heading("Power")}<p>{light(None, "open")}Not proved in this audit. '
                "<code>dpvae audit self_test=true</code> does.</p>")
    mark = light(not test["missed"], "some missed" if test["missed"] else "all caught")
    lines = "\n".join(escape(line) for line in test["lines"])
    missed = f" Missed: {escape(', '.join(test['missed']))}." if test["missed"] else ""
    return (f'{heading("Power")}<p>{mark}Before it judged this run, the audit was tried on '
            f"{test['tried']} programs that were broken on purpose. It caught {test['caught']}.{missed}</p>"
            + details("Each of them, and the test that caught it", f'<pre tabindex="0">{lines}</pre>'))


def _limits(numbers: Mapping[str, Any]) -> str:
    out = "".join(f"<li>{escape(text)}</li>" for text in numbers["left_out"])
    left = f"<p>Left out this time:</p><ul>{out}</ul>" if out else ""
    return (f"{heading('What this cannot show')}<p>Tests on twins show what the program does, not that this very "
            "release was made by it: that is what the signature is for. Timing, memory and faults of the machine "
            f"are not looked at. A p-value that is not small proves nothing by itself.</p>{left}"
            f"<p>{numbers['cpu_seconds']:.0f} seconds of one core. "
            'The same numbers: <a href="audit.json">audit.json</a>.</p>')
