"""osquery's extension protocol, client side: one connection, one call at a time.

The end of a reply follows only from its structure, and a call cannot be cancelled: a connection whose reply was not
read completely, for any reason, is unusable.
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
"""A row as osquery sends it: every value is text, or bytes if it is not valid UTF-8."""

CancelCheck: TypeAlias = "Callable[[], None]"
"""Called while waiting; raises an exception to end the wait."""

RECEIVE_BYTES: Final = 65_536
"""Buffer size, so that a large reply takes few system calls."""
CHECK_INTERVAL_SECONDS: Final = 0.1
"""How soon a cancelled statement stops waiting."""
REPLY_BYTES_MAX: Final = 268_435_456
"""Bounds the memory of one reply, far above that of `osquery.rows` rows."""


class UnreachableError(ZeekAgentError):
    """osquery cannot be reached; the message gives the reason and the remedy."""


class ImpostorError(UnreachableError):
    """The process at the socket may be another user's, who could forge rows and read the statements."""


class ConnectionLostError(ZeekAgentError):
    """The connection was lost, or became unusable, during a call."""


class ReplyTimeoutError(ConnectionLostError):
    """The reply did not arrive in time."""


class OsqueryRefusedError(ZeekAgentError):
    """osquery replied with an error."""


@cache
def interface() -> ModuleType:
    """The protocol's structures and services. Raises UnreachableError if the extra is not installed."""
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
    """A connection to osquery. Calls raise ConnectionLostError, ReplyTimeoutError and OsqueryRefusedError.

    The first two close it.

    `timeout_seconds` bounds a whole call; `check` is called while waiting for the reply.
    """

    def __init__(self, path: str, timeout_seconds: float, dial: Dial | None = None) -> None:
        self.check: CancelCheck = lambda: None
        self._timeout = timeout_seconds
        service = interface().ExtensionManager
        self._stream = _BoundedSocket((dial or connect)(path, timeout_seconds))
        self._client = _client(self._stream, service)

    def query(self, sql: str) -> Sequence[OsqueryRow]:
        """Run a statement in osquery. Raises OsqueryRefusedError with SQLite's message."""
        return self._rows("query", text.to_bytes(sql))

    def columns(self, sql: str) -> list[tuple[str, str]]:
        """Name and type of each column of a statement's result, without running it."""
        return [(name, str(kind)) for row in self._rows("getQueryColumns", sql) for name, kind in row.items()]

    def options(self) -> dict[str, str]:
        """osquery's flags and their current values."""
        return {name: option.value or "" for name, option in self._call("options").items()}

    def extensions(self) -> dict[int, str]:
        """Names of the registered extensions, by uuid."""
        return {uuid: info.name for uuid, info in self._call("extensions").items()}

    def register(self, info: Any, registry: Mapping[str, Mapping[str, Sequence[Mapping[str, str]]]]) -> int:
        """Register an extension and return the uuid that osquery assigned to it. Raises OsqueryRefusedError."""
        status = self._call("registerExtension", info, registry)
        _require(status)
        return int(status.uuid)

    def deregister(self, uuid: int) -> None:
        """Unregister an extension. Raises OsqueryRefusedError if osquery does not know it."""
        _require(self._call("deregisterExtension", uuid))

    def is_stale(self) -> bool:
        """Whether the peer has closed the connection, or sent unexpected data."""
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
        except ConnectionLostError:
            self.close()
            raise
        except _refusal() as error:
            raise OsqueryRefusedError(f"it failed: {error.message}") from error
        except (OSError, EOFError) as error:
            self.close()
            raise ConnectionLostError(f"the connection was lost: {error}") from error
        except ZeekAgentError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise ConnectionLostError(_explain(error)) from error


def _refusal() -> type[Any]:
    """thriftpy2's exception for a complete reply that reports the failure of the call."""
    from thriftpy2.thrift import TApplicationException

    return TApplicationException


def _explain(error: Exception) -> str:
    """Text for thriftpy2's exceptions for an incomplete or invalid reply."""
    from thriftpy2.transport import TTransportException

    if isinstance(error, TTransportException):
        return f"the connection was lost: {error.message or error}"
    return f"the reply does not follow osquery's protocol: {type(error).__name__}: {error}"


def _require(status: Any) -> None:
    if status is None or status.code != 0:
        raise OsqueryRefusedError(str(getattr(status, "message", None) or "refused without giving a reason"))


def connect(path: str, timeout_seconds: float) -> socket.socket:
    """A connection to a process of root or the agent's own user. Raises UnreachableError and ImpostorError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_seconds)
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
    """Why the listener is not trusted; it may be another user's than the socket's file (unix(7), SO_PEERCRED)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, _ = struct.unpack("iII", raw)
    return None if ownership.is_trusted(uid) else f"process {pid}, which is listening there, belongs to uid {uid}"


def reason(error: OSError) -> str:
    """Why a connection to a socket failed, and the remedy."""
    match error.errno:
        case errno.ENOENT:
            return "no such socket; osquery is not running, or uses another --extensions_socket"
        case errno.ECONNREFUSED:
            return "nothing is listening; osquery has exited and left its socket behind"
        case errno.EACCES | errno.EPERM:
            return "permission denied; run as the user of osquery (root)"
    return error.strerror or str(error)


def _client(stream: _BoundedSocket, service: Any) -> Any:
    from thriftpy2.protocol import TCyBinaryProtocol
    from thriftpy2.thrift import TClient
    from thriftpy2.transport import TCyBufferedTransport, TSocket

    transport = TCyBufferedTransport(TSocket(sock=stream), RECEIVE_BYTES)  # type: ignore[no-untyped-call]
    return TClient(service, TCyBinaryProtocol(transport))  # type: ignore[no-untyped-call]


class _BoundedSocket:
    """A socket whose reads end at a deadline, when `check` raises, and when a reply is too long."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._check: CancelCheck = lambda: None
        self._deadline = 0.0
        self._left = 0
        self.closed = False

    def begin(self, deadline: float, check: CancelCheck) -> None:
        """Start the deadline of a call."""
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        self._deadline, self._check, self._left = deadline, check, REPLY_BYTES_MAX
        self._socket.settimeout(max(deadline - time.monotonic(), CHECK_INTERVAL_SECONDS))

    def readable(self, seconds: float) -> bool:
        return bool(self._poll.poll(seconds * 1_000))

    def recv(self, size: int) -> bytes:
        while not self.readable(CHECK_INTERVAL_SECONDS):
            self._check()
            if time.monotonic() > self._deadline:
                raise ReplyTimeoutError("no reply in time")
        data = self._socket.recv(size)
        self._left -= len(data)
        if self._left < 0:
            raise ConnectionLostError(f"the answer is longer than {REPLY_BYTES_MAX} bytes")
        return data

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self.closed = True
        self._socket.close()
