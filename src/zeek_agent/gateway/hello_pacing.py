"""The rate at which hellos reach Zeek, each of which has it send the agent its queries."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zeek_agent.gateway.sessions import AgentSession

STEP_SECONDS: Final = 0.05
"""Hellos of such a time are sent together."""


class HelloPacing:
    """Sessions whose hello is due, in order, each once."""

    def __init__(self, per_second: float) -> None:
        self._per_step = max(per_second * STEP_SECONDS, 0.001)
        self._due: OrderedDict[AgentSession, None] = OrderedDict()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, session: AgentSession) -> bool:
        return session in self._due

    def add(self, session: AgentSession) -> None:
        self._due[session] = None
        self._filled.set()

    def forget(self, session: AgentSession) -> None:
        self._due.pop(session, None)

    async def next(self) -> list[AgentSession]:
        """Those whose turn it is, once there are some. Call it again after STEP_SECONDS."""
        while not self._due:
            self._filled.clear()
            await self._filled.wait()
        number = max(1, int(self._per_step))
        return [self._due.popitem(last=False)[0] for _ in range(min(number, len(self._due)))]

    @property
    def pause_seconds(self) -> float:
        """Until the next call of `next`."""
        return STEP_SECONDS if self._per_step >= 1 else STEP_SECONDS / self._per_step
