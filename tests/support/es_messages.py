"""Lines of eslogger(1) in their documented shape, made up for tests: none was written by macOS."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import count
from typing import Any

TYPES = {"exec": 9, "fork": 11, "exit": 15}
BEGIN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
TOKEN = ("auid", "euid", "egid", "ruid", "rgid", "pid", "asid", "pidversion")

Object = dict[str, Any]


def stamp(microseconds: int, digits: int = 9) -> str:
    """A time in RFC 3339 with that many digits of the second."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:06d}000"[: digits + 1] + "Z"


def begin() -> int:
    """The start of all processes here, in microseconds since the epoch."""
    return round(BEGIN.timestamp() * 1_000_000)


def token(version: int, pid: int, **numbers: int) -> Object | list[int]:
    """An audit token: an object up to version 9, an array from version 10 on."""
    known = {"auid": 501, "euid": 501, "egid": 20, "ruid": 501, "rgid": 20, "asid": 100_007, "pidversion": 1_000 + pid}
    known |= {"pid": pid} | numbers
    return {name: known[name] for name in TOKEN} if version < 10 else [known[name] for name in TOKEN]


def file(path: str, inode: int = 4_711, *, truncated: bool = False) -> Object:
    """A file with its status."""
    status = {"st_dev": 16_777_234, "st_ino": inode, "st_mode": 33_261, "st_nlink": 1, "st_uid": 0, "st_gid": 0}
    status |= {"st_rdev": 0, "st_size": 136_800, "st_blocks": 80, "st_blksize": 4096, "st_flags": 0, "st_gen": 0}
    return {"path": path, "path_truncated": truncated, "stat": status}


def process(
    pid: int,
    path: str = "/bin/zsh",
    *,
    version: int = 10,
    parent: int = 1,
    started: int | None = None,
    inode: int = 4_711,
    **numbers: int,
) -> Object:
    """A process; `numbers` are those of its audit token."""
    return {
        "audit_token": token(version, pid, **numbers),
        "parent_audit_token": token(version, parent),
        "responsible_audit_token": token(version, parent),
        "ppid": parent,
        "original_ppid": parent,
        "session_id": 700,
        "group_id": pid,
        "executable": file(path, inode),
        "tty": {"path": "/dev/ttys003", "path_truncated": False},
        "start_time": stamp(begin() + pid * 1_000 if started is None else started, 6),
        "signing_id": "com.example.shell",
        "team_id": None,
        "cdhash": "00112233445566778899AABBCCDDEEFF00112233",
        "codesigning_flags": 0x2000_0001,
        "is_platform_binary": True,
        "is_es_client": False,
    }


class Messages:
    """Messages of one run of eslogger, with their numbers; a skipped number is a message that it lost."""

    def __init__(self, version: int = 10) -> None:
        self.version = version
        self._overall = count()
        self._of_type = {kind: count() for kind in TYPES}

    def message(self, kind: str, actor: Object, event: Object, at: int) -> Object:
        """An event at `at`, in microseconds since `begin`."""
        return {
            "schema_version": 1,
            "version": self.version,
            "time": stamp(begin() + at),
            "mach_time": 9_000_000 + at * 24,
            "seq_num": next(self._of_type[kind]),
            "global_seq_num": next(self._overall),
            "event_type": TYPES[kind],
            "process": actor,
            "event": {kind: event},
            "thread": {"thread_id": 12_345},
            "action": {"result": {"result": {"auth": 0}, "result_type": 0}},
            "action_type": 1,
        }

    def lose(self, kind: str, number: int = 1) -> None:
        """Messages that Endpoint Security dropped."""
        for _ in range(number):
            next(self._of_type[kind])
            next(self._overall)

    def fork(self, parent: Object, child: Object, at: int) -> Object:
        return self.message("fork", parent, {"child": child}, at)

    def exec(self, before: Object, target: Object, args: list[str], at: int, cwd: str = "/Users/ada") -> Object:
        event = {
            "target": target,
            "args": args,
            "env": ["PATH=/usr/bin:/bin", "AWS_SECRET_ACCESS_KEY=never-stored"],
            "cwd": file(cwd),
            "script": None,
            "fds": [{"fd": 0, "fdtype": 1}],
            "last_fd": 2,
        }
        return self.message("exec", before, event, at)

    def exit(self, actor: Object, at: int, status: int = 0) -> Object:
        return self.message("exit", actor, {"stat": status}, at)


def line(message: Object) -> bytes:
    """As eslogger writes it, without a newline; slashes are escaped as its JSON library does."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/").encode()
