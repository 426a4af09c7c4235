"""Properties of private keys that do not reveal them: kind, length, and whether a passphrase protects them.

Formats: PKCS #1, PKCS #8 (RFC 5208), SEC 1 (RFC 5915), OpenSSL's of DSA, and that of OpenSSH (PROTOCOL.key).
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.reads import Allowance, FileReads

KEY_FILE_BYTES_MAX: Final = 65_536
"""Several times what a file with the largest usual key has."""
UNKNOWN: Final = -1

_BEGIN: Final = b"-----BEGIN "
_LABEL_END: Final = b"PRIVATE KEY-----"
_INTEGER, _OCTETS, _OID, _SEQUENCE, _CONTEXT_0 = 0x02, 0x04, 0x06, 0x30, 0xA0
_RSA: Final = bytes.fromhex("2a864886f70d010101")
_RSA_PSS: Final = bytes.fromhex("2a864886f70d01010a")
_DSA: Final = bytes.fromhex("2a8648ce380401")
_DH: Final = frozenset({bytes.fromhex("2a864886f70d010301"), bytes.fromhex("2a8648ce3e0201")})
_EC: Final = bytes.fromhex("2a8648ce3d0201")
_EDWARDS: Final = {
    bytes.fromhex("2b656e"): (253, 128),  # X25519
    bytes.fromhex("2b656f"): (448, 224),  # X448
    bytes.fromhex("2b6570"): (256, 128),  # Ed25519
    bytes.fromhex("2b6571"): (456, 224),  # Ed448
}
_CURVES: Final = {
    bytes.fromhex("2a8648ce3d030101"): ("prime192v1", 192),
    bytes.fromhex("2a8648ce3d030107"): ("prime256v1", 256),
    bytes.fromhex("2b81040021"): ("secp224r1", 224),
    bytes.fromhex("2b8104000a"): ("secp256k1", 256),
    bytes.fromhex("2b81040022"): ("secp384r1", 384),
    bytes.fromhex("2b81040023"): ("secp521r1", 521),
    bytes.fromhex("2b2403030208010107"): ("brainpoolP256r1", 256),
    bytes.fromhex("2b240303020801010b"): ("brainpoolP384r1", 384),
    bytes.fromhex("2b240303020801010d"): ("brainpoolP512r1", 512),
}
_SSH_CURVES: Final = {
    b"nistp256": ("prime256v1", 256),
    b"nistp384": ("secp384r1", 384),
    b"nistp521": ("secp521r1", 521),
}


class KeyProperties(NamedTuple):
    """Properties of a private key. Lengths are in bits, -1 if they are not known."""

    encrypted: bool
    kind: str = ""
    """`rsa`, `dsa`, `dh` or `ec`; empty for any other kind, or one that is not known."""
    group: str = ""
    """OpenSSL's name of the curve."""
    length: int = UNKNOWN
    security: int = UNKNOWN
    """Security bits as OpenSSL counts them, by NIST SP 800-57."""


def key_in_file(match: Match, reads: FileReads) -> KeyProperties | None:
    """The properties of the first private key in a regular file; None if there is none.

    Raises RefusedError and OSError.
    """
    opened = match.open(Purpose.PROPERTIES)
    if opened is None:
        return None
    with opened.file as file:
        most = min(KEY_FILE_BYTES_MAX, reads.allowance(opened.user).bytes)
        with reads.measure_time():
            content = file.read(most) or b""
    reads.charge(Allowance(len(content), 0))
    return private_key(content)


def private_key(content: bytes) -> KeyProperties | None:
    """The properties of the first private key in a text that is in one of the formats."""
    for label, body in _blocks(content):
        try:
            found = _properties(label, body)
        except (ValueError, IndexError):
            continue
        if found is not None:
            return found
    return None


def _blocks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The labels and bodies of PEM blocks with a private key."""
    for block in content.split(_BEGIN)[1:]:
        label, is_key, rest = block.partition(_LABEL_END)
        if is_key and len(label) < len(_BEGIN):
            yield label.strip(), rest.partition(b"-----END ")[0]


def _properties(label: bytes, body: bytes) -> KeyProperties | None:
    """Raises ValueError or IndexError for a malformed key."""
    if label == b"ENCRYPTED" or b"Proc-Type: 4,ENCRYPTED" in body:
        return KeyProperties(encrypted=True)
    decoded = binascii.a2b_base64(body)
    if label == b"OPENSSH":
        return _openssh(decoded)
    fields = _members(_members(decoded)[0][1])
    if label == b"RSA":
        return _rsa(fields)
    if label == b"DSA":
        return _finite_field("dsa", [fields[1], fields[2]])
    if label == b"EC":
        named = [value for tag, value in fields if tag == _CONTEXT_0]
        return _curve(_members(named[0])[0] if named else None)
    return _pkcs8(fields) if not label else None


def _pkcs8(fields: list[tuple[int, bytes]]) -> KeyProperties:
    algorithm = _members(fields[1][1])
    oid, parameters = algorithm[0][1], algorithm[1:]
    if oid in (_RSA, _RSA_PSS):
        found = _rsa(_members(_members(fields[2][1])[0][1]))
        return found if oid == _RSA else found._replace(kind="")
    if oid == _EC:
        return _curve(parameters[0])
    if oid == _DSA:
        return _finite_field("dsa", _members(parameters[0][1]))
    if oid in _DH:
        return _finite_field("dh", _members(parameters[0][1])[:1])
    length, security = _EDWARDS.get(oid, (UNKNOWN, UNKNOWN))
    return KeyProperties(False, length=length, security=security)


def _openssh(decoded: bytes) -> KeyProperties:
    """The public key is readable even if the private one is encrypted."""
    magic, _, rest = decoded.partition(b"\0")
    if magic != b"openssh-key-v1":
        raise ValueError("not OpenSSH's format")
    cipher, _, _, rest = _strings(rest, 3)
    public, _ = _strings(rest[4:], 1)
    kind, values = _strings(public, 1)
    encrypted = cipher != b"none"
    if kind == b"ssh-rsa":
        _, modulus, _ = _strings(values, 2)
        found = _rsa([(_INTEGER, b""), (_INTEGER, modulus)])
    elif kind == b"ssh-dss":
        found = _finite_field("dsa", [(_INTEGER, number) for number in _strings(values, 2)[:2]])
    elif kind.endswith(b"ssh-ed25519@openssh.com") or kind == b"ssh-ed25519":
        found = KeyProperties(False, length=256, security=128)
    else:
        group, length = _SSH_CURVES.get(_strings(values, 1)[0], ("", UNKNOWN))
        found = KeyProperties(False, "ec" if group else "", group, length, _security_of_curve(length))
    return found._replace(encrypted=encrypted)


def _rsa(fields: list[tuple[int, bytes]]) -> KeyProperties:
    length = _bits(fields[1])
    return KeyProperties(False, "rsa", "", length, _security_of_factoring(length))


def _finite_field(kind: str, numbers: list[tuple[int, bytes]]) -> KeyProperties:
    """`numbers` are the prime and, of DSA, the order of the subgroup."""
    length = _bits(numbers[0])
    strengths = ((15_360, 256), (7_680, 192), (3_072, 128), (2_048, 112), (1_024, 80))
    security = next((bits for least, bits in strengths if length >= least), 0)
    if len(numbers) > 1:
        half = _bits(numbers[1]) // 2
        security = min(security, half) if half >= strengths[-1][1] else 0
    return KeyProperties(False, kind, "", length, security)


def _curve(named: tuple[int, bytes] | None) -> KeyProperties:
    is_named = named is not None and named[0] == _OID
    group, length = _CURVES.get(named[1], ("", UNKNOWN)) if named is not None and is_named else ("", UNKNOWN)
    return KeyProperties(False, "ec", group, length, _security_of_curve(length))


def _security_of_curve(length: int) -> int:
    if length == UNKNOWN:
        return UNKNOWN
    strengths = ((512, 256), (384, 192), (256, 128), (224, 112), (160, 80))
    return next((bits for least, bits in strengths if length >= least), length // 2)


def _security_of_factoring(length: int) -> int:
    """The strength of RSA by NIST SP 800-56B, appendix D, in multiples of eight bits like OpenSSL's."""
    exact = {2_048: 112, 3_072: 128, 4_096: 152, 6_144: 176, 7_680: 192, 8_192: 200, 15_360: 256}
    if length in exact:
        return exact[length]
    if length < 8:
        return 0
    cap = 192 if length <= 7_680 else 256 if length <= 15_360 else 1_200
    natural = length * math.log(2)
    strength = (1.923 * (natural * math.log(natural) ** 2) ** (1 / 3) - 4.69) / math.log(2)
    return min(cap, (int(strength) + 4) & ~7)


def _members(content: bytes) -> list[tuple[int, bytes]]:
    """The tags and contents of the values in DER. Raises ValueError or IndexError unless all are complete."""
    found = []
    at = 0
    while at < len(content):
        tag, length = content[at], content[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(content[at : at + size], "big")
            at += size
        if at + length > len(content):
            raise ValueError("truncated")
        found.append((tag, content[at : at + length]))
        at += length
    return found


def _bits(field: tuple[int, bytes]) -> int:
    if field[0] != _INTEGER:
        raise ValueError("not an integer")
    return int.from_bytes(field[1], "big").bit_length()


def _strings(content: bytes, count: int) -> list[bytes]:
    """The first strings of SSH's encoding (RFC 4251), then the rest. Raises ValueError unless they are complete."""
    found = []
    for _ in range(count):
        length = int.from_bytes(content[:4], "big")
        if len(content) < 4 + length:
            raise ValueError("truncated")
        found.append(content[4 : 4 + length])
        content = content[4 + length :]
    return [*found, content]
