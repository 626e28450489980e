"""The run folder: what may leave in ``public/``, what never does in ``private/``.

    runs/<name>/run.json      name, verb, created, status, the ledger's name for this run, digest of the settings
    runs/<name>/public/       decoder, encoder, schema, events, claim, plan, released metrics, report
    runs/<name>/private/      the noise key until the run ends, checkpoints, the data's fingerprint, a lock
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpvae import __version__
from dpvae.config import TrainConfig
from dpvae.errors import RunError
from dpvae.files import read_json, write_bytes, write_json
from dpvae.privacy.noise import SecretKey

ROOM = 16 * 2**20  # bytes that must be free for a run to begin; checkpoints, model and report need less
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # what renaming a folder onto a taken name gives


@dataclass(frozen=True)
class RunFolder:
    """A folder with a ``run.json``."""

    path: Path
    fresh: bool = field(default=False, compare=False)  # made just now, by this process: nothing is booked for it yet

    @property
    def public(self) -> Path:
        """What may leave."""
        return self.path / "public"

    @property
    def private(self) -> Path:
        """What never leaves."""
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
        """Whether it was trained to its end."""
        return bool(self.record["status"] == "finished")

    @property
    def complete(self) -> bool:
        """Finished, and its report is written."""
        return self.finished and (self.public / "report.html").is_file()

    @property
    def checkpoint(self) -> Path:
        """The sealed state that a stopped run goes on from."""
        return self.private / "state.safetensors"

    def key(self) -> SecretKey:
        """The secret key of this run's noise; it exists until the run is finished."""
        return SecretKey.load(self.private / "key")

    def bind_data(self, content: bytes, declared: str) -> None:
        """Remember a salted fingerprint of the rows and of what is declared about them; refuse others later.

        It outlives the noise key, so that a finished run is not mistaken for one on other rows.
        """
        path = self.private / "fingerprint"
        if not path.is_file():
            salt = os.urandom(32)
            write_bytes(path, salt + hmac.digest(salt, content + declared.encode(), "sha256"))
        known = path.read_bytes()
        if not hmac.compare_digest(known[32:], hmac.digest(known[:32], content + declared.encode(), "sha256")):
            raise RunError(f"run={self.path.name}: the data or its schema changed since this run was started; "
                           "its noise must not be used on other rows. Start a new run with another run.name")

    @property
    def begun(self) -> bool:
        """Whether noise may have been drawn."""
        return (self.private / "begun").exists()

    def begin(self) -> None:
        """From here on noise is drawn: what is booked for this run stays booked."""
        write_bytes(self.private / "begun", b"")

    def finish(self) -> None:
        """Mark the run finished, then destroy the noise key: from here on no step can be replayed."""
        write_json(self.path / "run.json", {**self.record, "status": "finished"})
        self.forget()

    def forget(self) -> None:
        """Destroy the noise key and the checkpoint."""
        for name in ("key", "state.safetensors"):
            (self.private / name).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove a run whose noise was never drawn and for which nothing is booked, and its root if that is empty."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; :class:`RunError` where another one is at work on it."""
        try:
            lock = (self.private / "lock").open("a")
        except OSError as error:
            raise RunError(f"run={self.path.name}: {self.private} cannot be used ({error.strerror}); the run folder is "
                           "damaged, choose another run.name") from None
        with lock as file:
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
    _check_place(root)
    for left in _runs(root):  # a crash between a run's last two steps leaves its key: destroy it now
        if left.finished:
            left.forget()
    if config.run.name is None:
        return _interrupted(root, digest) or _create(root, _timestamps(), digest, config)
    path = root / config.run.name
    if not (path / "run.json").exists():
        return _create(root, [config.run.name], digest, config)
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
    return [run for run in found if not run.path.name.startswith(".") and _readable(run)]


def _readable(run: RunFolder) -> bool:
    try:
        return bool(run.record)
    except RunError:
        return False


def _interrupted(root: Path, digest: str) -> RunFolder | None:
    """The newest incomplete run with these settings that no process is holding."""
    same = [run for run in _runs(root) if not run.complete and run.record.get("settings") == digest
            and run.record.get("unnamed")]
    for run in sorted(same, key=lambda run: str(run.record["created"]), reverse=True):
        try:
            with run.lock():
                return run
        except RunError:
            continue
    return None


def _check_place(root: Path) -> None:
    """Raise where no run could be written below ``root``, while nothing is booked yet."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise RunError(f"run.root={root}: {place} is a file; choose another run.root")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"run.root={root}: {place} cannot be written; choose another run.root")
    free = shutil.disk_usage(place).free
    if free < ROOM:
        raise RunError(f"run.root={root}: {free / 2**20:.1f} MB are free there, expected at least {ROOM >> 20} MB; "
                       "free some space, or choose another run.root")


def _create(root: Path, names: Iterable[str], digest: str, config: TrainConfig) -> RunFolder:
    """A new run folder under the first free name. It appears whole, under its name, in one step."""
    draft = root / f".new-{uuid.uuid4().hex[:12]}"
    try:
        draft.mkdir(parents=True)
        _fill(draft, config)
        for name in names:
            write_json(draft / "run.json", _record(name, digest, config))
            try:
                draft.rename(root / name)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return RunFolder(root / name, fresh=True)
        raise RunError(f"run.name={config.run.name}: {root / str(config.run.name)} is there already and is no run "
                       "folder; choose another run.name")
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"run.root={root}: no run can be made there ({error.strerror or error}); "
                           "choose another run.root") from None
        raise


def _fill(draft: Path, config: TrainConfig) -> None:
    (draft / "public").mkdir()
    (draft / "private").mkdir(mode=0o700)
    seed = config.privacy.secret_seed
    key = SecretKey.generate() if seed is None else SecretKey.from_seed(seed)
    key.save(draft / "private" / "key")


def _record(name: str, digest: str, config: TrainConfig) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    return {"name": name, "verb": "train", "created": now, "status": "running", "version": __version__,
            "settings": digest, "unnamed": config.run.name is None, "ledger_run": f"{name}-{uuid.uuid4().hex[:12]}"}


def _timestamps() -> Iterator[str]:
    stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return (stem if i == 0 else f"{stem}-{i}" for i in range(10_000))
