"""On PostgreSQL the ledger keeps every promise that it keeps on SQLite, also when its server dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from servers import Cluster

from dpvae.errors import BudgetError, LedgerError
from dpvae.privacy import chain
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ask, Ledger

HALF = (Gaussian("anchor", "counts", 7.0),)  # about 0.5 at delta 1e-5


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.new_database()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement)


def test_a_url_alone_makes_a_ledger_that_caps_resumes_commits_and_aborts(url: str) -> None:
    ledger = Ledger.open(url)
    ledger.cap("adult", 0.7, 1e-5)
    booked = ledger.reserve("adult", "one", HALF, delta=1e-5, noise="tag")
    assert Ledger.open(url).reserve("adult", "one", HALF, delta=1e-5, noise="tag") == booked
    with pytest.raises(BudgetError, match=r"cap 0\.7"):
        ledger.reserve("adult", "two", HALF, delta=1e-5)
    ledger.commit(booked)
    ledger.abort(ledger.reserve("bank", "three", HALF, delta=1e-5), "the table could not be read")
    assert ledger.events("adult") == list(HALF)
    assert ledger.events("bank") == []
    assert ledger.spent("adult", 1e-5).upper == price(HALF, delta=1e-5).upper
    assert ledger.check() == 5


@pytest.mark.parametrize(("statement", "row"), [
    ("UPDATE entries SET payload = replace(payload, '7.0', '70.0') WHERE seq = 2", 2),
    ("UPDATE entries SET seq = 9 WHERE seq = 3", 3),
    ("DELETE FROM entries WHERE seq = 1", 1),
])
def test_any_edit_of_the_book_is_found_at_its_row(url: str, statement: str, row: int) -> None:
    ledger = Ledger.open(url)
    ledger.cap("adult", 5.0, 1e-5)
    ledger.commit(ledger.reserve("adult", "one", HALF, delta=1e-5))
    execute(url, statement)
    for use in (ledger.check, lambda: ledger.reserve("adult", "two", HALF, delta=1e-5)):
        with pytest.raises(LedgerError, match=f"row {row} does not continue the chain"):
            use()


def test_many_who_open_a_new_data_base_at_once_make_one_book(url: str) -> None:
    ledgers: list[Ledger] = []
    threads = [threading.Thread(target=lambda: ledgers.append(Ledger.open(url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ledgers) == 8
    assert {ledger.check() for ledger in ledgers} == {0}


SPENDER = """
import sys
from dpvae.errors import BudgetError
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
for i in range(3):
    try:
        ledger.reserve("adult", f"{sys.argv[2]}-{i}", [Gaussian("anchor", "counts", 7.0)], delta=1e-5)
        print("booked", flush=True)
    except BudgetError:
        print("refused", flush=True)
"""


def test_processes_that_race_for_one_budget_cannot_overspend_it(url: str) -> None:
    ledger, allowed = Ledger.open(url), 0
    ledger.cap("adult", 0.8, 1e-5)
    while price(HALF * (allowed + 1), delta=1e-5).upper <= 0.8:
        allowed += 1
    racers = [subprocess.Popen([sys.executable, "-c", SPENDER, url, str(k)], stdout=subprocess.PIPE, text=True)
              for k in range(2)]
    words = [word for racer in racers for word in racer.communicate(timeout=120)[0].split()]
    assert len(words) == 6
    assert words.count("booked") == len(ledger.events("adult")) == allowed
    assert ledger.spent("adult", 1e-5).upper <= 0.8


def test_a_server_that_dies_and_comes_back_costs_time_and_nothing_else(cluster: Cluster, url: str) -> None:
    ledger = Ledger.open(url)
    first = ledger.reserve("adult", "one", HALF, delta=1e-5, noise="tag")
    cluster.script("crash")
    revival = threading.Timer(1.0, lambda: cluster.script("again"))
    revival.start()
    try:
        ledger.commit(first)  # waits until the server is back
        assert ledger.reserve("adult", "one", HALF, delta=1e-5, noise="tag") == first
    finally:
        revival.join()
    assert [row.kind for row in ledger.rows()] == ["reserve", "commit"]


def test_a_server_that_stays_away_is_one_line_that_does_not_claim_to_know(
    cluster: Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "RETURN_SECONDS", 1.0)
    ledger = Ledger.open(url)
    cluster.script("crash")
    start = time.monotonic()
    try:
        with pytest.raises(LedgerError, match="whether it was booked is not known; give the same") as error:
            ledger.reserve("adult", "one", HALF, delta=1e-5)
        assert "\n" not in str(error.value)
        assert time.monotonic() - start < 30
    finally:
        cluster.script("again")
    assert ledger.check() == 0


def test_a_client_that_dies_holding_the_lock_holds_up_nobody(url: str) -> None:
    Ledger.open(url)
    code = ("import os, sys; from dpvae.privacy.chain import Chain; "
            "Chain(sys.argv[1]).transact(lambda c: (print('held', flush=True), os.kill(os.getpid(), 9)))")
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60)
    assert done.stdout == "held\n"
    start = time.monotonic()
    Ledger.open(url).reserve("adult", "one", HALF, delta=1e-5)
    assert time.monotonic() - start < 20


def test_a_sweep_is_booked_whole_or_not_at_all(url: str) -> None:
    ledger = Ledger.open(url)
    ledger.cap("adult", 0.6, 1e-5)
    asks = [Ask("adult", name, HALF, 1e-5) for name in ("one", "two", "three")]
    with pytest.raises(BudgetError, match="asked by a sweep of 3 runs"):
        ledger.reserve_all(asks)
    assert ledger.check() == 1


def test_a_server_that_is_not_there_is_told_at_once_and_no_password_is_printed(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(LedgerError, match=r"cannot be used.*check ledger\.url") as error:
        Ledger.open("postgresql://somebody:secret@127.0.0.1:1/nothing")
    assert time.monotonic() - start < 10
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
