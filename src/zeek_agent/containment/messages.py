"""Messages between the agent, its zygote and its worker processes.

All are msgpack, one per packet of a Unix SEQPACKET socket (`channel`). The agent trusts no worker: a message that does
not decode, or that does not fit what was asked, ends the worker with the cause `protocol`.

The agent asks one thing at a time of a worker: to compile a statement or to run one. Rows never travel in messages.
The worker writes finished frames (for Zeek, for the control socket) to the run's spool and reports where they are.
While a statement runs, a worker may ask for what it cannot get on its own (`Need`) and waits for the answer (`Give`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from zeek_agent.containment.protections import Protections, WorkerAccount, WorkerClass
from zeek_agent.database.encodings import Encoding
from zeek_agent.privileges import NO_PRIVILEGES, Privileges
from zeek_agent.results.comparison import Comparison

# Agent to zygote


class Setup(Struct, frozen=True, tag="setup"):
    """The first message: what all workers have in common. `config` is the configuration as msgpack."""

    config: bytes
    protected: tuple[str, ...]
    agent_id: str
    instance: str
    hostname: str | None
    """The configured one; None for the system's, which may change."""
    started: float
    """Monotonic clock, in seconds."""
    account: WorkerAccount | None
    """The account under which workers run; None if the agent is not root."""
    agent_pid: int = 0
    own_tables: bytes = b""
    """The operator's tables, as msgpack for `own_tables.declarations.decode`; empty for none."""


class Imports(Struct, frozen=True):
    """Tables that came and went since the agent started.

    `events` are declarations (`table_declarations.declare`); `osquery` is the bridge's description, empty for none;
    `gone` are the reasons why tables are not there any more, by name.
    """

    events: list[dict[str, Any]] = []
    osquery: bytes = b""
    gone: dict[str, str] = {}


class Spawn(Struct, frozen=True, tag="spawn"):
    """Start a worker. Comes with the worker's end of its socket as a descriptor."""

    worker: int
    kind: WorkerClass
    store_uri: str | None
    generation: int
    iterators: bool
    """Whether the agent can pass BPF iterators."""
    imports: Imports
    privileges: Privileges = NO_PRIVILEGES
    """Of a helper."""
    group_sockets: tuple[str, ...] = ()
    """The declared sockets of a helper that it may also use if only a group may connect to them."""


class Spawned(Struct, frozen=True, tag="spawned"):
    """Comes with the pidfd."""

    worker: int
    pid: int


class Exited(Struct, frozen=True, tag="exited"):
    """A worker has ended. `status` as from waitpid(2); processor time in seconds, `peak` resident bytes."""

    worker: int
    status: int
    cpu: float
    peak: int


# Agent to worker


class Compile(Struct, frozen=True, tag="compile"):
    """Compile a statement without running it."""

    id: int
    sql: str
    profile: str


class RunStatement(Struct, frozen=True, tag="run"):
    """Run a statement. Comes with the spool as a descriptor, and with the delta file if there is a comparison."""

    id: int
    sql: str
    profile: str
    encoding: Encoding
    change: Literal["Add", "Delete"] | None
    """The change that is reported for each row."""
    window: Mapping[str, tuple[int, int]] | None
    """Bounds of `seq` by event table."""
    scans_since: float
    """Monotonic clock: a scan that began earlier is not shared."""
    comparison: Comparison | None = None


class Give(Struct, frozen=True, tag="give"):
    """The answer to `Need`: rows as msgpack, a descriptor, or nothing (when it could not be had, with the reason)."""

    id: int
    rows: bytes = b""
    error: str | None = None
    kind: str = "SqlError"
    """The name of the error's class."""


class ReadTable(Struct, frozen=True, tag="read_table"):
    """Read a table with privileges: the request to a helper. Comes with the spool for the rows as a descriptor.

    `arguments` are a `TableArguments` as msgpack, which the agent passes on as a snapshot worker has sent it.
    """

    id: int
    table: str
    arguments: bytes
    seconds: float
    """What is left of the statement's time."""


# Worker to agent


class Ready(Struct, frozen=True, tag="ready"):
    """The worker is locked down and waits; what protects the host from it, and why something does not."""

    protections: Protections


class NotReady(Struct, frozen=True, tag="not_ready"):
    """A helper cannot have the privileges of its table: the reason. The process ends."""

    reason: str


class TableRead(Struct, frozen=True, tag="table_read"):
    """A helper has written so many bytes to the spool. `errors` are about omitted rows; the rest as in `Finished`."""

    id: int
    size_bytes: int
    errors: list[str]
    cpu: float
    peak: int
    spent: bool = False


class CompiledStatement(Struct, frozen=True, tag="compiled"):
    """Columns as `(name, type)`, and the names of the tables that the statement reads."""

    id: int
    columns: list[tuple[str, str]]
    tables: list[str]


class Head(Struct, frozen=True, tag="head"):
    """The statement has ended well: its frames follow, or are already there.

    `size_bytes` is the size of the packed rows; columns are `(name, type)`.
    """

    id: int
    columns: list[tuple[str, str]]
    rows: int
    size_bytes: int
    errors: list[str]
    files: tuple[int, int] | None
    """Where the omissions of files are in the spool, as msgpack: offset and length; longer than a packet if need be."""
    delta_bytes: int = 0
    """Length of the delta file; 0 for none."""


class SpoolBatch(Struct, frozen=True, tag="batch"):
    """Frames in the spool: consecutive from `offset` on, of so many rows, and no more frames than rows.

    Only a result without rows may have a batch without rows, as its only one. `lengths` are their lengths in bytes, as
    native unsigned 32-bit integers. They are sent to the recipient together.
    """

    id: int
    offset: int
    lengths: bytes
    rows: int


class Finished(Struct, frozen=True, tag="finished"):
    """All frames are in the spool. `cpu` is the worker's processor time since its start in seconds, `peak` the most
    memory that was resident, in bytes. A worker that is `spent` ends after it.
    """

    id: int
    cpu: float
    peak: int
    spent: bool = False


class StatementFailed(Struct, frozen=True, tag="failed"):
    """The statement failed; `kind` is the name of the error class. A worker that is `spent` ends after it."""

    id: int
    kind: str
    text: str
    spent: bool = False


class Need(Struct, frozen=True, tag="need"):
    """The running statement needs rows of the agent (`what` = `agent`), a BPF iterator, an osquery connection, …

    The rows of a table with privileges (`table`) come as the descriptor of a spool, with a `TableRows` as `Give.rows`.
    """

    id: int
    what: Literal["agent", "drain", "iterator", "osquery", "sock_diag", "table", "translations"]
    name: str = ""
    arguments: bytes = b""
    """For a table: a `TableArguments` as msgpack."""


class TableArguments(Struct, frozen=True):
    """What a statement asks of a table: as in `Constraints`."""

    parameters: dict[str, Any]
    equalities: dict[str, list[Any]]
    columns: list[str]


class TableRows(Struct, frozen=True):
    """Rows in a spool: their size in bytes, and errors about omitted ones."""

    size_bytes: int
    errors: list[str]


class LogLine(Struct, frozen=True, tag="log"):
    """A record for the agent's log."""

    logger: str
    level: int
    text: str


ToZygote: TypeAlias = Setup | Spawn
FromZygote: TypeAlias = Spawned | Exited
ToWorker: TypeAlias = Compile | RunStatement | ReadTable | Give
FromWorker: TypeAlias = (
    Ready | NotReady | CompiledStatement | Head | SpoolBatch | Finished | TableRead | StatementFailed | Need | LogLine
)

encode = msgspec.msgpack.Encoder().encode
decode_to_zygote = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote = msgspec.msgpack.Decoder(FromZygote).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_arguments = msgspec.msgpack.Decoder(TableArguments).decode
decode_table_rows = msgspec.msgpack.Decoder(TableRows).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def numbered(statement: RunStatement, number: int) -> RunStatement:
    """The same with this number."""
    return msgspec.structs.replace(statement, id=number)
