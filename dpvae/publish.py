"""Write, audit, publish: how a release becomes a lake table, or nothing at all.

    audit    the run, quickly, unless it was audited already; its verdict goes into the certificate
    write    the release folder, inside the table's location, as dpvae release writes it anywhere
    stage    its files become the rows of a branch, which readers do not see
    verify   the branch: files, signature, price, marks; and that the audit was passed
    publish  the main branch moves to it, and a tag pins it, in one commit

Each step finds what an earlier, killed command has finished, so the same command goes on where that one stopped. The
folder's name follows from the run, its model, the number of rows and the seed, and so do its bytes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpvae.audit.published import verify_table
from dpvae.data import lake
from dpvae.data.cells import typed
from dpvae.data.lake import sql
from dpvae.data.lake.register import Held, Home, alone, home
from dpvae.data.schema import Schema
from dpvae.errors import ReleaseError
from dpvae.release import marks
from dpvae.release.audited import read_audit
from dpvae.release.bundle import ENVELOPE, files, write_release
from dpvae.release.certificate import Certificate
from dpvae.release.sample import load_public
from dpvae.release.shards import Shards, table_writer
from dpvae.report.source import Source, read_run

TAG, BRANCH = "dpvae-", "dpvae-audit-"
NOTES = ("certificate.json", ENVELOPE, "events.jsonl", "schema.json", "card.md")
ROWS_AT_ONCE = 65_536


def publish(run: Path, to: str, *, rows: int, seed: int, engine: str = "local", workers: int | None = None,
            audit: Callable[[], Any]) -> str:
    """Publish ``rows`` synthetic rows of ``run`` as the lake table ``to``; returns the name of its tag.

    ``audit`` audits the run and leaves its verdict in ``public``. Raises :class:`ReleaseError` where the table holds
    rows that no release wrote, where the audit or the verification fails, or where somebody else writes meanwhile;
    readers then see what they saw before. Costs no privacy.
    """
    source, there = read_run(run), home(to)
    name = release_name(source, rows, seed)
    _check_ours(there)
    if read_audit(run / "public", source.model_sha256) is None:
        audit()
    there.create(Shards(run / "public").sample_shard(seed, 0, 1).schema)
    with alone(there):
        folder = there.folder() / name
        _sweep(folder)
        if not folder.is_dir():
            writer = table_writer(run / "public", rows, seed=seed, engine=engine, workers=workers, stored=there.ids())
            write_release(run, writer, rows=rows, to=folder, seed=seed)
        held = there.held()
        if held is not None and held.marks.get(marks.RELEASE) == name and verify_table(to).ok:
            return TAG + name
        if there.staged(BRANCH + name) is None:
            there.stage(BRANCH + name, parts(folder), marks_of(folder, source))
        _gate(f"{to}@{BRANCH}{name}", folder)
        there.publish(BRANCH + name, TAG + name)
    return TAG + name


def into_database(run: Path, to: str, *, rows: int, seed: int, engine: str = "local",
                  workers: int | None = None) -> None:
    """A test database: ``rows`` synthetic rows of ``run`` as a table of a database, with the original columns' types.

    The table is called like the data set unless ``to`` says otherwise. What vouches for it (certificate, signature,
    events) lies in the table ``dpvae_release`` beside it. Raises :class:`DataError` where the table is there already.
    """
    name = read_run(run).claim.dataset.rpartition(".")[2]
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".release-") as scratch:
        writer = table_writer(run / "public", rows, seed=seed, engine=engine, workers=workers)
        folder = write_release(run, writer, rows=rows, to=Path(scratch) / "release", seed=seed)
        notes = {each: (folder / each).read_text() for each in NOTES}
        schema = load_public(run / "public")[1]
        sql.write(to, (_typed(schema, batch) for batch in lake.source(folder).batches(ROWS_AT_ONCE)), table=name,
                  notes=notes)


def _typed(schema: Schema, batch: Any) -> Any:
    """A batch of released rows with what is kept as text in the types that kinds stand for."""
    return lake.to_batch(dict(zip(schema.names, map(typed, schema.columns, lake.to_table(batch).cells), strict=True)))


def release_name(source: Source, rows: int, seed: int) -> str:
    """A name for a folder, a branch and a tag, that stands for these very rows."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", source.name)
    return f"{plain}-{rows}-{seed}-{source.model_sha256[:8]}"


def parts(folder: Path) -> list[Path]:
    """The data files of a release folder."""
    return [folder / name for name in files(folder) if name.startswith("data/")]


def marks_of(folder: Path, source: Source) -> dict[str, str]:
    """What the table will say about itself."""
    certificate = Certificate.from_bytes((folder / "certificate.json").read_bytes())
    return {**marks.of(certificate, source.origin), marks.RELEASE: folder.name}


def _check_ours(there: Home) -> None:
    """A release takes the place of the one before, and of nothing else."""
    held: Held | None = there.held()
    if held is not None and held.files and marks.RELEASE not in held.marks:
        raise ReleaseError(f"to={there.text}: holds rows that no release wrote; releases replace one another, pick "
                           "another table")


def _sweep(folder: Path) -> None:
    """Remove what a killed command left half written; nobody else writes here now."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _gate(staged: str, folder: Path) -> None:
    verdict = verify_table(staged)
    if not verdict.ok:
        raise ReleaseError(f"{staged}: is not published; {'; '.join(verdict.problems[:3])}. Remove {folder} and give "
                           "the same command again")
    if Certificate.from_bytes((folder / "certificate.json").read_bytes()).evidence.audit == "none":
        raise ReleaseError(f"{staged}: is not published; its certificate names no audit. Remove {folder} and give the "
                           "same command again")

