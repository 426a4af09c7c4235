"""Keys, known hosts and client configuration of OpenSSH."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from zeek_agent.access import ShownFiles
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.accounts.ssh_files import ClientOption, authorized_key, client_option
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.globbing import Match, matching, open_gate
from zeek_agent.host.files.key_properties import KeyProperties, key_in_file
from zeek_agent.host.files.reads import Omission
from zeek_agent.masking.masker import Masker
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table
from zeek_agent.tables.osquery._user_files import user_files, user_rows
from zeek_agent.text import from_bytes, from_os, to_bytes

_KNOWN_HOSTS: Final = ShownFiles(("/**/.ssh/known_hosts",))
_CONFIG: Final = ShownFiles(("/**/.ssh/config",))
_SYSTEM_CONFIG: Final = "/etc/ssh/ssh_config"
_USUAL_KEY_NAME: Final = "id_"
_BLOCK_CHARACTERS_MAX: Final = 4 << 20
"""Characters of `block` in the rows of one file: each row repeats the line of its block."""
_COMMANDS: Final = frozenset({b"knownhostscommand", b"localcommand", b"proxycommand", b"remotecommand", b"setenv"})
"""Options with a command line, or with environment variables, which may contain secrets."""
_RESTRICTION: Final = re.compile(r'\b(command|environment)="', re.IGNORECASE)
"""The same of authorized keys."""
_QUOTATION_MARK: Final = re.compile(r'\\"|"')
_OF_ALL_USERS: Final = "of all accounts in `/etc/passwd`, or of those that `uid` names"

authorized_keys = osquery_table(
    "authorized_keys",
    "keys that may log in by SSH",
    description=(
        f"One row per key in `~/.ssh/authorized_keys` and `~/.ssh/authorized_keys2` {_OF_ALL_USERS}. Secrets in "
        "`options`, which may contain a command and environment variables, are masked as in command lines."
    ),
    columns=[
        Column("uid", "int", "id of the user who may log in with the key"),
        Column("algorithm", "text", "type of the key, such as `ssh-ed25519`"),
        Column("key", "text", "the public key in base64"),
        Column("options", "text", "restrictions, separated by commas"),
        Column("comment", "text", "comment"),
        Column("key_file", "text", "path of the file"),
        WITHOUT_NAMESPACES,
    ],
    opens_files=True,
    examples=["SELECT username, algorithm, comment FROM authorized_keys JOIN osquery_users USING (uid)"],
)

user_ssh_keys = osquery_table(
    "user_ssh_keys",
    "private SSH keys and whether they are encrypted",
    description=(
        f"One row per file in `~/.ssh` {_OF_ALL_USERS}, that contains a private key, with properties that do not "
        "reveal it. The default rules of `access.paths_deny`, which protect contents and hashes of private keys, do "
        "not apply; rules that you add do: a file that they deny has a row without properties if its name begins with "
        "`id_`. Of an encrypted key, kind and lengths are known in OpenSSH's own format only."
    ),
    columns=[
        Column("uid", "int", "id of the user in whose home directory the key is"),
        Column("path", "text", "path of the file"),
        Column("encrypted", "int", "1 if a passphrase protects the key, 0 if not; null if the file may not be read"),
        Column("key_type", "text", "`rsa`, `dsa`, `dh` or `ec`; empty for other kinds, such as Ed25519"),
        Column("key_group_name", "text", "OpenSSL's name of the curve, such as `prime256v1`"),
        Column("key_length", "int", "length in bits; -1 if it is not known"),
        Column("key_security_bits", "int", "strength in bits by NIST SP 800-57; -1 if it is not known"),
        WITHOUT_NAMESPACES,
    ],
    opens_files=True,
    examples=["SELECT username, path FROM user_ssh_keys JOIN osquery_users USING (uid) WHERE encrypted = 0"],
)

known_hosts = osquery_table(
    "known_hosts",
    "hosts whose SSH keys a user has accepted",
    description=f"One row per line with a key in `~/.ssh/known_hosts` {_OF_ALL_USERS}.",
    columns=[
        Column("uid", "int", "id of the user in whose home directory the file is"),
        Column("key", "text", "the line: names or their hash, type of the key, the public key in base64"),
        Column("key_file", "text", "path of the file"),
    ],
    opens_files=True,
    examples=["SELECT username, key FROM known_hosts JOIN osquery_users USING (uid)"],
)

ssh_configs = osquery_table(
    "ssh_configs",
    "options of SSH clients",
    description=(
        f"One row per option in `~/.ssh/config` {_OF_ALL_USERS}, and in `{_SYSTEM_CONFIG}`, which has the uid 0. Files "
        "that these include are not read. Secrets in commands and environment variables are masked."
    ),
    columns=[
        Column("uid", "int", "id of the user in whose home directory the file is"),
        Column("block", "text", "the `host` or `match` line above the option, in lower case; empty without one"),
        Column("option", "text", "the line with the option, in lower case"),
        Column("ssh_config_file", "text", "path of the file"),
    ],
    opens_files=True,
    examples=["SELECT uid, block, option FROM ssh_configs WHERE option LIKE 'proxycommand %'"],
)


@authorized_keys.snapshot
def keys(wanted: Constraints) -> Iterator[Row]:
    masker = wanted.context.access.masker

    def rows(account: Account, match: Match, check: Callable[[], None]) -> Iterator[Row]:
        file = from_os(match.path)
        for line in lines(match, wanted.context.reads, check):
            found = authorized_key(line)
            if found is not None:
                options, algorithm, key, comment = map(from_bytes, found)
                yield account.uid, algorithm, key, _masked_restrictions(options, masker), comment, file, None

    return user_rows(wanted, ".ssh/authorized_keys", ".ssh/authorized_keys2", rows=rows)


def _masked_restrictions(options: str, masker: Masker) -> str:
    """The options with secrets in the values of `command` and `environment` masked."""
    kept: list[str] = []
    at = 0
    while (found := _RESTRICTION.search(options, at)) is not None:
        marks = _QUOTATION_MARK.finditer(options, found.end())
        end = next((mark.start() for mark in marks if mark[0] == '"'), len(options))
        value = options[found.end() : end].replace('\\"', '"')
        if found[1].lower() == "command":
            value = masker.line(value)
        else:
            value = masker.command_line(b"env\0" + to_bytes(value)).arguments.removeprefix("env\0")
        kept += [options[at : found.end()], value.replace('"', '\\"')]
        at = end
    return "".join([*kept, options[at:]])


@user_ssh_keys.snapshot
def private_keys(wanted: Constraints) -> Iterator[Row]:
    for account, match in user_files(wanted, ".ssh/*", ".ssh/.*"):
        found: KeyProperties | None = None
        try:
            found = key_in_file(match, wanted.context.reads)
        except RefusedError as error:
            wanted.context.reads.leave_out(error.omission, match.path, str(error))
            name = match.path.rpartition("/")[2]
            if name.startswith(_USUAL_KEY_NAME) and not name.endswith(".pub"):
                yield account.uid, from_os(match.path), *[None] * 6
        except FileNotFoundError:
            continue  # removed meanwhile, or a broken link
        except OSError as error:
            wanted.context.reads.leave_out(Omission.SKIPPED, match.path, error.strerror or str(error))
        if found is not None:
            yield account.uid, from_os(match.path), int(found.encrypted), *found[1:], None


@known_hosts.snapshot
def accepted_hosts(wanted: Constraints) -> Iterator[Row]:
    def rows(account: Account, match: Match, check: Callable[[], None]) -> Iterator[Row]:
        file = from_os(match.path)
        for line in lines(match, wanted.context.reads, check):
            entry = line.strip()
            if entry and not entry.startswith(b"#"):
                yield account.uid, from_bytes(entry), file

    return user_rows(wanted, ".ssh/known_hosts", rows=rows, shown=_KNOWN_HOSTS)


@ssh_configs.snapshot
def client_options(wanted: Constraints) -> Iterator[Row]:
    context = wanted.context

    def rows(account: Account, match: Match, check: Callable[[], None]) -> Iterator[Row]:
        return _options_in(wanted, account.uid, match, check)

    yield from user_rows(wanted, ".ssh/config", rows=rows, shown=_CONFIG)
    for match in matching(open_gate(context.access, context.reads, wanted.check), _SYSTEM_CONFIG, wanted.check):
        yield from _options_in(wanted, 0, match, wanted.check)


def _options_in(wanted: Constraints, uid: int, match: Match, check: Callable[[], None]) -> Iterator[Row]:
    file, block = from_os(match.path), ""
    left = _BLOCK_CHARACTERS_MAX
    for line in lines(match, wanted.context.reads, check):
        option = client_option(line)
        if option is not None:
            text = _masked(option, wanted.context.access.masker)
            if option.starts_block:
                block = text
                continue
            left -= len(block)
            if left < 0:
                cause = f"more than {_BLOCK_CHARACTERS_MAX} characters in the column block"
                wanted.context.reads.leave_out(Omission.TRUNCATED, match.path, cause)
                return
            yield uid, block, text, file


def _masked(option: ClientOption, masker: Masker) -> str:
    """The line in lower case, as osquery has it."""
    arguments = from_bytes(option.arguments)
    if option.starts_block or option.keyword.lower() in _COMMANDS:
        arguments = masker.line(arguments)
    return _lower(from_bytes(option.keyword + option.separator) + arguments)


def _lower(text: str) -> str:
    return text.translate(_LOWER)


_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

TABLES = (authorized_keys, user_ssh_keys, known_hosts, ssh_configs)
