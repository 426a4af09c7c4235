"""Subjects of the bus: who may publish what is decided by them alone, so every subject names its sender or recipient.

An agent's credentials permit it to publish and to receive only where its own id stands. Ids, gateway names and session
names are single tokens. The bus carries messages of version 1 of the Zeek Agent's API unchanged (`zeek/protocol.py`).

| Subject | From, to | Payload |
|---|---|---|
| `za.v1.all.CLUSTER` | gateways to all agents | `Beacon` |
| `za.v1.who.NAME` | agent or operator to all gateways that have Zeek, request | none; `Beacon`s reply |
| `za.v1.hello.CLUSTER.ID` | agent to one of the gateways, request | `Hello`; the reply is `Welcome` or `Refusal` |
| `za.v1.up.GATEWAY.ID.SESSION.KIND…` | agent to its gateway | by `Up` |
| `za.v1.dn.ID.SESSION.KIND` | gateway to agent | by `Down` |
| `za.v1.dn.ID.r.…` | replies to an agent's requests | |
| `za.v1.op.NAME.…`, `za.v1.boot.KEY.…` | replies to an operator, and to the holder of an enrolment token | |
| `za.v1.gw.CLUSTER.KIND…` | among a cluster's gateways | by `Peer` |
| `za.v1.enrol.KEY`, `za.v1.renew.ID` | agent to the enrolment service, requests | |

Whoever asks chooses the subject of the reply, which servers do not check, while those who answer may publish to any
agent. So every request names the asker in its subject, and a reply goes only to that asker's inbox (`is_reply_to`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from zeek_agent.errors import UsageError
from zeek_agent.text import from_bytes, to_bytes

ROOT: Final = "za.v1"
GATEWAYS: Final = "gateways"
"""The queue group in which a cluster's gateways receive hellos."""
REPLIES: Final = "r"
"""Stands where the session does in the subjects of replies; no session has this name."""
TOKEN_CHARACTERS_MAX: Final = 200
"""Longest token. Zeek's own limits on ids are larger than any id in use."""
SUBJECT_CHARACTERS_MAX: Final = 1_000
"""Longest subject of a reply; clients make shorter ones."""

_PLAIN: Final = re.compile(rb"[A-Za-z0-9_-]")
_PLAIN_TOKEN: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{TOKEN_CHARACTERS_MAX}}}")
"""What all agent ids are that an agent makes itself: each message has one."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BELOW: Final = re.compile(r"[A-Za-z0-9_%-]+(\.[A-Za-z0-9_%-]+)*")


class Up(StrEnum):
    """Kinds of messages from an agent to its gateway."""

    BATCH = "batch"
    """`batch.N`: frames, one a line; N counts a session's batches from 1."""
    WANT = "want"
    """`Want`: the size of the next batch, which needs a grant."""
    BEAT = "beat"
    """No payload: the agent is there. Sent at intervals, and as the answer to `ping`. A request has an empty answer."""
    BYE = "bye"
    """No payload: the agent ends the session."""


class Down(StrEnum):
    """Kinds of messages from a gateway to an agent."""

    FRAME = "frame"
    """One frame of Zeek, as received."""
    ACK = "ack"
    """`Ack`: Zeek has read these batches."""
    GRANT = "grant"
    """`Grant`: one batch may be sent."""
    GONE = "gone"
    """No payload: the gateway has lost Zeek. The session goes on with `back`, or ends with `again`."""
    BACK = "back"
    """`Welcome`: the gateway has Zeek again."""
    AGAIN = "again"
    """`Again`: the session is over."""
    PING = "ping"
    """No payload: answer with `beat`."""
    NOBODY = "nobody"
    """No payload, from the server: the gateway does not receive a batch or want, so it is dead or cut off."""


class Peer(StrEnum):
    """Kinds of messages among the gateways of a cluster."""

    BEAT = "beat"
    """`PeerBeat`, to all."""
    CLAIM = "claim"
    """`claim.ID`: `Claim`, a request to all: may the sender have a session with that agent?"""
    PING = "ping"
    """`ping.GATEWAY`, a request to one: is it there? The answer is empty."""
    REPLY = "reply"
    """`reply.GATEWAY.…`: answers to that gateway's requests."""


class UpSubject(NamedTuple):
    """The parts of a subject from an agent; `number` is that of a batch."""

    gateway: str
    agent_id: str
    session: str
    kind: Up
    number: int = 0


class DownSubject(NamedTuple):
    """The parts of a subject to an agent."""

    agent_id: str
    session: str
    kind: Down


def token(text: str) -> str:
    """Any text as one token: letters, digits, `-` and `_` stay, other bytes become `%XX`.

    Raises UsageError for a text that is empty or gives a token that is too long.
    """
    if _PLAIN_TOKEN.fullmatch(text):
        return text
    written = "".join(chr(byte) if _PLAIN.fullmatch(bytes([byte])) else f"%{byte:02X}" for byte in to_bytes(text))
    if not 0 < len(written) <= TOKEN_CHARACTERS_MAX:
        raise UsageError(f"not usable as a name on the bus: {text[:40]!r} ({len(written)} characters there)")
    return written


def text(written: str) -> str:
    """The text of a token. Raises ValueError for one that `token` does not write."""
    if _PLAIN_TOKEN.fullmatch(written):
        return written
    read = from_bytes(unquote_to_bytes(written))
    try:
        canonical = token(read)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if canonical != written:
        raise ValueError(f"not a token of the bus: {written[:40]!r}")
    return read


def is_name(name: str) -> bool:
    """Whether a cluster, gateway or session may have this name."""
    return _NAME.fullmatch(name) is not None


def is_reply_to(inbox: str, reply: str) -> bool:
    """Whether a reply at that subject reaches nobody but the owner of the inbox, a prefix of subjects."""
    rest = reply.removeprefix(f"{inbox}.")
    return rest != reply and len(reply) <= SUBJECT_CHARACTERS_MAX and _BELOW.fullmatch(rest) is not None


def all_agents(cluster: str = "*") -> str:
    return f"{ROOT}.all.{cluster}"


def hello(cluster: str, agent_id: str | None = None) -> str:
    """Subject of an agent's hello; without an agent, of all hellos to a cluster."""
    return f"{ROOT}.hello.{cluster}.{'*' if agent_id is None else token(agent_id)}"


def up(gateway: str, agent_id: str, session: str, kind: Up, number: int | None = None) -> str:
    counted = f".{number}" if number is not None else ""
    return f"{ROOT}.up.{gateway}.{token(agent_id)}.{session}.{kind}{counted}"


def all_up(gateway: str) -> str:
    """All that agents send to a gateway."""
    return f"{ROOT}.up.{gateway}.>"


def down(agent_id: str, session: str, kind: Down) -> str:
    return f"{ROOT}.dn.{token(agent_id)}.{session}.{kind}"


def all_down(agent_id: str) -> str:
    """All that is sent to an agent, replies to its requests included."""
    return f"{ROOT}.dn.{token(agent_id)}.>"


def sessions_down(agent_id: str) -> str:
    """All that is sent to an agent's sessions, and replies to `who`, but not those to its requests."""
    return f"{ROOT}.dn.{token(agent_id)}.*.*"


def who_replies(agent_id: str) -> str:
    """Where gateways reply to an agent's `who`."""
    return f"{inbox(agent_id)}.who"


def inbox(agent_id: str) -> str:
    """Prefix of the subjects to which an agent's requests are answered."""
    return f"{ROOT}.dn.{token(agent_id)}.{REPLIES}"


def operator_inbox(name: str) -> str:
    """Prefix of the subjects to which an operator's requests are answered."""
    return f"{ROOT}.op.{name}"


def bootstrap_inbox(key: str) -> str:
    """Prefix of the subjects to which the holder of an enrolment token, which has that public key, is answered."""
    return f"{ROOT}.boot.{key}"


def who(name: str = "*") -> str:
    """Where gateways are asked for by an agent or operator, whose id is a token already; by default all who ask."""
    return f"{ROOT}.who.{name}"


def enrolment(key: str = "*") -> str:
    """Where agents enrol with the token of that public key; by default with any."""
    return f"{ROOT}.enrol.{key}"


def peers(cluster: str, kind: Peer, agent_id: str | None = None) -> str:
    """Subject of beats and claims among a cluster's gateways; a claim names the agent, and `*` stands for any."""
    named = "" if kind is Peer.BEAT else f".{'*' if agent_id is None else token(agent_id)}"
    return f"{ROOT}.gw.{cluster}.{kind}{named}"


def peer(cluster: str, kind: Peer, gateway: str) -> str:
    """Subject of pings to one gateway, and prefix of the subjects of replies to it."""
    return f"{ROOT}.gw.{cluster}.{kind}.{gateway}"


def renewal(agent_id: str | None = None) -> str:
    """Subject of an agent's renewal; without an agent, of all."""
    return f"{ROOT}.renew.{'*' if agent_id is None else token(agent_id)}"


def read_up(subject: str) -> UpSubject:
    """Raises ValueError for a subject that `up` does not write."""
    match subject.split("."):
        case ["za", "v1", "up", gateway, agent, session, Up.BATCH, number] if number.isascii() and number.isdigit():
            return UpSubject(gateway, text(agent), session, Up.BATCH, int(number[:18]))
        case ["za", "v1", "up", gateway, agent, session, kind] if kind != Up.BATCH:
            return UpSubject(gateway, text(agent), session, Up(kind))
    raise ValueError(f"not a subject of an agent: {subject[:100]!r}")


def read_down(subject: str) -> DownSubject:
    """Raises ValueError for a subject that `down` does not write, such as a reply's."""
    match subject.split("."):
        case ["za", "v1", "dn", agent, session, kind] if session != REPLIES:
            return DownSubject(text(agent), session, Down(kind))
    raise ValueError(f"not a subject to an agent: {subject[:100]!r}")


def read_hello(subject: str) -> tuple[str, str]:
    """Cluster and agent id. Raises ValueError for a subject that `hello` does not write."""
    match subject.split("."):
        case ["za", "v1", "hello", cluster, agent]:
            return cluster, text(agent)
    raise ValueError(f"not a subject of a hello: {subject[:100]!r}")


def read_who(subject: str) -> str:
    """The token of who asks. Raises ValueError for a subject that `who` does not write."""
    match subject.split("."):
        case ["za", "v1", "who", name]:
            text(name)
            return name
    raise ValueError(f"not a question for gateways: {subject[:100]!r}")


def read_claim(subject: str) -> str:
    """The agent id of a gateway's claim. Raises ValueError for another subject."""
    match subject.split("."):
        case ["za", "v1", "gw", _, Peer.CLAIM, agent]:
            return text(agent)
    raise ValueError(f"not a subject of a claim: {subject[:100]!r}")
