"""NATS' keys (nkeys): Ed25519 pairs in an encoding that names their kind and has a checksum.

Source: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
"""

from __future__ import annotations

import base64
import os
from typing import Final

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

OPERATOR: Final = nkeys.PREFIX_BYTE_OPERATOR
ACCOUNT: Final = nkeys.PREFIX_BYTE_ACCOUNT
USER: Final = nkeys.PREFIX_BYTE_USER
SEED_BYTES: Final = 32
_LETTERS: Final = 56
"""Length of an encoded public key."""
_BYTES: Final = 35
"""Its length once decoded: kind, key and checksum."""


class Key:
    """A key pair. `public` is its encoded public key, `seed` the encoded secret."""

    def __init__(self, raw: bytes, kind: int) -> None:
        """`raw` are the 32 bytes of the secret, `kind` is one of the constants above."""
        self._key = SigningKey(raw)
        self.kind = kind
        self.raw = raw
        self.seed: str = nkeys.encode_seed(raw, kind).decode()
        body = bytes([kind]) + bytes(self._key.verify_key)
        self.public = base64.b32encode(body + nkeys.crc16(body).to_bytes(2, "little")).decode()

    def __repr__(self) -> str:
        return f"<Key {self.public}>"

    @classmethod
    def generate(cls, kind: int) -> Key:
        return cls(os.urandom(SEED_BYTES), kind)

    @classmethod
    def from_seed(cls, seed: str) -> Key:
        """Raises ValueError for anything but a seed."""
        try:
            kind, body = nkeys.decode_seed(seed.strip().encode("ascii"))
        except (nkeys.NkeysError, UnicodeEncodeError):
            raise ValueError("not a seed") from None
        raw = bytes(body[:SEED_BYTES])
        key = cls(raw, kind)
        if key.seed != seed.strip():
            raise ValueError("not a seed: its checksum is wrong")
        return key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message).signature


def verify(public: str, message: bytes, signature: bytes, kind: int = USER) -> bool:
    """Whether the signature is that of the key. An invalid key has signed nothing."""
    raw = decoded(public, kind)
    if raw is None:
        return False
    try:
        VerifyKey(raw).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def decoded(public: str, kind: int = USER) -> bytes | None:
    """The 32 bytes of an encoded public key of that kind, or None."""
    if len(public) != _LETTERS:
        return None
    try:
        body = base64.b32decode(public)
    except ValueError:  # also for other than ASCII
        return None
    if len(body) != _BYTES or body[0] != kind or nkeys.crc16(body[:-2]).to_bytes(2, "little") != body[-2:]:
        return None
    return body[1:-2]
