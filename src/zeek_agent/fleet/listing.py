"""The rows that `fleet agents` and `fleet tokens` print."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from zeek_agent.fleet.registry import AgentRow, TokenRow
from zeek_agent.schema import ZeekType


def token_line(row: TokenRow, now: float) -> tuple[object, ...]:
    """The columns of a token in the output of `fleet tokens`."""
    state = "void" if row.expires <= now else "used" if row.used >= row.uses else "valid"
    return (row.key, state, row.uses, row.used, row.site, ",".join(row.groups), _date(row.created), _date(row.expires))


TOKEN_COLUMNS: Final[Sequence[tuple[str, ZeekType]]] = tuple(
    (name, ZeekType("count" if name in {"uses", "used"} else "text"))
    for name in ("key", "state", "uses", "used", "site", "groups", "made", "expires")
)


def agent_line(row: AgentRow, now: float) -> tuple[str, ...]:
    """The columns of an agent in the output of `fleet agents`."""
    state = "revoked" if row.revoked is not None else "expired" if row.expires <= now else "enrolled"
    groups = ",".join(row.groups)
    return (row.id, row.hostname, row.site, state, groups, _date(row.enrolled), _date(row.expires), row.key)


AGENT_COLUMNS: Final[Sequence[tuple[str, ZeekType]]] = tuple(
    (name, ZeekType("text")) for name in ("id", "hostname", "site", "state", "groups", "enrolled", "expires", "key")
)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
