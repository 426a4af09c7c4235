"""How the value of an option or argument is written, and which part of it is the secret; `programs` has the forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from zeek_agent.masking.names import is_secret
from zeek_agent.masking.text_rules import MASK, masked_text

SUFFIXES: Final = "!:%,@=/&;~^*>$"
_REFERENCES: Final = ("env:", "file:", "fd:")
_ORACLE_LOGIN: Final = re.compile(
    r"((?:(?:conn|connect)\s+|(?:userid|target|catalog|auxiliary)\s*=\s*)?[^/@\s=:]+/)(\"[^\"]*\"(?:@\S*)?|\S+)",
    re.IGNORECASE,
)
_PORT: Final = re.compile(r"[0-9]{1,5}/")
_PLAIN_USER: Final = re.compile(r"[\w.%+@-]+")
_GUESSED_FORMS: Final[Mapping[str, str]] = {
    "auth": ":",
    "creds": ":",
    "credentials": ":",
    "userpass": ":",
    "cookie": "=",
    "cookies": "=",
    "dsn": "&",
    "proxy": "&",
}
_SOURCES: Final = frozenset({"pass", "key", "hexkey", "hexpass"})


def masked_value(value: str, form: str) -> str:
    """The value with its secret part masked; the value as it is if it does not have that form."""
    return _FORMS[form](value) if form in _FORMS else MASK


def is_reference(value: str) -> bool:
    """Whether the value says where the secret is instead of being one."""
    return value.startswith(_REFERENCES) or value in {"stdin", "prompt"}


def _behind(separator: str, value: str) -> str:
    name, _, secret = value.partition(separator)
    return f"{name}{separator}{MASK}" if secret else value


def _source(value: str) -> str:
    kind, _, secret = value.partition(":")
    if is_reference(value):
        return value
    return f"{kind}:{MASK}" if kind in _SOURCES and secret else MASK


def _known_source(value: str) -> str:
    return _source(value) if value.partition(":")[0] in _SOURCES else value


def _database_user(value: str) -> str:
    match = _ORACLE_LOGIN.match(value)
    if match is None:
        return value
    secret, at, database = match[2].rpartition("@")
    return (
        f"{match[1]}{MASK}{at}{database}"
        if at
        else f"{match[1]}{MASK}{value[match.end() :]}"
        if secret or database
        else value
    )


def _percona_name(value: str) -> str:
    members = (member.partition("=") for member in value.split(","))
    return ",".join(f"p={MASK}" if name == "p" and secret else f"{name}{at}{secret}" for name, at, secret in members)


def _database_setting(value: str) -> str:
    return _database_user(value) if "=" in value.partition("/")[0] else value


def _redis_rule(value: str) -> str:
    return value[0] + MASK if value[:1] in {">", "<", "#", "!"} and len(value) > 1 else value


def _login_at_host(value: str) -> str:
    login, at, host = value.rpartition("@")
    user, _, secret = login.partition(":")
    if not at or not secret or "://" in value or user == "mailto" or _PORT.match(secret) is not None:
        return value
    return f"{user}:{MASK}@{host}"


def _list(value: str) -> str:
    return ",".join(map(_member, value.split(",")))


def _member(member: str) -> str:
    name, _, secret = member.partition("=")
    if name in {"user", "username"} and (separator := "%" if "%" in secret else ":") in secret:
        return _behind(separator, member)
    return f"{name}={MASK}" if secret and (is_secret(name) or name == "data") else masked_text(member)


def guessed_form(option: str, value: str) -> str | None:
    """The form of a value that only the option's name shows to hold a secret; None if it holds none."""
    form = _GUESSED_FORMS.get(option.lstrip("-").rpartition("-")[2].rpartition(".")[2].lower())
    if form is None or value.startswith(("-", "/")) or is_reference(value) or "://" in value:
        return None
    user, separator, secret = value.partition("=" if form == "=" else ":")
    return form if separator and secret and _PLAIN_USER.fullmatch(user) is not None else None


_FORMS: Final[Mapping[str, Callable[[str], str]]] = {
    **{separator: partial(_behind, separator) for separator in ":%,="},
    "@": _source,
    "/": _database_user,
    "\\": lambda value: value if value.startswith("\\\\") else MASK,
    "p=": _percona_name,
    "/=": _database_setting,
    "&": _login_at_host,
    ";": _list,
    "~": _known_source,
    "^": str,
    ">": _redis_rule,
}
