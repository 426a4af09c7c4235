"""The types of settings: descriptions of their values, and conversion from text."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import inspect

_TRUTH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def in_words(kind: Any) -> str:
    """A description of a type's values: `a whole number > 0`."""
    return _expected(_plain_type(inspect.type_info(kind)))


def from_text(kind: Any, text: str) -> object:
    """Convert text to a value of a type; returns invalid text unchanged, for the error of a later check."""
    return _from_text(_plain_type(inspect.type_info(kind)), text)


def _plain_type(kind: inspect.Type) -> inspect.Type:
    """A type without its description and without `or None`."""
    if isinstance(kind, inspect.Metadata):
        return _plain_type(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _plain_type(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
    return kind


def _expected(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.LiteralType(values=choices):
            return "one of " + ", ".join(str(choice) for choice in choices)
        case inspect.VarTupleType(item_type=item):
            named = (item.extra_json_schema or {}).get("title") if isinstance(item, inspect.Metadata) else None
            return "a list, each " + str(named or _expected(_plain_type(item)))
    return "a string"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    bounds = ((">", kind.gt), (">=", kind.ge), ("<", kind.lt), ("<=", kind.le))
    return "".join(f" {sign} {bound}" for sign, bound in bounds if bound is not None)


def _from_text(kind: inspect.Type, text: str) -> object:
    match kind:
        case inspect.BoolType():
            return _TRUTH.get(text.strip().lower(), text)
        case inspect.IntType():
            with suppress(ValueError):
                return int(text)
        case inspect.FloatType():
            with suppress(ValueError):
                return float(text)
        case inspect.VarTupleType(item_type=item):
            if text.lstrip().startswith("["):
                with suppress(msgspec.DecodeError):
                    return msgspec.json.decode(text)
            return [_from_text(_plain_type(item), part) for part in re.split(r"[,\s]+", text.strip()) if part]
    return text
