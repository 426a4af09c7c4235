"""Names of settings, variables and options: which of them hold a secret."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS: Final = words(
    """
    password passwd passwort passphrase passcode passkey pass pwd pw secret secrets token apikey authkey
    authtoken accesstoken secretkey accesskey psk credential authorization jwt bearer sastoken otp
    """
)
_SECRET_ENDINGS: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "secretkey",
    "passwort",
    "pwd",
)
"""Endings of words in which several are written together: `dbpassword`."""
_KEYS: Final = words(
    """
    access account api auth authentication client encryption consumer deploy hmac jwt license master private psk
    secret service session setup shared signing storage stream subscription token
    """
)
"""Words that make a `key` secret; others, such as `ssh-key` or `sort-key`, are names or files."""
_OTHER_PASSES: Final = words(
    "allpass askpass bypass compass encompass getpass highpass lowpass nopass onepass surpass trespass"
)
_VERBS: Final = words(
    """
    ask change check clear create delete disable disallow edit enable expire export fetch find forget generate
    get has ignore import is keep kill list lock need needs no prompt read receive recv refresh remove renew
    request require required reset revoke rotate send show skip stdin store unlock update use validate verify
    with without
    """
)
"""First words of options that do something about a secret and take none: `--reset-password alice`."""
_DIRECTORIES: Final = frozenset({"PWD", "OLDPWD", "pwd", "cwd"})
STEMS: Final = (
    "pass",
    "pwd",
    "pw",
    "secret",
    "token",
    "key",
    "psk",
    "credential",
    "authorization",
    "jwt",
    "bearer",
    "otp",
)
"""Each name of a secret contains one of these."""


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a value of that name is a secret: `DB_PASSWORD`, `api-key`, `clientSecret`, but not `password-file`."""
    parts = [word.lower() for word in _WORDS.findall(name)]
    while parts and parts[-1].isdigit():
        parts.pop()
    if not parts or name in _DIRECTORIES or parts[0] in _VERBS:
        return False
    last = parts[-1]
    if last == "key":
        return len(parts) > 1 and parts[-2] in _KEYS
    if last in _SECRET_WORDS or last.endswith(_SECRET_ENDINGS):
        return True
    return last.endswith(("pass", "authkey", "accesskey")) and last not in _OTHER_PASSES
