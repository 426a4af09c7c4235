"""How commands and a running agent are connected: what all transports have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from zeek_agent.errors import ZeekAgentError

if TYPE_CHECKING:
    import asyncio

Section: TypeAlias = Literal["control", "metrics"]
"""The section of the configuration that an address is from, for messages."""

ServeConnection: TypeAlias = Callable[["asyncio.StreamReader", "asyncio.StreamWriter"], Awaitable[None]]


class NotListeningError(ZeekAgentError):
    """The system does not allow listening at that address."""


class Listener(Protocol):
    """Accepts connections until it is closed."""

    def close(self) -> None:
        """Stop listening and remove the address, if it is in a file system. Open connections remain."""


class Connection(Protocol):
    """A client's end of a connection; blocking."""

    def send(self, data: bytes) -> None:
        """Raises OSError."""

    def read_line(self) -> bytes:
        """The next line with its line feed, or less at the end. Raises OSError."""

    def close(self) -> None: ...


class ControlTransport(ABC):
    """Connections between processes of one host that only permitted users can make."""

    @abstractmethod
    async def listen(
        self,
        address: Path,
        group: str | None,
        section: Section,
        serve: ServeConnection,
        *,
        backlog: int,
        stream_bytes: int,
    ) -> Listener:
        """Listen for this user, administrators and, if given, a group; `serve` is called for each connection.

        Raises UsageError for an invalid address or group, NotListeningError if the system refuses, ZeekAgentError if
        something else is at the address.
        """

    @abstractmethod
    def connect(self, address: Path, timeout_seconds: float) -> Connection:
        """Connect. Raises OSError: FileNotFoundError, NotADirectoryError or ConnectionRefusedError if no agent listens.

        Raises UsageError for an address that cannot be one.
        """

    @abstractmethod
    def peer(self, writer: asyncio.StreamWriter) -> str:
        """The user and the process at the other end, for the log: ` uid=1000 pid=4711`, or empty if unknown."""

    @abstractmethod
    def check_group(self, group: str, section: str) -> None:
        """Raises UsageError for a group that does not exist or cannot own a control address."""
