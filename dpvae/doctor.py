"""``dpvae doctor``: what is installed here, what this machine can do, and what to do about the rest.

Each finding is a line with what was found and, where something is missing, the command that brings it. What every run
needs must be there; what some need (PostgreSQL, a GPU, Iceberg) is told and is no fault. No table is opened.

>>> print(Finding("torch", "good", "2.13.0"))
  ok    torch          2.13.0
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpvae import __version__
from dpvae.config import DoctorConfig
from dpvae.errors import DPVAEError

MARKS = {"good": "ok  ", "open": "-   ", "bad": "FAIL"}
ROOM = 1 << 30  # bytes on the disk of the run folders below which somebody should know
OPTIONAL = {  # module: (extra, what for)
    "psycopg": ("postgres", "a ledger on PostgreSQL"),
    "hydra_plugins.hydra_optuna_sweeper": ("sweeps", "settings that Optuna chooses"),
    "pyiceberg": ("lake", "Iceberg tables"),
    "deltalake": ("delta", "Delta tables"),
    "duckdb": ("duckdb", "tables in DuckDB files"),
    "ray": ("ray", "drawing and scoring on Ray"),
    "pyspark": ("spark", "drawing and scoring on Spark"),
    "PIL": ("images", "folders of PNG and JPEG images"),
    "tensorboard": ("tensorboard", "metrics in TensorBoard"),
    "mlflow": ("mlflow", "metrics in MLflow"),
}
AES_KEY = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"  # NIST SP 800-38A, F.5.5: CTR-AES256
AES_COUNTER, AES_PLAIN = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "6bc1bee22e409f96e93d7e117393172a"
AES_CIPHER = "601ec313775789a5b7a7f504bbf3d228"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``state`` is good, open (not needed by everybody) or bad."""

    name: str
    state: str
    found: str
    do: str = ""

    def __str__(self) -> str:
        return f"  {MARKS[self.state]}  {self.name:14} {self.found}" + (f"\n{'':23}-> {self.do}" if self.do else "")


@dataclass(frozen=True)
class Examination:
    """Every finding; ``well`` where nothing is bad."""

    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        """Whether nothing is bad."""
        return all(each.state != "bad" for each in self.findings)

    def __str__(self) -> str:
        end = "everything a run needs is here; next: dpvae train" if self.well else (
            "something is missing; do what the arrows say and ask again")
        return "\n".join([f"dpvae {__version__}", *map(str, self.findings), end])

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {"dpvae": __version__, "well": self.well, "findings": [asdict(each) for each in self.findings]}


def examine(config: DoctorConfig) -> Examination:
    """Look at everything; a check that breaks is itself a finding."""
    found: list[Finding] = []
    for name, look in CHECKS:
        try:
            found += look(config)
        except Exception as error:
            found.append(Finding(name, "bad", f"{type(error).__name__}: {error}", REPAIR))
    return Examination(tuple(found))


REPAIR = f"{sys.executable} -m pip install --force-reinstall dpvae"


def _python(config: DoctorConfig) -> Iterator[Finding]:
    fits = sys.version_info >= (3, 11)
    yield Finding("python", "good" if fits else "bad", f"{platform.python_version()} on {platform.system()}",
                  "" if fits else "install Python 3.11 or newer")


def _packages(config: DoctorConfig) -> Iterator[Finding]:
    """What dpvae declares to need, against what is here."""
    try:
        declared = importlib.metadata.requires("dpvae") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "open", "dpvae runs from a source tree, not from an installation",
                      f"{sys.executable} -m pip install -e .")
        return
    wrong = [text for text in declared if "extra ==" not in text and not _satisfied(text)]
    count = sum("extra ==" not in text for text in declared)
    yield Finding("packages", "bad" if wrong else "good", f"{count - len(wrong)} of {count} as required"
                  + (f"; not {', '.join(wrong)}" if wrong else ""),
                  f"{sys.executable} -m pip install {' '.join(repr(text) for text in wrong)}" if wrong else "")


def _satisfied(requirement: str) -> bool:
    """Whether a requirement such as ``torch<3,>=2.11`` is met, by its numbers alone."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)", requirement)
    assert match is not None
    try:
        here = _numbers(importlib.metadata.version(match[1]))
    except importlib.metadata.PackageNotFoundError:
        return False
    limits = [re.match(r"(>=|<|==|>|<=)\s*([\d.]+)", part.strip()) for part in match[2].split(",") if part.strip()]
    holds: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
        ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b, ">": lambda a, b: a > b,
        "<=": lambda a, b: a <= b}
    return all(limit is None or holds[limit[1]](here, _numbers(limit[2])) for limit in limits)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _torch(config: DoctorConfig) -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    yield Finding("torch", "good", str(torch.__version__))
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("device", "good", f"{names}; {threads}")
    else:
        yield Finding("device", "good", f"CPU, {threads}; no CUDA device, which tables do not need")
    importlib.import_module("opacus")
    yield Finding("opacus", "good", importlib.metadata.version("opacus"))


def _randomness(config: DoctorConfig) -> Iterator[Finding]:
    """The source of the noise: the system's generator, and the cipher that stretches its keys, on a known answer."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(bytes.fromhex(AES_KEY)), modes.CTR(bytes.fromhex(AES_COUNTER))).encryptor()
    right = cipher.update(bytes.fromhex(AES_PLAIN)).hex() == AES_CIPHER
    fresh = len({os.urandom(32) for _ in range(64)}) == 64
    yield Finding("randomness", "good" if right and fresh else "bad",
                  "os.urandom is fresh, AES-256-CTR gives its standard's answer" if right and fresh else
                  "the secret generator is not what it should be: no noise of this machine may be trusted",
                  "" if right and fresh else "do not train here; reinstall cryptography, or use another machine")


def _place(config: DoctorConfig) -> Iterator[Finding]:
    root = Path(config.root)
    there = root if root.is_dir() else next(p for p in root.absolute().parents if p.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("run folders", "bad", f"{there} cannot be written", "choose another place: run.root=...")
    else:
        yield Finding("run folders", "good" if free > ROOM else "open",
                      f"{root}/ {'is there' if root.is_dir() else 'will be made'}, {free / 1e9:.1f} GB free",
                      "" if free > ROOM else "free some space, or choose another place: run.root=...")


def _ledger(config: DoctorConfig) -> Iterator[Finding]:
    from dpvae.privacy.ledger import Ledger

    place = config.ledger_url or str(Path(config.root) / "ledger.db")
    if config.ledger_url is None and not Path(place).is_file():
        yield Finding("ledger", "good", f"{place} will be made by the first run")
        return
    try:
        ledger = Ledger.open(place)
        rows = ledger.rows()
    except DPVAEError as error:
        yield Finding("ledger", "bad", str(error), "restore it from a copy; until then nothing may be spent")
        return
    yield Finding("ledger", "good", f"{ledger.name}: {len(rows)} rows, all as they were written")


def _configuration(config: DoctorConfig) -> Iterator[Finding]:
    from dpvae.data import builtin

    yield Finding("data", "good", f"built in: the table {', '.join(builtin.names())}; data=images has digits, "
                  "data=text has names")


def _extras(config: DoctorConfig) -> Iterator[Finding]:
    """What only some need."""
    for module, (extra, purpose) in OPTIONAL.items():
        here = all(importlib.util.find_spec(".".join(module.split(".")[:i + 1])) for i in range(module.count(".") + 1))
        name = module.rpartition(".")[2].removeprefix("hydra_").removesuffix("_sweeper")
        yield Finding(name, "good" if here else "open", purpose if here else f"not installed: {purpose}",
                      "" if here else f"{sys.executable} -m pip install 'dpvae[{extra}]'")


CHECKS: tuple[tuple[str, Callable[[DoctorConfig], Iterator[Finding]]], ...] = (
    ("python", _python), ("packages", _packages), ("torch", _torch), ("randomness", _randomness),
    ("run folders", _place), ("ledger", _ledger), ("data", _configuration), ("extras", _extras),
)
