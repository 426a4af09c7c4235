"""Line editing with readline: saved history, completion. Without readline in Python, lines are read without editing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from zeek_agent import platforms

HISTORY_ENTRIES: Final = 5_000
"""Bounds the history file."""

log = logging.getLogger(__name__)


@contextmanager
def line_editing(history: Path, completions: Callable[[str, str], list[str]]) -> Iterator[None]:
    """Enable line editing for `input`. `completions(before, word)` returns completions of the word at the cursor."""
    try:
        readline: Any = import_module("readline")  # which Windows lacks: its console edits lines
    except ImportError:
        yield
        return
    found: list[str] = []

    def complete(word: str, state: int) -> str | None:
        if state == 0:
            try:
                found[:] = completions(readline.get_line_buffer()[: readline.get_begidx()], word)
            except Exception as error:  # noqa: BLE001  readline would ignore it, and editing must continue
                log.debug("completion failed: %s", error)
                found.clear()
        return found[state] if state < len(found) else None

    _load(readline.read_history_file, history)
    readline.set_history_length(HISTORY_ENTRIES)
    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n,()=<>'\"+*/;|")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    if not libedit:
        readline.parse_and_bind("set enable-bracketed-paste on")  # tabs in pasted text do not complete
    try:
        yield
    finally:
        readline.set_completer(None)
        _save(readline.write_history_file, history)


def _load(read: Callable[[str], None], history: Path) -> None:
    try:
        read(str(history))
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot read the history %s: %s", history, error.strerror)


def _save(write: Callable[[str], None], history: Path) -> None:
    """Save the history, readable only by its owner, because statements may contain secrets."""
    try:
        platforms.HERE.make_private_directory(history.parent)
        platforms.HERE.make_private_file(history)
        write(str(history))
    except OSError as error:
        log.warning("cannot keep the history in %s: %s", history, error.strerror)
