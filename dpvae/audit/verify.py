"""Does a release hold what it claims? Needs the folder and nothing else; answers in about a second.

    verdict = verify("release/adult")
    print(verdict)                      # one plain sentence, then one line per problem
    verify("release/adult", key=Path("signing-key.pub.pem"))   # and was it signed by whom I think

Four questions, each answered from the files: are they the files that were published (digests, signature), is the
certificate well formed and does every derived field follow from the events, do three accountants price those events
as it says, and may that be claimed at all (delta below 1/rows, noise that was secret). No torch, no pyarrow: an
auditor needs neither the model nor trust in the code that made it. What a file contains is somebody else's text,
so nothing here raises: every defect becomes a line that names its file.
"""

from __future__ import annotations

import dataclasses
import math
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dpvae.errors import AccountingError, ConfigError, DPVAEError, ReleaseError
from dpvae.privacy.accountant import CrossCheck, Epsilon, crosscheck
from dpvae.privacy.consequences import Consequences, consequences
from dpvae.privacy.events import Event
from dpvae.release import signing
from dpvae.release.bundle import ENVELOPE, SUMS, UNSIGNED, digest, files, sums
from dpvae.release.certificate import Accountants, Certificate, differences
from dpvae.release.certify import CHOSEN, certify
from dpvae.report import records
from dpvae.report.source import read_events

T = TypeVar("T")

FOLDERS = ("data", "model")  # the second where the model itself was asked for
REQUIRED = ("certificate.json", ENVELOPE, "events.jsonl", "schema.json", "plan.json", "croissant.json", "card.md",
            "report.html", "report.json", SUMS)
REPRICED = 1e-3  # another machine's arithmetic may differ by this share, not by more
SUM_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


@dataclass(frozen=True)
class Verdict:
    """What was found: ``ok``, one plain ``sentence``, and every problem in a line.

    ``epsilon`` is what the events beside the certificate cost when priced here, whatever it claims; ``None`` where they
    cannot be read.
    """

    ok: bool
    sentence: str
    epsilon: Epsilon | None
    problems: tuple[str, ...]
    accountants: Accountants | None
    signed_by: str | None = None  # keyid; None where no signature holds
    key_given: bool = False  # False: the key came with the release, which says nothing about who signed

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"  {problem}" for problem in self.problems)])

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return {**dataclasses.asdict(self), "problems": list(self.problems)}


@dataclass
class _Review:
    """What was found so far."""

    folder: Path
    key: Path | None
    problems: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], T], name: str) -> T | None:
        """The step's result; a failure of any kind becomes a problem, and the review goes on.

        The broad ``except`` is the promise of this module: whatever an edited file provokes, below us or in a
        library, the auditor reads a line that names the file.
        """
        try:
            return step()
        except DPVAEError as error:
            self.note(str(error) if str(error).startswith(name) else f"{name}: {error}")
        except OSError as error:
            self.note(f"{name}: cannot be read ({error.strerror or error})")
        except Exception as error:
            self.note(f"{name}: cannot be checked ({type(error).__name__}: {error})")
        return None

    def note(self, problem: str) -> None:
        line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in problem)
        if line not in self.problems:
            self.problems.append(line)


def verify(folder: str | Path, *, key: Path | None = None) -> Verdict:
    """The verdict on a release folder: is it whole, and does it cost what it claims?

    The digest of every file, the certificate against its schema and against the files it speaks of, the signature, and
    the epsilon of the events, priced here by three accountants: Google's PLD rules as the claim, PRV (Gopi, Lee and
    Wutschitz 2021) and RDP (Mironov 2017) beside it. ``key`` is a public key in PEM that it must be signed with;
    without one, a signature shows only that nothing was changed since.

    Raises nothing for what it finds: every problem is in :attr:`Verdict.problems`. Reads no private data, costs
    nothing, and loads neither torch nor the model; about a second.
    """
    review = _Review(Path(folder), key)
    if not review.folder.is_dir():
        return _verdict(review, None, None, None)
    digests = review.attempt(lambda: _check_files(review), str(SUMS)) or {}
    certificate = review.attempt(lambda: _certificate(review.folder), "certificate.json")
    events = review.attempt(lambda: _events(review.folder), "events.jsonl")
    schema = review.attempt(lambda: _schema(review.folder), "schema.json")
    signed_by = None
    check = None
    if certificate is not None:
        signed_by = review.attempt(lambda: _signature(review, certificate, digests), ENVELOPE)
        if events is not None and schema is not None:
            review.attempt(lambda: _derived(review, certificate, events, schema), "certificate.json")
        if events is not None:
            check = review.attempt(lambda: _priced(review, certificate, events), "events.jsonl")
    return _verdict(review, certificate, check, signed_by)


def _check_files(review: _Review) -> dict[str, str]:
    """Digests of all files; notes what is missing, superfluous, changed or not a plain file."""
    digests: dict[str, str] = {}
    for name in files(review.folder):
        if not stat.S_ISREG((review.folder / name).lstat().st_mode):
            review.note(f"{name}: not a plain file (a link or a device); a release holds plain files only")
        elif (found := review.attempt(partial(digest, review.folder / name), name)) is not None:
            digests[name] = found
    for path in review.folder.rglob("*"):
        if path.is_dir() and path.relative_to(review.folder).as_posix() not in FOLDERS:
            review.note(f"{path.relative_to(review.folder)}: a folder that no release has")
    for name in REQUIRED:
        if name not in digests:
            review.note(f"{name}: missing")
    if not any(name.startswith("data/") for name in digests):
        review.note("data: holds no table")
    if SUMS in digests:
        _compare_sums(review, digests)
    return digests


def _compare_sums(review: _Review, digests: dict[str, str]) -> None:
    """SHA256SUMS must be exactly the text that the files themselves give."""
    data = records.read_bytes(review.folder / SUMS, SUMS)
    expected = {name: value for name, value in digests.items() if name != SUMS}
    if data == sums(expected):
        return
    listed: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n")[:-1], start=1):
        match = SUM_LINE.fullmatch(line)
        if match is None:
            review.note(f"{SUMS} line {number}: expected a SHA-256, two spaces and a file name")
        elif match[2] in listed:
            review.note(f"{SUMS} line {number}: {match[2]} stands twice")
        else:
            listed[match[2]] = match[1]
            if match[2] not in expected:
                review.note(f"{match[2]}: listed in {SUMS} line {number}, but not there")
            elif expected[match[2]] != match[1]:
                review.note(f"{match[2]}: its digest is not the one in {SUMS} line {number}; one of them was changed")
    for name in expected:
        if name not in listed:
            review.note(f"{name}: not listed in {SUMS}; it was added later")
    review.note(f"{SUMS}: not the list that the files give")


def _certificate(folder: Path) -> Certificate:
    data = records.read_bytes(folder / "certificate.json", "certificate.json")
    certificate = Certificate.from_bytes(data)
    if certificate.to_bytes() != data:
        raise ReleaseError("certificate.json: not in canonical form; it was rewritten")
    return certificate


def _events(folder: Path) -> tuple[Event, ...]:
    return read_events(records.read_bytes(folder / "events.jsonl", "events.jsonl"), "events.jsonl")


def _schema(folder: Path) -> dict[str, Any]:
    value = records.parse_file(folder / "schema.json", "schema.json")
    if not isinstance(value, dict):
        raise ReleaseError("schema.json: expected an object")
    return value


def _signature(review: _Review, certificate: Certificate, digests: dict[str, str]) -> str:
    """The keyid whose signature holds over this certificate and these files."""
    signer = certificate.evidence.signer
    public = signing.public_key(signer)
    if review.key is not None and signing.load_public(review.key) != public:
        raise ReleaseError(f"key={review.key}: not the key this release was signed with ({signer.keyid[:16]})")
    subjects, predicate = signing.unseal(records.read_bytes(review.folder / ENVELOPE, ENVELOPE), public, ENVELOPE)
    if records.canonical(predicate) + b"\n" != certificate.to_bytes():
        review.note("certificate.json: not the certificate that was signed")
    for name in sorted(subjects.keys() | digests.keys() - set(UNSIGNED)):
        if name not in subjects:
            review.note(f"{name}: not among the files that were signed")
        elif subjects[name] != digests.get(name):
            review.note(f"{name}: not the file that was signed")
    return signer.keyid


def _derived(review: _Review, certificate: Certificate, events: tuple[Event, ...], schema: dict[str, Any]) -> None:
    """Every field that follows from others must be what follows; prices are compared in :func:`_priced`."""
    stated = CrossCheck(
        Epsilon(**dataclasses.asdict(certificate.claim.epsilon), delta=certificate.claim.delta),
        **dataclasses.asdict(certificate.claim.accountants))
    expected = certify(certificate.facts, events=events, schema=schema, check=stated, found=certificate.consequences)
    for line in differences(certificate.to_dict(), expected.to_dict(), "certificate.json"):
        review.note(line.replace("certificate.json.", "certificate.json: ", 1))


def _priced(review: _Review, certificate: Certificate, events: tuple[Event, ...]) -> CrossCheck:
    """The events priced here, by all accountants, against what the certificate says of them.

    The PLD figure is recomputed by :mod:`dpvae.privacy.dots`, since dp_accounting, which made the claim, takes a second
    to import. Only where the two differ is dp_accounting asked, and its word is final.
    """
    claim = certificate.claim

    def check(library: bool) -> CrossCheck:
        try:
            return crosscheck(events, claim.delta, claim.neighbouring, unit=claim.unit, library=library)
        except (AccountingError, ConfigError) as error:
            raise ReleaseError(f"events.jsonl: cannot be priced; {error}") from None

    found = check(library=False)
    if any(not _close(stated, priced) for _, stated, priced in _prices(certificate, found)):
        found = check(library=True)
    pairs = _prices(certificate, found)
    upper = claim.accountants.pld if _close(claim.accountants.pld, found.pld) else found.pld
    pairs += _beyond(review, certificate, consequences(events, claim.delta, claim.neighbouring, upper=upper))
    for name, stated, priced in pairs:
        if not _close(stated, priced):
            review.note(f"certificate.json: {name} says {stated:.6g}, but the events of events.jsonl cost {priced:.6g}")
    return found


def _close(stated: float, priced: float) -> bool:
    return math.isclose(stated, priced, rel_tol=REPRICED, abs_tol=1e-6)


def _prices(certificate: Certificate, check: CrossCheck) -> list[tuple[str, float, float]]:
    """(field, what is stated, what was priced) of everything the accountants say."""
    claim = certificate.claim
    pairs = [(f"claim.epsilon.{name}", getattr(claim.epsilon, name), getattr(check.epsilon, name))
             for name in ("lower", "estimate", "upper")]
    return pairs + [(f"claim.accountants.{name}", getattr(claim.accountants, name), getattr(check, name))
                    for name in ("pld", "prv_lower", "prv_upper", "rdp")]


def _beyond(review: _Review, certificate: Certificate, found: Consequences) -> list[tuple[str, float, float]]:
    """Stated against derived numbers of the curve and of the groups; notes where their forms differ."""
    stated = certificate.consequences
    pairs = []
    for part, have, want in (("profile", stated.profile, found.profile), ("groups", stated.groups, found.groups)):
        if len(have) != len(want):
            review.note(f"certificate.json: claim.{part} holds {len(have)} entries, but {len(want)} follow from the "
                        "events")
    for i, (claimed, derived) in enumerate(zip(stated.profile, found.profile, strict=False)):
        pairs += [(f"claim.profile[{i}].{name}", a, b)
                  for name, a, b in zip(("epsilon", "delta"), claimed, derived, strict=True)]
    for i, (group, true) in enumerate(zip(stated.groups, found.groups, strict=False)):
        if (group.records, group.how, group.epsilon is None) != (true.records, true.how, true.epsilon is None):
            review.note(f"certificate.json: claim.groups[{i}] is not the one that follows from the events")
        elif group.epsilon is not None and true.epsilon is not None:
            pairs.append((f"claim.groups[{i}].epsilon", group.epsilon, true.epsilon))
    return pairs


def _verdict(review: _Review, certificate: Certificate | None, check: CrossCheck | None,
             signed_by: str | None) -> Verdict:
    if not review.folder.is_dir():
        review.note(f"{review.folder}: no such folder; give the folder that dpvae release wrote")
    count = len(review.problems)
    if certificate is not None and check is not None and signed_by is not None and not count:
        selected = certificate.mechanism.adaptive_decisions == CHOSEN
        who = "the key you gave" if review.key else "the key that came with it"
        sentence = (f"{certificate.sentence} Every file is the one that was signed with {who} ({signed_by[:16]}); "
                    f"{_count(len(certificate.scope.accesses))} priced again by "
                    f"{'RDP, which alone prices a selection' if selected else 'PLD, PRV and RDP'}.")
    else:
        sentence = (f"{records.clip(str(review.folder), quote=False)} does not hold what it claims: "
                    f"{count} problem{'s' if count != 1 else ''}, and nothing in it should be relied on.")
    return Verdict(
        ok=not count and check is not None and signed_by is not None, sentence=sentence,
        epsilon=check.epsilon if check else None, problems=tuple(review.problems),
        accountants=Accountants(pld=check.pld, prv_lower=check.prv_lower, prv_upper=check.prv_upper, rdp=check.rdp)
        if check else None,
        signed_by=signed_by, key_given=review.key is not None)


def _count(accesses: int) -> str:
    return "the one access to the data was" if accesses == 1 else f"{accesses} accesses to the data were"
