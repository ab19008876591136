"""Signatures by others' hands: RFC 8032's vectors, one of minisign's, and openssl's."""

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from vla_jax.robot.torch_policy import signature

# RFC 8032, 7.1: public key, message, signature.
RFC = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]  # fmt: skip

# Of the text "test", by minisign's author, as minisign-verify's tests have it.
KEY = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
SIGNED = """untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==
"""


@pytest.mark.parametrize(("key", "message", "signed"), RFC)
def test_vectors_of_the_standard(key: str, message: str, signed: str) -> None:
    public, text, proof = map(bytes.fromhex, (key, message, signed))
    assert signature.verifies(public, text, proof)
    assert not signature.verifies(public, text + b"x", proof)
    for at in (0, 31, 32, 63):
        wrong = bytearray(proof)
        wrong[at] ^= 1
        assert not signature.verifies(public, text, bytes(wrong))
    # The same point again, with another number: a second signature that nobody made.
    s = int.from_bytes(proof[32:], "little") + signature.ORDER
    assert not signature.verifies(public, text, proof[:32] + s.to_bytes(32, "little"))
    assert not signature.verifies(public, text, proof[:63])
    assert not signature.verifies(b"\xff" * 32, text, proof)


def test_minisigns_own() -> None:
    signature.check(b"test", SIGNED, KEY, "here")
    for data, text, key, words in (
        (b"Test", SIGNED, KEY, "or what it signs was changed"),
        (b"test", SIGNED.replace("file:test", "file:best"), KEY, "or what it signs was changed"),
        (b"test", SIGNED.replace("i59SL", "i69SL"), KEY, "by the key E7620F1842B4E81F, got one"),
        (b"test", SIGNED.replace("RWQf6", "RXQf6"), KEY, "expected an Ed25519 signature"),
        (b"test", SIGNED.replace("xwA=", "xwA"), KEY, "expected 74 bytes in base64"),
        (b"test", "", KEY, "expected the four lines that minisign writes, got 0"),
    ):
        with pytest.raises(ValueError, match=f"^here: .*{words}"):
            signature.check(data, text, key, "here")


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "minisign.pub"
    file.write_text(f"untrusted comment: minisign public key\n{KEY}\n")
    assert signature.public_key(str(file)) == signature.public_key(KEY) == KEY
    for wrong in ("", "none.pub", KEY[:-4], SIGNED):
        with pytest.raises(ValueError, match=r"--require_signature .*: expected 42 bytes"):
            signature.public_key(wrong)
    with pytest.raises(ValueError, match="expected a public key of minisign"):
        signature.public_key(base64.b64encode(b"XX" + bytes(40)).decode())


def test_openssls_keys_and_signatures(tmp_path: Path) -> None:
    """The kind that minisign writes today: of a hash."""
    text = bytes(range(256)) * 40
    key, signed = signed_by_openssl(tmp_path, text)
    signature.check(text, signed, key, "here")
    with pytest.raises(ValueError, match="was changed"):
        signature.check(text[1:], signed, key, "here")


def signed_by_openssl(folder: Path, data: bytes) -> tuple[str, str]:
    """A new key as minisign.pub has it, and its .minisig of `data`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes keys and signatures, and is not installed")
    secret, given, name = folder / "key.pem", folder / "message", b"\1\2\3\4\5\6\7\x08"

    def openssl(*words: str) -> bytes:
        return subprocess.run(["openssl", *words], check=True, capture_output=True).stdout

    def signed(message: bytes) -> bytes:
        given.write_bytes(message)
        return openssl("pkeyutl", "-sign", "-rawin", "-inkey", str(secret), "-in", str(given))

    openssl("genpkey", "-algorithm", "ed25519", "-out", str(secret))
    public = openssl("pkey", "-in", str(secret), "-pubout", "-outform", "DER")[-32:]
    proof = signed(hashlib.blake2b(data).digest())
    both = signed(proof + b"artefact")
    lines = ("untrusted comment: x", b"ED" + name + proof, "trusted comment: artefact", both)
    text = [x if isinstance(x, str) else base64.b64encode(x).decode() for x in lines]
    return base64.b64encode(b"Ed" + name + public).decode(), "\n".join(text) + "\n"
