"""Subjects of the bus: who may publish what is decided by them alone, so every subject names its sender or recipient.

An agent's credentials permit it to publish and to receive only where its own site and id stand, those of a site's leaf
only where that site stands. Sites, ids, gateway names and session names are single tokens. The bus carries messages of
version 1 of the Zeek Agent's API unchanged (`zeek/protocol.py`).

| Subject | From, to | Payload |
|---|---|---|
| `za.v1.all.CLUSTER` | gateways to all agents | `Beacon` |
| `za.v1.who.SITE.ID` | agent to all gateways that have Zeek, request | none; `Beacon`s reply |
| `za.v1.who.NAME` | the same of an operator | |
| `za.v1.hello.CLUSTER.SITE.ID` | agent to one of the gateways, request | `Hello`; the reply is `Welcome` or `Refusal` |
| `za.v1.up.GATEWAY.SITE.ID.SESSION.KIND…` | agent to its gateway | by `Up` |
| `za.v1.dn.SITE.ID.SESSION.KIND` | gateway to agent | by `Down` |
| `za.v1.dn.SITE.ID.r.…` | replies to an agent's requests | |
| `za.v1.boot.SITE.KEY.…` | replies to the holder of an enrolment token | |
| `za.v1.op.NAME.…` | replies to an operator | |
| `za.v1.gw.CLUSTER.KIND…` | among a cluster's gateways | by `Peer` |
| `za.v1.enrol.SITE.KEY`, `za.v1.renew.SITE.ID` | agent to the enrolment service, requests | |

An agent whose credentials name no site, or that has none, is of the site `roaming`.

Subscriptions to what many send end with `>`: servers match a broader subscription with a leaf's permissions, but not if
its last token is `*` and theirs is, too.

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
ROAMING: Final = "roaming"
"""The site of agents that belong to none, such as laptops."""
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


class Address(NamedTuple):
    """Where an agent is on the bus."""

    site: str
    agent_id: str

    @property
    def tokens(self) -> str:
        """Its two tokens in subjects."""
        return f"{self.site}.{token(self.agent_id)}"


class UpSubject(NamedTuple):
    """The parts of a subject from an agent; `number` is that of a batch."""

    gateway: str
    agent: Address
    session: str
    kind: Up
    number: int = 0


class DownSubject(NamedTuple):
    """The parts of a subject to an agent."""

    agent: Address
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
    """Whether a site, cluster, gateway or session may have this name."""
    return _NAME.fullmatch(name) is not None


def is_reply_to(inbox: str, reply: str) -> bool:
    """Whether a reply at that subject reaches nobody but the owner of the inbox, a prefix of subjects."""
    rest = reply.removeprefix(f"{inbox}.")
    return rest != reply and len(reply) <= SUBJECT_CHARACTERS_MAX and _BELOW.fullmatch(rest) is not None


def all_agents(cluster: str = "*") -> str:
    return f"{ROOT}.all.{cluster}"


def hello(cluster: str, agent: Address | None = None) -> str:
    """Subject of an agent's hello; without an agent, of all hellos to a cluster."""
    return f"{ROOT}.hello.{cluster}.{'>' if agent is None else agent.tokens}"


def up(gateway: str, agent: Address, session: str, kind: Up, number: int | None = None) -> str:
    counted = f".{number}" if number is not None else ""
    return f"{ROOT}.up.{gateway}.{agent.tokens}.{session}.{kind}{counted}"


def all_up(gateway: str) -> str:
    """All that agents send to a gateway."""
    return f"{ROOT}.up.{gateway}.>"


def down(agent: Address, session: str, kind: Down) -> str:
    return f"{ROOT}.dn.{agent.tokens}.{session}.{kind}"


def all_down(agent: Address) -> str:
    """All that is sent to an agent, replies to its requests included."""
    return f"{ROOT}.dn.{agent.tokens}.>"


def sessions_down(agent: Address) -> str:
    """All that is sent to an agent's sessions, and replies to `who`, but not those to its requests."""
    return f"{ROOT}.dn.{agent.tokens}.*.*"


def who_replies(agent: Address) -> str:
    """Where gateways reply to an agent's `who`."""
    return f"{inbox(agent)}.who"


def inbox(agent: Address) -> str:
    """Prefix of the subjects to which an agent's requests are answered."""
    return f"{ROOT}.dn.{agent.tokens}.{REPLIES}"


def operator_inbox(name: str) -> str:
    """Prefix of the subjects to which an operator's requests are answered."""
    return f"{ROOT}.op.{name}"


def bootstrap_inbox(site: str, key: str) -> str:
    """Prefix of the subjects to which the holder of a site's enrolment token with that public key is answered."""
    return f"{ROOT}.boot.{site}.{key}"


def who(agent: Address | None = None) -> str:
    """Where an agent asks for gateways; without an agent, where all agents and operators do."""
    return f"{ROOT}.who.{'>' if agent is None else agent.tokens}"


def operator_who(name: str) -> str:
    """Where an operator asks for gateways. It has one token less than an agent's."""
    return f"{ROOT}.who.{name}"


def enrolment(site: str, key: str) -> str:
    """Where agents enrol with a site's token of that public key."""
    return f"{ROOT}.enrol.{site}.{key}"


def all_enrolments() -> str:
    return f"{ROOT}.enrol.>"


def peers(cluster: str, kind: Peer, agent_id: str | None = None) -> str:
    """Subject of beats and claims among a cluster's gateways; a claim names the agent, and `*` stands for any."""
    named = "" if kind is Peer.BEAT else f".{'*' if agent_id is None else token(agent_id)}"
    return f"{ROOT}.gw.{cluster}.{kind}{named}"


def peer(cluster: str, kind: Peer, gateway: str) -> str:
    """Subject of pings to one gateway, and prefix of the subjects of replies to it."""
    return f"{ROOT}.gw.{cluster}.{kind}.{gateway}"


def renewal(agent: Address | None = None) -> str:
    """Subject of an agent's renewal; without an agent, of all."""
    return f"{ROOT}.renew.{'>' if agent is None else agent.tokens}"


def read_up(subject: str) -> UpSubject:
    """Raises ValueError for a subject that `up` does not write."""
    match subject.split("."):
        case ["za", "v1", "up", gateway, site, agent, session, Up.BATCH, number] if _is_number(number):
            return UpSubject(gateway, Address(site, text(agent)), session, Up.BATCH, int(number[:18]))
        case ["za", "v1", "up", gateway, site, agent, session, kind] if kind != Up.BATCH:
            return UpSubject(gateway, Address(site, text(agent)), session, Up(kind))
    raise ValueError(f"not a subject of an agent: {subject[:100]!r}")


def read_down(subject: str) -> DownSubject:
    """Raises ValueError for a subject that `down` does not write, such as a reply's."""
    match subject.split("."):
        case ["za", "v1", "dn", site, agent, session, kind] if session != REPLIES:
            return DownSubject(Address(site, text(agent)), session, Down(kind))
    raise ValueError(f"not a subject to an agent: {subject[:100]!r}")


def read_hello(subject: str) -> tuple[str, Address]:
    """Cluster and agent. Raises ValueError for a subject that `hello` does not write."""
    match subject.split("."):
        case ["za", "v1", "hello", cluster, site, agent] if is_name(site):
            return cluster, Address(site, text(agent))
    raise ValueError(f"not a subject of a hello: {subject[:100]!r}")


def read_who(subject: str) -> Address | str:
    """The agent, or the name of the operator, who asks. Raises ValueError for a subject that neither writes."""
    match subject.split("."):
        case ["za", "v1", "who", site, agent] if is_name(site):
            return Address(site, text(agent))
        case ["za", "v1", "who", name] if is_name(name):
            return name
    raise ValueError(f"not a question for gateways: {subject[:100]!r}")


def read_renewal(subject: str) -> Address:
    """The agent. Raises ValueError for a subject that `renewal` does not write."""
    match subject.split("."):
        case ["za", "v1", "renew", site, agent] if is_name(site):
            return Address(site, text(agent))
    raise ValueError(f"not a subject of a renewal: {subject[:100]!r}")


def read_claim(subject: str) -> str:
    """The agent id of a gateway's claim. Raises ValueError for another subject."""
    match subject.split("."):
        case ["za", "v1", "gw", _, Peer.CLAIM, agent]:
            return text(agent)
    raise ValueError(f"not a subject of a claim: {subject[:100]!r}")


def _is_number(written: str) -> bool:
    return written.isascii() and written.isdigit()
