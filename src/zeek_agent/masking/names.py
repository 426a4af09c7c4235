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
    password passwd passwort kennwort passphrase passcode passkey pass pwd pw secret secrets token apikey authkey
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
    "kennwort",
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
    "allpass askpass askpw bypass compass encompass getpass highpass lowpass nopass nopw onepass surpass trespass usepw"
)
_VERBS: Final = words(
    """
    ask change check clear create delete disable disallow edit enable expire export fetch find forget generate
    get has hide ignore import is keep kill list lock need needs no prompt read receive recv refresh remove renew
    request require required reset revoke rotate send show skip stdin store unlock update use validate verify
    with without
    """
)
"""First words of options that do something about a secret and take none: `--reset-password alice`."""
_PROOFS: Final = words("reset verify validate request renew delete unlock revoke")
"""Those that name a token in a query or form: `?reset_token=…`."""
_PUBLIC_TOKENS: Final = words("bos cls continuation continue eos mask next pad page pagination sep starting stop unk")
"""Words that make a `token` a position in a list or a word of a language model."""
_PAIRS: Final = {("pass", "phrase"): True, ("refresh", "token"): True, ("existing", "secret"): False}
"""Last two words that decide on their own; a chart's `existingSecret` is the name of one."""
_DIRECTORIES: Final = frozenset({"PWD", "OLDPWD", "pwd", "cwd"})
STEMS: Final = (
    "pass",
    "kennwort",
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
    parts = _parts(name)
    if not parts or name in _DIRECTORIES:
        return False
    if (decided := _PAIRS.get((parts[-2] if len(parts) > 1 else "", parts[-1]))) is not None:
        return decided
    return parts[0] not in _VERBS and _ends_like_secret(parts)


@lru_cache(maxsize=4096)
def is_secret_setting(name: str) -> bool:
    """Whether the value of a setting is a secret. The last part of `a.b.password` decides; `reset_token=` is one."""
    head, _, last = name.removeprefix("-D").rpartition(".")
    if last in {"key", "Key", "KEY"} and head:
        last = f"{head.rpartition('.')[2]}.{last}"
    last = last or name
    if last == "credentials" and head:  # java.naming.security.credentials
        return True
    return is_secret(last) or ((parts := _parts(last))[-1:] == ["token"] and parts[0] in _PROOFS)


def is_key(name: str) -> bool:
    """Whether the name is that of a key or of credentials, the value of which is often a file's name instead."""
    return _parts(name)[-1:] in (["key"], ["credentials"])


def _parts(name: str) -> list[str]:
    parts = [word.lower() for word in _WORDS.findall(name)]
    while parts and parts[-1].isdigit():
        parts.pop()
    return parts


def _ends_like_secret(parts: list[str]) -> bool:
    last = parts[-1]
    if last == "token" and len(parts) > 1 and parts[-2] in _PUBLIC_TOKENS:
        return False
    if last == "key":
        return len(parts) > 1 and parts[-2] in _KEYS
    if last in _SECRET_WORDS or last.endswith(_SECRET_ENDINGS):
        return True
    return last.endswith(("pass", "pw", "authkey", "accesskey")) and last not in _OTHER_PASSES
