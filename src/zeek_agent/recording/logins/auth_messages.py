"""Messages of sshd, su, sudo, login and PAM about logins.

Whoever tries to log in chooses the user name, so a name may look like the rest of the message. Where a message has the
name in front, it is read from its end, which the program writes; where both sides may contain foreign text and the
message can be read in two ways, neither is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypedDict

from zeek_agent.host.accounts.accounting import address
from zeek_agent.recording.logins.observation import Action, service_action, terminal
from zeek_agent.text import from_bytes, to_bytes

SSH_PROGRAMS: Final = frozenset({"sshd", "sshd-session", "sshd-auth"})
_MESSAGE_CHARACTERS_MAX: Final = 8_192
"""Longer ones are not about logins, except for the command that sudo ran."""
_REPEATED_MAX: Final = 100

_END: Final = r" port (?P<port>\d{1,5})"
_ACCEPTED: Final = re.compile(
    rf"Accepted (?P<method>\S+) for (?P<user>.*?) from (?P<addr>\S+){_END} ssh2(?:: (?P<key>.*))?", re.DOTALL
)
_FAILED: Final = re.compile(
    rf"Failed (?P<method>\S+) for (?P<invalid>invalid user )?(?P<user>.*) from (?P<addr>\S+){_END} ssh2"
    r"(?:: \S+ (?:SHA256|MD5):[\w+/=:]+)?",
    re.DOTALL,
)
_FAILED_CERTIFICATE: Final = re.compile(
    rf"Failed (?P<method>publickey|hostbased) for (?P<invalid>invalid user )?(?P<user>.*?) from (?P<addr>\S+){_END}"
    r" ssh2: \S+ ID .*",
    re.DOTALL,
)
_REFUSED_BY_PAM: Final = re.compile(
    r"error: PAM: (?:Have exhausted maximum number of retries for service|[A-Z][\w ,.;'-]{0,100}?) for "
    r"(?P<invalid>illegal user )?(?P<user>.*) from (?P<addr>\S+)",
    re.DOTALL,
)
"""Each refusal of keyboard-interactive/pam; `Failed` follows for the later ones only (auth_log() of OpenSSH)."""
_ENDS: Final = re.compile(r" from \S+ port \d{1,5} ssh2")
_INVALID: Final = re.compile(rf"Invalid user (?P<user>.*) from (?P<addr>\S+?)(?:{_END})?", re.DOTALL)
_LEFT: Final = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from) (?P<state>authenticating|invalid) user "
    rf"(?P<user>.*) (?P<addr>\S+){_END}(?: \[preauth\])?",
    re.DOTALL,
)
_TOO_MANY: Final = re.compile(
    r"Disconnecting (?P<state>authenticating|invalid) user "
    rf"(?P<user>.*) (?P<addr>\S+){_END}: Too many authentication failures(?: \[preauth\])?",
    re.DOTALL,
)
_NOT_ALLOWED: Final = re.compile(
    r"User (?P<user>.*) from \S+ not allowed because (?P<reason>"
    r"(?:not )?listed in (?:AllowUsers|DenyUsers)|none of user's groups are listed in AllowGroups"
    r"|a group is listed in DenyGroups|not in any group|account is locked"
    r"|shell \S+ (?:does not exist|is not executable))",
    re.DOTALL,
)
_ROOT_REFUSED: Final = re.compile(rf"ROOT LOGIN REFUSED FROM (?P<addr>\S+){_END}(?: \[preauth\])?")

_SESSION: Final = re.compile(
    r"pam_unix\((?P<service>[^\s:()]+):session\): session (?P<change>opened|closed) for user "
    r"(?P<user>[^()]{0,256}?)(?:\(uid=(?P<uid>\d+)\))?(?: by (?P<by>[^()]{0,256})\(uid=(?P<by_uid>\d+)\))?"
)
_REFUSED: Final = re.compile(
    r"pam_unix\((?P<service>[^\s:()]+):auth\): authentication failure; logname=\S* uid=\d+ euid=\d+ tty=(?P<tty>\S*) "
    r"ruser=\S* rhost=(?P<host>\S*)(?:  user=(?P<user>.*))?",
    re.DOTALL,
)

_SUDO: Final = re.compile(r" *(?P<user>\S+) : (?P<rest>.*)", re.DOTALL)
_SUDO_FIELDS: Final = frozenset({"HOST", "TTY", "CHROOT", "PWD", "USER", "GROUP", "TSID", "ENV"})
"""Fields before the command."""
_SUDO_AMBIGUOUS: Final = re.compile(r" (TTY|PWD|USER|COMMAND)=")
_SUDO_CONTINUED: Final = "(command continued) "
_SU: Final = re.compile(r"(?P<failed>FAILED SU )?\(to (?P<target>.*)\) (?P<user>\S+) on (?P<tty>\S+)", re.DOTALL)
_SHADOW_SU: Final = re.compile(r"(?P<result>Successful|FAILED) su for (?P<target>\S+) by (?P<user>\S+)")

_LOGIN: Final = re.compile(r"(?P<root>ROOT )?LOGIN ON (?P<tty>\S+)(?: BY (?P<user>\S+))?(?: FROM (?P<host>\S+))?")
_LOGIN_FAILED: Final = re.compile(
    r"FAILED LOGIN (?:SESSION )?\(?\d+\)? (?:on '(?P<tty>[^']*)'|FROM (?P<host>\S+)) FOR '?(?P<user>.*?)'?, "
    r"(?P<reason>[\w .'-]+)",
    re.DOTALL,
)
_REPEATED: Final = re.compile(r"message repeated (\d+) times: \[ (.*)\]", re.DOTALL)

_OWN_MESSAGES: Final = frozenset({"sshd", "su", "sudo", "login"})
"""Services whose programs log each refusal themselves, so that PAM's line about it says nothing more."""

AMBIGUOUS: Final = "ambiguous message"
_PREAUTH: Final = " [preauth]"
"""Ends messages of the process before authentication, which the monitor encodes a second time."""
_VIS: Final = re.compile(rb"\\(?:([0-3][0-7]{2})|([0\\abfnrstv]))")
_VIS_CHARACTERS: Final = dict(zip(b"0\\abfnrstv", b"\0\\\a\b\f\n\r \t\v", strict=True))


@dataclass(slots=True)
class AuthMessage:
    """What a message says. `target_uid` and `user_uid` are those that PAM writes."""

    statement: str
    action: Action
    succeeded: bool = True
    user: str | None = None
    user_uid: int | None = None
    target_user: str | None = None
    tty: str | None = None
    remote_addr: str | None = None
    remote_port: int | None = None
    method: str | None = None
    command: str | None = None
    reason: str | None = None
    repeats: bool = False
    count: int = 1


def parse(program: str, message: str) -> AuthMessage | None:
    """The statement of a message that `program` logged; None if it says nothing about a login."""
    return next(_readings(program.lower(), message), None)


def _readings(program: str, message: str) -> Iterator[AuthMessage]:
    if program == "sudo" and (match := _SUDO.fullmatch(message)):
        yield from _sudo(match)
        return
    if len(message) > _MESSAGE_CHARACTERS_MAX:
        return
    if match := _REPEATED.fullmatch(message):
        for found in _readings(program, match[2]):
            found.count = min(int(match[1][:6]), _REPEATED_MAX)
            yield found
        return
    if match := _SESSION.fullmatch(message):
        yield _session(match)
    elif match := _REFUSED.fullmatch(message):
        yield from _refused_by_pam(match)
    else:
        yield from _of_program(program, message)


def _of_program(program: str, message: str) -> Iterator[AuthMessage]:
    if program in SSH_PROGRAMS:
        for found in _ssh(message):
            found.user = _decoded(found.user, twice=message.endswith(_PREAUTH))
            yield found
    elif program in {"su", "runuser"}:
        yield from _su(message)
    elif program == "login":
        yield from _login(message)


def _refused_by_pam(match: re.Match[str]) -> Iterator[AuthMessage]:
    if match["service"].removesuffix("-l") not in _OWN_MESSAGES:
        yield AuthMessage(
                "refused", "failed", False, match["user"], tty=terminal(match["tty"]),
                remote_addr=address(match["host"]), method=match["service"], reason="authentication failure",
            )  # fmt: skip


def _ssh(message: str) -> Iterator[AuthMessage]:
    """What sshd logs about an attempt, or else about a connection."""
    if match := _ACCEPTED.fullmatch(message):
        yield AuthMessage("accepted", "login", user=match["user"], method=match["method"], **_remote(match))
    elif message.startswith("Failed "):
        match = _FAILED.fullmatch(message)
        if match is None and len(_ENDS.findall(message)) == 1:
            match = _FAILED_CERTIFICATE.fullmatch(message)
        if match is not None:
            tried = match["method"] == "none"
            reason = "unknown user" if match["invalid"] else None
            yield _refused(match, "tried" if tried else "failed", reason, tried)
        elif (ambiguous := re.match(r"Failed (publickey|hostbased) for ", message)) and _ENDS.search(message):
            yield AuthMessage("failed", "failed", False, method=ambiguous[1], reason=AMBIGUOUS)
    elif match := _REFUSED_BY_PAM.fullmatch(message):
        yield AuthMessage(
            "refused by PAM", "failed", False, match["user"], remote_addr=address(match["addr"]),
            method="keyboard-interactive/pam", reason="unknown user" if match["invalid"] else None,
        )  # fmt: skip
    else:
        yield from _ssh_connection(message)


def _ssh_connection(message: str) -> Iterator[AuthMessage]:
    if match := _INVALID.fullmatch(message):
        yield _refused(match, "invalid", "unknown user", True)
    elif match := _LEFT.fullmatch(message) or _TOO_MANY.fullmatch(message):
        unknown = match["state"] == "invalid"
        yield _refused(match, "left", "unknown user" if unknown else "closed before authentication", True)
    elif match := _NOT_ALLOWED.fullmatch(message):
        yield AuthMessage("not allowed", "failed", False, match["user"], reason=match["reason"], repeats=True)
    elif match := _ROOT_REFUSED.fullmatch(message):
        yield AuthMessage(
            "not allowed", "failed", False, "root", reason="root login refused", repeats=True, **_remote(match)
        )


def _decoded(name: str | None, *, twice: bool) -> str | None:
    """A user name as the client sent it: sshd encodes its messages by vis(3) (VIS_CSTYLE | VIS_OCTAL)."""
    if name is None or "\\" not in name:
        return name
    raw = to_bytes(name)
    for _ in range(1 + twice):
        raw = _VIS.sub(lambda match: bytes([int(match[1], 8) if match[1] else _VIS_CHARACTERS[match[2][0]]]), raw)
    return from_bytes(raw)


def _refused(match: re.Match[str], statement: str, reason: str | None, repeats: bool) -> AuthMessage:
    method = match.groupdict().get("method")
    return AuthMessage(
        statement,
        "failed",
        False,
        match["user"],
        method=None if method in {None, "none"} else method,
        reason=reason,
        repeats=repeats,
        **_remote(match),
    )


class _Remote(TypedDict):
    remote_addr: str | None
    remote_port: int | None


def _remote(match: re.Match[str]) -> _Remote:
    port = int(match["port"]) if match["port"] else 0
    return {"remote_addr": address(match["addr"]), "remote_port": port if 0 < port < 65_536 else None}


def _session(match: re.Match[str]) -> AuthMessage:
    service, ends = match["service"], match["change"] == "closed"
    action = service_action(service, ends=ends)
    uid = _uid(match["uid"])
    if service.removesuffix("-l").removesuffix("-i") in {"su", "sudo", "runuser"}:
        by = match["by"] or None
        return AuthMessage("closed" if ends else "session", action, user=by, user_uid=_uid(match["by_uid"]),
                           target_user=match["user"])  # fmt: skip
    return AuthMessage("closed" if ends else "session", action, user=match["user"], user_uid=uid)


def _sudo(match: re.Match[str]) -> Iterator[AuthMessage]:
    """Directory, environment and command are the user's, and may look like the fields after them.

    Splits rather than matches: any user can write long messages in the name of sudo, and patterns with several texts of
    unknown length take cubic time.
    """
    user, rest = match["user"], match["rest"]
    if rest.startswith(_SUDO_CONTINUED):
        yield AuthMessage("continued", "sudo", user=user, command=rest.removeprefix(_SUDO_CONTINUED), repeats=True)
        return
    before, is_command, command = f" {rest}".partition(" COMMAND=")
    parts = before.split(" ;")
    if not is_command or parts.pop():
        return
    names = [part.lstrip().partition("=")[0] for part in parts]
    reason = parts.pop(0).strip() if parts and "=" not in parts[0] else None
    fields = {}
    if reason is not None:
        names.pop(0)
    for name, part in zip(names, parts, strict=True):
        if name in _SUDO_FIELDS:
            fields[name] = part.lstrip().removeprefix(f"{name}=")
        elif not fields.keys() & {"CHROOT", "PWD", "ENV"}:
            return
    found = _SUDO_AMBIGUOUS.findall(match.string)
    if len(found) != len(set(found)):
        yield AuthMessage("command", "sudo", reason is None, user, reason=reason or AMBIGUOUS)
        return
    target, tty = fields.get("USER"), fields.get("TTY")
    yield AuthMessage(
        "command",
        "sudo",
        reason is None,
        user,
        target_user=target if target and " " not in target else None,
        tty=terminal(tty),
        command=command,
        reason=reason,
    )


def _su(message: str) -> Iterator[AuthMessage]:
    if match := _SU.fullmatch(message):
        failed = bool(match["failed"])
        reason = "authentication failure" if failed else None
        tty = terminal(match["tty"])
        yield AuthMessage("su", "su", not failed, match["user"], target_user=match["target"], tty=tty, reason=reason)
    elif match := _SHADOW_SU.fullmatch(message):
        failed = match["result"] == "FAILED"
        reason = "authentication failure" if failed else None
        yield AuthMessage("su", "su", not failed, match["user"], target_user=match["target"], reason=reason)


def _login(message: str) -> Iterator[AuthMessage]:
    if match := _LOGIN.fullmatch(message):
        user = "root" if match["root"] else match["user"]
        tty, host = terminal(match["tty"]), address(match["host"])
        yield AuthMessage("accepted", "login", user=user, tty=tty, remote_addr=host, method="login")
    elif match := _LOGIN_FAILED.fullmatch(message):
        user = None if match["user"] in {"UNKNOWN", "(unknown)"} else match["user"]
        tty, host = terminal(match["tty"]), address(match["host"])
        yield AuthMessage(
            "failed", "failed", False, user, tty=tty, remote_addr=host, method="login", reason=match["reason"]
        )


def _uid(digits: str | None) -> int | None:
    uid = int(digits) if digits and len(digits) <= 10 else None
    return uid if uid is not None and uid < 2**32 - 1 else None
