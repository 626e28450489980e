"""The ledger never forgets, never counts twice, never lets two spenders past one cap, and notices every edit."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dpvae.errors import AccountingError, BudgetError, ConfigError, LedgerError
from dpvae.privacy.accountant import price
from dpvae.privacy.chain import GENESIS
from dpvae.privacy.events import Event, Gaussian, SampledGaussian, Threshold
from dpvae.privacy.ledger import Ledger, Reservation

EVENTS: list[Event] = [Gaussian("anchor", "counts", 8.0), SampledGaussian("dpsgd", "gradients", 4.0, 0.05, 20)]
HALF = [Gaussian("anchor", "counts", 7.0)]  # about 0.5 at delta 1e-5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger.open(path)


def edit(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def test_a_reservation_counts_from_the_moment_it_is_booked(ledger: Ledger, path: Path) -> None:
    ledger.reserve("adult", "one", EVENTS, delta=1e-5)
    again = Ledger.open(path)  # the process died before any commit
    assert again.events("adult") == EVENTS
    assert again.spent("adult", 1e-5).upper == price(EVENTS, delta=1e-5).upper
    assert again.spent("bank", 1e-5).upper == 0


def test_a_resumed_run_gets_its_reservation_back_and_is_never_counted_twice(ledger: Ledger) -> None:
    first = ledger.reserve("adult", "one", EVENTS, delta=1e-5, noise="tag")
    assert ledger.reserve("adult", "one", EVENTS, delta=1e-5, noise="tag") == first
    ledger.commit(first)
    assert ledger.reserve("adult", "one", EVENTS, delta=1e-5, noise="tag") == first
    assert ledger.events("adult") == EVENTS
    assert [row.kind for row in ledger.rows("one")] == ["reserve", "commit"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"events": HALF}, "different events"), ({"events": EVENTS[::-1]}, "different events"),
     ({"noise": "fresh"}, "different noise"), ({"neighbouring": "replace_one"}, "different neighbouring"),
     ({"delta": 1e-6}, "different delta")],
)
def test_a_known_run_with_another_plan_or_fresh_noise_is_a_new_spend(
    ledger: Ledger, change: dict[str, object], message: str
) -> None:
    """Training again under an old name draws new noise: taking that for a resume would hide half of the spend."""
    asked: dict[str, object] = {"events": EVENTS, "noise": "tag", "neighbouring": "add_remove", "delta": 1e-5}
    ledger.commit(ledger.reserve("adult", "one", **asked))  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match=f"{message}.*new run.name"):
        ledger.reserve("adult", "one", **{**asked, **change})  # type: ignore[arg-type]
    assert ledger.events("adult") == EVENTS


def test_runs_of_one_name_on_two_data_sets_are_two_spends(ledger: Ledger) -> None:
    assert ledger.reserve("adult", "one", HALF, delta=1e-5) != ledger.reserve("bank", "one", HALF, delta=1e-5)
    assert ledger.events("adult") == ledger.events("bank") == HALF


def test_spending_over_the_cap_is_refused_with_all_four_numbers_and_books_nothing(ledger: Ledger) -> None:
    ledger.cap("adult", 0.7, 1e-5)
    ledger.reserve("adult", "one", HALF, delta=1e-5)
    with pytest.raises(BudgetError) as error:
        ledger.reserve("adult", "two", HALF, delta=1e-5)
    message = str(error.value)
    spent = price(HALF, delta=1e-5).upper
    for number in (f"epsilon={spent:.4g} asked", f"at most {0.7 - spent:.4g}", f"spent {spent:.4g}", "cap 0.7"):
        assert number in message
    assert "\n" not in message
    assert ledger.events("adult") == HALF
    ledger.reserve("bank", "two", HALF, delta=1e-5)  # another data set has no cap


def test_composition_under_the_cap_is_tighter_than_adding_epsilons(ledger: Ledger) -> None:
    """MOSTLY AI and SmartNoise add epsilons up; the ledger prices all events together."""
    ledger.cap("adult", 0.8, 1e-5)
    for run in ("one", "two"):
        ledger.reserve("adult", run, HALF, delta=1e-5)
    assert 2 * price(HALF, delta=1e-5).upper > 0.8 > ledger.spent("adult", 1e-5).upper


def test_a_cap_is_exact_and_its_delta_counts(ledger: Ledger) -> None:
    cost = price(HALF, delta=1e-5).upper
    ledger.cap("exact", cost, 1e-5)
    ledger.reserve("exact", "one", HALF, delta=1e-5)
    ledger.cap("below", cost * 0.9999, 1e-5)
    with pytest.raises(BudgetError):
        ledger.reserve("below", "one", HALF, delta=1e-5)
    ledger.cap("delta", 50.0, 1e-6)
    with pytest.raises(BudgetError, match="no delta left"):
        ledger.reserve("delta", "one", [Threshold("survey", "values", 20.0, 2e-6)], delta=1e-5)


def test_thresholds_that_used_up_delta_leave_no_bound_and_no_failure(ledger: Ledger) -> None:
    """Each of twenty runs publishes categories for a twentieth of delta: their sum is no error of the last one."""
    for run in range(21):
        ledger.reserve("adult", str(run), [Threshold("survey", "values", 300.0, 5e-7)], delta=1e-5)
    assert ledger.spent("adult", 1e-5).upper == math.inf
    assert ledger.spent("adult", 2e-5).upper < 1


def test_one_replace_one_run_prices_the_whole_data_set_as_replace_one(ledger: Ledger) -> None:
    ledger.reserve("adult", "one", HALF, delta=1e-5)
    ledger.reserve("adult", "two", HALF, delta=1e-5, neighbouring="replace_one")
    spent = ledger.spent("adult", 1e-5)
    assert spent.neighbouring == "replace_one"
    assert spent.upper == price(HALF * 2, delta=1e-5, neighbouring="replace_one").upper


def test_lowering_a_cap_is_free_and_raising_one_needs_a_reason(ledger: Ledger) -> None:
    ledger.cap("adult", 3.0, 1e-5)
    ledger.cap("adult", 3.0, 1e-5)  # the same again writes nothing
    ledger.cap("adult", 2.0, 1e-5)
    for epsilon, delta, unit in ((2.5, 1e-5, "row"), (2.0, 1e-4, "row"), (2.0, 1e-5, "person")):
        for reason in (None, "", "  "):
            with pytest.raises(BudgetError, match="raising a cap needs a reason"):
                ledger.cap("adult", epsilon, delta, unit, reason)
    ledger.cap("adult", 2.5, 1e-5, reason="approved by the data protection officer")
    assert [row.content["epsilon"] for row in ledger.rows()] == [3.0, 2.0, 2.5]
    assert ledger.spent("adult", 1e-5).unit == "row"


@pytest.mark.parametrize(("first", "second"), [("row", "customer"), ("customer", "text"), ("customer", "user")])
def test_a_data_set_is_counted_by_one_unit(ledger: Ledger, first: str, second: str) -> None:
    ledger.reserve("queries", "one", HALF, delta=1e-5, unit=first)
    with pytest.raises(LedgerError, match=f"counted by {first}.*expected unit={first}"):
        ledger.reserve("queries", "two", HALF, delta=1e-5, unit=second)
    with pytest.raises(LedgerError, match=f"counted by {first}"):
        ledger.cap("queries", 3.0, 1e-5, second)
    assert len(ledger.rows()) == 1
    assert ledger.spent("queries", 1e-5).unit == first


def test_a_cap_for_persons_takes_no_run_that_counts_rows(ledger: Ledger) -> None:
    ledger.cap("orders", 3.0, 1e-5, "customer")
    with pytest.raises(LedgerError, match="counted by customer"):
        ledger.reserve("orders", "one", HALF, delta=1e-5)
    ledger.reserve("orders", "one", HALF, delta=1e-5, unit="customer")
    assert ledger.spent("orders", 1e-5).unit == "customer"


def test_a_record_is_one_unit_whatever_it_is_called(ledger: Ledger) -> None:
    ledger.cap("digits", 3.0, 1e-5)
    ledger.reserve("digits", "one", HALF, delta=1e-5, unit="image")
    ledger.cap("digits", 2.0, 1e-5, "image")
    assert ledger.spent("digits", 1e-5).upper == price(HALF, delta=1e-5).upper


def test_rows_are_known_by_the_name_they_were_booked_under(ledger: Ledger) -> None:
    ledger.reserve("adult", "one", HALF, delta=1e-5, content="digest")
    assert (ledger.known_as("digest"), ledger.known_as("another")) == ("adult", None)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), None, "3"])
def test_a_cap_that_is_no_number_is_refused(ledger: Ledger, bad: object) -> None:
    for arguments in ((bad, 1e-5), (1.0, bad)):
        with pytest.raises(ConfigError):
            ledger.cap("adult", *arguments)  # type: ignore[arg-type]
    assert ledger.check() == 0


def test_an_aborted_reservation_is_given_back_and_its_run_may_start_over(ledger: Ledger) -> None:
    ledger.abort(ledger.reserve("adult", "one", EVENTS, delta=1e-5), "the table could not be read")
    assert ledger.events("adult") == []
    ledger.reserve("adult", "one", HALF, delta=1e-5)
    assert ledger.events("adult") == HALF


def test_a_closed_reservation_stays_as_it_is(ledger: Ledger) -> None:
    booked = ledger.reserve("adult", "one", HALF, delta=1e-5)
    ledger.commit(booked)
    ledger.commit(booked)
    with pytest.raises(LedgerError, match="cannot abort after an earlier commit"):
        ledger.abort(booked, "too late")
    gone = ledger.reserve("adult", "two", HALF, delta=1e-5)
    ledger.abort(gone, "disk full")
    with pytest.raises(LedgerError, match="cannot commit after an earlier abort"):
        ledger.commit(gone)
    for other in (Reservation(99, "adult", "one", ()), Reservation(booked.id, "bank", "one", ()),
                  Reservation(2, "adult", "one", ())):
        with pytest.raises(LedgerError, match="not in ledger"):
            ledger.commit(other)
    assert ledger.check() == 4


def test_what_no_accountant_can_price_is_never_booked(ledger: Ledger) -> None:
    with pytest.raises(AccountingError):
        ledger.reserve("adult", "one", ["Gaussian"], delta=1e-5)  # type: ignore[list-item]
    for arguments in (("", "one"), ("adult", " "), ("adult", "two\nlines")):
        with pytest.raises(ConfigError, match="expected one line"):
            ledger.reserve(*arguments, HALF, delta=1e-5)
    with pytest.raises(ConfigError, match="delta"):
        ledger.reserve("adult", "one", HALF, delta=1.0)
    assert ledger.check() == 0


def booked(ledger: Ledger) -> None:
    ledger.cap("adult", 5.0, 1e-5)
    ledger.commit(ledger.reserve("adult", "one", HALF, delta=1e-5))
    ledger.reserve("adult", "two", EVENTS, delta=1e-5)


EDITS = [
    ("UPDATE entries SET payload = replace(payload, '7.0', '70.0') WHERE seq = 2", 2),
    ("UPDATE entries SET dataset = 'bank' WHERE seq = 2", 2),
    ("UPDATE entries SET run = 'other' WHERE seq = 4", 4),
    ("UPDATE entries SET kind = 'abort' WHERE seq = 3", 3),
    ("UPDATE entries SET time = '1970-01-01T00:00:00+00:00' WHERE seq = 1", 1),
    ("UPDATE entries SET hash = '0' WHERE seq = 4", 4),
    ("UPDATE entries SET previous = '0' WHERE seq = 3", 3),
    ("UPDATE entries SET seq = 9 WHERE seq = 4", 4),
    ("DELETE FROM entries WHERE seq = 1", 1),
    ("DELETE FROM entries WHERE seq = 3", 3),
]


@pytest.mark.parametrize(("statement", "row"), EDITS, ids=[text.split(" WHERE")[0][-30:] for text, _ in EDITS])
def test_any_edit_of_the_book_is_found_at_its_row_and_stops_all_spending(
    ledger: Ledger, path: Path, statement: str, row: int
) -> None:
    booked(ledger)
    assert ledger.check() == 4
    edit(path, statement)
    for use in (ledger.check, ledger.head, lambda: ledger.events("adult"), lambda: ledger.spent("adult", 1e-5),
                lambda: ledger.reserve("adult", "three", HALF, delta=1e-5), lambda: ledger.cap("adult", 1.0, 1e-5)):
        with pytest.raises(LedgerError, match=f"row {row} does not continue the chain"):
            use()


def test_cutting_off_the_last_rows_is_found_by_a_pinned_head(ledger: Ledger, path: Path) -> None:
    assert ledger.head() == GENESIS
    assert ledger.check(GENESIS) == 0
    booked(ledger)
    head = ledger.head()
    assert ledger.check(head) == 4
    edit(path, "DELETE FROM entries WHERE seq = 4")
    assert ledger.check() == 3
    with pytest.raises(LedgerError, match="last rows were cut off"):
        ledger.check(head)


def test_a_ledger_that_cannot_be_used_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a data base at all, but long enough to look like one " * 20)
    (tmp_path / "file").write_text("")
    for url in (tmp_path / "text", tmp_path / "file" / "ledger", "nosuchdriver://x/y", "postgresql+nosuch://x/y", "://"):
        with pytest.raises(LedgerError, match=r"cannot be (opened|used).*check ledger\.url") as error:
            Ledger.open(url)
        assert "\n" not in str(error.value)


def test_the_book_is_flushed_to_the_disk_before_reserve_returns(ledger: Ledger) -> None:
    with ledger._chain._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


SPENDER = """
import os, sys, time
from dpvae.errors import BudgetError
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ledger
event = Gaussian("anchor", "counts", 7.0)
price([event], delta=1e-5)  # imports are paid before the race
print("ready", flush=True)
while not os.path.exists(sys.argv[3]):
    time.sleep(0.001)
ledger = Ledger.open(sys.argv[1])
ledger.cap("adult", 1.2, 1e-5)
for i in range(4):
    try:
        ledger.reserve("adult", f"{sys.argv[2]}-{i}", [event], delta=1e-5)
        print("booked", flush=True)
    except BudgetError:
        print("refused", flush=True)
"""


def test_processes_that_race_for_one_budget_cannot_overspend_it(path: Path) -> None:
    go = path.parent.parent / "go"
    spenders = [subprocess.Popen([sys.executable, "-c", SPENDER, str(path), str(k), str(go)], stdout=subprocess.PIPE,
                                 text=True) for k in range(3)]
    assert [spender.stdout.readline() for spender in spenders if spender.stdout] == ["ready\n"] * 3
    go.touch()
    words = [word for spender in spenders for word in spender.communicate(timeout=120)[0].split()]
    assert [spender.returncode for spender in spenders] == [0, 0, 0]
    assert len(words) == 12
    ledger, allowed = Ledger.open(path), 0
    while price(HALF * (allowed + 1), delta=1e-5).upper <= 1.2:
        allowed += 1
    assert words.count("booked") == len(ledger.events("adult")) == allowed
    assert ledger.spent("adult", 1e-5).upper <= 1.2
    assert [row.kind for row in ledger.rows()].count("cap") == 1


BOOKKEEPER = """
import sys
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
for i in range(100000):
    ledger.reserve("adult", f"{sys.argv[2]}-{i}", [Gaussian("anchor", "counts", 1000.0)], delta=1e-5)
    print(f"{sys.argv[2]}-{i}", flush=True)
"""


def test_a_killed_process_leaves_every_spend_it_was_told_of_in_an_unbroken_chain(path: Path) -> None:
    told: list[str] = []
    for life in range(3):
        with subprocess.Popen([sys.executable, "-c", BOOKKEEPER, str(path), str(life)], stdout=subprocess.PIPE,
                              text=True) as process:
            assert process.stdout is not None
            told += [process.stdout.readline().strip() for _ in range(5)]
            os.kill(process.pid, signal.SIGKILL)
            told += process.stdout.read().split()
    ledger = Ledger.open(path)
    runs = {row.run for row in ledger.rows()}
    assert len(told) >= 15
    assert set(told) <= runs
    assert ledger.check() == len(runs)


FULL = """
import json, resource, signal, sys
from dpvae.errors import LedgerError
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
told = 0
try:
    for i in range(1000):
        ledger.reserve("adult", str(i), [Gaussian("anchor", "x" * 900, 1000.0)], delta=1e-5)
        told += 1
except LedgerError as error:
    print(json.dumps([told, str(error)]))
"""


def test_a_full_disk_is_an_error_that_books_nothing_and_breaks_nothing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    told, message = json.loads(done.stdout)
    assert 0 < told < 1000
    assert "nothing was booked" in message
    assert "\n" not in message
    assert Ledger.open(path).check() == told
