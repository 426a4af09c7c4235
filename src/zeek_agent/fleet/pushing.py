"""Pushes the accounts' tokens, which name revoked keys, to all servers that can be reached.

A server accepts a token that is signed by its operator and newer than its own, and at once ends the connections of
revoked users. Leaves receive it from their hub; each server keeps it on disk and passes it to servers that missed it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zeek_agent.bus import link
from zeek_agent.bus.link import Link, Received
from zeek_agent.errors import ZeekAgentError

UPDATE: Final = "$SYS.REQ.CLAIMS.UPDATE"
INBOX: Final = "_INBOX.push"
"""Leaves may answer below this subject only."""
ANSWER_SECONDS: Final = 2.0
"""Time for the servers to confirm, after the last one that did."""
PUSH_SECONDS: Final = 20.0
"""Time for all of them: a leaf that was taken may confirm without end, with any names."""


class _Server(msgspec.Struct, frozen=True):
    name: str


class _Result(msgspec.Struct, frozen=True):
    message: str = ""
    code: int = 0


class _Confirmation(msgspec.Struct, frozen=True):
    server: _Server
    data: _Result | None = None


def push(servers: Sequence[str], ca: Path, credentials: str, tokens: Sequence[str]) -> list[str]:
    """Push the tokens. Returns the names of the servers that have accepted all of them.

    Raises ZeekAgentError if none can be reached.
    """
    return asyncio.run(_push(servers, ca, credentials, tokens))


async def _push(servers: Sequence[str], ca: Path, credentials: str, tokens: Sequence[str]) -> list[str]:
    confirmed: dict[str, set[int]] = {}
    faults: list[str] = []
    for server in servers:  # each hub by itself: a partition may be between them
        try:
            context = ssl.create_default_context(cafile=str(ca))
            hub = await link.connect([server], name="push", inbox=INBOX, credentials=credentials, tls=context)
        except (ConnectionError, OSError) as error:
            faults.append(str(error))
            continue
        try:
            for number, token in enumerate(tokens):
                for name in await _confirmations(hub, token, number):
                    confirmed.setdefault(name, set()).add(number)
        except ConnectionError as error:
            faults.append(f"{server}: {error}")
        finally:
            await hub.close()
    if len(faults) == len(servers):
        raise ZeekAgentError(f"the revocation is recorded, but no hub has received it: {'; '.join(faults)}")
    return sorted(name for name, numbers in confirmed.items() if len(numbers) == len(tokens))


async def _confirmations(hub: Link, token: str, number: int) -> set[str]:
    names: set[str] = set()
    received = asyncio.Event()

    async def receive(message: Received) -> None:
        try:
            answer = msgspec.json.decode(message.payload, type=_Confirmation)
        except (msgspec.DecodeError, RecursionError):
            return  # of another version: not a confirmation
        if answer.data is not None and answer.data.code == 200:
            names.add(answer.server.name)
        received.set()

    subject = f"{INBOX}.{number}"
    end = await hub.subscribe(subject, receive)
    await hub.publish(UPDATE, token.encode(), reply=subject)
    await hub.flush()
    deadline = time.monotonic() + PUSH_SECONDS
    with suppress(TimeoutError):
        while time.monotonic() < deadline:
            received.clear()
            await asyncio.wait_for(received.wait(), ANSWER_SECONDS)
    await end()
    return names
