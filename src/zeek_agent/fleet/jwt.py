"""NATS' JSON Web Tokens, version 2: who may do what at a server, signed by an operator or an account.

Source: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt and the claims that
nats-server reads (github.com/nats-io/jwt, version 2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from zeek_agent.fleet import nkey
from zeek_agent.fleet.nkey import Key

_HEADER: Final = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_ISSUERS: Final = {"O": nkey.OPERATOR, "A": nkey.ACCOUNT, "U": nkey.USER}
_UNLIMITED: Final = -1


class NatsClaims(msgspec.Struct, frozen=True):
    """The part of a user's claims that is NATS' own; without permissions, which its signing key has."""

    type: str
    issuer_account: str = ""
    tags: tuple[str, ...] = ()


class Claims(msgspec.Struct, frozen=True):
    """The claims of a token; times are seconds since the epoch, `exp` is 0 for a token that does not expire."""

    iss: str
    sub: str
    name: str
    iat: int
    nats: NatsClaims
    exp: int = 0
    nbf: int = 0


def operator(name: str, key: Key, system_account: str, now: float) -> str:
    """An operator's token, signed by itself."""
    return _signed(key, key.public, name, now, None, {"type": "operator", "system_account": system_account})


def account(
    name: str,
    public: str,
    issuer: Key,
    now: float,
    *,
    roles: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    revocations: Mapping[str, int] | None = None,
) -> str:
    """An account's token. `roles` maps a role to its signing key and template; `revocations` keys of users to times.

    A user's token that was issued until that time is refused.
    """
    nats: dict[str, Any] = {
        "type": "account",
        "limits": dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED)
        | {"wildcards": True},
        "default_permissions": {"pub": {}, "sub": {}},
    }
    if roles:
        nats["signing_keys"] = [
            {"kind": "user_scope", "key": key, "role": role, "template": template}
            for role, (key, template) in roles.items()
        ]
    if revocations:
        nats["revocations"] = dict(revocations)
    return _signed(issuer, public, name, now, None, nats)


def user(
    name: str,
    public: str,
    issuer: Key,
    now: float,
    *,
    expires: float | None = None,
    account: str | None = None,
    tags: tuple[str, ...] = (),
    permissions: Mapping[str, Any] | None = None,
) -> str:
    """A user's token. `issuer` is the account itself, or its signing key, and then `account` is the account.

    A scoped signing key decides on the permissions; `permissions` are for a user that the account itself signs.
    """
    nats: dict[str, Any] = {"type": "user"}
    if account is not None:
        nats["issuer_account"] = account
    else:
        nats |= {"subs": _UNLIMITED, "data": _UNLIMITED, "payload": _UNLIMITED, **(permissions or {})}
    if tags:
        nats["tags"] = list(tags)
    return _signed(issuer, public, name, now, expires, nats)


def credentials(token: str, key: Key) -> str:
    """The text of a .creds file: a user's token and seed."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )


def read_credentials(text: str) -> tuple[str, Key]:
    """Token and key of a .creds file. Raises ValueError."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("---")]
    if len(lines) != 2:
        raise ValueError("not a user's token and seed")
    return lines[0], Key.from_seed(lines[1])


def read(token: str, issuers: Collection[str] | None = None) -> Claims:
    """The claims of a token, if its issuer has signed it and is one of `issuers`. Raises ValueError.

    Without `issuers`, whether the issuer may sign it is for the caller.
    """
    try:
        head, body, signature = token.encode("ascii").split(b".")
        header = msgspec.json.decode(_unbase64(head), type=dict[str, str])
        claims = msgspec.json.decode(_unbase64(body), type=Claims)
        signed = _unbase64(signature)
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError):
        raise ValueError("not a token of NATS") from None
    kind = _ISSUERS.get(claims.iss[:1])
    if header.get("alg") != "ed25519-nkey" or kind is None:
        raise ValueError("not a token of NATS")
    if issuers is not None and claims.iss not in issuers:
        raise ValueError("another key has signed the token")
    if not nkey.verify(claims.iss, head + b"." + body, signed, kind):
        raise ValueError("the token's signature is wrong")
    return claims


def _signed(  # noqa: PLR0917 - claims
    issuer: Key, subject: str, name: str, now: float, expires: float | None, nats: Mapping[str, Any]
) -> str:
    claims: dict[str, Any] = {"iat": int(now), "iss": issuer.public, "name": name, "sub": subject}
    if expires is not None:
        claims["exp"] = int(expires)
    claims["nats"] = {**nats, "version": 2}
    digest = hashlib.sha256(msgspec.json.encode(claims)).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = _base64(_HEADER) + b"." + _base64(msgspec.json.encode(claims))
    return (signed + b"." + _base64(issuer.sign(signed))).decode()


def _base64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), b"-_", validate=True)
