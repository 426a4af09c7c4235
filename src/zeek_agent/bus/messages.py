"""Payloads on the bus, as JSON: what is said about sessions and credit. Rows travel as frames of Zeek's API.

A field that a newer peer adds is ignored. Every reader raises `BadMessageError` for a payload that is not of its type,
or that exceeds a limit, because everything that arrives may come from a hostile peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from zeek_agent.bus import subjects
from zeek_agent.errors import ZeekAgentError

PROTOCOL: Final = 1
"""Version of the bus's own messages; a peer refuses a hello with a greater one that it does not know."""
SMALL_BATCH_BYTES: Final = 4096
"""A batch up to this size needs no grant, as long as no other one up to it is without an `Ack`.

10,000 agents thus send a gateway at most 40 MB unasked, less than its client holds (64 MB)."""
BATCH_BYTES_MAX: Final = 768 * 1024
"""Longest batch: below the 1 MiB that servers accept by default."""
CONTROL_BYTES_MAX: Final = 16 * 1024
"""Longest payload other than frames."""
TOKEN_CHARACTERS_MAX: Final = 8 * 1024
"""Longest JWT of an agent. Without groups it has about 800 characters."""
GRANT_SECONDS: Final = 10.0
"""A grant that is not used within this time lapses."""
BEAT_SECONDS: Final = 30.0
"""Interval of an agent's beats, which are requests, and of a gateway's beacons."""
SILENCE_SECONDS: Final = 3.5 * BEAT_SECONDS
"""A session without any message for this time is over, for both sides."""
CLONE_SECONDS: Final = 5.0
"""Time for an agent to show that it still has its session when another claims its id."""
HELLO_SECONDS: Final = 10.0
"""Time for a gateway to answer a hello; more than `CLONE_SECONDS`."""
ANSWER_SECONDS: Final = 2.0
"""An agent whose batch or want has no `Ack` or `Grant` for this time sends its next `beat` as a request, which its
gateway answers. Without a listener for a batch, want or beat, the gateway is dead, and the agent says hello to another
one at once."""
PEER_BEAT_SECONDS: Final = 0.5
"""Interval of `PeerBeat`."""
PEER_SILENCE_SECONDS: Final = 1.5
"""A gateway is asked with `Peer.PING` after this silence. Without a listener, it is dead, and another one names it in a
`Beacon` as `gone`, so that its idle agents move, too. A slow one is only asked once more."""
PEER_CLAIM_SECONDS: Final = 0.2
"""The same for one that has not answered a claim, since an agent waits for that."""

_Text: TypeAlias = Annotated[str, Meta(max_length=1024)]
_Natural: TypeAlias = Annotated[int, Meta(ge=0)]
_Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=3600)]


class BadMessageError(ZeekAgentError):
    """A payload that its reader refuses."""


class Message(Struct, frozen=True, omit_defaults=True):
    """The base of all payloads."""


class Beacon(Message, frozen=True):
    """A gateway of a cluster is there and has Zeek. Agents of the cluster without a session say hello.

    They do so at a moment within `spread` seconds that their id decides. `gone` names a gateway whose sessions are
    over, because it died or has been started again: agents that have one count as without.
    """

    gateway: _Text
    spread: _Seconds = 0.0
    gone: _Text = ""
    cluster: _Text = ""
    """Only in a reply to `who`: the subject of a beacon to all agents names its cluster."""


class Hello(Message, frozen=True):
    """An agent asks for a session. `instance` is new at each start of the agent; `protocol` its newest version.

    `token` is the JWT of its credentials, which is not a secret: with it the gateway knows the site and the key to
    which the id belongs. Empty without credentials.
    """

    instance: _Text
    version: _Text
    groups: Annotated[tuple[_Text, ...], Meta(max_length=100)] = ()
    protocol: _Natural = PROTOCOL
    token: Annotated[str, Meta(max_length=TOKEN_CHARACTERS_MAX)] = ""


class Welcome(Message, frozen=True):
    """The gateway has a session for the agent. `endpoint` and `version` are those of Zeek's acknowledgement.

    `first` is the number of the agent's next batch. It leaps when Zeek is back, so that batches which were on their way
    meanwhile are not taken for others.
    """

    gateway: _Text
    session: _Text
    endpoint: _Text
    version: _Text
    protocol: _Natural = PROTOCOL
    first: Annotated[int, Meta(ge=1, lt=10**18)] = 1


class Refusal(Message, frozen=True):
    """There is no session now. The agent waits `seconds` before it says hello again, unless a beacon invites it."""

    reason: _Text
    seconds: _Seconds = 60.0


class Want(Message, frozen=True):
    """The agent has a batch of this many bytes. Repeated while no grant comes; a later one replaces an earlier one.

    One of 0 bytes withdraws it, as when an acknowledgement made a grant unnecessary.
    `number` is another one each time, and that of the grant: one that was sent before a later `Want` had come is void.
    """

    bytes: _Natural
    number: _Natural = 0


class Grant(Message, frozen=True):
    """The agent may send the batch of the `Want` with this number within so many seconds."""

    seconds: _Seconds = GRANT_SECONDS
    number: _Natural = 0


class Ack(Message, frozen=True):
    """Zeek has read the batches of the session up to this number.

    `grant` saves a message of its own: the number of the `Want` that is granted.
    """

    number: _Natural
    grant: _Natural | None = None


class Again(Message, frozen=True):
    """The session is over. The agent says hello after a random part of `seconds`; with a `reason`, it was refused."""

    seconds: _Seconds = 0.0
    reason: _Text = ""


class HeldSession(Message, frozen=True):
    """A session of the sender with an agent, by the token of its id; `age` is in seconds.

    `shown`: two instances of the agent have sessions, and this one, the first, has just answered a ping. The last three
    are those of a `Claim`.
    """

    agent: _Text
    instance: _Text
    age: Annotated[float, Meta(ge=0)]
    shown: bool = False
    site: _Text = subjects.ROAMING
    key: _Text = ""
    issued: int = 0


class PeerBeat(Message, frozen=True):
    """A gateway tells the others of its cluster that it is there. `ready` while it has Zeek.

    `life` is new at each start, so that two gateways with one name notice each other; the one that has been connected
    for less time, by `age` in seconds, ends. `leaving`: it drains, and its silence from now on is not a failure.
    `holds` are some of its sessions: an agent may have another one at the receiver if the gateways did not know each
    other for a while.
    """

    gateway: _Text
    agents: _Natural
    ready: bool = True
    life: _Text = ""
    leaving: bool = False
    age: Annotated[float, Meta(ge=0)] = 0.0
    holds: tuple[HeldSession, ...] = ()


class Claim(Message, frozen=True):
    """A gateway is about to welcome this instance of an agent, whose token is for this site and key.

    `issued` is when the token was signed, in seconds since the epoch; without tokens 0.
    """

    gateway: _Text
    instance: _Text
    site: _Text = subjects.ROAMING
    key: _Text = ""
    issued: int = 0


class ClaimAnswer(Message, frozen=True):
    """A gateway's answer: `held` if another instance of the agent has a session with it and has just shown itself.

    Also if that has a newer token for another site or key, which is then `newer`.
    A session of the same instance ends without a message, since it has been replaced.
    """

    gateway: _Text
    held: bool = False
    newer: bool = False


M = TypeVar("M", bound=Message)

encode: Final = msgspec.json.Encoder().encode


def read(payload: bytes, kind: type[M]) -> M:
    """The message in a payload. Raises BadMessageError."""
    if len(payload) > CONTROL_BYTES_MAX:
        raise BadMessageError(f"a {kind.__name__} of {len(payload)} bytes, {CONTROL_BYTES_MAX} at most")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessageError(f"not a {kind.__name__}: {error}") from None


def read_welcome(payload: bytes) -> Welcome | Refusal:
    """A gateway's answer to a hello. Raises BadMessageError; also for names that cannot stand in a subject."""
    try:
        refusal = read(payload, Refusal)
    except BadMessageError:
        welcome = read(payload, Welcome)
        for name in (welcome.gateway, welcome.session):
            if not subjects.is_name(name) or name == subjects.REPLIES:
                raise BadMessageError(f"not a name on the bus: {name[:40]!r}") from None
        return welcome
    return refusal


def join(frames: Sequence[bytes]) -> bytes:
    """Frames as the payload of a batch. A frame is JSON text without line breaks, as all encoders here write it."""
    return b"\n".join(frames)


def split(payload: bytes) -> list[bytes]:
    """The frames of a batch. Raises BadMessageError for one that is longer than any agent sends."""
    if len(payload) > BATCH_BYTES_MAX:
        raise BadMessageError(f"a batch of {len(payload)} bytes, {BATCH_BYTES_MAX} at most")
    return [frame for frame in payload.split(b"\n") if frame]
