"""Secrets in the arguments of a program, by its manual, and in what it runs: other programs and shell scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from zeek_agent.masking.forms import SUFFIXES, guessed_form, is_reference, masked_value
from zeek_agent.masking.hints import hinted
from zeek_agent.masking.names import is_key, is_secret, is_secret_setting
from zeek_agent.masking.programs import (
    ALSO_NAMES,
    INTERPRETERS,
    MESSENGERS,
    NAMERS,
    PASSWORD_READERS,
    PROGRAMS,
    SCRIPT_READERS,
    SEARCHERS,
    WRAPPERS,
    Program,
)
from zeek_agent.masking.shell_text import (
    RESERVED,
    Command,
    Word,
    commands,
    feeding,
    is_assignment,
    is_variable,
    quoted,
)
from zeek_agent.masking.text_rules import MASK, Kind, is_file, masked_text

_DEPTH_MAX: Final = 4
"""Commands inside commands: `sudo sh -c "ssh host 'mysql -pX'"`."""
_FLAG_VALUES: Final = frozenset({"true", "false", "yes", "no", "on", "off", "0", "1"})
_PLAIN: Final = "plain"
"""The form of a value that is not secret."""
_GUESSED: Final = "?"
"""The form of a value of an option that only its name shows to be secret."""
_GUESSED_KEY: Final = "?key"
"""The same of a key, of which the value can be a file's name."""
_VERBATIM: Final = "^"
"""The form of a value that is not secret, whatever it looks like."""
_COMMAND: Final = "$"
"""The form of a value that is a shell's command."""
_COMMAND_SETTING: Final = re.compile(r"[\w.]*command(?:=|\s+)", re.IGNORECASE)
"""Settings of which the value is a command, such as ssh's `ProxyCommand`."""
_TWO: Final = "*"
"""The form of an option with two secrets."""
_INTERPRETER_WITHIN: Final = 16
"""Arguments in which an interpreter is looked for, behind `sudo` and the like."""
_ABBREVIATED: Final = 4
"""Letters that an abbreviation of a long option may lack."""
_DASHED_SECRET: Final = re.compile(r"-(?=[^-]*[0-9])(?=[^-]*[A-Za-z])[^-=\s]{6,}")
_LITERAL: Final = re.compile(r"'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\"")
_SECRET_FILES: Final = (".pgpass", ".netrc", ".git-credentials", ".smbcredentials", ".my.cnf")
_SUDO_STDIN: Final = re.compile(r"-[A-Za-z]*S")
_STDIN_OPTION: Final = re.compile(r"^-.*stdin$|^--passphrase-fd|^--with-token$|^stdin$")
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
        self.unless = frozenset(program.unless.split())
        self.has_slash_options = program.has_slash_options or any(name[0] == "/" for name in self.options)
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
        self._has_code = any(program_name(argument) in INTERPRETERS for argument in arguments[:_INTERPRETER_WITHIN])
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
        arguments = self._arguments[index:]
        if entry.program.given and not any(entry.program.given in argument for argument in arguments):
            return False
        return entry.unless.isdisjoint(arguments)

    def _next(self, index: int, argument: str) -> str:
        pending, self._pending = self._pending, None
        if pending == _PLAIN and argument.startswith(
            "-"
        ):  # of an option that takes a value in some of the programs only
            pending = None
        if pending == _TWO:
            self._pending = ""
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
        if any(entry.program.settings for entry in self._active) and is_secret_setting(argument):
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
                self._pending = entry.program.follows_form
            elif entry.program.settings and is_secret_setting(argument):
                self._pending = _GUESSED
        self._activate(argument)
        return self._text(argument) if form is None else self._value(argument, form, separate=True)

    def _activate(self, word: str) -> None:
        """Entries that apply behind this word."""
        for entry in self._entries:
            if entry.after and id(entry) not in self._counts and entry.begins(word):
                self._counts[id(entry)] = 0
                self._active.append(entry)

    def _has_letter(self, entry: _Entry) -> bool:
        letter = entry.program.last_with
        return any(
            argument.startswith("-") and not argument.startswith("--") and letter in argument
            for argument in self._arguments[1:-1]
        )

    def _option(self, argument: str) -> str:
        name, separator, value = _split(argument)
        self._activate(name)
        form = self._form(name)
        if form is None and argument[0] == "-":
            if (cluster := self._cluster(argument)) is not None:
                return cluster
            if not _BLANK.search(name) and (is_secret(name.lstrip("-")) or (separator and is_secret_setting(name))):
                form = _GUESSED_KEY if is_key(name) else _GUESSED
            elif separator and (guess := guessed_form(name, value)) is not None:
                return name + separator + masked_value(value, guess)
            elif not separator and (following := self._following()) is not None:
                self._pending = guessed_form(name, following)
        if form is None:
            return name + separator + self._text(value) if separator else self._text(argument)
        if separator:
            return name + separator + self._value(value, form)
        if form != "!":
            self._pending = form
        return argument

    def _form(self, name: str) -> str | None:
        """How the value of an option is written, if the manual names it."""
        for entry in reversed(self._active):
            if name in entry.options:
                return entry.options[name]
        if name.startswith("--") and len(name) > 4:  # an abbreviation, as getopt_long(3) takes it
            for entry in reversed(self._active):
                for option, form in entry.options.items():
                    if form != _PLAIN and option.startswith(name) and len(option) <= len(name) + _ABBREVIATED:
                        return form
        return None

    def _following(self) -> str | None:
        """The next argument."""
        return self._arguments[self._index + 1] if self._index + 1 < len(self._arguments) else None

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
        if value in {"", "-", MASK} or (self._shell and is_variable(value)):
            return value
        if form not in {_GUESSED, _GUESSED_KEY}:
            if form == _COMMAND:
                return masked_script(value, self._depth + 1) if self._depth < _DEPTH_MAX else MASK
            masked = masked_value(value, form)
            return self._text(value) if masked == value and form != _VERBATIM else masked
        if separate and value[0] == "-" and _DASHED_SECRET.fullmatch(value) is None:
            self._pending = None
            return self._option(value)
        is_flag = value.lower() in _FLAG_VALUES or (separate and value.isdigit() and len(value) == 1)
        return value if is_flag or is_reference(value) or (form == _GUESSED_KEY and is_file(value)) else MASK

    def _text(self, argument: str) -> str:
        """An argument of no known form, masked by what it looks like."""
        cut = self._cut and self._index == len(self._arguments) - 1
        if self._index not in self._hinted and not cut:
            return argument
        if (setting := _COMMAND_SETTING.match(argument)) is not None and self._depth < _DEPTH_MAX:
            return setting[0] + masked_script(argument[setting.end() :], self._depth + 1)
        if self._has_code and self._depth < _DEPTH_MAX:
            argument = _masked_literals(argument, self._depth + 1)
        is_script = self._texts_are_scripts and " " in argument
        if is_script and is_assignment(argument) and self._name not in SCRIPT_READERS:
            is_script = False
        if is_script and self._depth < _DEPTH_MAX:
            argument = masked_script(argument, self._depth + 1)
        return masked_text(argument, self._kind, shell=self._shell or is_script, cut=cut, whole=not is_script)


def kind_of(program: str) -> Kind:
    if program in SEARCHERS:
        return Kind.PATTERN
    return Kind.PROSE if program in MESSENGERS else Kind.NAMES if program in NAMERS else Kind.DATA


def program_name(argument: str) -> str:
    """The name of a program without its directory; on Windows also without `.exe`, and in lower case."""
    name = argument.rpartition("/")[2].lstrip("-")
    if name[-4:].lower() == ".exe":
        return name.rpartition("\\")[2][:-4].lower()
    return name.rpartition("\\")[2].lower() if name[1:3] == ":\\" else name


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
    written = _written_secrets(found)
    document_end: str | None = None
    for number, (words, _) in enumerate(found):
        before = [word.value for word in words]
        if document_end is not None:
            after = before if before[0] == document_end else [MASK] * len(before)
            document_end = None if before[0] == document_end else document_end
        else:
            after = _masked_simple(before, depth)
            if number in written:
                after = _masked_output(after)
            if _reads_password(before):
                after, document_end = _masked_here(after)
        for word, value, masked in zip(words, before, after, strict=True):
            if masked != value:
                parts += [script[position : word.start], _requoted(masked, script[word.start : word.end])]
                position = word.end
    return "".join([*parts, script[position:]])


def _masked_simple(words: list[str], depth: int) -> list[str]:
    """One command of a script: reserved words, assignments, then a program and its arguments."""
    first = next(
        (index for index, word in enumerate(words) if word not in RESERVED and not is_assignment(word)), len(words)
    )
    masked = [masked_text(word, shell=True) for word in words[:first]]
    masked += masked_command(words[first:], depth, shell=True)
    if depth >= _DEPTH_MAX:
        return masked
    return [masked_script(word, depth + 1) if _has_command(word) else word for word in masked]


def _has_command(word: str) -> bool:
    """Whether a word contains a command that the shell replaces by its output."""
    return ("$(" in word or "`" in word) and _BLANK.search(word) is not None


def _requoted(word: str, written: str) -> str:
    """A masked word, in double quotes if it was and can be."""
    if '"' in written and '"' not in word and "\\" not in word and _BLANK.search(word) is not None:
        return f'"{word}"'
    return quoted(word)


def _written_secrets(found: Sequence[Command]) -> frozenset[int]:
    """The commands whose output is a password for another one, or is written to a file of passwords."""
    written: set[int] = set()
    for number in range(len(found) - 1, -1, -1):
        command = found[number]
        if _writes_secrets(command.words):
            written.add(number)
        if command.reads_pipe and _reads_password([word.value for word in command.words]):
            for index in feeding(found, number):
                if index in written:  # and so is what feeds it
                    break
                written.add(index)
    return frozenset(written)


def _writes_secrets(words: Sequence[Word]) -> bool:
    return any(word.value.endswith(_SECRET_FILES) for word in words[1:]) and any(
        word.value[:1] == ">" or word.value == "tee" for word in words
    )


def _reads_password(values: Sequence[str]) -> bool:
    """Whether a command reads a password from standard input."""
    if any(program_name(value) in PASSWORD_READERS for value in values):
        return True
    if any(_STDIN_OPTION.search(value) for value in values) or ("login" in values and values[-1] == "-"):
        return True
    return any(value.endswith(_SECRET_FILES) for value in values[1:]) or (
        "sudo" in values and any(map(_SUDO_STDIN.match, values))
    )


def _masked_here(words: list[str]) -> tuple[list[str], str | None]:
    """A command that reads a password, with its here string masked; and the word that ends its here document."""
    masked = list(words)
    for index, word in enumerate(words):
        if word.startswith("<<<"):
            if len(word) > 3:
                masked[index] = f"<<<{MASK}"
            elif index + 1 < len(words):
                masked[index + 1] = MASK
        elif word.startswith("<<"):
            end = word[2:].lstrip("-") or (words[index + 1] if index + 1 < len(words) else "")
            return masked, end or None
    return masked, None


def _masked_output(words: list[str]) -> list[str]:
    """A command whose output can be a password: the words that `echo` or `printf` writes, masked."""
    for index, word in enumerate(words):
        if program_name(word) in {"echo", "printf", "yes"}:
            kept = index + 1
            end = next((at for at in range(kept, len(words)) if words[at][:1] in {">", "<"}), len(words))
            shown = (w if w[:1] in {"-", "%", "$"} else MASK for w in words[kept:end])
            return [*words[:kept], *shown, *words[end:]]
    return words


def _masked_literals(code: str, depth: int) -> str:
    """Code of another language, with secrets masked in the commands that it has as strings or lists of strings."""
    parts: list[str] = []
    position = 0
    run: list[re.Match[str]] = []
    for match in [*_LITERAL.finditer(code), None]:
        if run and (match is None or code[run[-1].end() : match.start()].strip() != ","):
            values = [found[1] if found[1] is not None else found[2] for found in run]
            masked = _masked_strings(values, depth)
            for found, value, shown in zip(run, values, masked, strict=True):
                if shown != value:
                    parts += [code[position : found.start() + 1], shown]
                    position = found.end() - 1
            run = []
        if match is not None:
            run.append(match)
    return "".join([*parts, code[position:]])


def _masked_strings(values: list[str], depth: int) -> list[str]:
    if len(values) > 1 and program_name(values[0]) in _NESTED:
        return masked_command(values, depth)
    return [
        masked_script(value, depth) if program_name(value.partition(" ")[0]) in _NESTED and " " in value else value
        for value in values
    ]
