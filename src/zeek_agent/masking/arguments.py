"""Secrets in the arguments of a program, by its manual, and in what it runs: other programs and shell scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from zeek_agent.masking.forms import SUFFIXES, is_reference, masked_value
from zeek_agent.masking.hints import hinted
from zeek_agent.masking.names import is_secret
from zeek_agent.masking.programs import (
    ALSO_NAMES,
    INTERPRETERS,
    MESSENGERS,
    PASSWORD_READERS,
    PROGRAMS,
    SCRIPT_READERS,
    SEARCHERS,
    WRAPPERS,
    Program,
)
from zeek_agent.masking.shell_text import Word, commands, is_assignment, is_variable, quoted
from zeek_agent.masking.text_rules import MASK, Kind, masked_text

_DEPTH_MAX: Final = 4
"""Commands inside commands: `sudo sh -c "ssh host 'mysql -pX'"`."""
_FLAG_VALUES: Final = frozenset({"true", "false", "yes", "no", "on", "off", "0", "1"})
_PLAIN: Final = "plain"
"""The form of a value that is not secret."""
_GUESSED: Final = "?"
"""The form of a value of an option that only its name shows to be secret."""
_SUDO_STDIN: Final = re.compile(r"-[A-Za-z]*S")
_STDIN_OPTION: Final = re.compile(r"^-.*stdin$|^--passphrase-fd|^stdin$")
_BLANK: Final = re.compile(r"\s")


class _Entry:
    """A `Program`, prepared."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.options: dict[str, str] = {}
        for option in program.secrets.split():
            name = option.rstrip(SUFFIXES)
            self.options[name] = option[len(name) :]
        self.options.update(dict.fromkeys(program.plain.split(), _PLAIN))
        self.follows = frozenset(program.follows.split())
        self.after = tuple(program.after.split())
        single_dash = any(len(name) > 3 and name[0] == "-" and name[1] != "-" for name in self.options)
        self.letters = {name[1]: form for name, form in self.options.items() if len(name) == 2 and not single_dash}
        self.has_slash_options = any(name[0] == "/" for name in self.options)
        self.attached = [
            name for name, form in self.options.items() if form == "!" and len(name) > 2 and not name.startswith("--")
        ]

    def begins(self, word: str) -> bool:
        return any(word.startswith(after[:-1]) if after.endswith("*") else word == after for after in self.after)


def _entries() -> dict[str, list[_Entry]]:
    found: dict[str, list[_Entry]] = {}
    for program in PROGRAMS:
        entry = _Entry(program)
        for name in program.names.split():
            found.setdefault(name, []).append(entry)
    return found


_BY_NAME: Final = _entries()
_NESTED: Final = (_BY_NAME.keys() | WRAPPERS | SEARCHERS) - ALSO_NAMES


def masked_command(arguments: list[str], depth: int = 0, *, cut: bool = False, shell: bool = False) -> list[str]:
    """A program and its arguments, masked. `shell`: they are from a script."""
    return _Command(arguments, depth, cut, shell).masked()


class _Command:
    """The arguments of one process while they are examined."""

    def __init__(self, arguments: list[str], depth: int, cut: bool, shell: bool) -> None:
        self._arguments = arguments
        self._depth = depth
        self._cut = cut
        self._shell = shell
        self._hinted = hinted(arguments)
        self._index = 0
        self._name = ""
        self._wrapped = False
        self._texts_are_scripts = False
        self._kind = Kind.DATA
        self._entries: list[_Entry] = []
        self._active: list[_Entry] = []
        self._counts: dict[int, int] = {}
        self._pending: str | None = None
        self._begin(0)

    def masked(self) -> list[str]:
        """All arguments, masked."""
        result: list[str] = []
        for index, argument in enumerate(self._arguments):
            self._index = index
            result.append(self._next(index, argument))
        return result

    def _begin(self, index: int) -> None:
        """The argument at `index` is the name of a program, to which the following ones belong."""
        if index >= len(self._arguments):
            return
        self._name = name = program_name(self._arguments[index])
        wraps = name in WRAPPERS
        self._wrapped = self._wrapped or wraps or name in INTERPRETERS
        self._texts_are_scripts = self._texts_are_scripts or wraps
        self._kind = kind_of(name)
        given = [entry for entry in _BY_NAME.get(name, ()) if self._applies(entry, index)]
        self._entries = given
        self._counts = {id(entry): 0 for entry in given if not entry.after}
        self._active = [entry for entry in given if not entry.after]

    def _applies(self, entry: _Entry, index: int) -> bool:
        if entry.program.given:
            return any(entry.program.given in argument for argument in self._arguments[index:])
        return True

    def _next(self, index: int, argument: str) -> str:
        pending, self._pending = self._pending, None
        if pending == _PLAIN and argument.startswith(
            "-"
        ):  # of an option that takes a value in some of the programs only
            pending = None
        if pending is not None:
            return self._value(argument, pending, separate=True)
        if index == 0:
            return self._text(argument)
        if self._is_program(argument):
            self._begin(index)
            return argument
        if len(argument) > 1 and (argument[0] == "-" or (argument[0] == "/" and self._has_slash_options())):
            return self._option(argument)
        return self._positional(index, argument)

    def _is_program(self, argument: str) -> bool:
        """Whether it is the name of a program that this one runs, rather than a subcommand of that name."""
        if not self._wrapped or argument.startswith("-") or program_name(argument) not in _NESTED:
            return False
        return not any(entry.begins(argument) for entry in self._entries)

    def _has_slash_options(self) -> bool:
        return any(entry.has_slash_options for entry in self._entries)

    def _positional(self, index: int, argument: str) -> str:
        form: str | None = None
        for entry in self._active:
            self._counts[id(entry)] += 1
            number = self._counts[id(entry)]
            if 0 in entry.program.positional or number in entry.program.positional:
                form = entry.program.positional_form
            if entry.program.last_with and index == len(self._arguments) - 1 and self._has_letter(entry):
                form = ""
            if argument in entry.follows or argument.rpartition(":")[2] in entry.follows:
                self._pending = ""
        for entry in self._entries:
            if entry.after and id(entry) not in self._counts and entry.begins(argument):
                self._counts[id(entry)] = 0
                self._active.append(entry)
        return self._text(argument) if form is None else self._value(argument, form, separate=True)

    def _has_letter(self, entry: _Entry) -> bool:
        letter = entry.program.last_with
        return any(
            argument.startswith("-") and not argument.startswith("--") and letter in argument
            for argument in self._arguments[1:-1]
        )

    def _option(self, argument: str) -> str:
        name, separator, value = _split(argument)
        form = self._form(name)
        if form is None and argument[0] == "-":
            if (cluster := self._cluster(argument)) is not None:
                return cluster
            if not _BLANK.search(name) and is_secret(name.lstrip("-")):
                form = _GUESSED
        if form is None:
            return name + separator + self._text(value) if separator else self._text(argument)
        if separator:
            return name + separator + self._value(value, form)
        if form == _GUESSED:
            self._pending = _GUESSED
        elif form != "!":
            self._pending = form
        return argument

    def _form(self, name: str) -> str | None:
        """How the value of an option is written, if the manual names it."""
        for entry in reversed(self._active):
            if name in entry.options:
                return entry.options[name]
        return None

    def _cluster(self, argument: str) -> str | None:
        """Options of one letter, of which the last can have its value attached: `-pX`, `-sSu user:pw`."""
        active = self._active
        if argument.startswith("--") or not active:
            return None
        for entry in active:
            for option in entry.attached:
                if argument.startswith(option):
                    return option + self._value(argument[len(option) :], "")
        letters = {letter: form for entry in active for letter, form in entry.letters.items()}
        valued = "".join(entry.program.valued for entry in active)
        if not valued and (argument[1] not in letters or is_secret(argument[1:].partition("=")[0])):
            return None
        return self._clustered(argument, letters, valued)

    def _clustered(self, argument: str, letters: Mapping[str, str], valued: str) -> str:
        for at, letter in enumerate(argument[1:], 2):
            if letter not in letters and letter not in valued:
                continue
            form, rest = letters.get(letter, _PLAIN), argument[at:]
            if rest:
                return argument[:at] + self._value(rest, form)
            self._pending = None if form == "!" else form
            return argument
        return argument

    def _value(self, value: str, form: str, *, separate: bool = False) -> str:
        """The value of an option or argument whose form is known, masked."""
        if form == _PLAIN:
            return self._text(value)
        if not value or value == MASK or (self._shell and is_variable(value)):
            return value
        if form == _GUESSED:
            if separate and (value.startswith("-") or (value.isdigit() and len(value) == 1)):
                self._pending = None
                return self._option(value) if value.startswith("-") and len(value) > 1 else value
            return value if value.lower() in _FLAG_VALUES or is_reference(value) else MASK
        return masked_value(value, form)

    def _text(self, argument: str) -> str:
        """An argument of no known form, masked by what it looks like."""
        cut = self._cut and self._index == len(self._arguments) - 1
        if self._index not in self._hinted and not cut:
            return argument
        is_script = self._texts_are_scripts and " " in argument
        if is_script and is_assignment(argument) and self._name not in SCRIPT_READERS:
            is_script = False
        if is_script and self._depth < _DEPTH_MAX:
            argument = masked_script(argument, self._depth + 1)
        return masked_text(argument, self._kind, shell=self._shell or is_script, cut=cut, whole=not is_script)


def kind_of(program: str) -> Kind:
    return Kind.PATTERN if program in SEARCHERS else Kind.PROSE if program in MESSENGERS else Kind.DATA


def program_name(argument: str) -> str:
    return argument.rpartition("/")[2].lstrip("-")


def _split(option: str) -> tuple[str, str, str]:
    """An option's name and its value, `--name=value` or `/p:value`."""
    if option[0] == "/":
        name, separator, value = option.partition(":")
        return name, separator, value
    name, separator, value = option.partition("=")
    return name, separator, value


def masked_script(script: str, depth: int) -> str:
    """A shell's text with secrets masked; what is not masked stays as it is written."""
    parts: list[str] = []
    position = 0
    found = list(commands(script))
    for number, (words, piped) in enumerate(found):
        before = [word.value for word in words]
        first = next((index for index, word in enumerate(before) if not is_assignment(word)), len(before))
        after = [masked_text(word, shell=True) for word in before[:first]]
        after += masked_command(before[first:], depth, shell=True)
        if piped and number + 1 < len(found) and _reads_password(found[number + 1].words):
            after = _masked_output(after)
        for word, value, masked in zip(words, before, after, strict=True):
            if masked != value:
                parts += [script[position : word.start], quoted(masked)]
                position = word.end
    return "".join([*parts, script[position:]])


def _reads_password(words: list[Word]) -> bool:
    """Whether a command reads a password from standard input."""
    values = [word.value for word in words]
    if any(program_name(value) in PASSWORD_READERS for value in values):
        return True
    return any(_STDIN_OPTION.search(value) for value in values) or (
        "sudo" in values and any(map(_SUDO_STDIN.match, values))
    )


def _masked_output(words: list[str]) -> list[str]:
    """A command whose output can be a password: the words that `echo` or `printf` writes, masked."""
    for index, word in enumerate(words):
        if program_name(word) in {"echo", "printf"}:
            kept = index + 1
            return [*words[:kept], *(w if w[:1] in {"-", "%", "$"} else MASK for w in words[kept:])]
    return words
