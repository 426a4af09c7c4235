"""osquery's extension protocol, client side: one connection, one call at a time.

A reply has no end mark but its own structure, and there is no way to cancel a call: a connection whose reply was not
read to its end, for whatever reason, is of no more use.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from zeek_agent import ownership, text
from zeek_agent.errors import ZeekAgentError

if TYPE_CHECKING:
    from types import ModuleType

OsqueryRow: TypeAlias = "Mapping[str, str | bytes]"
"""A row as osquery sends it: every value is text, or bytes where it is not valid UTF-8."""

CancelCheck: TypeAlias = "Callable[[], None]"
"""Called while one waits; raises what ends the waiting."""

RECEIVE_BYTES: Final = 65_536
CHECK_INTERVAL: Final = 0.1
REPLY_BYTES_MAX: Final = 268_435_456


class UnreachableError(ZeekAgentError):
    """No osquery can be reached; the message says why and what to do."""


class ImpostorError(UnreachableError):
    """What is at the socket may be another user's, who could make up rows and be shown what is asked."""


class GoneError(ZeekAgentError):
    """The connection was lost, or became useless, in the middle of a call."""


class SlowError(GoneError):
    """The answer did not come in time."""


class OsqueryRefusedError(ZeekAgentError):
    """osquery answered that it cannot do what was asked."""


@cache
def interface() -> ModuleType:
    """The protocol's structures and services. Raises UnreachableError when the extra is not installed."""
    try:
        import thriftpy2
    except ImportError:
        raise UnreachableError("the Python package thriftpy2 is missing: install zeek-agent[osquery]") from None
    module: ModuleType = thriftpy2.load(
        str(Path(__file__).with_name("extensions.thrift")), module_name="zeek_agent_osquery_thrift"
    )
    return module


Dial: TypeAlias = Callable[[str, float], socket.socket]
"""Connects to a path within so many seconds. Raises UnreachableError."""


class ThriftConnection:
    """A connection to osquery. Calls raise GoneError, SlowError and RefusedError; after the first two it is closed.

    `timeout` bounds a whole call, in seconds; `check` is called while one waits for the answer.
    """

    def __init__(self, path: str, timeout: float, dial: Dial | None = None) -> None:
        self.check: CancelCheck = lambda: None
        self._timeout = timeout
        service = interface().ExtensionManager
        self._stream = _Stream((dial or connect)(path, timeout))
        self._client = _client(self._stream, service)

    def query(self, sql: str) -> Sequence[OsqueryRow]:
        """Run a statement in osquery. Raises RefusedError with what SQLite says of it."""
        return self._rows("query", text.to_bytes(sql))

    def columns(self, sql: str) -> list[tuple[str, str]]:
        """Name and type of each column that a statement would give, without running it."""
        return [(name, str(kind)) for row in self._rows("getQueryColumns", sql) for name, kind in row.items()]

    def options(self) -> dict[str, str]:
        """osquery's flags with their present values."""
        return {name: option.value or "" for name, option in self._call("options").items()}

    def extensions(self) -> dict[int, str]:
        """Names of the extensions that are registered, by uuid."""
        return {uuid: info.name for uuid, info in self._call("extensions").items()}

    def register(self, info: Any, registry: Mapping[str, Mapping[str, Sequence[Mapping[str, str]]]]) -> int:
        """Register an extension; the uuid that osquery gave to it. Raises RefusedError."""
        status = self._call("registerExtension", info, registry)
        _require(status)
        return int(status.uuid)

    def deregister(self, uuid: int) -> None:
        """Take an extension's registration back. Raises RefusedError when osquery does not know it."""
        _require(self._call("deregisterExtension", uuid))

    def is_stale(self) -> bool:
        """Whether the other side has ended the connection, or sent what nobody asked for."""
        return self._stream.closed or self._stream.readable(0)

    def close(self) -> None:
        self._stream.close()

    def _rows(self, method: str, sql: str | bytes) -> Sequence[OsqueryRow]:
        response = self._call(method, sql)
        _require(response.status)
        return response.response or ()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._stream.begin(time.monotonic() + self._timeout, self.check)
        try:
            return getattr(self._client, method)(*arguments)
        except GoneError:
            self.close()
            raise
        except _refusal() as error:
            raise OsqueryRefusedError(f"it failed: {error.message}") from error
        except (OSError, EOFError) as error:
            self.close()
            raise GoneError(f"the connection was lost: {error}") from error
        except ZeekAgentError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise GoneError(_explain(error)) from error


def _refusal() -> type[Any]:
    """What thriftpy2 raises for a complete reply that says that the call failed."""
    from thriftpy2.thrift import TApplicationException

    return TApplicationException


def _explain(error: Exception) -> str:
    """What thriftpy2 raises for an end in the middle of a reply, or for what is no reply at all."""
    from thriftpy2.transport import TTransportException

    if isinstance(error, TTransportException):
        return f"the connection was lost: {error.message or error}"
    return f"the reply does not follow osquery's protocol: {type(error).__name__}: {error}"


def _require(status: Any) -> None:
    if status is None or status.code != 0:
        raise OsqueryRefusedError(str(getattr(status, "message", None) or "refused without giving a reason"))


def connect(path: str, timeout: float) -> socket.socket:
    """A connection to a process of root's or of the agent's own user. Raises UnreachableError and ImpostorError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        doubt = ownership.distrusted(Path(path))
        if doubt is None:
            connection.connect(path)
            doubt = _doubt_about_peer(connection)
        if doubt is not None:
            raise ImpostorError(_IMPOSTOR.format(path=path, doubt=doubt))
    except OSError as error:
        connection.close()
        raise UnreachableError(f"{path}: {reason(error)}") from error
    except ImpostorError:
        connection.close()
        raise
    return connection


_IMPOSTOR: Final = (
    "{path}: not used, since it may be another user's: {doubt}; run osquery as root or as the agent's user, with "
    "its socket in a directory that only they can write to"
)


def _doubt_about_peer(connection: socket.socket) -> str | None:
    """Who listens may be somebody else than the owner of the socket's file: unix(7), SO_PEERCRED."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return None if ownership.is_trusted(uid) else f"process {pid}, which is listening there, belongs to uid {uid}"


def reason(error: OSError) -> str:
    """Why a socket cannot be connected to, and what to do about it."""
    match error.errno:
        case errno.ENOENT:
            return "no such socket; osquery is not running, or uses another --extensions_socket"
        case errno.ECONNREFUSED:
            return "nothing is listening; osquery has exited and left its socket behind"
        case errno.EACCES | errno.EPERM:
            return "permission denied; run as the user of osquery (root)"
    return error.strerror or str(error)


def _client(stream: _Stream, service: Any) -> Any:
    from thriftpy2.protocol import TCyBinaryProtocol
    from thriftpy2.thrift import TClient
    from thriftpy2.transport import TCyBufferedTransport, TSocket

    transport = TCyBufferedTransport(TSocket(sock=stream), RECEIVE_BYTES)  # type: ignore[no-untyped-call]
    return TClient(service, TCyBinaryProtocol(transport))  # type: ignore[no-untyped-call]


class _Stream:
    """A socket that gives up: at a deadline, when `check` raises, and on a reply that never ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._check: CancelCheck = lambda: None
        self._deadline = 0.0
        self._left = 0
        self.closed = False

    def begin(self, deadline: float, check: CancelCheck) -> None:
        """Start of a call."""
        if self.closed:
            raise GoneError("the connection is closed")
        self._deadline, self._check, self._left = deadline, check, REPLY_BYTES_MAX
        self._socket.settimeout(max(deadline - time.monotonic(), CHECK_INTERVAL))

    def readable(self, seconds: float) -> bool:
        return bool(self._poll.poll(seconds * 1_000))

    def recv(self, size: int) -> bytes:
        while not self.readable(CHECK_INTERVAL):
            self._check()
            if time.monotonic() > self._deadline:
                raise SlowError("no reply in time")
        data = self._socket.recv(size)
        self._left -= len(data)
        if self._left < 0:
            raise GoneError(f"the answer is longer than {REPLY_BYTES_MAX} bytes")
        return data

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self.closed = True
        self._socket.close()
