"""A table on disk is the table in memory, to the bit; a killed pass goes on; a piece that changed is found out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch

from dpvae import api, memory
from dpvae.config import (
    DataConfig,
    ModelConfig,
    PerformanceConfig,
    PrivacyConfig,
    ReportConfig,
    RunConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.data import lake, stored
from dpvae.data.lake import verb
from dpvae.data.schema import Schema
from dpvae.data.stored import CodeShards, Stored, bytes_in_memory, place_of
from dpvae.data.survey import survey, survey_steps
from dpvae.data.table import TableCodec
from dpvae.errors import ConfigError
from dpvae.modalities import table as tables
from dpvae.privacy.noise import SecretKey
from dpvae.train.records import StoredRecords

ROWS = 2500


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", 512 * 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    holes = rng.random(ROWS) < 0.1
    table = pa.table({
        "age": pa.array(rng.integers(18, 80, ROWS), pa.int16()),
        "city": pa.array(rng.choice(["north", "south", "east"], ROWS), mask=holes).dictionary_encode(),
        "pay": pa.array(rng.gamma(2.0, 10.0, ROWS).round(1), mask=holes), "seen": pa.array(rng.random(ROWS) < 0.3),
        "day": pa.array(rng.integers(0, 9000, ROWS).astype(np.int32), pa.int32()).cast(pa.date32()),
        "name": pa.array(rng.choice(["a", "b"], ROWS)), "nothing": pa.nulls(ROWS)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=300)
    return tmp_path / "t.parquet"


def test_every_piece_comes_back_as_it_went_in(path: Path, tmp_path: Path) -> None:
    whole, kept = lake.read(path), Stored.of(path, tmp_path / "s")
    assert kept.header == whole.header
    assert kept.rows == ROWS
    assert kept.sizes == [512, 512, 512, 512, 452]
    for j, cells in enumerate(whole.cells):
        found = list(kept.pieces(j))
        assert np.array_equal(np.concatenate([c.missing for c in found]), cells.missing)
        values = np.concatenate([c.values for c in found])
        assert values.dtype == cells.values.dtype
        assert np.array_equal(values[~cells.missing], cells.values[~cells.missing])


def test_the_folder_is_for_its_owner_alone(path: Path, tmp_path: Path) -> None:
    assert Stored.of(path, tmp_path / "s").folder.stat().st_mode & 0o077 == 0


def test_the_survey_and_the_codes_are_those_of_the_table_in_memory(path: Path, tmp_path: Path) -> None:
    whole, kept = lake.read(path), Stored.of(path, tmp_path / "s")
    schema = Schema.undeclared(whole.header)
    noise = dict.fromkeys(survey_steps(schema, rows_known=False), 2.0)
    found = [survey(table, schema, noise=noise, delta=1e-5, key=SecretKey.from_seed(1), rows=None)
             for table in (whole, kept)]
    assert found[0] == found[1]
    codec = TableCodec(found[0].schema)
    codes, shards = codec.encode(whole), CodeShards.of(kept, codec, "error")
    assert shards.dtype == codes.dtype
    assert np.array_equal(np.concatenate(list(shards.split(700))), codes)
    picked = np.random.default_rng(0).integers(ROWS, size=300)
    assert np.array_equal(shards[picked], codes[picked])
    for first, last in ((0, 1), (500, 520), (511, 513), (0, ROWS), (2400, 9999), (7, 7)):
        assert np.array_equal(shards[first:last], codes[first:last])


def test_a_pass_that_was_killed_goes_on_where_it_stopped(path: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    store = Stored._store

    def killed(self: Stored, piece: lake.Table) -> None:
        if len(self.sizes) == 3:
            self._path(3).write_bytes(b"half")
            raise KeyboardInterrupt
        store(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "_store", killed)
        with pytest.raises(KeyboardInterrupt):
            Stored.of(path, tmp_path / "s")
    notes = tmp_path / "s" / stored.NOTES
    notes.write_text(notes.read_text() + '{"header": [["a')
    stamps = [(tmp_path / "s" / f"piece-00000{n}.bin").stat().st_mtime_ns for n in range(3)]
    again = Stored.of(path, tmp_path / "s")
    assert [(tmp_path / "s" / f"piece-00000{n}.bin").stat().st_mtime_ns for n in range(3)] == stamps
    assert np.array_equal(np.concatenate([c.values for c in again.pieces(0)]), lake.read(path).cells[0].values)
    assert [c.values.tolist() for c in again.pieces(5)] == [
        c.values.tolist() for c in Stored.of(path, tmp_path / "fresh").pieces(5)]


def test_a_piece_that_changed_is_stored_again(path: Path, tmp_path: Path) -> None:
    Stored.of(path, tmp_path / "s")
    piece = tmp_path / "s" / "piece-000001.bin"
    right = piece.read_bytes()
    piece.write_bytes(b"x" + right[1:])
    Stored.of(path, tmp_path / "s")
    assert piece.read_bytes() == right


def config(path: Path, root: Path, **performance: object) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(path=str(path), target="name"), privacy=PrivacyConfig(epsilon=8.0, secret_seed=7, delta=1e-5),
        model=ModelConfig(latent_dim=4, hidden=8, components=16), report=ReportConfig(progress="quiet"),
        trainer=TrainerConfig(fit_steps=5, steps=5, sampling_rate=0.1, sleep_steps=5),
        run=RunConfig(name="one", root=str(root)), performance=PerformanceConfig(device="cpu", **performance))


def test_the_run_is_the_same_and_leaves_no_rows_behind(path: Path, tmp_path: Path) -> None:
    runs = [api.train(config(path, tmp_path / where, stored=where)).path for where in ("never", "always")]
    for name in ("model.safetensors", "schema.json", "events.jsonl", "metrics.jsonl", "reference.json"):
        assert (runs[0] / "public" / name).read_bytes() == (runs[1] / "public" / name).read_bytes(), name
    assert not list((tmp_path / "always").glob(".stored-*"))
    assert (runs[0] / "private" / "fingerprint").stat().st_size == 64


@pytest.mark.parametrize(("room", "kind"), [(2.9, Stored), (3.1, lake.Table)])
def test_a_table_larger_than_a_third_of_what_is_free_stays_on_disk(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float, kind: type
) -> None:
    monkeypatch.setattr(memory, "free", lambda: int(room * bytes_in_memory(path)))
    assert isinstance(tables.prepare(config(path, tmp_path, stored="auto")).table, kind)


def test_a_step_holds_no_more_records_than_it_takes_at_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = StoredRecords.__getitem__, []

    def counted(self: StoredRecords, rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(StoredRecords, "__getitem__", counted)
    api.train(config(path, tmp_path, stored="always", microbatch=32))
    assert 16 < max(asked) <= 32  # parts of one size
    assert len(asked) > 5 * 4  # five batches of 250 or so


def test_pieces_are_kept_where_that_was_asked_for(path: Path, tmp_path: Path) -> None:
    api.train(config(path, tmp_path, stored="always", keep_stored=True))
    (kept,) = tmp_path.glob(".stored-*")
    assert json.loads((kept / stored.NOTES).read_text().splitlines()[-1]) == {"whole": True}


def test_what_cannot_be_stored_says_so(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this one is in memory"):
        api.train(config(path, tmp_path, stored="always"), pq.read_table(path))


def test_what_a_table_would_take_in_memory_is_known_of_every_kind(path: Path, tmp_path: Path) -> None:
    table = pq.read_table(path)
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        pq.write_table(table, folder / f"{part}.parquet")
    pacsv.write_csv(table, tmp_path / "t.csv")
    verb.copy(str(path), f"duckdb:{tmp_path}/t.db?table=t")
    cells = table.num_rows * table.num_columns
    assert bytes_in_memory(path) == bytes_in_memory(f"duckdb:{tmp_path}/t.db") == cells * 9.0
    assert place_of(f"duckdb:{tmp_path}/t.db", tmp_path) != place_of(f"duckdb:{tmp_path}/t.db?table=t", tmp_path)
    assert bytes_in_memory(folder) == 2 * cells * 9.0
    assert bytes_in_memory(tmp_path / "t.csv") == (tmp_path / "t.csv").stat().st_size * 8.0
    assert bytes_in_memory(lake.selected(path, columns="name", where=None)) == table.num_rows * 9.0


def test_pieces_of_a_folder_are_not_taken_for_those_of_a_changed_one(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(pq.read_table(path), folder / "0.parquet")
    before, stamp = place_of(folder, tmp_path), folder.stat()
    assert place_of(folder, tmp_path) == before
    assert place_of(lake.selected(folder, columns="name", where=None), tmp_path) != before
    with (folder / "0.parquet").open("r+b") as file:
        file.write(b"PAR1")
    assert folder.stat().st_mtime_ns == stamp.st_mtime_ns
    assert place_of(folder, tmp_path) != before
