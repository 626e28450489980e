"""Texts are read from any of five kinds of file; what is wrong with one is said in a line, before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpvae.data import text as module
from dpvae.data.language import Language
from dpvae.data.text import Texts, header, known_labels, limited, read
from dpvae.errors import ConfigError, DataError

ROWS = [("hi \"there", "a"), ("café\u0301 שלום", "b"), ("third", "a")]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"texts.{ending}"
    if ending == "tsv":
        path.write_text("text\tkind\n" + "".join(f"{text}\t{kind}\n" for text, kind in ROWS))
    elif ending == "csv":
        path.write_text("text,kind\n" + "".join('"' + t.replace('"', '""') + f'",{k}\n' for t, k in ROWS))
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "kind": kind}) + "\n" for text, kind in ROWS))
    elif ending == "txt":
        path.write_text("".join(f"{text}\n" for text, _ in ROWS))
    else:
        pq.write_table(pa.table({"text": [r[0] for r in ROWS], "kind": [r[1] for r in ROWS]}), path)
    return path


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
def test_a_file_gives_its_texts_and_labels_whatever_its_kind(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path, ending)
    assert [name for name, _ in header(path)] == ["text", "kind"]
    found = read(path, None, "kind")
    assert list(zip(found.texts, found.labels or (), strict=True)) == ROWS
    assert found.units == 3


def test_a_line_of_a_text_file_is_a_text(tmp_path: Path) -> None:
    assert read(written(tmp_path, "txt"), None).texts == tuple(text for text, _ in ROWS)


def test_of_a_person_only_so_many_texts_take_part_and_they_stand_together() -> None:
    found = read({"text": list("abcdef"), "who": ["x", "y", "x", "x", "z", "y"]}, "text", None, "who", per_unit=2)
    assert found.texts == ("a", "c", "b", "f", "e")
    assert found.owners.tolist() == [0, 0, 1, 1, 2]
    assert found.units == 3


OTHERS = {"text": ["a", "b", "c", "d"], "who": [None, "u", "v", ""], "kind": ["x", "y", "x", "y"]}


def after(texts: list[str], who: str | None) -> tuple[Texts, Texts]:
    """What is read without and with ``texts`` of one person more, who stand first."""
    joined = {"text": texts, "who": [who] * len(texts), "kind": ["x"] * len(texts)}
    both = {name: [*joined[name], *values] for name, values in OTHERS.items()}
    return read(OTHERS, "text", "kind", "who", per_unit=2), read(both, "text", "kind", "who", per_unit=2)


def moved(texts: list[str], who: str | None) -> int:
    """How many units hold other texts than before."""
    held = [{(tuple(t for t, o in zip(found.texts, found.owners.tolist(), strict=True) if o == unit))
             for unit in range(found.units)} for found in after(texts, who)]
    return len(held[0] ^ held[1])


def test_a_text_without_an_id_is_nobodys_and_takes_no_part() -> None:
    for missing in (None, "", "  "):
        before, with_it = after(["new", "newer"], missing)
        assert (before.texts, before.labels, before.nobodys) == (("b", "c"), ("y", "x"), 2)
        assert (with_it.texts, with_it.labels, with_it.nobodys) == (("b", "c"), ("y", "x"), 4)
        assert moved(["new", "newer"], missing) == 0
    assert moved(["new", "newer"], "w") == 1
    with pytest.raises(DataError, match=r"data\.unit='who': 1 texts name one"):
        read({"text": ["a", "b"], "who": ["u", None]}, "text", unit="who")


def test_a_program_that_takes_all_texts_without_an_id_for_one_person_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_id", lambda value: value or "")
    assert moved(["new", "newer"], None) == 2  # one person's texts went, and another's came


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.tsv", b"text\tkind\nx\ty\xff\n", "not UTF-8"),
    ("a.tsv", b"text\tkind\nx\n", "line 2 has 1 cells; expected 2"),
    ("a.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is no JSON object"),
    ("a.txt", b"one\n", "expected at least 2"),
    ("a.tsv", b"text\ttext\na\tb\n", "distinct column names"),
    ("a.doc", b"x", "expected .tsv, .csv, .parquet, .jsonl or .txt"),
])
def test_a_broken_file_is_refused_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path, None)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named_with_a_near_one() -> None:
    with pytest.raises(DataError, match="did you mean 'message'"):
        read({"message": ["a", "b"], "kind": ["x", "y"]}, "mesage")
    with pytest.raises(ConfigError, match="expected the name of the column of texts"):
        read({"message": ["a", "b"], "kind": ["x", "y"]}, None)


def test_a_huge_text_is_cut_or_refused_as_declared() -> None:
    held = Texts(("ü" * 5_000_000, "b"), None, read({"text": ["a", "b"]}, "text").owners)
    assert limited(held, 5, "cut").texts == ("üü", "b")
    with pytest.raises(DataError, match="10,000,000 bytes"):
        limited(held, 256, "refuse")


def test_a_label_outside_the_declared_ones_is_refused_or_does_not_count() -> None:
    held = read({"text": ["a", "b"], "kind": ["x", "once"]}, "text", "kind")
    with pytest.raises(DataError, match="'once'"):
        known_labels(held, ("x",), "error")
    assert known_labels(held, ("x",), "missing").labels == ("x", None)


def test_a_public_file_of_text_takes_the_place_of_english(tmp_path: Path) -> None:
    path = tmp_path / "public.txt"
    path.write_text("guten tag\nguten abend\n")
    found = Language.of(str(path))
    assert found.words[0] == "guten"
    assert found.shares[0] == 0.5
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(0, 1), (0, 2)}
    with pytest.raises(DataError, match="holds no word"):
        Language.of(str(written_empty(tmp_path)))


def written_empty(folder: Path) -> Path:
    path = folder / "empty.txt"
    path.write_text("\n")
    return path
