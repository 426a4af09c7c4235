"""Names on file systems that ignore case: which of them are the same."""

from __future__ import annotations

from functools import lru_cache


def folded(text: str) -> str:
    """The text without differences of case, one character for each, as file systems compare names.

    That is more than `str.lower`: the long s and the Kelvin sign are other forms of s and k.
    """
    return text.lower() if text.isascii() else "".join(map(_folded, text))


@lru_cache(maxsize=1_024)
def _folded(character: str) -> str:
    for form in (character.casefold(), character.lower()):
        if len(form) == 1:
            return form
    return character
