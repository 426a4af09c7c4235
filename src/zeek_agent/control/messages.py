"""The protocol between a running agent and `query`, `shell` and `status`, over a Unix socket.

Messages are JSON objects, one per line. The client sends a request, and the agent answers with frames, of which the
last is `done` or `failed`:

    {"request":"query","sql":"SELECT pid, name FROM processes LIMIT 1"}
    {"frame":"columns","columns":[["pid","count"],["name","text"]]}
    {"frame":"rows","rows":[[1,"systemd"]]}
    {"frame":"done"}

Cells are JSON values, ports `[80,"tcp"]`, sets and vectors arrays, records arrays of `[name,value]`; bytes are
`{"base64":"…"}`, numbers that JSON lacks `{"float":"inf"}`. A `subscribe` request is answered until the client closes
the connection. This module has the messages and the blocking client; `server` is the agent's side.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from zeek_agent import errors, platforms
from zeek_agent.errors import ZeekAgentError

REQUEST_BYTES_MAX: Final = 1024 * 1024
"""Bounds memory; `limits.statement_bytes` is usually lower."""
ROWS_FRAME_BYTES: Final = 256 * 1024
"""Rows are sent in frames of about this size; one larger row is a frame of its own."""
CONNECT_TIMEOUT_SECONDS: Final = 5.0
"""A running agent accepts at once; a hung one must not block commands."""


SubscriptionName = Literal["Snapshots", "Differences", "SnapshotPlusDifferences", "Events"]
ChangeName = Literal["Add", "Delete"]
ProfileName: TypeAlias = Literal["full", "stock", "osquery"]


class QueryRequest(Struct, frozen=True, tag_field="request", tag="query", forbid_unknown_fields=True):
    """Run a statement once. Profile `stock` shows tables as to a stock Zeek package, `osquery` as osquery has them."""

    sql: str
    profile: ProfileName = "full"


class CompileRequest(Struct, frozen=True, tag_field="request", tag="compile", forbid_unknown_fields=True):
    """Compile a statement without running it; answered with its columns."""

    sql: str
    profile: ProfileName = "full"


class SubscribeRequest(
    Struct, frozen=True, tag_field="request", tag="subscribe", forbid_unknown_fields=True, omit_defaults=True
):
    """Run a statement every `schedule` seconds and report by a subscription."""

    sql: str
    subscription: SubscriptionName
    schedule: Annotated[float, Meta(gt=0)]
    dialect: Literal["osquery"] | None = None


class StatusRequest(Struct, frozen=True, tag_field="request", tag="status", forbid_unknown_fields=True):
    """Get the status of the running agent."""


class MetricsRequest(Struct, frozen=True, tag_field="request", tag="metrics", forbid_unknown_fields=True):
    """Get the metrics of the running agent."""


class ReloadRequest(Struct, frozen=True, tag_field="request", tag="reload", forbid_unknown_fields=True):
    """Read the configuration again and apply what can be applied."""


class TablesRequest(Struct, frozen=True, tag_field="request", tag="tables", forbid_unknown_fields=True):
    """Get the declarations of all tables."""


Request: TypeAlias = (
    QueryRequest | CompileRequest | SubscribeRequest | StatusRequest | MetricsRequest | ReloadRequest | TablesRequest
)


class Columns(Struct, frozen=True, tag_field="frame", tag="columns"):
    """Name and Zeek type of each column of the rows that follow."""

    columns: list[tuple[str, str]]


class Rows(Struct, frozen=True, tag_field="frame", tag="rows"):
    """Some rows. For a subscription, `changes` has the change of each: added, deleted, or None for a snapshot row."""

    rows: Sequence[Sequence[Any]]
    changes: list[ChangeName | None] | None = None


class Note(Struct, frozen=True, tag_field="frame", tag="note"):
    """A problem that does not end the answer: an omitted row, a failed run.

    A `warning` is not a failure: files that rules or limits excluded.
    """

    message: str
    warning: bool = False


class Facts(Struct, frozen=True, tag_field="frame", tag="facts"):
    """The answer to `status`."""

    facts: dict[str, Any]


class Text(Struct, frozen=True, tag_field="frame", tag="text"):
    """The answer to `metrics`, in Prometheus' exposition format, and to `reload`, a sentence for people."""

    text: str


class Declarations(Struct, frozen=True, tag_field="frame", tag="tables"):
    """The answer to `tables`."""

    tables: list[dict[str, Any]]


class Pause(Struct, frozen=True, tag_field="frame", tag="pause"):
    """One report of a subscription is complete."""


class Done(Struct, frozen=True, tag_field="frame", tag="done"):
    """The answer is complete."""


class Failed(Struct, frozen=True, tag_field="frame", tag="failed"):
    """The answer failed or ended early. `kind` is the name of the error class."""

    kind: str
    message: str


Frame: TypeAlias = Columns | Rows | Note | Facts | Text | Declarations | Pause | Done | Failed


class EncodedLines(NamedTuple):
    """Frames that a worker process has encoded: lines as they are sent."""

    lines: Sequence[bytes]


_encode = msgspec.json.Encoder().encode
_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_frames: Final[msgspec.json.Decoder[Frame]] = msgspec.json.Decoder(Frame)


def decode_request(line: bytes) -> Request:
    """Decode a request. Raises UsageError with the reason."""
    try:
        return _requests.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.UsageError(f"not a request: {error}") from None


def encode_frame(frame: Frame | EncodedLines) -> Iterator[bytes]:
    """The lines of a frame; rows are split by size."""
    if isinstance(frame, EncodedLines):
        yield from frame.lines
        return
    if not isinstance(frame, Rows):
        yield _encode(frame) + b"\n"
        return
    encoded, size, first = [], 0, 0
    for index, row in enumerate(frame.rows, 1):
        encoded.append(_encode(_to_wire(row)))
        size += len(encoded[-1])
        if size >= ROWS_FRAME_BYTES or index == len(frame.rows):
            changes = b"" if frame.changes is None else b',"changes":' + _encode(frame.changes[first:index])
            yield b'{"frame":"rows","rows":[' + b",".join(encoded) + b"]" + changes + b"}\n"
            encoded, size, first = [], 0, index


def decode_frame(line: bytes) -> Frame:
    """Decode a frame; rows are in the database's result form again. Raises ZeekAgentError for anything else."""
    try:
        frame = _frames.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ZeekAgentError(f"the agent's reply is invalid ({error}); is it a different version?") from None
    if isinstance(frame, Rows):
        return Rows([tuple(map(_from_wire, row)) for row in frame.rows], frame.changes)
    return frame


def _to_wire(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, (tuple, list)):
        return [_to_wire(part) for part in value]
    return value


def _from_wire(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_wire, value))
    if isinstance(value, dict):
        return base64.b64decode(value["base64"]) if "base64" in value else float(value["float"])
    return value


class NoAgentError(ZeekAgentError):
    """No agent is listening on the socket."""


class ControlClient:
    """A connection to a running agent; blocking, one request at a time.

    Raises NoAgentError if no agent is listening, ZeekAgentError that names the remedy if access is denied.
    """

    def __init__(self, path: Path, timeout_seconds: float = CONNECT_TIMEOUT_SECONDS) -> None:
        self.path = path
        try:
            self._connection = platforms.HERE.control.connect(path, timeout_seconds)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NoAgentError(f"no agent is running (nothing listens on {path})") from None
        except PermissionError:
            raise ZeekAgentError(
                f"not permitted to use {path}: run as root, or as a member of the group in control.group"
            ) from None
        except OSError as error:
            raise ZeekAgentError(f"cannot reach the agent on {path}: {error.strerror or error}") from None

    def responses(self, request: Request) -> Iterator[Frame]:
        """Send a request and yield the frames of its answer. Raises the error that the agent reports."""
        try:
            self._connection.send(_encode(request) + b"\n")
        except OSError as error:
            raise ZeekAgentError(f"the agent on {self.path} is gone: {error.strerror}") from None
        while True:
            try:
                line = self._connection.read_line()
            except OSError as error:
                raise ZeekAgentError(f"the agent on {self.path} is gone: {error.strerror}") from None
            if not line.endswith(b"\n"):
                raise ZeekAgentError(f"the agent on {self.path} ended the connection")
            frame = decode_frame(line)
            if isinstance(frame, Failed):
                raise _error(frame)
            if isinstance(frame, Done):
                return
            yield frame

    def close(self) -> None:
        """Close the connection; the agent aborts its work for it."""
        self._connection.close()


def _error(frame: Failed) -> ZeekAgentError:
    kind = getattr(errors, frame.kind, None)
    if isinstance(kind, type) and issubclass(kind, ZeekAgentError):
        return kind(frame.message)
    return ZeekAgentError(f"{frame.kind}: {frame.message}")
