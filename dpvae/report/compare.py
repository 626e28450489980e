"""Two runs, two releases, or one of each, side by side: what each promises, what it cost, how well it works.

    compare(CompareConfig(a="first", b="release/orders", to="compare.html"))

Only published numbers are read (``report.json``), so a comparison costs nothing. Where both are about one data set, it
says what they cost together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dpvae.config import CompareConfig
from dpvae.errors import ConfigError, ReleaseError, RunError
from dpvae.files import write_bytes
from dpvae.privacy.accountant import price
from dpvae.privacy.events import from_dict
from dpvae.report import charts, meaning, records
from dpvae.report.page import document, figure, heading, light, table
from dpvae.report.results import parts
from dpvae.report.run import numbers_of
from dpvae.train.run import find_run

Numbers = Mapping[str, Any]
NOTHING = "-"


@dataclass(frozen=True)
class Comparison:
    """Named rows of two columns, and the sentences that follow from them."""

    names: tuple[str, str]
    rows: tuple[tuple[str, str, str], ...]
    says: tuple[str, ...]
    page: Path | None = None

    def __str__(self) -> str:
        wide = max(len(name) for name, _, _ in self.rows) + 2
        column = max(len(text) for row in (("", *self.names), *self.rows) for text in row[1:]) + 2
        lines = [f"{'':{wide}}{self.names[0]:{column}}{self.names[1]}"]
        lines += [f"{name:{wide}}{a:{column}}{b}" for name, a, b in self.rows]
        return "\n".join([*lines, "", *self.says, *([f"  page     {self.page}"] if self.page else [])])

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {"a": self.names[0], "b": self.names[1], "rows": {name: [a, b] for name, a, b in self.rows},
                "says": list(self.says), "page": str(self.page) if self.page else None}


def compare(config: CompareConfig) -> Any:
    """``dpvae compare A B``; writes a page where ``to`` names one."""
    for name in ("a", "b"):
        if not getattr(config, name):
            raise ConfigError(f"{name}: expected two runs or release folders; say dpvae compare first second")
    to = Path(config.to) if config.to is not None else None
    if to is not None and to.exists():
        raise ConfigError(f"to={to}: is there already; choose another name")
    a, b = _numbers(config.a, config.root), _numbers(config.b, config.root)
    rows = [(label, ask(a), ask(b)) for label, ask in (*ROWS[:SPENT], *_phases(a, b), *ROWS[SPENT:])]
    known = tuple(row for row in rows if row[1:] != (NOTHING, NOTHING))
    found = Comparison(_names(a, b, config), known, _says(a, b), to)
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(to, render(found, a, b).encode())
    if config.format == "json":
        return records.canonical(found.to_dict()).decode()
    return found


def _numbers(name: str, root: str) -> dict[str, Any]:
    """What the page of a release says, or what that of a run would."""
    folder = Path(name)
    if not (folder / "certificate.json").is_file():
        try:
            return numbers_of(find_run(name, root).path)
        except RunError as error:
            if folder.is_dir():
                raise RunError(f"{name}: neither a finished run nor a release folder") from None
            raise error from None
    found = records.parse_file(folder / "report.json", f"{name}/report.json")
    if not isinstance(found, dict) or found.get("format") != "dpvae-report/1":
        raise ReleaseError(f"{name}/report.json: expected what dpvae release wrote")
    return found


def _names(a: Numbers, b: Numbers, config: CompareConfig) -> tuple[str, str]:
    first, second = (each["title"].removesuffix(" report") for each in (a, b))
    return (first, second) if first != second else (config.a, config.b)


# -- the rows --------------------------------------------------------------------------------------------------------


def _elbo(n: Numbers) -> str:
    if not n["metrics"]:
        return NOTHING
    last = n["metrics"][-1]
    return f"{last['noisy_elbo']:.2f} ± {2 * last['sd']:.2f} {last['unit']}"


def _found(n: Numbers, key: str, form: str) -> str:
    return form.format(n["diagnostics"][key]) if n.get("diagnostics") else NOTHING


def _distance(n: Numbers) -> str:
    known = [(m["distance"], m["distance_of_noise_alone"]) for m in n["marginals"] if m["distance"] is not None]
    if not known:
        return NOTHING
    return f"{sum(d for d, _ in known) / len(known):.4f} (noise alone {sum(d for _, d in known) / len(known):.4f})"


def _worst_pair(n: Numbers) -> str:
    if not n.get("pairs"):
        return NOTHING
    worst = n["pairs"]["worst"][0]
    return f"{worst['distance']:.3f} {worst['columns'][0]} by {worst['columns'][1]}"


def _audit(n: Numbers) -> str:
    found = n.get("audit")
    if not found:
        return "not audited"
    kind = "quick audit" if found["quick"] else "audit"
    return f"{kind} {'holds' if found['passed'] else 'FAILED'}, {sum(t['asked'] for t in found['tests'])} questions"


def _bound(n: Numbers) -> str:
    bounds = (n.get("audit") or {}).get("bounds")
    if not bounds:
        return NOTHING
    best = max(bounds, key=lambda bound: bound["epsilon"])
    return f"{best['epsilon']:.3f} of {best['claim']:.3f} ({best['method']})"


def _dataset(n: Numbers) -> str:
    return n["cumulative"]["dataset"] if n.get("cumulative") else NOTHING


ROWS: tuple[tuple[str, Callable[[Numbers], str]], ...] = (
    ("private", lambda n: "yes" if n["private"] else "NOT PRIVATE"),
    ("epsilon, at most", lambda n: meaning.decimals(n["claim"]["upper"], up=True)),
    ("interval", lambda n: f"{meaning.decimals(n['claim']['lower'], up=False)} to "
                           f"{meaning.decimals(n['claim']['upper'], up=True)}"),
    ("delta", lambda n: f"{n['claim']['delta']:.3g}"),
    ("unit", lambda n: f"{n['claim']['unit']}, {n['claim']['neighbouring']}"),
    ("rows trained on", lambda n: f"{n['claim']['rows']:,.0f} ({n['claim']['rows_source']})"),
    ("rows released", lambda n: f"{n['rows_released']:,}" if n["rows_released"] else NOTHING),
    ("data set", _dataset),
    ("right guesses at most", lambda n: meaning.percent(n["risk"]["right_guesses_at_even_odds"], 1)),
    ("audit", _audit),
    ("proved by the audit", _bound),
    ("noisy ELBO at the end", _elbo),
    ("with independent parts", lambda n: _found(n, "independent_elbo", "{:.2f}")),
    ("rate", lambda n: _found(n, "rate", "{:.2f}")),
    ("latent units in use", lambda n: f"{_found(n, 'active_units', '{:.0f}')} of {_found(n, 'latent_dim', '{:.0f}')}"
     if n.get("diagnostics") else NOTHING),
    ("distance of a column", _distance),
    ("worst pair", _worst_pair),
)


SPENT = [label for label, _ in ROWS].index("right guesses at most")  # where the phases are told


def _phases(*both: Numbers) -> list[tuple[str, Callable[[Numbers], str]]]:
    """One row for each phase that either went through, in the order spent."""
    def added(phase: str) -> Callable[[Numbers], str]:
        return lambda n: next((f"{p['added']:.3f}" for p in n["phases"] if p["phase"] == phase), NOTHING)

    return [(f"spent: {phase}", added(phase)) for phase in dict.fromkeys(p["phase"] for n in both for p in n["phases"])]


# -- what follows ----------------------------------------------------------------------------------------------------


def _says(a: Numbers, b: Numbers) -> tuple[str, ...]:
    if _one_run(a, b):
        return (_promise(a, b) or "They are of one run: what it spent was spent once.",)
    found = [_promise(a, b), _better(a, b), _together(a, b)]
    return tuple(text for text in found if text)


def _one_run(a: Numbers, b: Numbers) -> bool:
    """A run and its release, or two releases of one run: told by the noise, which no second run draws again."""
    def drawn(n: Numbers) -> Any:
        return n["accesses"], n["metrics"], [item["noisy"] for item in n["marginals"]]

    return bool(drawn(a) == drawn(b))


def _promise(a: Numbers, b: Numbers) -> str:
    if not (a["private"] and b["private"]):
        return "One of them promises nothing: it is NOT PRIVATE."
    if any(a["claim"][key] != b["claim"][key] for key in ("unit", "neighbouring")):
        return "Their units differ, so their epsilons cannot be compared."
    if a["claim"]["delta"] != b["claim"]["delta"]:
        return "Their deltas differ: compare the odds, not the epsilons."
    return ""


def _better(a: Numbers, b: Numbers) -> str:
    """Whether the noisy ELBOs differ by more than their noise; they are comparable on one data set only."""
    if not (a["metrics"] and b["metrics"]) or _dataset(a) != _dataset(b) or _dataset(a) == NOTHING:
        return ""
    last = [n["metrics"][-1] for n in (a, b)]
    gap, noise = last[1]["noisy_elbo"] - last[0]["noisy_elbo"], 2 * (last[0]["sd"] ** 2 + last[1]["sd"] ** 2) ** 0.5
    if abs(gap) <= noise:
        return f"Their noisy ELBOs differ by {abs(gap):.2f}, which noise alone explains (± {noise:.2f})."
    which = "second" if gap > 0 else "first"
    return f"The {which} describes the rows better by {abs(gap):.2f} ± {noise:.2f} {last[0]['unit']}."


def _together(a: Numbers, b: Numbers) -> str:
    same = _dataset(a) == _dataset(b) != NOTHING
    if not same or not (a["private"] and b["private"]) or a["claim"]["neighbouring"] != b["claim"]["neighbouring"]:
        return ""
    delta = max(a["claim"]["delta"], b["claim"]["delta"])
    events = tuple(from_dict(event) for each in (a, b) for event in each["accesses"])
    both = price(events, delta=delta, neighbouring=a["claim"]["neighbouring"]).upper
    return (f"Both are about the data set {_dataset(a)}: together they cost epsilon <= "
            f"{meaning.decimals(both, up=True)} at delta {delta:.3g}.")


# -- the page --------------------------------------------------------------------------------------------------------


def render(found: Comparison, a: Numbers, b: Numbers) -> str:
    """The comparison as one self-contained page."""
    claim = " ".join(found.says) or f"{found.names[0]} beside {found.names[1]}."
    named = table(("", *found.names), found.rows, right=False, label="Comparison")
    return document(f"{found.names[0]} and {found.names[1]}", claim, [
        ("numbers", "Numbers", heading("In numbers") + named),
        ("budget", "Budget", heading("What each cost") + _two(found, a, b, _budget)),
        ("meaning", "Meaning", heading("What an attacker can reach") + _two(found, a, b, _curve)),
        ("training", "Training", heading("How each trained") + _two(found, a, b, _trained)
         if a["metrics"] or b["metrics"] else "")], mood="" if a["private"] and b["private"] else "bad")


def _two(found: Comparison, a: Numbers, b: Numbers, draw: Callable[[Numbers], str]) -> str:
    sides = "".join(f"<div><h3>{escape(name)}</h3>{_apart(draw(n), ident)}</div>"
                    for n, name, ident in ((a, found.names[0], "a"), (b, found.names[1], "b")))
    return f'<div class="two">{sides}</div>'


def _apart(html: str, ident: str) -> str:
    """Two drawings of one kind on a page need names of their own."""
    for name in ("budget", "tradeoff", "elbo"):
        html = html.replace(f'"{name}-t {name}-d"', f'"{name}-{ident}-t {name}-{ident}-d"').replace(
            f'id="{name}-t"', f'id="{name}-{ident}-t"').replace(f'id="{name}-d"', f'id="{name}-{ident}-d"')
    return html


def _budget(n: Numbers) -> str:
    return figure(charts.budget([(p["phase"], p["added"]) for p in n["phases"]], n["claim"]["target"]),
                  f"Epsilon by phase, of {n['claim']['target']:g}.")


def _curve(n: Numbers) -> str:
    if not n["private"]:
        return f"<p>{light(False, 'no guarantee')}Nothing is guaranteed.</p>"
    return figure(charts.trade_off([(p["false_positive_rate"], p["true_positive_rate"])
                                    for p in n["risk"]["trade_off"]]), "Any attack on membership stays below the line.")


def _trained(n: Numbers) -> str:
    if not n["metrics"]:
        return "<p>No ELBO was released.</p>"
    found = n.get("diagnostics")
    floor = (f"independent {parts(found['unit'])}", found["independent_elbo"]) if found else None
    return figure(charts.series([(f"{m['phase']} {m['step']}", m["noisy_elbo"], m["sd"]) for m in n["metrics"]], "elbo",
                                "Noisy ELBO", n["metrics"][0]["unit"], floor=floor), "Noisy ELBO; higher is better.")
