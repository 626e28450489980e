"""A finished run becomes a folder that can be published; whole, or not at all.

Everything is written into a hidden folder beside the target, checked, and renamed into place in one step. An error,
Ctrl-C or a full disk leaves the target as it was. Nothing is read from the run but its ``public/`` part.

    path = write_release(Path("runs/adult1"), table_writer, rows=39074, to=Path("release/adult"), seed=0)
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpvae import checks
from dpvae.errors import DataError, ReleaseError, RunError
from dpvae.privacy.accountant import CrossCheck, crosscheck
from dpvae.privacy.consequences import consequences
from dpvae.release import marks
from dpvae.release.audited import Audit, lower_bound, read_audit
from dpvae.release.card import card
from dpvae.release.certificate import Certificate, Evidence, Facts, Lineage, Version
from dpvae.release.certify import certify
from dpvae.release.croissant import croissant
from dpvae.release.model_folder import write_model
from dpvae.release.signing import PRIVATE_NAME, PUBLIC_NAME, SigningKey, seal
from dpvae.report import records
from dpvae.report.html import render
from dpvae.report.numbers import gather
from dpvae.report.source import NONE, Source, read_run, write_events

TableWriter = Callable[[Path, Mapping[str, str]], Mapping[str, Any]]

SUMS = "SHA256SUMS"
ENVELOPE = "certificate.dsse.json"
UNSIGNED = (SUMS, ENVELOPE)  # what the signature cannot cover: itself, and the list that covers it
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PROGRAMS = ("dpvae", "numpy", "torch", "opacus", "dp-accounting", "cryptography", "rfc8785")


def write_release(run: Path, table_writer: TableWriter, *, rows: int, to: Path, seed: int,
                  model: bool = False, unlike: str | None = None) -> Path:
    """The release folder ``to`` with ``rows`` synthetic rows of ``run``; costs no privacy, every input is released.

    ``table_writer(folder, marks)`` writes ``part-*.parquet`` into a data folder, with the marks in their footers, and
    returns ``histograms`` (counts per column in the order of the reference's labels), ``rows`` and ``sample`` (ten rows
    as mappings). ``seed`` is the public seed it decodes with. ``model`` adds the model itself, in the Hugging Face
    layout; ``unlike`` says what public text the rows were kept away from. A run with a fixed secret seed, or whose
    events cost more than its target, is a :class:`ReleaseError`; a folder that is no finished run a :class:`RunError`.
    """
    checks.whole(1, rows=rows)
    checks.whole(0, seed=seed)
    if max(rows, seed) > records.LARGEST_WHOLE:
        raise ReleaseError(f"rows={rows}, seed={seed}: expected at most {records.LARGEST_WHOLE}")
    source = read_run(run)
    _refuse_unreleasable(source)
    check = crosscheck(source.events, source.claim.delta, source.claim.neighbouring)
    found = consequences(source.events, source.claim.delta, source.claim.neighbouring, upper=check.pld)
    _refuse_target(to, source)
    key = SigningKey.at(run.resolve().parent)
    audit = read_audit(run / "public", source.model_sha256)
    certificate = certify(_facts(source, key, rows, seed, audit, unlike), events=source.events, schema=source.schema,
                          check=check, found=found)
    with _beside(to) as folder:
        _fill(folder, source, check, certificate, key, table_writer, run / "public" if model else None)
    return to


def sums(digests: Mapping[str, str]) -> bytes:
    """The text of SHA256SUMS, as ``sha256sum --check`` reads it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def digest(path: Path) -> str:
    """SHA-256 of a file of any size, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[str]:
    """Names of all entries below ``folder`` that are not folders, relative and with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_symlink() or not path.is_dir())


def _refuse_unreleasable(source: Source) -> None:
    if not source.claim.private:
        raise ReleaseError(f"run={source.name}: stamped NOT PRIVATE (its secret randomness was fixed, or it had "
                           "none); train without privacy.secret_seed and privacy=off to release")


def _refuse_target(to: Path, source: Source) -> None:
    """A release is never overwritten: somebody may have its digest already."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise ReleaseError(f"to={to}: is a file or a link; name a new folder")
    if not to.is_dir() or not any(to.iterdir()):
        return
    try:
        held = Certificate.from_bytes((to / "certificate.json").read_bytes()).lineage.run
    except (ReleaseError, OSError):
        held = None
    if held == source.name:
        raise ReleaseError(f"to={to}: already holds a release of run {source.name}; releases are never overwritten, "
                           "pick another folder")
    raise ReleaseError(f"to={to}: is not empty; pick another folder")


def _facts(source: Source, key: SigningKey, rows: int, seed: int, audit: Audit | None, unlike: str | None) -> Facts:
    claim = source.claim
    clip = source.config.get("trainer", {}).get("clip_norm") if isinstance(source.config.get("trainer"), dict) else None
    trained = any(type(event).__name__ == "SampledGaussian" for event in source.events)
    return Facts(
        epsilon_target=claim.epsilon_target, delta=claim.delta, unit=claim.unit,
        neighbouring="replace_one" if claim.neighbouring == "replace_one" else "add_remove",
        rows=claim.n_ref, rows_source=claim.n_ref_source, rows_released=rows,
        clip_norm=float(clip) if trained and isinstance(clip, (int, float)) else NONE, divisor=claim.divisor,
        noise=claim.noise, replay=claim.replay,
        evidence=Evidence(ledger_head=claim.ledger_head, ledger_rows=claim.ledger_rows, audit=audit or NONE,
                          audit_lower_bound=lower_bound(audit), model_sha256=source.model_sha256, signer=key.signer,
                          versions=_versions()),
        lineage=Lineage(run=source.name, run_created=source.created, dataset=claim.dataset, dataset_digest=NONE,
                        prior_certificates=NONE, cumulative_epsilon=claim.cumulative_epsilon, decoding_seed=seed,
                        unlike=unlike or NONE,
                        issued=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
    )


def _versions() -> tuple[Version, ...]:
    """What is installed, asked without importing any of it."""
    found = [Version(name="python", version=platform.python_version())]
    for name in PROGRAMS:
        try:
            found.append(Version(name=name, version=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Version(name=name, version=NONE))
    return tuple(found)


def _fill(folder: Path, source: Source, check: CrossCheck, certificate: Certificate, key: SigningKey,
          table_writer: TableWriter, model: Path | None) -> None:
    """Every file of a release, the list of digests last: without it nothing verifies."""
    table = _write_table(folder, table_writer, certificate.scope.rows_released, marks.of(certificate, source.origin))
    numbers = gather(source, check, subject="This release", sentence=certificate.sentence,
                     pairs=certificate.consequences.profile, released=table, reproduce=_reproduce(certificate))
    data = {name: (digest(folder / name), (folder / name).stat().st_size) for name in files(folder)}
    if model is not None:
        write_model(model, folder / "model", certificate)
    _write(folder / "certificate.json", certificate.to_bytes())
    _write(folder / "events.jsonl", write_events(source.events))
    _write(folder / "schema.json", source.schema_bytes)
    _write(folder / "plan.json", source.plan_bytes)
    _write(folder / "croissant.json", croissant(certificate, source.schema, data))
    _write(folder / "card.md", card(certificate, source.schema).encode())
    _write(folder / "report.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    _write(folder / "report.html", render(numbers).encode())
    digests = {name: digest(folder / name) for name in files(folder)}
    _write(folder / ENVELOPE, seal(key, certificate.to_dict(), digests))
    _write(folder / SUMS, sums({**digests, ENVELOPE: digest(folder / ENVELOPE)}))


def _write_table(folder: Path, table_writer: TableWriter, rows: int, marked: Mapping[str, str]) -> Mapping[str, Any]:
    data = folder / "data"
    data.mkdir()
    table = table_writer(data, marked)
    if table["rows"] != rows:
        raise ReleaseError(f"rows={rows}: the table writer wrote {table['rows']}")
    written = files(data)
    if not written or not all(SAFE_NAME.fullmatch(name) for name in written):
        raise ReleaseError(f"data={written}: expected at least one file, plainly named like part-00000.parquet")
    for name in written:
        _sync(data / name)
    return table


def _reproduce(certificate: Certificate) -> list[str]:
    lineage, mechanism = certificate.lineage, certificate.mechanism
    versions = ", ".join(f"{v.name} {v.version}" for v in certificate.evidence.versions if v.version != NONE)
    return [
        "dpvae verify .                 # prices the events again, checks every digest and the signature",
        f"dpvae verify . key={PUBLIC_NAME}   # ... against a key that the issuer gave you",
        f"dpvae release run={lineage.run} rows={certificate.scope.rows_released} seed={lineage.decoding_seed} to=FOLDER"
        + (" unlike=PUBLIC.txt" if lineage.unlike != NONE else "") +
        "   # the same rows, for whoever holds the run",
        f"# made with {versions}", f"# noise: {mechanism.noise}", f"# resume: {mechanism.replay}",
    ]


@contextmanager
def _beside(to: Path) -> Iterator[Path]:
    """A new folder on the target's own file system; becomes ``to`` at the end, or vanishes."""
    made = [parent for parent in to.absolute().parents if not parent.exists()]
    folder: Path | None = None
    try:
        to.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=to.absolute().parent, prefix=f".{to.name}.", suffix=".partial"))
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        folder.rename(to)
        _sync(to.absolute().parent)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with _ignoring_os_errors():
                parent.rmdir()
        refused = error.__cause__ if isinstance(error, DataError) else error  # a writer's own words name our draft
        if isinstance(refused, OSError):
            raise _told(refused, to) from error
        raise


def _told(error: OSError, to: Path) -> ReleaseError:
    """What the operating system refused, and what to do; nothing was left behind."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ReleaseError(f"to={to}: no space left there; nothing was written. Free some, or pick another folder")
    above = Path(error.filename or to) in to.absolute().parents
    if error.errno == errno.ENOTDIR or (error.errno == errno.EEXIST and above):
        return ReleaseError(f"to={to}: a part of that path is a file; pick another folder")
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return ReleaseError(f"to={to}: somebody else wrote there meanwhile; pick another folder")
    return ReleaseError(f"to={to}: cannot be written ({error.strerror or error}); nothing was written, "
                        "pick another folder")


@contextmanager
def _ignoring_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


def _write(path: Path, data: bytes) -> None:
    """Down to the disk: a full one must fail here, not after the rename."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["ENVELOPE", "PRIVATE_NAME", "PUBLIC_NAME", "SUMS", "UNSIGNED", "RunError", "TableWriter", "digest", "files",
           "sums", "write_release"]
