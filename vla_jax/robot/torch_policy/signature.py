"""Who made an artefact: a minisign signature of its SHA256SUMS, checked against a public key.

    minisign -G                              # once: minisign.key stays with its owner, minisign.pub
    minisign -Sm artefact/SHA256SUMS         # writes SHA256SUMS.minisig beside it
    python -m experiments.serve --artefact artefact --require_signature minisign.pub

Written here, by RFC 8032 (Ed25519, section 5.1.7) and minisign's description of its format, because
an artefact promises to run with torch, numpy and safetensors alone. It only verifies: nothing here
is secret, so the time that it takes tells nobody anything. Signing is minisign's.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the base point
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of -1
TRUSTED = "trusted comment: "

Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, x y = T/Z


def check(data: bytes, signature: str, key: str, where: str) -> None:
    """Raises ValueError, beginning with `where`, unless `signature`, the text of a .minisig file,
    is of `data` and by the owner of `key`, as `public_key` returns it.
    """
    lines = signature.splitlines()
    if len(lines) != 4 or not lines[2].startswith(TRUSTED):
        raise ValueError(f"{where}: expected the four lines that minisign writes, got {len(lines)}")
    packet, both = _decoded(lines[1], 74, where), _decoded(lines[3], 64, where)
    owner = _decoded(key, 42, where)
    kind, signer, proof = packet[:2], packet[2:10], packet[10:]
    if signer != owner[2:10]:
        raise ValueError(
            f"{where}: expected a signature by the key {_id(owner[2:10])}, got one by {_id(signer)}"
        )
    if kind not in (b"Ed", b"ED"):
        raise ValueError(f"{where}: expected an Ed25519 signature, got the kind {kind!r}")
    signed = hashlib.blake2b(data).digest() if kind == b"ED" else data
    comment = lines[2].removeprefix(TRUSTED).encode()
    if not (verifies(owner[10:], signed, proof) and verifies(owner[10:], proof + comment, both)):
        raise ValueError(
            f"{where}: it is not by the key {_id(signer)}, or what it signs was changed; get the"
            " artefact from its maker again"
        )


def public_key(text: str) -> str:
    """The key in a minisign.pub file, or `text` itself, which is one. Raises ValueError for
    anything else.
    """
    is_file = os.path.isfile(text)  # unlike pathlib's, of any text
    lines = Path(text).read_text(encoding="utf-8").splitlines() if is_file else [text]
    key = next((line for line in reversed(lines) if line.strip()), "").strip()
    where = f"--require_signature {text[:100]!r}"
    if _decoded(key, 42, where)[:2] != b"Ed":
        raise ValueError(f"{where}: expected a public key of minisign")
    return key


def verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature (64 bytes) of `message` is by `key` (32 bytes)."""
    public, commitment = _point(key), _point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if public is None or commitment is None or len(signature) != 64 or s >= ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + key + message).digest()
    k = int.from_bytes(digest, "little") % ORDER
    return _equal(_times(s, BASE), _sum(commitment, _times(k, public)))


def _decoded(text: str, length: int, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != length:
        raise ValueError(f"{where}: expected {length} bytes in base64, got {text[:100]!r}")
    return data


def _id(key: bytes) -> str:
    """As minisign writes it."""
    return key[::-1].hex().upper()


def _sum(a: Point, b: Point) -> Point:
    """RFC 8032, 5.1.4."""
    low, high = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    c, d = 2 * a[3] * b[3] * D, 2 * a[2] * b[2]
    e, f, g, h = (x % P for x in (high - low, d - c, d + c, high + low))
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(n: int, point: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while n:
        if n & 1:
            total = _sum(total, point)
        point, n = _sum(point, point), n >> 1
    return total


def _equal(a: Point, b: Point) -> bool:
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 == (a[1] * b[2] - b[1] * a[2]) % P


def _point(data: bytes) -> Point | None:
    """RFC 8032, 5.1.3; None where there is no such point."""
    number = int.from_bytes(data, "little")
    y, odd = number & (2**255 - 1), number >> 255
    if len(data) != 32 or y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * ROOT % P
    if (v * x * x - u) % P or (x == 0 and odd):
        return None
    x = P - x if x & 1 != odd else x
    return x, y, 1, x * y % P


_base = _point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
assert _base is not None
BASE: Point = _base
