"""The run folder: what may leave in ``public/``, what never does in ``private/``.

    runs/<name>/run.json      name, verb, created, status, the ledger's name for this run, digest of the settings
    runs/<name>/public/       decoder, encoder, schema, events, claim, plan, released metrics, report
    runs/<name>/private/      the noise key until the run ends, checkpoints, the data's fingerprint, a lock
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpvae import __version__
from dpvae.config import TrainConfig
from dpvae.errors import RunError
from dpvae.privacy.noise import SecretKey
from dpvae.train.checkpoint import read_json, write_bytes, write_json


@dataclass(frozen=True)
class RunFolder:
    """A folder with a ``run.json``."""

    path: Path

    @property
    def public(self) -> Path:
        return self.path / "public"

    @property
    def private(self) -> Path:
        return self.path / "private"

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        record = read_json(self.path / "run.json")
        if not isinstance(record, dict) or "status" not in record:
            raise RunError(f"{self.path}/run.json: expected a run's record; the folder is damaged")
        return record

    @property
    def finished(self) -> bool:
        return bool(self.record["status"] == "finished")

    @property
    def checkpoint(self) -> Path:
        return self.private / "state.safetensors"

    def key(self) -> SecretKey:
        """The secret key of this run's noise; it exists until the run is finished."""
        return SecretKey.load(self.private / "key")

    def bind_data(self, fingerprint: str) -> None:
        """Remember the data's keyed fingerprint; on resumption, refuse other data."""
        path = self.private / "fingerprint"
        if not path.is_file():
            write_bytes(path, fingerprint.encode())
        elif path.read_text() != fingerprint:
            raise RunError(f"run={self.path.name}: the data changed since this run was started; "
                           "its noise must not be used on other rows. Start a new run with another run.name")

    def finish(self) -> None:
        """Mark the run finished, then destroy the noise key: from here on no step can be replayed."""
        write_json(self.path / "run.json", {**self.record, "status": "finished"})
        for name in ("key", "state.safetensors"):
            (self.private / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; :class:`RunError` where another one is at work on it."""
        with (self.private / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"run={self.path.name}: another process is training it; wait for it, "
                               "or choose another run.name") from None
            yield


def settings_digest(config: TrainConfig) -> str:
    """What must be equal for a run to be resumed: everything but the name and what is only shown."""
    settings = asdict(config)
    settings["run"]["name"] = None
    del settings["report"], settings["performance"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def open_run(config: TrainConfig) -> RunFolder:
    """The run this configuration names, made if it is new; an unnamed one resumes its interrupted twin, if any."""
    root, digest = Path(config.run.root), settings_digest(config)
    if config.run.name is None:
        return _interrupted(root, digest) or _create(root / _timestamp(root), digest, config)
    path = root / config.run.name
    if not (path / "run.json").exists():
        return _create(path, digest, config)
    run = RunFolder(path)
    if run.record.get("settings") != digest:
        raise RunError(f"run.name={config.run.name}: this run exists with other settings; "
                       "give the same command to resume it, or choose another run.name")
    return run


def find_run(name: str, root: str | Path = "runs") -> RunFolder:
    """``latest``, a run's name below ``root``, or the path of a run folder."""
    root = Path(root)
    if name == "latest":
        runs = [run for run in _runs(root) if run.finished]
        if not runs:
            raise RunError(f"run=latest: no finished run in {root}/; train one with: dpvae train")
        return max(runs, key=lambda run: str(run.record["created"]))
    for path in (Path(name), root / name):
        if (path / "run.json").is_file():
            return RunFolder(path)
    raise RunError(f"run={name}: not a run folder; expected 'latest', a name below {root}/, or a path"
                   + (f"; there are {', '.join(sorted(r.path.name for r in _runs(root))[:5])}" if _runs(root) else ""))


def _runs(root: Path) -> list[RunFolder]:
    found = [RunFolder(path.parent) for path in root.glob("*/run.json")]
    return [run for run in found if _readable(run)]


def _readable(run: RunFolder) -> bool:
    try:
        return bool(run.record)
    except RunError:
        return False


def _interrupted(root: Path, digest: str) -> RunFolder | None:
    """The newest unfinished run with these settings that no process is holding."""
    same = [run for run in _runs(root) if not run.finished and run.record.get("settings") == digest
            and run.record.get("unnamed")]
    for run in sorted(same, key=lambda run: str(run.record["created"]), reverse=True):
        try:
            with run.lock():
                return run
        except RunError:
            continue
    return None


def _create(path: Path, digest: str, config: TrainConfig) -> RunFolder:
    """A new run folder; ``run.json`` is written last, so a folder without one is no run."""
    run = RunFolder(path)
    run.public.mkdir(parents=True, exist_ok=True)
    run.private.mkdir(mode=0o700, exist_ok=True)
    os.chmod(run.private, 0o700)
    for leftover in run.private.iterdir():  # of a creation that was interrupted: no noise was drawn with it
        leftover.unlink()
    seed = config.privacy.secret_seed
    key = SecretKey.generate() if seed is None else SecretKey.from_seed(seed)
    key.save(run.private / "key")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    write_json(path / "run.json", {
        "name": path.name, "verb": "train", "created": now, "status": "running", "version": __version__,
        "settings": digest, "unnamed": config.run.name is None, "ledger_run": f"{path.name}-{uuid.uuid4().hex[:12]}"})
    return run


def _timestamp(root: Path) -> str:
    stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (stem if i == 0 else f"{stem}-{i}" for i in range(10_000))
    return next(name for name in names if not (root / name).exists())
