"""Error messages for failed and closed connections to Zeek: what happened, and what to check."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from zeek_agent.destination import Destination
from zeek_agent.text import clipped


class UnusableError(ConnectionError):
    """Zeek's answer is unusable; the message completes "Zeek at X …"."""


NO_ACK: Final = (
    "did not acknowledge the subscription within {seconds:g} s: it may have no cluster backend (load "
    "frameworks/cluster/backend/zeromq), its ZeroMQ proxy may be unreachable, or the node that listens is also "
    "the logger (let a proxy listen, or a manager that is not a logger)"
)
NO_BACKEND: Final = "runs without a cluster backend and would lose every event (load frameworks/cluster/backend/zeromq)"
LONG_NAME: Final = "has a name or version of more than {most:,} bytes: {name}"
_NO_ANSWER: Final = (
    "closed the connection without an answer: its limit of 100 clients per listener may be reached, or the port "
    "expects "
)
_CLOSE_CODES: Final = {
    1001: "is shutting down",
    1007: "received text that is not UTF-8",
    1008: "refused the connection",
    1009: "refused a message of that size",
    1011: "closed the connection after an internal error",
}


_CHARACTERS_MAX: Final = 1_000
"""Characters: text from the peer may be part of the cause."""


def explain(error: BaseException, destination: Destination) -> str:
    """One line that names the destination, what went wrong and the likely cause."""
    return clipped(_explained(error, destination), _CHARACTERS_MAX)


def _explained(error: BaseException, destination: Destination) -> str:
    if isinstance(error.__cause__, ConnectionClosed):
        error = error.__cause__
    for kind, words in _CAUSES:
        if isinstance(error, kind):
            return f"{destination.title} {words(error, destination)}"
    return f"{destination.title} cannot be used: {type(error).__name__}: {error}"


def _no_answer(_: BaseException, destination: Destination) -> str:
    return _NO_ANSWER + (
        "no TLS (ws://), or a client certificate (zeek.tls.certificate)" if destination.is_tls else "TLS (wss://)"
    )


def _closed(error: ConnectionClosed, _: Destination) -> str:
    if error.rcvd is not None:
        reason = f" ({error.rcvd.code} {error.rcvd.reason})" if error.rcvd.reason else f" ({error.rcvd.code})"
        return f"{_CLOSE_CODES.get(error.rcvd.code, 'closed the connection')}{reason}"
    if error.sent is not None:
        return f"was disconnected by the agent ({error.sent.code} {error.sent.reason})"
    return "closed the connection without a close frame"


def _status(error: InvalidStatus, _: Destination) -> str:
    status = error.response.status_code
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return _REDIRECT.format(status=status, target=clipped(error.response.headers.get("Location") or "nowhere"))
    cause = _STATUSES.get(status, "not Zeek's WebSocket API, or a wrong path")
    return f"answered HTTP status {status}: {cause}"


_REDIRECT: Final = (
    "redirects to {target} (HTTP status {status}), which the agent refuses: a redirect could lead anywhere; if the "
    "address is right, add it to zeek.destinations"
)
_STATUSES: Final = {
    400: "not Zeek's WebSocket API, or a proxy that requires a client certificate (zeek.tls.certificate)",
    **dict.fromkeys((502, 503, 504), "a proxy that does not reach Zeek"),
}


def _certificate(error: ssl.SSLCertVerificationError, _: Destination) -> str:
    return f"has a certificate that is not trusted: {error.verify_message} (zeek.tls.ca_file sets the trusted CAs)"


_CAUSES: Final[Sequence[tuple[type[BaseException], Callable[[Any, Destination], str]]]] = (
    (UnusableError, lambda error, _: str(error)),
    (ConnectionClosed, _closed),
    (InvalidMessage, _no_answer),
    (InvalidStatus, _status),
    (ssl.SSLCertVerificationError, _certificate),
    (ssl.SSLEOFError, _no_answer),
    (ssl.SSLError, lambda error, _: f"failed in the TLS handshake: {error.reason or error} (does it expect TLS?)"),
    (ConnectionRefusedError, lambda error, _: "refused the connection: nothing is listening there"),
    (ConnectionResetError, _no_answer),
    (socket.gaierror, lambda error, _: f"cannot be found: {error.strerror}"),
    (TimeoutError, lambda error, _: "did not answer in time"),
    (OSError, lambda error, _: f"cannot be reached: {error.strerror or error}"),
)
