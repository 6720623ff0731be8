"""Keys and signatures: what is refused, and in which words."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from pathlib import Path

import coincurve
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from zoonet.crypto import Identity, peer_id_of, public_key_of, sha256, short, signer_of
from zoonet.errors import KeyFileError

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def identity_of(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ADA = identity_of("ada")
DIGEST = sha256(b"what is signed")


def test_a_peer_id_embeds_the_public_key() -> None:
    assert ADA.peer_id.startswith("16Uiu2")
    assert public_key_of(ADA.peer_id) == ADA.public_key
    assert peer_id_of(ADA.public_key) == ADA.peer_id
    assert len(short(ADA.peer_id)) == 8 and ADA.peer_id.endswith(short(ADA.peer_id))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA key's
        "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA",  # an Ed25519 key's
        ADA.peer_id[:-1],
        ADA.peer_id + "1",
        "0" * 53,  # no digit of base58
        "1" * 53,
        "16Uiu2" * 1000,
    ],
)
def test_other_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"peer id|Invalid character"):
        public_key_of(text)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_only_the_signed_digest_recovers_the_signer(left: bytes, right: bytes) -> None:
    signature = ADA.sign(sha256(left))
    assert signer_of(sha256(left), signature) == ADA.peer_id
    if left != right:
        assert signer_of(sha256(right), signature) != ADA.peer_id


@given(st.integers(0, 64), st.integers(1, 255))
def test_a_changed_signature_is_refused_or_somebody_elses(index: int, change: int) -> None:
    signature = bytearray(ADA.sign(DIGEST))
    signature[index] ^= change
    with contextlib.suppress(ValueError):
        assert signer_of(DIGEST, bytes(signature)) != ADA.peer_id


def test_the_other_form_of_a_signature_with_high_s_is_refused() -> None:
    signature = ADA.sign(DIGEST)
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    twin = r + (ORDER - s).to_bytes(32, "big") + bytes([v ^ 1])
    key = coincurve.PublicKey.from_signature_and_message(twin, DIGEST, hasher=None)
    assert key.format(compressed=True) == ADA.public_key  # elsewhere it would pass
    with pytest.raises(ValueError, match="high s"):
        signer_of(DIGEST, twin)


@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(66), bytes(65), b"\xff" * 65])
def test_what_is_no_signature_is_a_value_error(signature: bytes) -> None:
    with pytest.raises(ValueError):
        signer_of(DIGEST, signature)


def test_a_key_file_comes_back_and_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key.pem"
    ADA.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).peer_id == ADA.peer_id


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    ADA.save(tmp_path / "key")
    with pytest.raises(FileExistsError):
        identity_of("bob").save(tmp_path / "key")
    assert Identity.load_or_create(tmp_path / "key").peer_id == ADA.peer_id


def test_the_first_run_makes_a_key_and_the_next_one_finds_it(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "key", passphrase="open sesame")
    again = Identity.load_or_create(tmp_path / "key", passphrase="open sesame")
    assert first.peer_id == again.peer_id != ADA.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_file_that_others_may_touch_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    ADA.save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
        Identity.load(tmp_path / "key")


def test_a_missing_key_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        Identity.load(tmp_path / "nowhere")


def test_a_locked_key_file_needs_its_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "key"
    ADA.save(path, passphrase="right")
    assert Identity.load(path, passphrase="right").peer_id == ADA.peer_id
    with pytest.raises(KeyFileError, match="needs a passphrase"):
        Identity.load(path)
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        Identity.load(path, passphrase="wrong")


def test_an_open_key_file_takes_no_passphrase(tmp_path: Path) -> None:
    ADA.save(tmp_path / "key")
    with pytest.raises(KeyFileError, match="is not locked"):
        Identity.load(tmp_path / "key", passphrase="needless")


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_file_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="damaged"):
        Identity.load(path)


@pytest.mark.parametrize("curve", ["p256", "ed25519"])
def test_a_key_of_another_curve_is_refused(tmp_path: Path, curve: str) -> None:
    key = (
        ec.derive_private_key(7, ec.SECP256R1())
        if curve == "p256"
        else ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "key"
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="not secp256k1"):
        Identity.load(path)


def test_the_exported_form_comes_back() -> None:
    assert Identity.from_api_key(ADA.api_key).peer_id == ADA.peer_id
    assert Identity.from_api_key(f" 0x{ADA.api_key}\n").peer_id == ADA.peer_id


@pytest.mark.parametrize(
    "text", ["", "secret", "zz" * 32, "00" * 32, "ff" * 32, "01" * 31, "01" * 33, "01" * 3200]
)
def test_what_is_no_exported_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        Identity.from_api_key(text)
    assert not text or text not in str(caught.value)


def test_a_key_does_not_print_its_secret() -> None:
    assert ADA.api_key not in repr(ADA) and ADA.api_key not in str(ADA)


def test_the_daemon_gets_the_key_in_libp2ps_own_form() -> None:
    raw = ADA.libp2p_private_key()
    assert raw[:4] == b"\x08\x02\x12\x20" and raw[4:] == bytes.fromhex(ADA.api_key)
