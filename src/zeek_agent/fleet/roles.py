"""Roles on the bus: what holders of each kind of credentials may publish and receive.

Each role is a scoped signing key of the account. A user that it signs has the role's permissions, whatever the user's
token says. In a permission `{{name()}}` stands for the user's name, `{{subject()}}` for its key and `{{tag(x)}}` for
its tags `x:…`; a permission with a tag that the user lacks is left out. `bus/subjects.py` describes the subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from zeek_agent.bus import credentials, messages, subjects
from zeek_agent.bus.subjects import REPLIES, ROOT

AGENT: Final = "agent"
GATEWAY: Final = "gateway"
ENROLMENT: Final = "enrolment"
BOOTSTRAP: Final = "bootstrap"
OPERATOR: Final = "operator"
LEAF: Final = "leaf"

GROUP: Final = "group"
CLUSTER: Final = "cluster"
AGENTS: Final = "agents"
SITE: Final = credentials.SITE_TAG.removesuffix(":")
"""Tags: the groups of an agent, the clusters of a gateway or leaf, the key that signs agents in a gateway's token, and
the site of an agent or an enrolment token, or those that a leaf passes."""

_NAME: Final = "{{name()}}"
_CLUSTER: Final = f"{{{{tag({CLUSTER})}}}}"
_SITE: Final = f"{{{{tag({SITE})}}}}"
_AGENT: Final = f"{_SITE}.{_NAME}"
_KEY: Final = "{{subject()}}"
_AGENT_PAYLOAD: Final = messages.BATCH_BYTES_MAX + 64 * 1024
"""With headers; gateways end the session of an agent whose batch is longer than `BATCH_BYTES_MAX`."""
_UNLIMITED: Final = -1


def _template(
    publish: Sequence[str],
    subscribe: Sequence[str],
    *,
    subscriptions: int = _UNLIMITED,
    payload: int = _UNLIMITED,
    kinds: Sequence[str] = ("STANDARD",),
) -> Mapping[str, Any]:
    return {
        "pub": {"allow": list(publish)},
        "sub": {"allow": list(subscribe)},
        "subs": subscriptions,
        "data": _UNLIMITED,
        "payload": payload,
        "allowed_connection_types": list(kinds),
    }


TEMPLATES: Final[Mapping[str, Mapping[str, Any]]] = {
    AGENT: _template(
        (
            f"{ROOT}.up.*.{_AGENT}.>",
            f"{ROOT}.hello.*.{_AGENT}",
            f"{ROOT}.renew.{_AGENT}",
            f"{ROOT}.who.{_AGENT}",
        ),
        (f"{ROOT}.dn.{_AGENT}.>", f"{ROOT}.all.>", f"{ROOT}.g.{{{{tag({GROUP})}}}}"),
        subscriptions=200,
        payload=_AGENT_PAYLOAD,
    ),
    GATEWAY: _template(
        (
            f"{ROOT}.all.{_CLUSTER}",
            f"{ROOT}.dn.*.*.>",
            f"{ROOT}.op.*.>",
            f"{ROOT}.gw.{_CLUSTER}.>",
        ),
        (
            subjects.hello(_CLUSTER),
            f"{ROOT}.up.{_NAME}.>",
            f"{ROOT}.gw.{_CLUSTER}.>",
            subjects.who(),
        ),
    ),
    ENROLMENT: _template(
        (f"{subjects.bootstrap_inbox('*', '*')}.>", f"{ROOT}.dn.*.*.{REPLIES}.>"),
        (subjects.all_enrolments(), subjects.renewal()),
    ),
    BOOTSTRAP: _template(
        (subjects.enrolment(_SITE, _KEY),),
        (f"{subjects.bootstrap_inbox(_SITE, _KEY)}.>",),
        subscriptions=2,
        payload=messages.CONTROL_BYTES_MAX,
    ),
    OPERATOR: _template((subjects.operator_who(_NAME),), (f"{subjects.operator_inbox(_NAME)}.>", f"{ROOT}.all.>")),
    LEAF: _template(
        (
            f"{ROOT}.up.*.{_SITE}.>",
            f"{ROOT}.hello.{_CLUSTER}.{_SITE}.*",
            f"{ROOT}.renew.{_SITE}.*",
            f"{ROOT}.who.{_SITE}.*",
            subjects.enrolment(_SITE, "*"),
        ),
        (
            f"{ROOT}.dn.{_SITE}.>",
            f"{ROOT}.all.{_CLUSTER}",
            f"{ROOT}.g.>",
            f"{subjects.bootstrap_inbox(_SITE, '*')}.>",
        ),
        kinds=("LEAFNODE",),
    ),
}

SYSTEM_OF_A_LEAF: Final[Mapping[str, Any]] = {
    "pub": {"allow": ["$SYS.REQ.CLAIMS.PACK", "_INBOX.push.>"]},
    "sub": {"allow": ["$SYS.REQ.CLAIMS.UPDATE", "$SYS._INBOX.>"]},
    "allowed_connection_types": ["LEAFNODE"],
}
"""What a leaf may do in the system account: receive account tokens that are pushed, and fetch those that it missed."""


def agent_tags(site: str, groups: Sequence[str]) -> tuple[str, ...]:
    return (*tags(SITE, [site]), *tags(GROUP, [subjects.token(group) for group in groups]))


def tags(kind: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{kind}:{value}" for value in values)
