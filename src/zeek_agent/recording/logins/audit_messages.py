"""Audit records about logins: those that PAM, sshd, sudo and login send, and the kernel's of a new session.

Only programs with CAP_AUDIT_WRITE can send them. The kernel writes process, users and session in front of what they
say, and programs encode names that contain blanks or quotes, so a name cannot look like another field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from zeek_agent.host.accounts.accounting import address
from zeek_agent.host.linux.stamps import set_or_none
from zeek_agent.recording.audit.audit_records import AuditRecord, decode_text, fields_of
from zeek_agent.recording.logins.observation import Action, service_action, terminal
from zeek_agent.text import from_bytes

LOGIN: Final = 1006
USER_AUTH: Final = 1100
USER_START: Final = 1105
USER_END: Final = 1106
USER_LOGIN: Final = 1112
USER_CMD: Final = 1123
KINDS: Final = frozenset({LOGIN, USER_AUTH, USER_START, USER_END, USER_LOGIN, USER_CMD})

_UNKNOWN_NAMES: Final = frozenset({"(invalid user)", "(unknown user)", "(unknown)", "?", "UNKNOWN"})
_HELPERS: Final = frozenset({"unix_chkpwd", "unix2_chkpwd"})
"""Programs that check a password for another one, which reports it too."""


@dataclass(slots=True)
class AuditMessage:
    """What a record says. `account` is the user that its program names; `loginuid` the login user of the process."""

    statement: str
    action: Action | None
    succeeded: bool
    pid: int
    uid: int | None
    loginuid: int | None
    session: int | None
    program: str | None = None
    account: str | None = None
    account_uid: int | None = None
    tty: str | None = None
    remote_addr: str | None = None
    command: str | None = None
    unknown_user: bool = False


def parse(record: AuditRecord) -> AuditMessage | None:
    """The statement of a record; None if it is not about a login. Raises ValueError or LookupError if malformed."""
    head, _, told = record.body.partition(b" msg='")
    kernel = fields_of(head)
    pid, uid = int(kernel["pid"]), set_or_none(int(kernel["uid"]))
    loginuid, session = set_or_none(int(kernel["auid"])), set_or_none(int(kernel["ses"]))
    if record.kind == LOGIN:
        if kernel.get("res") != b"1" or session is None:
            return None
        return AuditMessage("loginuid", None, True, pid, uid, loginuid, session, account_uid=loginuid)
    fields = fields_of(told.removesuffix(b"'"))
    program = _program(fields)
    action = _action(record.kind, program, _result(fields))
    if action is None or program in _HELPERS:
        return None
    account = _text(fields, "acct")
    unknown = account in _UNKNOWN_NAMES
    own = record.kind in {USER_START, USER_LOGIN, USER_END}
    return AuditMessage(
        statement=str(record.kind),
        action=action,
        succeeded=_result(fields),
        pid=pid,
        uid=uid,
        loginuid=loginuid,
        session=session if own or program in {"su", "sudo"} else None,
        program=program,
        account=None if unknown else account,
        account_uid=int(fields["id"]) if fields.get("id", b"").isdigit() else None,
        tty=terminal(_plain(fields, "terminal")),
        remote_addr=address(_plain(fields, "addr")) or address(_plain(fields, "hostname")),
        command=_text(fields, "cmd"),
        unknown_user=unknown,
    )


def _action(kind: int, program: str | None, succeeded: bool) -> Action | None:
    service = _service(program)
    if kind == USER_CMD:
        return "sudo"
    if kind == USER_END:
        return service_action(service, ends=True) if succeeded else None
    if kind == USER_START:
        return service_action(service, ends=False) if succeeded else None
    if kind == USER_LOGIN:
        return "login" if succeeded else "failed"
    if succeeded or service == "sudo":
        return None  # sudo reports the command that it refuses, once for all passwords
    return "su" if service == "su" else "failed"


def _service(program: str | None) -> str:
    """The PAM service of a program, as far as it matters here."""
    return (program or "").removesuffix("-session").removesuffix("-auth").removesuffix("-worker")


def _program(fields: dict[str, bytes]) -> str | None:
    exe = _text(fields, "exe")
    return None if exe is None else PurePosixPath(exe).name


def _result(fields: dict[str, bytes]) -> bool:
    return fields.get("res", b"").strip(b"'") in {b"success", b"1", b"yes"}


def _text(fields: dict[str, bytes], name: str) -> str | None:
    """A text that programs quote, or write in hexadecimal."""
    value = fields.get(name)
    if value is None or value == b"?":
        return None
    raw = decode_text(value)
    return None if raw is None else from_bytes(raw.rstrip(b"\0"))


def _plain(fields: dict[str, bytes], name: str) -> str | None:
    value = fields.get(name)
    return None if value in {None, b"?"} else from_bytes((value or b"").strip(b'"'))
