"""Identities on a NATS server for tests: an operator, an account, and users with an agent's permissions."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import nkeys

from zeek_agent.bus import subjects
from zeek_agent.bus.subjects import ROAMING, Address


def _pair(prefix: int) -> tuple[bytes, Any, str]:
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return seed, pair, pair.public_key.decode()


def _part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _token(signer: Any, subject: str, name: str, claims: dict[str, Any], **times: int) -> str:
    """A JWT as NATS writes it (github.com/nats-io/jwt, version 2)."""
    issued = {"iat": int(time.time()), **times}
    body = {"jti": "test", "iss": signer.public_key.decode(), "sub": subject, "name": name, **issued}
    text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part({**body, 'nats': {**claims, 'version': 2}})}"
    return f"{text}.{base64.urlsafe_b64encode(signer.sign(text.encode())).rstrip(b'=').decode()}"


@dataclass
class Accounts:
    """An account whose users the server accepts."""

    _operator: Any = field(default_factory=lambda: _pair(nkeys.PREFIX_BYTE_OPERATOR))
    _account: Any = field(default_factory=lambda: _pair(nkeys.PREFIX_BYTE_ACCOUNT))

    @property
    def configuration(self) -> str:
        """Lines of a server's configuration."""
        _, operator, operator_id = self._operator
        _, _, account_id = self._account
        limits = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
        account = _token(operator, account_id, "test", {"type": "account", "limits": {**limits, "wildcards": True}})
        return (
            f"operator: {_token(operator, operator_id, 'test', {'type': 'operator'})}\n"
            f"resolver: MEMORY\nresolver_preload: {{ {account_id}: {account} }}"
        )

    def agent(self, agent_id: str, *, name: str | None = None, site: str = "", groups: int = 0, **times: int) -> str:
        """Credentials of an agent, without a site of a roaming one; `times` are claims such as `exp`."""
        address = Address(site or ROAMING, agent_id)
        publish = [f"za.v1.up.*.{address.tokens}.>", subjects.hello("*", address), subjects.who(address)]
        receive = [subjects.all_down(address), "za.v1.all.*"]
        tags = [f"site:{site}"] * bool(site) + [f"group:{number:060}" for number in range(groups)]
        permissions = {"pub": {"allow": publish}, "sub": {"allow": receive}, "tags": tags}
        return self._user(subjects.token(agent_id) if name is None else name, permissions, times)

    def anybody(self, name: str = "gateway") -> str:
        """Credentials of a user who may do everything, and who as a gateway trusts the account's agents."""
        return self._user(name, {"tags": [f"agents:{self._account[2]}"]}, {})

    def _user(self, name: str, permissions: dict[str, Any], times: dict[str, int]) -> str:
        seed, _, user_id = _pair(nkeys.PREFIX_BYTE_USER)
        claims = {"type": "user", "subs": -1, "data": -1, "payload": -1, **permissions}
        jwt = _token(self._account[1], user_id, name, claims, **times)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
        )
