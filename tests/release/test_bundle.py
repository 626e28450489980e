"""A release is whole or not there, holds nothing private, and is never overwritten."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_run import CLAIM, make_run, table_writer

from dpvae.audit.verify import verify
from dpvae.errors import BudgetError, ConfigError, ReleaseError, RunError
from dpvae.release import bundle
from dpvae.release.bundle import files, write_release
from dpvae.release.signing import PRIVATE_NAME, PUBLIC_NAME

LAYOUT = ["SHA256SUMS", "card.md", "certificate.dsse.json", "certificate.json", "croissant.json",
          "data/part-00000.parquet", "events.jsonl", "plan.json", "report.html", "report.json", "schema.json"]


def release(run: Path, to: Path, writer: bundle.TableWriter = table_writer) -> Path:
    return write_release(run, writer, rows=1000, to=to, seed=0)


def left_beside(to: Path) -> list[str]:
    return sorted(path.name for path in to.parent.iterdir() if path.name not in (PRIVATE_NAME, PUBLIC_NAME))


def test_release_has_exactly_its_files(tmp_path: Path) -> None:
    to = release(make_run(tmp_path / "runs"), tmp_path / "deep" / "er" / "out")
    assert files(to) == LAYOUT
    assert os.listdir(to.parent) == ["out"]


def test_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    to = release(make_run(tmp_path / "runs"), tmp_path / "out")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=to, check=True)


def test_nothing_private_and_no_path_is_in_any_byte(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    to = release(run, tmp_path / "out")
    key = (tmp_path / "runs" / PRIVATE_NAME).read_text().splitlines()[1].encode()
    for name in files(to):
        data = (to / name).read_bytes()
        for secret in (b"SECRET-THAT-MUST-NOT-LEAVE", b"/secret/x.csv", str(tmp_path).encode(), key):
            assert secret not in data, name


def test_run_with_a_fixed_secret_seed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="NOT PRIVATE"):
        release(make_run(tmp_path / "runs", claim={"private": False}), tmp_path / "out")
    assert left_beside(tmp_path / "out") == ["runs"]


def test_claim_that_is_not_plainly_true_is_refused(tmp_path: Path) -> None:
    for i, word in enumerate(["true", 1, None]):
        with pytest.raises(RunError, match="private"):
            release(make_run(tmp_path / "runs", f"r{i}", claim={"private": word}), tmp_path / "out")


def test_run_over_its_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="cost more"):
        release(make_run(tmp_path / "runs", claim={"epsilon_target": 0.9}), tmp_path / "out")


def test_delta_too_large_for_the_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="less than 1/rows"):
        release(make_run(tmp_path / "runs", claim={"n_ref": 100_000}), tmp_path / "out")


@pytest.mark.parametrize("status", ["running", "", None])
def test_unfinished_run_is_refused(tmp_path: Path, status: Any) -> None:
    with pytest.raises(RunError, match="finish it first"):
        release(make_run(tmp_path / "runs", status=status), tmp_path / "out")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        release(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["claim.json", "events.jsonl", "plan.json", "schema.json"])
def test_run_with_a_missing_or_broken_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "runs")
    if name != "plan.json":
        (run / "public" / name).write_text("{")
        with pytest.raises(RunError, match=name):
            release(run, tmp_path / "out")
    (run / "public" / name).unlink()
    with pytest.raises(RunError, match=name):
        release(run, tmp_path / "out")


def test_claim_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="did you mean 'delta'"):
        release(make_run(tmp_path / "runs", claim={"delt": 1}), tmp_path / "out")


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (-1, 0), (1, -1), (True, 0), (1.5, 0)])
def test_rows_and_seed_must_be_whole(tmp_path: Path, rows: Any, seed: Any) -> None:
    with pytest.raises(ConfigError):
        write_release(make_run(tmp_path / "runs"), table_writer, rows=rows, to=tmp_path / "out", seed=seed)


def test_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "thesis.doc").write_text("x")
    with pytest.raises(ReleaseError, match="not empty"):
        release(make_run(tmp_path / "runs"), to)
    assert os.listdir(to) == ["thesis.doc"]


def test_earlier_release_of_the_same_run_is_never_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    to = release(run, tmp_path / "out")
    before = (to / "certificate.json").read_bytes()
    with pytest.raises(ReleaseError, match="already holds a release of run adult1"):
        release(run, to)
    assert (to / "certificate.json").read_bytes() == before


def test_file_or_link_in_the_way_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ReleaseError, match="is a file or a link"):
            release(run, tmp_path / name)


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert verify(release(make_run(tmp_path / "runs"), tmp_path / "out")).ok


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), SystemExit(3), BudgetError("x")])
@pytest.mark.parametrize("target", ["out", "new/deep/out"])
def test_interruption_leaves_nothing(tmp_path: Path, error: BaseException, target: str) -> None:
    def interrupted(folder: Path, marks: Any) -> dict[str, Any]:
        table_writer(folder, marks)
        raise error

    with pytest.raises(type(error)):
        release(make_run(tmp_path / "runs"), tmp_path / target, interrupted)
    assert os.listdir(tmp_path) == ["runs"]


def test_failure_while_writing_any_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = make_run(tmp_path / "runs"), bundle._write
    for last in range(10):
        count = iter(range(100))

        def full(path: Path, data: bytes, last: int = last, count: Any = count) -> None:
            if next(count) == last:
                path.write_bytes(data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, data)

        monkeypatch.setattr(bundle, "_write", full)
        with pytest.raises(ReleaseError, match="no space left"):
            release(run, tmp_path / "out")
        assert os.listdir(tmp_path) == ["runs"]


def test_file_size_limit_of_the_system_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    write_release(run, table_writer, rows=1000, to=tmp_path / "warm", seed=0)  # the key exists, modules are loaded
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        with pytest.raises(ReleaseError, match="no space left"):
            release(run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(os.listdir(tmp_path)) == ["runs", "warm"]


def test_somebody_elses_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def slow(folder: Path, marks: Any) -> dict[str, Any]:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
        return table_writer(folder, marks)

    with pytest.raises(ReleaseError, match="somebody else"):
        release(make_run(tmp_path / "runs"), tmp_path / "out", slow)
    assert os.listdir(tmp_path / "out") == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == ["out", "runs"]


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="cannot be written"):
        release(make_run(tmp_path / "runs"), Path("/proc/nowhere/out"))


def test_writer_that_made_other_rows_or_no_file_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    for writer in (lambda folder, marks: table_writer(folder, marks, rows=999),
                   lambda folder, marks: {"rows": 1000, "histograms": {}, "sample": []}):
        with pytest.raises(ReleaseError):
            release(run, tmp_path / "out", writer)
    assert os.listdir(tmp_path) == ["runs"]


def test_histogram_of_another_length_than_its_labels_is_refused(tmp_path: Path) -> None:
    def wrong(folder: Path, marks: Any) -> dict[str, Any]:
        table = table_writer(folder, marks)
        return {**table, "histograms": {**table["histograms"], "income": [1, 2, 3]}}

    with pytest.raises(ReleaseError, match=r"histograms\.income: 3 counts for 2 labels"):
        release(make_run(tmp_path / "runs"), tmp_path / "out", wrong)


def test_measured_rows_and_replace_one_are_certified_as_such(tmp_path: Path) -> None:
    claim = {"n_ref": 39012.5, "n_ref_source": "measured", "neighbouring": "replace_one", "epsilon_target": 3.0}
    verdict = verify(release(make_run(tmp_path / "runs", claim=claim), tmp_path / "out"))
    assert verdict.ok, verdict
    assert "for one row replaced by any other" in verdict.sentence
    document = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert not any("row count" in line for line in document["scope"]["public_inputs"])


def test_card_and_croissant_hold_whatever_a_column_is_called(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", name='a"b: |c')
    to = release(run, tmp_path / "out")
    front = (to / "card.md").read_text().split("---\n")[1]
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(front)["pretty_name"] == 'a"b: |c (synthetic)'
    fields = json.loads((to / "croissant.json").read_text())["recordSet"][0]["field"]
    assert [f["name"] for f in fields][:3] == ["age", "workclass", "hours per <week> & more"]
    assert not any(" " in f["@id"] for f in fields)  # Croissant's readers refuse blanks there
    assert "hours per \\<week> & more" in (to / "card.md").read_text()


def test_release_imports_neither_torch_nor_pyarrow() -> None:
    code = ("import sys, dpvae.release.bundle, dpvae.release.card, dpvae.report.run\n"
            "assert not {'torch', 'pyarrow', 'opacus', 'pandas', 'matplotlib'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(bundle.__file__).parents[2])


def test_claim_of_the_fixture_is_the_one_of_the_specification() -> None:
    assert set(CLAIM) == {"epsilon_target", "delta", "neighbouring", "unit", "n_ref", "n_ref_source", "private",
                          "divisor", "noise", "replay"}
