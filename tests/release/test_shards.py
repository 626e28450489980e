"""A table drawn in shards: the same bytes whoever draws it, in the memory of one shard."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dpvae.data.schema import Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError, ReleaseError
from dpvae.files import write_json
from dpvae.models.vae import VAE
from dpvae.release import shards as module
from dpvae.release.sample import Sampler, load_public
from dpvae.release.shards import SHARD, Shards, table_writer
from dpvae.train.checkpoint import save_model

SCHEMA = Schema.from_dict({"target": None, "columns": [
    {"name": "age", "kind": "integer", "dtype": "int64", "nullable": True, "lower": 0, "upper": 9, "heaps": [],
     "edges": [-0.5, 4.5, 9.5]},
    {"name": "city", "kind": "categorical", "dtype": "string", "nullable": False, "categories": ["n", "s"],
     "other": False}]})


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    vae = VAE(SCHEMA.cardinalities, latent_dim=2, hidden=4, layers=0, components=5,
              generator=torch.Generator().manual_seed(0))
    save_model(vae, folder)
    write_json(folder / "schema.json", SCHEMA.to_dict())
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def drawn(public: Path, folder: Path, rows: int, **how: object) -> dict[str, str]:
    folder.mkdir()
    told = table_writer(public, rows, seed=3, **how)(folder, {"dpvae.run": "x"})  # type: ignore[arg-type]
    assert told["rows"] == sum(told["histograms"]["age"]) == rows
    return digests(folder)


@pytest.mark.parametrize("workers", [2, 8])
def test_the_bytes_are_the_same_for_any_number_of_workers(public: Path, tmp_path: Path, workers: int,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 3 * SHARD if workers == 2 else 5 * SHARD + 17
    monkeypatch.setattr(module, "PART", 1)
    alone = drawn(public, tmp_path / "alone", rows, workers=1)
    assert len(alone) == -(-rows // SHARD)
    # spawned workers read the module anew, with files of 8 shards: the parts are handed out by a pool of threads here
    monkeypatch.setattr(module, "mapped", in_another_order)
    assert drawn(public, tmp_path / "together", rows, workers=workers) == alone


def in_another_order(make: object, items: range, *, engine: str, workers: int) -> list[object]:
    """As many workers with a model of their own, the last item first."""
    work = [make() for _ in range(workers)]  # type: ignore[operator]
    done = {item: work[item % workers](item) for item in reversed(items)}
    return [done[item] for item in items]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray", "spark"])
def test_the_bytes_are_the_same_on_every_engine(public: Path, tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"ray": "ray", "spark": "pyspark"}.get(engine, "numpy"), reason=f"{engine} is not installed")
    rows = 2 * module.PART * SHARD + 17
    alone = drawn(public, tmp_path / "alone", rows, workers=1)
    assert drawn(public, tmp_path / "together", rows, workers=2, engine=engine) == alone


def test_a_table_of_one_shard_is_what_is_drawn_at_once(public: Path) -> None:
    vae, schema = load_public(public)
    batch = Shards(public).sample_shard(3, 0, 1000)
    at_once = Sampler(vae, schema, seed=3).rows(1000)
    assert batch.column("city").to_pylist() == at_once["city"].values.tolist()
    assert batch.column("age").null_count == at_once["age"].missing.sum()


def test_shards_differ_and_each_follows_the_model(public: Path) -> None:
    made = Shards(public)
    first, second = (made.cells(3, start, SHARD)[1] for start in (0, SHARD))
    assert not np.array_equal(first, second)
    shares = [np.bincount(codes[:, 0], minlength=3) / SHARD for codes in (first, second)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005


def test_what_is_counted_is_what_is_written(public: Path, tmp_path: Path) -> None:
    told = table_writer(public, 500, seed=0)(tmp_path, {"dpvae.run": "x"})
    table = pq.read_table(tmp_path / "part-00000.parquet")
    codes = TableCodec(SCHEMA).encode(module.lake.read(table))
    assert told["histograms"]["city"] == np.bincount(codes[:, 1], minlength=2).tolist()
    assert pq.read_metadata(tmp_path / "part-00000.parquet").metadata[b"dpvae.run"] == b"x"
    assert told["sample"] == table.slice(0, 10).to_pylist()


@pytest.mark.parametrize(("start", "rows"), [(1, 5), (0, 0), (0, SHARD + 1), (-SHARD // 2, 5)])
def test_a_shard_begins_where_shards_begin(public: Path, start: int, rows: int) -> None:
    with pytest.raises(DataError, match="expected a multiple of"):
        Shards(public).sample_shard(0, start, rows)


def test_a_table_that_the_disk_cannot_hold_is_refused_before_it_is_drawn(public: Path, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ReleaseError, match=r"rows=100000000: take about .* GB are free there; release fewer rows"):
        table_writer(public, 10**8, seed=3)(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
