"""The ledger as people see it: shown, capped, checked, copied; and every damage to a copy is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpvae import cli
from dpvae.config import LedgerConfig, LedgerVerbConfig
from dpvae.errors import BudgetError, ConfigError, LedgerError
from dpvae.privacy.events import Gaussian
from dpvae.privacy.ledger import Ledger, content_tag
from dpvae.privacy.ledger_view import act, export, read_export, show

HALF = (Gaussian("anchor", "counts", 7.0),)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger.cap("census", 3.0, 1e-5)
    ledger.commit(ledger.reserve("census", "one", HALF, delta=1e-5))
    ledger.reserve("census", "two", HALF, delta=1e-5)
    ledger.abort(ledger.reserve("orders", "three", HALF, delta=1e-5), "no table")
    return path


def view(book: Path, **fields: object) -> str:
    return act(LedgerVerbConfig(ledger=LedgerConfig(url=str(book), dataset=fields.pop("dataset", None)), **fields))  # type: ignore[arg-type]


def test_show_tells_cap_spent_and_left_of_every_data_set(book: Path) -> None:
    found = json.loads(view(book, format="json"))
    census, orders = found["datasets"]
    assert (census["cap"], census["committed"], census["reserved"]) == (3.0, 1, 1)
    assert census["left"] == pytest.approx(3.0 - census["spent"])
    assert (orders["cap"], orders["spent"], orders["aborted"]) == (None, 0.0, 1)
    text = view(book)
    assert "census" in text
    assert "orders" not in view(book, dataset="census")
    with pytest.raises(LedgerError, match="nothing is booked"):
        view(book, dataset="nothing")


def test_a_cap_is_set_from_the_command_line_and_raised_only_with_a_reason(
    book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"ledger.url=sqlite:///{book}"
    assert cli.main(["ledger", "cap", "census", "epsilon=2", "delta=1e-5", url]) == 0
    assert cli.main(["ledger", "cap", "census", "epsilon=4", "delta=1e-5", url]) == 2
    assert "needs a reason" in capsys.readouterr().err
    assert cli.main(["ledger", "cap", "census", "epsilon=4", "delta=1e-5", url, "reason=board, 3 May"]) == 0
    assert Ledger.open(book).rows()[-1].content["reason"] == "board, 3 May"
    for bad in (["ledger", "cap", url], ["ledger", "cap", "census", "epsilon=-1", "delta=1e-5", url]):
        assert cli.main(bad) == 2


def test_looking_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for action in ("show", "check", "export"):
        with pytest.raises(LedgerError, match="no ledger there"):
            act(LedgerVerbConfig(action=action, file="x.jsonl" if action == "export" else None))
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_checked_without_the_data_base(book: Path, tmp_path: Path) -> None:
    copy = tmp_path / "book.jsonl"
    assert "exported 6 rows" in view(book, action="export", file=str(copy))
    book.unlink()
    head = Ledger.open(book).head()
    assert "6 rows, all as they were written" in view(book, action="check", file=str(copy))
    with pytest.raises(ConfigError, match="never overwrites"):
        export(Ledger.open(book), copy)
    with pytest.raises(LedgerError, match="were cut off"):
        view(book, action="check", file=str(copy), head="0" * 63 + "1")
    assert len(head) == 64


def test_every_byte_every_row_and_every_end_of_an_export_is_covered(book: Path, tmp_path: Path) -> None:
    copy = tmp_path / "book.jsonl"
    export(Ledger.open(book), copy)
    whole = copy.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = [b"".join(lines[:i] + lines[i + 1:]) for i in range(len(lines))]
    damaged += [b"".join([*lines[:i], lines[i + 1], lines[i], *lines[i + 2:]]) for i in range(len(lines) - 1)]
    damaged += [whole[:cut] for cut in range(0, len(whole), 37)]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1:] for i in range(0, len(whole), 11)]
    for data in damaged:
        copy.write_bytes(data)
        with pytest.raises(LedgerError):
            read_export(copy)
    copy.write_bytes(whole)
    assert len(read_export(copy)) == 6


def test_the_same_rows_under_a_second_name_are_refused(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    tag = content_tag(str(tmp_path / "ledger.db"), b"fingerprint", tmp_path)
    ledger.reserve("census", "one", HALF, delta=1e-5, content=tag)
    with pytest.raises(LedgerError, match=r"booked as 'census' already; say ledger\.dataset=census"):
        ledger.reserve("census2", "two", HALF, delta=1e-5, content=tag)
    ledger.reserve("census", "three", HALF, delta=1e-5, content=content_tag("x://", b"grown", tmp_path))


def test_the_digest_of_rows_is_keyed_and_stays_the_same(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.db")
    first = content_tag(place, b"rows", tmp_path)
    assert first == content_tag(f"sqlite:///{place}", b"rows", tmp_path)
    assert first != content_tag(place, b"other", tmp_path)
    (tmp_path / "ledger.db.key").unlink()
    assert first != content_tag(place, b"rows", tmp_path)  # without the key nobody can confirm a guess
    assert (tmp_path / "ledger.db.key").stat().st_mode & 0o077 == 0


def test_a_broken_book_is_not_shown(book: Path) -> None:
    import sqlite3

    with sqlite3.connect(book) as connection:
        connection.execute("UPDATE entries SET run = 'x' WHERE seq = 3")
    connection.close()
    with pytest.raises(LedgerError, match="row 3"):
        show(Ledger.open(book))


def test_a_cap_over_the_command_line_holds_for_every_later_spend(book: Path) -> None:
    view(book, action="cap", dataset="orders", epsilon=0.1, delta=1e-5)
    with pytest.raises(BudgetError):
        Ledger.open(book).reserve("orders", "four", HALF, delta=1e-5)
