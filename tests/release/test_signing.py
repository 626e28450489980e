"""Signatures: whose key, over which bytes, and what a change does to them."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpvae.errors import ReleaseError
from dpvae.release import signing
from dpvae.release.certificate import Signer
from dpvae.release.signing import PRIVATE_NAME, PUBLIC_NAME, SigningKey, load_public, public_key, seal, unseal

CERTIFICATE = {"claim": "x"}
DIGESTS = {"card.md": "0" * 64}


def test_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first, second = SigningKey.at(tmp_path), SigningKey.at(tmp_path)
    assert first.signer == second.signer
    assert stat.S_IMODE((tmp_path / PRIVATE_NAME).stat().st_mode) == 0o600
    assert load_public(tmp_path / PUBLIC_NAME).public_bytes_raw() == base64.b64decode(first.signer.key)
    assert sorted(p.name for p in tmp_path.iterdir()) == [PRIVATE_NAME, PUBLIC_NAME]


def test_key_never_shows_in_its_representation(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path)
    assert (tmp_path / PRIVATE_NAME).read_text().splitlines()[1] not in repr(key)


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    SigningKey.at(tmp_path)
    (tmp_path / PRIVATE_NAME).chmod(0o644)
    with pytest.raises(ReleaseError, match="chmod 600"):
        SigningKey.at(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_file_that_is_no_key_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / PRIVATE_NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ReleaseError, match="move it away"):
        SigningKey.at(tmp_path)
    with pytest.raises(ReleaseError, match="not a PEM public key"):
        load_public(path)


def test_signature_agrees_with_rfc_8032_test_1() -> None:
    private = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert SigningKey(private).sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595b"
        "be24655141438e7a100b")


def test_pre_authentication_encoding_is_the_one_of_the_dsse_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "PAYLOAD_TYPE", "http://example.com/HelloWorld")
    assert signing._encode(b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_envelope_gives_back_what_was_sealed(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path)
    assert unseal(seal(key, CERTIFICATE, DIGESTS), public_key(key.signer), "e") == (DIGESTS, CERTIFICATE)


def test_every_flipped_byte_of_an_envelope_is_refused(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path)
    public, envelope = public_key(key.signer), seal(key, CERTIFICATE, DIGESTS)
    for position in range(len(envelope)):
        for bit in (0x01, 0x20):
            flipped = bytearray(envelope)
            flipped[position] ^= bit
            with pytest.raises(ReleaseError):
                unseal(bytes(flipped), public, "e")


def test_another_key_is_refused(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path)
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(ReleaseError, match="signed by key"):
        unseal(seal(key, CERTIFICATE, DIGESTS), other, "e")


def test_a_second_signature_or_none_is_refused(tmp_path: Path) -> None:
    key = SigningKey.at(tmp_path)
    envelope = json.loads(seal(key, CERTIFICATE, DIGESTS))
    both: list[Any] = [[], envelope["signatures"] * 2]
    for signatures in both:
        with pytest.raises(ReleaseError, match="expected one signature"):
            unseal(json.dumps({**envelope, "signatures": signatures}).encode(), public_key(key.signer), "e")


def test_keyid_must_be_the_digest_of_the_key(tmp_path: Path) -> None:
    signer = SigningKey.at(tmp_path).signer
    assert isinstance(public_key(signer), Ed25519PublicKey)
    with pytest.raises(ReleaseError, match="keyid"):
        public_key(Signer(algorithm="ed25519", key=signer.key, keyid="0" * 64))
