"""Who vouches for a release: an Ed25519 signature over an in-toto statement, in a DSSE envelope.

The statement names every file of the release by SHA-256 and carries the certificate as its predicate, so one
signature covers all of it, and standard supply-chain tools (cosign, in-toto) can read it. The private key is made
on first use beside the runs, readable by its owner alone. The public half travels inside the certificate: it
proves that nothing was changed since, and only a key obtained some other way proves *who* signed.

    key = SigningKey.at(Path("runs"))
    envelope = seal(key, certificate.to_dict(), {"data/part-00000.parquet": "9f86d0..."})
    statement = unseal(envelope, public)          # ReleaseError where the signature does not hold
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpvae.errors import ReleaseError
from dpvae.release.certificate import Signer
from dpvae.report import records

PRIVATE_NAME = "signing-key.pem"
PUBLIC_NAME = "signing-key.pub.pem"
PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Literal["urn:dpvae:certificate:1"] = "urn:dpvae:certificate:1"


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Lower-case hex."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One file of the release."""

    name: str
    digest: Digest


@dataclass(frozen=True, kw_only=True)
class Signature:
    """``sig`` is base64 of 64 bytes."""

    keyid: str
    sig: str


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A DSSE envelope; ``payload`` is base64 of the statement's canonical JSON."""

    payloadType: Literal["application/vnd.in-toto+json"]
    payload: str
    signatures: tuple[Signature, ...]


class SigningKey:
    """An Ed25519 private key; its representation shows the public half only."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"SigningKey(keyid={self.signer.keyid[:16]})"

    @classmethod
    def at(cls, root: Path) -> SigningKey:
        """The key of the runs folder ``root``, made there on first use (0600) with its public half beside it."""
        path = root / PRIVATE_NAME
        if not path.exists():
            _create(path)
        key = cls.load(path)
        public = root / PUBLIC_NAME
        if not public.exists():
            _publish(public, key.public_pem(), 0o644)
        return key

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key in a PEM file; refused where others than the owner may read it."""
        data = records.read_bytes(path, str(path))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ReleaseError(f"{path}: readable by others; chmod 600 it, or move it away to have one made")
        try:
            private = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ReleaseError(f"{path}: not an unencrypted PEM key; move it away to have one made") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ReleaseError(f"{path}: expected an Ed25519 key; move it away to have one made")
        return cls(private)

    @property
    def signer(self) -> Signer:
        """The public half, as the certificate carries it."""
        raw = self._private.public_key().public_bytes_raw()
        return Signer(algorithm="ed25519", key=base64.b64encode(raw).decode(), keyid=hashlib.sha256(raw).hexdigest())

    def public_pem(self) -> bytes:
        """What to hand to an auditor."""
        return self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(message)


def seal(key: SigningKey, certificate: Mapping[str, Any], digests: Mapping[str, str]) -> bytes:
    """The signed envelope for a release: ``digests`` maps each file's relative name to its SHA-256."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)],
        "predicateType": PREDICATE_TYPE,
        "predicate": certificate,
    }
    payload = records.canonical(statement)
    signature = Signature(keyid=key.signer.keyid, sig=base64.b64encode(key.sign(_encode(payload))).decode())
    envelope = Envelope(payloadType=PAYLOAD_TYPE, payload=base64.b64encode(payload).decode(), signatures=(signature,))
    return records.canonical(records.plain(envelope)) + b"\n"


def unseal(data: bytes, public: Ed25519PublicKey, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """(digests, certificate) of an envelope whose signature by ``public`` holds; else :class:`ReleaseError`."""
    envelope = records.read(Envelope, records.parse(data, name), name)
    payload = _base64(envelope.payload, f"{name}: payload")
    if len(envelope.signatures) != 1:
        raise ReleaseError(f"{name}: expected one signature, got {len(envelope.signatures)}")
    signature = envelope.signatures[0]
    if signature.keyid != hashlib.sha256(public.public_bytes_raw()).hexdigest():
        signed_by = records.clip(signature.keyid[:16], quote=False)
        raise ReleaseError(f"{name}: signed by key {signed_by}, not by the key it is checked with")
    try:
        public.verify(_base64(signature.sig, f"{name}: signature"), _encode(payload))
    except InvalidSignature:
        raise ReleaseError(f"{name}: the signature does not hold; the statement was changed after signing") from None
    if data != records.canonical(records.plain(envelope)) + b"\n":
        raise ReleaseError(f"{name}: not in canonical form; it was rewritten after signing")
    return _statement(records.parse(payload, f"{name}: payload"), name)


def public_key(signer: Signer) -> Ed25519PublicKey:
    """The key a certificate carries."""
    raw = _base64(signer.key, "evidence.signer.key")
    if len(raw) != 32:
        raise ReleaseError("evidence.signer.key: expected 32 bytes in base64")
    if hashlib.sha256(raw).hexdigest() != signer.keyid:
        raise ReleaseError("evidence.signer.keyid: not the SHA-256 of evidence.signer.key")
    return Ed25519PublicKey.from_public_bytes(raw)


def load_public(path: Path) -> Ed25519PublicKey:
    """A public key in PEM, as :data:`PUBLIC_NAME` has it."""
    try:
        key = serialization.load_pem_public_key(records.read_bytes(path, f"key={path}"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ReleaseError(f"key={path}: not a PEM public key; the issuer's is called {PUBLIC_NAME}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ReleaseError(f"key={path}: expected an Ed25519 public key")
    return key


def _statement(value: Any, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The two parts of a statement that was signed, checked for their form."""
    if not isinstance(value, dict) or set(value) != {"_type", "subject", "predicateType", "predicate"}:
        raise ReleaseError(f"{name}: expected a statement of _type, subject, predicateType, predicate")
    if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ReleaseError(f"{name}: not a statement about a dpvae certificate")
    if not isinstance(value["subject"], list) or not isinstance(value["predicate"], dict):
        raise ReleaseError(f"{name}: subject or predicate is malformed")
    subjects = [records.read(Subject, item, f"{name}: subject[{i}]") for i, item in enumerate(value["subject"])]
    if len({subject.name for subject in subjects}) != len(subjects):
        raise ReleaseError(f"{name}: a file is named twice")
    return {subject.name: subject.digest.sha256 for subject in subjects}, value["predicate"]


def _encode(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and payload cannot be shifted into one another."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _base64(text: str, name: str) -> bytes:
    """Strict base64: one text per byte string."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ReleaseError(f"{name}: not base64") from None
    if base64.b64encode(data).decode() != text:
        raise ReleaseError(f"{name}: not canonical base64")
    return data


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    _publish(path, pem, 0o600)


def _publish(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and the first of several processes wins (a link never replaces)."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
