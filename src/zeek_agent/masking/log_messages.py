"""Command lines in messages of the system log: programs write there what they run, and the kernel's audit does."""

from __future__ import annotations

import re
from typing import Final

from zeek_agent.masking.masker import Masker
from zeek_agent.text import from_bytes, to_bytes

_UNIT_VERBS: Final = ("Starting ", "Started ", "Stopping ", "Stopped ", "Finished ", "Failed to start ")
_EXECVE: Final = "audit: type=1309 "
_PROCTITLE: Final = "audit: type=1327 "
"""How the kernel's log begins a record that no daemon reads."""
_CONTINUED: Final = " : (command continued) "
"""Begins the rest of a command of sudo that is too long for a message, after the user."""
_NAME_CHARACTERS_MAX: Final = 300
_ARGUMENT: Final = re.compile(r'\ba[0-9]+(?:\[[0-9]+\])?=(?:"([^"]*)"|([0-9A-F]+)\b)')
_TITLE: Final = re.compile(r'\bproctitle=(?:"([^"]*)"|([0-9A-F]+)\b)')


def masked_message(message: str, masker: Masker) -> str:
    """The message with secrets masked in a command line, if it has one in a place that is known."""
    if message.startswith(("EXECVE ", _EXECVE)):
        return _masked_records(message, _ARGUMENT, masker)
    if message.startswith(("PROCTITLE ", _PROCTITLE)):
        return _masked_records(message, _TITLE, masker)
    found = _command(message)
    if found is None:
        return message
    start, end = found
    return f"{message[:start]}{masker.line(message[start:end])}{message[end:]}"


def _command(message: str) -> tuple[int, int] | None:
    """Where the command is in a message of sudo, pkexec, cron, doas or systemd."""
    end = len(message)
    at = message.find("COMMAND=")
    if at >= 0 and message[max(at - 1, 0) : at] in {"", " ", ";", "["}:
        return at + len("COMMAND="), end - message.endswith("]")
    if (at := message.find(_CONTINUED, 0, _NAME_CHARACTERS_MAX)) >= 0:
        return at + len(_CONTINUED), end
    if message.startswith("(") and (at := message.find(") CMD")) >= 0:
        start = message.find("(", at)
        return None if start < 0 else (start + 1, end - message.endswith(")"))
    if (at := message.find(" ran command ")) >= 0:
        return at + len(" ran command "), max(message.rfind(" as "), at + len(" ran command "))
    if message.startswith(_UNIT_VERBS) and (at := message.find(" /")) >= 0:
        return at + 1, end - message.endswith(".")
    return None


def _masked_records(message: str, pattern: re.Pattern[str], masker: Masker) -> str:
    """A record of audit with its arguments masked; those with unusual characters are written in hexadecimal."""
    found = list(pattern.finditer(message))
    arguments = [match[1] if match[1] is not None else _from_hexadecimal(match[2]) for match in found]
    if not arguments:
        return message
    if pattern is _ARGUMENT:
        arguments = [argument.replace("\0", " ") for argument in arguments]
    masked = masker.command_line(to_bytes("\0".join([*arguments, ""]))).arguments
    shown = masked.split("\0") if pattern is _ARGUMENT else [masked]
    parts: list[str] = []
    position = 0
    for match, argument, value in zip(found, arguments, shown, strict=True):
        if argument.rstrip("\0") != value.rstrip("\0"):
            parts += [message[position : match.start(match.lastindex or 0)].removesuffix('"'), f'"{value}"']
            position = match.end()
    return "".join([*parts, message[position:]]).replace("\0", " ")


def _from_hexadecimal(digits: str) -> str:
    return from_bytes(bytes.fromhex(digits)) if len(digits) % 2 == 0 else digits
