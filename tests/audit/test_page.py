"""The page of an audit: the verdict first, a light and a sentence for each test, attacks, and the proof of power."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from dpvae.audit.page import render
from dpvae.audit.verdict import TESTS

RATE = {"value": 0.1, "low": 0.05, "high": 0.2}


def numbers(*, passed: bool = True, tried: int = 30, missed: tuple[str, ...] = ()) -> dict[str, Any]:
    """What :func:`dpvae.audit.run.audit_run` writes, with invented figures."""
    tests = [{"test": name, "says": says, "passed": passed or name != "T2", "asked": 9, "of": 3, "smallest_p": 0.04,
              "failed": [] if passed or name != "T2" else ["noise <halved>"], "catches": ["clips the batch"]}
             for name, says in TESTS.items()]
    attack = {"attack": "singling out", "members": RATE, "control": RATE, "risk": RATE, "says": "no better than chance"}
    member = {"attack": "distance", "auc": {"value": 0.5, "low": 0.4, "high": 0.6}, "found": RATE, "epsilon": 0.1}
    return {
        "run": "first", "passed": passed, "alpha": 1e-3, "sentence": "Nothing contradicts the claim." if passed else
        "The claim must not be relied on.", "claim": {"upper": 0.999, "lower": 0.99, "delta": 1e-5,
                                                      "trainer": "anchored"},
        "bounds": [{"method": "f-dp", "epsilon": 0.2, "claim": 0.5, "canaries": 160, "note": "any"}], "tests": tests,
        "attacks": {"risks": [attack], "membership": [member], "strongest": "distance", "canaries": RATE,
                    "closest": [0.1, 0.12], "warning": "no measure of privacy"},
        "self_test": {"tried": tried, "caught": tried - len(missed), "missed": list(missed),
                      "lines": ["a <mutant>: T1"]},
        "left_out": ["T5: stopping"], "cpu_seconds": 17.5}


def test_a_verdict_that_holds_is_green_and_names_every_test_with_what_it_would_have_caught() -> None:
    text = render(numbers())
    assert '<p class="claim ok">Nothing contradicts the claim.</p>' in text
    assert text.count('aria-label="holds"') == len(TESTS)
    assert text.count("Would have caught:") == len(TESTS)
    assert "It caught 30." in text
    assert "a &lt;mutant&gt;: T1" in text
    assert "10.0% (5.0% to 20.0%)" in text


def test_a_verdict_that_does_not_hold_is_red_and_shows_what_failed() -> None:
    text = render(numbers(passed=False))
    assert '<p class="claim bad">The claim must not be relied on.</p>' in text
    assert text.count('aria-label="does not hold"') == 1
    assert "noise &lt;halved&gt;" in text


def test_a_missed_program_is_named_and_an_audit_without_a_self_test_says_so() -> None:
    assert "Missed: noise_twice." in render(numbers(missed=("noise_twice",)))
    assert "Not proved in this audit." in render(numbers(tried=0))


@pytest.mark.parametrize("given", [numbers(), numbers(passed=False), numbers() | {"attacks": None, "bounds": []}])
def test_the_page_is_well_formed_and_every_link_leads_somewhere(given: dict[str, Any]) -> None:
    open_, ids, links = [], set(), []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            held = dict(attrs)
            ids.add(held.get("id"))
            links.append(held.get("href") or "#claim")
            if tag not in ("meta", "link", "br"):
                open_.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_.pop() == tag

    Page().feed(render(given))
    assert open_ == []
    assert {link for link in links if not link.startswith("#")} == {"data:,", "audit.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
