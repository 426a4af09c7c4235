"""Enrolment tokens: what an agent needs to reach the enrolment service, to trust it, and to be admitted once.

A token is `zat1_`, the secret and the certificate of the servers' authority in base64, a dot, and the bootstrap user's
JSON Web Token, which expires with it. The secret is the seed of that user's key: it signs the request and never leaves
the host. The registry holds the public key, from which the token cannot be made.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

from zeek_agent.bus import credentials, subjects
from zeek_agent.errors import UsageError
from zeek_agent.fleet import jwt, nkey
from zeek_agent.fleet.nkey import SEED_BYTES, Key

PREFIX: Final = "zat1_"
"""`masking/text_rules.py` knows it, too."""
CHARACTERS_MAX: Final = 4000
"""Shorter than the longest line that a terminal passes on."""


class Token(NamedTuple):
    """The parts of a token; `ca` is a certificate in DER format, `expires` in seconds since the epoch.

    `site` is that of the agents that it admits.
    """

    key: Key
    ca: bytes
    user: str
    account: str
    expires: float
    site: str


def write(key: Key, ca: bytes, user: str) -> str:
    secret = base64.urlsafe_b64encode(key.raw + ca).rstrip(b"=").decode()
    return f"{PREFIX}{secret}.{user}"


def read(text: str) -> Token:
    """Raises UsageError for anything but a token. Never repeats what was given: it may be a secret."""
    text = "".join(text.split())
    secret, dot, user = text.removeprefix(PREFIX).partition(".")
    if not text.startswith(PREFIX) or not dot or len(text) > CHARACTERS_MAX:
        raise UsageError(f"not an enrolment token: they begin with {PREFIX} (see zeek-agent fleet token)")
    try:
        raw = base64.b64decode(secret + "=" * (-len(secret) % 4), b"-_", validate=True)
        claims = jwt.read(user)
        key = Key(raw[:SEED_BYTES], nkey.USER)
    except (ValueError, binascii.Error):
        raise UsageError("the enrolment token is damaged: has it been copied as a whole?") from None
    if claims.sub != key.public or not claims.nats.issuer_account or not raw[SEED_BYTES:]:
        raise UsageError("the enrolment token is damaged: has it been copied as a whole?")
    sites = credentials.sites_of(claims.nats.tags)
    if len(sites) != 1 or not subjects.is_name(sites[0]):
        raise UsageError("the enrolment token does not name one site: it is of an earlier version, get a new one")
    return Token(key, raw[SEED_BYTES:], user, claims.nats.issuer_account, float(claims.exp), sites[0])
