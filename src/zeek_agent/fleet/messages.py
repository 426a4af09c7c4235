"""Requests to the enrolment service and its answers, as JSON: over the bus and over HTTPS the same."""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from zeek_agent.bus import subjects
from zeek_agent.errors import ZeekAgentError
from zeek_agent.fleet import nkey
from zeek_agent.fleet.nkey import Key

MESSAGE_BYTES_MAX: Final = 16 * 1024
ID_CHARACTERS_MAX: Final = subjects.TOKEN_CHARACTERS_MAX
"""Longest id of an agent; one with characters that a subject cannot have is limited further (`subjects.token`)."""
SKEW_SECONDS: Final = 300.0
"""Largest difference between the clocks of an agent and the service."""
ENROL_PATH: Final = "/v1/enrol"
RENEW_PATH: Final = "/v1/renew"

_Text: TypeAlias = Annotated[str, Meta(max_length=256)]
_Key: TypeAlias = Annotated[str, Meta(max_length=56)]

Code = Literal[
    "bad_request", "unknown_token", "used_token", "expired_token", "replayed", "clock", "id_taken", "key_taken",
    "revoked", "unknown_agent", "wrong_certificate", "wrong_site", "busy",
]  # fmt: skip


class BadMessageError(ZeekAgentError):
    """A payload that cannot be read, or whose signature is wrong."""


class Request(Struct, frozen=True, omit_defaults=True):
    """An agent asks for credentials. `csr` is a certificate signing request in PEM format.

    `token` is the public key of an enrolment token; a renewal has none.
    """

    agent_id: Annotated[str, Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]
    key: _Key
    csr: Annotated[str, Meta(max_length=4096)]
    time: float
    nonce: Annotated[str, Meta(min_length=16, max_length=64)]
    hostname: _Text = ""
    token: _Key = ""


class Envelope(Struct, frozen=True, omit_defaults=True):
    """A request as it was signed, with the agent's key and, for an enrolment, with the token's."""

    body: Annotated[bytes, Meta(max_length=8192)]
    signature: Annotated[bytes, Meta(max_length=64)]
    token_signature: Annotated[bytes, Meta(max_length=64)] = b""


class Granted(Struct, frozen=True, tag="granted"):
    """The agent's credentials: its token for the bus, its certificate, and the authorities of servers."""

    token: str
    certificate: str
    ca: str
    expires: float
    groups: tuple[str, ...] = ()


class Refused(Struct, frozen=True, tag="refused"):
    """Why there are none, and the service's time."""

    code: Code
    reason: str
    time: float


Answer: TypeAlias = Granted | Refused

encode: Final = msgspec.json.Encoder().encode
_T = TypeVar("_T")


def seal(request: Request, key: Key, token: Key | None = None) -> bytes:
    """The payload of a request."""
    body = encode(request)
    return encode(Envelope(body, key.sign(body), b"" if token is None else token.sign(body)))


def open_request(payload: bytes) -> Request:
    """The request of a payload, once its signatures have been checked. Raises BadMessageError."""
    envelope = _read(payload, Envelope)
    request = _read(envelope.body, Request)
    if not nkey.verify(request.key, envelope.body, envelope.signature):
        raise BadMessageError("the signature is not that of the agent's key")
    if request.token and not nkey.verify(request.token, envelope.body, envelope.token_signature):
        raise BadMessageError("the signature is not that of the token")
    return request


def read_answer(payload: bytes) -> Answer:
    """Raises BadMessageError."""
    if len(payload) > 4 * MESSAGE_BYTES_MAX:
        raise BadMessageError("the answer is too long")
    try:
        answer: Answer = msgspec.json.decode(payload, type=Granted | Refused)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessageError(f"not an answer of the enrolment service: {error}") from None
    return answer


def nonce() -> str:
    return os.urandom(16).hex()


def _read(payload: bytes, kind: type[_T]) -> _T:
    if len(payload) > MESSAGE_BYTES_MAX:
        raise BadMessageError("the request is too long")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessageError(f"not a request: {error}") from None
