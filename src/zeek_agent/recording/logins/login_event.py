"""Rows of the table `logins_events`."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

LOGINS_EVENTS: Final = "logins_events"


class LoginEvent(Struct, frozen=True, gc=False):  # its values are scalars, so it is in no reference cycle
    """A row; None for what no source said."""

    time: float
    action: str
    user: str | None
    uid: int | None
    target_user: str | None
    tty: str | None
    remote_addr: str | None
    remote_port: int | None
    pid: int | None
    process: str | None
    session: int | None
    entity_id: str | None
    method: str | None
    command: str | None
    outcome: str
    reason: str | None
    source: str
    verified: bool
    cursor: str | None
