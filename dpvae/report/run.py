"""A run's own report: ``public/report.html`` and ``public/report.json``, from what the run released.

    report_run(Path("runs/adult1"))
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from dpvae.privacy.accountant import crosscheck
from dpvae.privacy.consequences import consequences
from dpvae.report.html import render
from dpvae.report.numbers import gather
from dpvae.report.source import read_run


def report_run(run: Path) -> Path:
    """Writes both files, each whole or not at all, and returns the page; costs no privacy."""
    source = read_run(run)
    check = crosscheck(source.events, source.claim.delta, source.claim.neighbouring)
    found = consequences(source.events, source.claim.delta, source.claim.neighbouring,
                         upper=check.pld)
    numbers = gather(source, check, subject="This run", pairs=found.profile, reproduce=[
        f"dpvae release run={source.name} rows={source.claim.n_ref:.0f} to=FOLDER   # a folder to publish",
        "dpvae verify FOLDER", "dpvae ledger check"])
    _replace(run / "public" / "report.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    page = run / "public" / "report.html"
    _replace(page, render(numbers).encode())
    return page


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.partial")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk is told of a file's number, not of its name
            error.filename = str(path)
        raise
