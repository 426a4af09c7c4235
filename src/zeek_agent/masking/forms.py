"""How the value of an option or argument is written, and which part of it is the secret; `programs` has the forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from zeek_agent.masking.names import is_secret
from zeek_agent.masking.text_rules import MASK, masked_text

SUFFIXES: Final = "!:%,@=/&;"
_REFERENCES: Final = ("env:", "file:", "fd:")
_SOURCES: Final = frozenset({"pass", "key", "hexkey", "hexpass"})


def masked_value(value: str, form: str) -> str:
    """The value with its secret part masked."""
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


def _database_user(value: str) -> str:
    user, _, rest = value.partition("/")
    if not user or not rest or "@" in user:
        return value
    _, at, database = rest.rpartition("@")
    return f"{user}/{MASK}{at}{database}"


def _login_at_host(value: str) -> str:
    login, at, host = value.rpartition("@")
    user, _, secret = login.partition(":")
    return f"{user}:{MASK}@{host}" if at and secret and "://" not in value else masked_text(value)


def _list(value: str) -> str:
    return ",".join(map(_member, value.split(",")))


def _member(member: str) -> str:
    name, _, secret = member.partition("=")
    return f"{name}={MASK}" if secret and (is_secret(name) or name == "data") else masked_text(member)


_FORMS: Final[Mapping[str, Callable[[str], str]]] = {
    **{separator: partial(_behind, separator) for separator in ":%,="},
    "@": _source,
    "/": _database_user,
    "&": _login_at_host,
    ";": _list,
}
