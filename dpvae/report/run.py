"""A run's own report: ``public/report.html`` and ``public/report.json``, from what the run released.

    report_run(Path("runs/adult1"))
    report(PageConfig(run="adult1", to="for_the_board"))     # the verb: made anew, and a copy to pass on

It is made when a run ends and again when it was audited, so that the audit's verdict stands under the claim.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpvae.config import PageConfig
from dpvae.errors import ReleaseError, RunError
from dpvae.files import write_bytes
from dpvae.privacy.accountant import crosscheck
from dpvae.privacy.consequences import consequences
from dpvae.report.html import render
from dpvae.report.numbers import gather
from dpvae.report.source import read_run
from dpvae.train.run import find_run

BESIDE = ("report.html", "report.json", "audit.html", "audit.json")


@dataclass(frozen=True)
class Reported:
    """Where the page is, and its first sentence."""

    page: Path
    sentence: str

    def __str__(self) -> str:
        return f"{self.sentence}\n  page     {self.page}"


def report(config: PageConfig) -> Reported:
    """``dpvae report``; costs no privacy."""
    if (Path(config.run) / "certificate.json").is_file():
        raise ReleaseError(f"run={config.run}: is a release, whose page is sealed by its signature; open "
                           f"{config.run}/report.html")
    page = report_run(find_run(config.run, config.root).path)
    sentence = str(json.loads(page.with_suffix(".json").read_text())["sentence"])
    return Reported(_copy(page.parent, Path(config.to)) if config.to is not None else page, sentence)


def report_run(run: Path) -> Path:
    """Writes both files, each whole or not at all, and returns the page; costs no privacy."""
    numbers = numbers_of(run)
    write_bytes(run / "public" / "report.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    page = run / "public" / "report.html"
    write_bytes(page, render(numbers).encode())
    return page


def numbers_of(run: Path) -> dict[str, Any]:
    """Everything the page of a finished run says."""
    source = read_run(run)
    check = crosscheck(source.events, source.claim.delta, source.claim.neighbouring)
    found = consequences(source.events, source.claim.delta, source.claim.neighbouring,
                         upper=check.pld)
    try:
        numbers = gather(source, check, subject="This run", pairs=found.profile, reproduce=[
            f"dpvae release run={source.name} rows={source.claim.n_ref:.0f} to=FOLDER   # a folder to publish",
            "dpvae verify FOLDER", f"dpvae audit run={source.name}", "dpvae ledger check"])
    except ReleaseError as error:
        raise RunError(f"run={source.name}: {error}") from None
    if numbers["audit"] is not None:
        numbers["audit"]["page"] = (run / "public" / "audit.html").is_file()
    return numbers


def _copy(public: Path, to: Path) -> Path:
    """The page and the numbers behind it in a new folder."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"to={to}: is there already; pick another folder")
    to.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if (public / name).is_file():
            shutil.copyfile(public / name, to / name)
    return to / "report.html"
