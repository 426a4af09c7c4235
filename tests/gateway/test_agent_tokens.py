"""Tokens in hellos: what a gateway accepts as proof of an agent's id and site, and what it refuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from gateways import ZEEK

from zeek_agent.bus import subjects
from zeek_agent.bus.subjects import Address
from zeek_agent.config.server_sections import GatewaySettings
from zeek_agent.errors import UsageError
from zeek_agent.fleet import jwt, nkey, roles
from zeek_agent.fleet.nkey import Key
from zeek_agent.gateway import agent_tokens
from zeek_agent.gateway.agent_tokens import LEEWAY_SECONDS, AgentTokens, Proof, Trust
from zeek_agent.gateway.causes import Cause, RefusedError
from zeek_agent.gateway.gateway import Gateway

NOW = 1_800_000_000.0
AGENT = Address("fra", "H.1")
ACCOUNT = Key.generate(nkey.ACCOUNT)
AGENTS = Key.generate(nkey.ACCOUNT)
OWN = Key.generate(nkey.USER)


def token(**changed: Any) -> str:
    """A token of `AGENT`, as the enrolment service signs it, but for what is given."""
    given = {
        "name": subjects.token(AGENT.agent_id), "public": OWN.public, "issuer": AGENTS, "now": NOW,
        "expires": NOW + 1_000, "account": ACCOUNT.public, "tags": roles.agent_tags(AGENT.site, ("linux",)),
    } | changed  # fmt: skip
    return jwt.user(given.pop("name"), given.pop("public"), given.pop("issuer"), given.pop("now"), **given)


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> AgentTokens:
    found = AgentTokens(clock)
    found.trust = Trust(ACCOUNT.public, frozenset([AGENTS.public]))
    return found


def rewritten(part: int, text: bytes) -> str:
    parts = token().split(".")
    parts[part] = base64.urlsafe_b64encode(text).rstrip(b"=").decode()
    return ".".join(parts)


def claims() -> dict[str, Any]:
    body = token().split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


FORGED = {
    "none": "",
    "something else": "x.y.z",
    "nested deeply": rewritten(1, b"[" * 5_000),
    "not ASCII": "ä" + token(),
    "unsigned": rewritten(0, b'{"typ":"JWT","alg":"none"}'),
    "of another algorithm": rewritten(0, b'{"typ":"JWT","alg":"HS256"}'),
    "changed": rewritten(1, json.dumps(claims() | {"name": "H2"}).encode()),
    "with another signature": rewritten(2, b"s" * 64),
    "without a signature": token().rpartition(".")[0] + ".",
    "signed by another fleet": token(issuer=Key.generate(nkey.ACCOUNT)),
    "signed by itself": token(issuer=OWN),
    "of another account": token(account=Key.generate(nkey.ACCOUNT).public),
    "of no account": token(account=None),
    "of another agent": token(name="H2"),
    "of an id that reads the same": token(name=AGENT.agent_id),
    "of another site": token(tags=("site:ber",)),
    "of a roaming agent": token(tags=("site:roaming",)),
    "of no site": token(tags=("group:linux",)),
    "of two sites": token(tags=("site:fra", "site:ber")),
    "expired": token(now=NOW - 5_000, expires=NOW - LEEWAY_SECONDS - 2),
    "issued in the future": token(now=NOW + LEEWAY_SECONDS + 2),
    "of an account": jwt.account("H%2E1", OWN.public, AGENTS, NOW),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_token_is_refused(tokens: AgentTokens, kind: str) -> None:
    for _ in range(2):  # also the second time
        with pytest.raises(RefusedError, match="no token proves that it is an agent of site fra") as refused:
            tokens.verify(AGENT, FORGED[kind])
        assert refused.value.cause is Cause.IDENTITY
    assert tokens.verify(AGENT, token()) == Proof("fra", OWN.public, int(NOW), int(NOW) + 1_000)


def test_clocks_may_differ_by_minutes(tokens: AgentTokens) -> None:
    for near in (token(now=NOW + LEEWAY_SECONDS - 2), token(now=NOW - 5_000, expires=NOW - LEEWAY_SECONDS + 2)):
        assert tokens.verify(AGENT, near).site == "fra"


def test_a_token_that_was_verified_expires_too(tokens: AgentTokens, clock: Clock) -> None:
    proof = tokens.verify(AGENT, token())
    assert not tokens.has_expired(proof)
    clock.now += 1_000 + LEEWAY_SECONDS + 1
    assert tokens.has_expired(proof)
    with pytest.raises(RefusedError, match="it has expired"):
        tokens.verify(AGENT, token())
    assert not tokens.has_expired(tokens.verify(AGENT, token(expires=None)))


@pytest.mark.parametrize("key", [OWN, Key.generate(nkey.USER)])
def test_a_token_for_another_site_or_key_voids_an_older_one(tokens: AgentTokens, key: Key) -> None:
    moved, older = Address("ber", AGENT.agent_id), token(now=NOW - 100)
    assert tokens.verify(AGENT, older).site == "fra"
    assert tokens.verify(moved, token(public=key.public, tags=("site:ber",))).site == "ber"
    with pytest.raises(RefusedError, match="has had a newer one since, for site ber"):
        tokens.verify(AGENT, older)
    assert tokens.verify(AGENT, token(now=NOW + 100)).site == "fra"


def test_an_older_token_for_the_same_site_and_key_stays_valid(tokens: AgentTokens) -> None:
    """As that of a cloned host whose other copy has renewed its credentials: both are shown as clones."""
    tokens.verify(AGENT, token())
    assert tokens.verify(AGENT, token(now=NOW - 100)).issued == NOW - 100
    with pytest.raises(RefusedError, match="newer one since"):
        tokens.verify(Address("ber", AGENT.agent_id), token(now=NOW - 50, tags=("site:ber",)))


def test_known_tokens_are_bounded(tokens: AgentTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_tokens, "REMEMBERED", 3)
    for number in range(10):
        tokens.verify(Address("fra", f"H{number}"), token(name=f"H{number}"))
    assert list(tokens._known) == ["H7", "H8", "H9"]
    tokens.verify(Address("fra", "H7"), token(name="H7"))
    tokens.verify(Address("fra", "H0"), token(name="H0"))
    assert list(tokens._known) == ["H9", "H7", "H0"]


def test_what_another_key_has_signed_is_void_when_the_trust_changes(tokens: AgentTokens) -> None:
    tokens.verify(AGENT, token())
    tokens.trust = Trust(ACCOUNT.public, frozenset(["AOTHER"]))
    with pytest.raises(RefusedError, match="another key has signed the token"):
        tokens.verify(AGENT, token())


def test_without_credentials_of_its_own_a_gateway_checks_no_tokens(clock: Clock) -> None:
    assert AgentTokens(clock).verify(AGENT, "") == Proof("fra")


def test_a_gateway_does_not_start_with_credentials_that_name_no_key(tmp_path: Path) -> None:
    file = tmp_path / "gateway.creds"
    settings = GatewaySettings(servers=("nats://127.0.0.1:1",), cluster="zeek", credentials=str(file))
    for tags, fault in ((("cluster:zeek",), "`zeek-agent fleet gateway` writes new ones"), (("agents:AKEY",), None)):
        own = jwt.user("gw1", OWN.public, AGENTS, NOW, account=ACCOUNT.public, tags=tags)
        file.write_text(jwt.credentials(own, OWN))
        if fault is None:
            assert Gateway(settings, ZEEK, hostname="h").core.tokens.trust == Trust(ACCOUNT.public, frozenset(["AKEY"]))
        else:
            with pytest.raises(UsageError, match=fault):
                Gateway(settings, ZEEK, hostname="h")
    file.write_text(jwt.credentials(own[:-10] + "AAAAAAAAAA", OWN))
    with pytest.raises(UsageError, match="credentials cannot be used"):
        Gateway(settings, ZEEK, hostname="h")
