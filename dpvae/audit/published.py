"""Does a published lake table hold what it claims? Asked of the table alone; no torch.

    print(verify_table("iceberg:demo.census_synth"))            # what readers see now
    verify_table("iceberg:demo.census_synth@dpvae-first-1000-0")     # a release that a tag has kept

The release folder lies inside the table's location, and its files *are* the table's rows. So :func:`dpvae.audit.verify`
answers for the folder; what is left is whether the table consists of those files and of nothing else, and whether what
it says of itself is what the certificate says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from dpvae.audit.verify import Verdict, verify
from dpvae.data import place
from dpvae.data.lake.register import Held, Home, home
from dpvae.errors import DPVAEError, ReleaseError
from dpvae.release import marks
from dpvae.release.bundle import SAFE_NAME, files
from dpvae.release.certificate import Certificate
from dpvae.report import records


def verify_table(text: str, *, key: Path | None = None) -> Verdict:
    """The verdict on a table, or on one of its versions; ``key``: a public key in PEM that it must be signed with.

    Raises :class:`ReleaseError` where no release was ever published to it.
    """
    named = place.split(text)
    there = home(text.removesuffix(f"@{named.version}") if named.version else text)
    held = there.held(named.version)
    if held is None or not any(marks.RELEASE in state.marks for state in (held, *there.history())):
        raise ReleaseError(f"{text}: no release was ever published to it; expected a table that dpvae release wrote")
    name = held.marks.get(marks.RELEASE, "")
    if not SAFE_NAME.fullmatch(name):
        return _verdict(text, None, [f"version {held.version} was not written by dpvae release ({held.operation}): it "
                                     "holds rows, or lacks rows, that nobody signed; the releases are under the tags"])
    folder = there.folder() / name
    if not folder.is_dir():
        return _verdict(text, None, [f"{folder.name}: the folder of the release is gone from {folder.parent}"])
    return _verdict(text, verify(folder, **({} if key is None else {"key": key})), _differences(there, held, folder))


def _differences(there: Home, held: Held, folder: Path) -> list[str]:
    """Where the table is not the folder, or does not say what its certificate says."""
    signed = {str(folder / name) for name in files(folder) if name.startswith("data/")}
    problems = [f"{Path(path).name}: is among the table's files, but not among the signed ones"
                for path in held.files if path not in signed]
    problems += [f"{Path(path).name}: was signed, but is not among the table's files"
                 for path in sorted(signed - set(held.files))]
    try:
        certificate = Certificate.from_bytes(records.read_bytes(folder / "certificate.json", "certificate.json"))
    except (DPVAEError, OSError):
        return problems  # which the folder's own verdict tells
    said = held.marks
    return problems + [f"{name}: the table says {records.clip(said.get(name))}, but the certificate "
                       f"{records.clip(stated)}" for name, stated in _expected(certificate).items()
                       if said.get(name) != stated]


def _expected(certificate: Certificate) -> Mapping[str, str]:
    """The marks that follow from the certificate; where the rows were read is no part of it."""
    found = marks.of(certificate)
    return {name: value for name, value in found.items() if name not in (marks.SOURCE_TABLE, marks.SOURCE_SNAPSHOT)}


def _verdict(text: str, verdict: Verdict | None, problems: list[str]) -> Verdict:
    problems = [*(verdict.problems if verdict else ()), *problems]
    if verdict is not None and verdict.ok and not problems:
        return dataclasses.replace(verdict, sentence=f"{verdict.sentence} The rows of {text} are those files.")
    sentence = (f"{records.clip(text, quote=False)} does not hold what it claims: {len(problems)} "
                f"problem{'s' if len(problems) != 1 else ''}, and nothing in it should be relied on.")
    if verdict is None:
        return Verdict(ok=False, sentence=sentence, epsilon=None, problems=tuple(problems), accountants=None)
    return dataclasses.replace(verdict, ok=False, sentence=sentence, problems=tuple(problems))
