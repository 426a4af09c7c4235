"""The files of an enrolled agent, in `<state>/fleet`; imports nothing that a running agent does not need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from zeek_agent.bus import subjects

GATEWAY_UNIT: Final = "gateway"
"""The organizational unit in the certificates of gateways, which have connections for many agents."""
ID_URI: Final = "urn:zeek-agent:"
"""With the token of its id, the alternative name in an agent's certificate: a common name has at most 64 characters."""
COMMON_NAME_CHARACTERS_MAX: Final = 64
"""Of a certificate (RFC 5280, ub-common-name)."""


class Enrolled(msgspec.Struct, frozen=True):
    """The contents of `enrolment.json`; times in seconds since the epoch, `key` is the public key."""

    agent_id: str
    url: str
    key: str
    account: str
    issued: float
    expires: float
    groups: tuple[str, ...] = ()
    site: str = "roaming"

    @property
    def renew_at(self) -> float:
        """When two thirds of the credentials' life are over."""
        return self.issued + (self.expires - self.issued) * 2 / 3

    @property
    def days(self) -> int:
        return round((self.expires - self.issued) / 86_400)


def id_uri(agent_id: str) -> str:
    """The alternative name of an agent's certificate. Raises UsageError for an id that no agent on the bus can have."""
    return ID_URI + subjects.token(agent_id)


def certified_id(certificate: Mapping[str, Any] | None) -> str | None:
    """The agent id in a certificate, as `ssl` describes that: its alternative name, or else its common name."""
    if not certificate:
        return None
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI" and name.startswith(ID_URI)]
    if names:
        try:
            return subjects.text(names[0].removeprefix(ID_URI)) if len(names) == 1 else None
        except ValueError:
            return None
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return common[0] if len(common) == 1 else None


@dataclass(frozen=True, slots=True)
class EnrolledFiles:
    """The locations of an agent's files, which need not exist. All have mode 0600, `place` has 0700."""

    place: Path

    @property
    def credentials(self) -> Path:
        """Token and seed of the agent on the bus."""
        return self.place / "agent.creds"

    @property
    def ca(self) -> Path:
        """The authorities of servers."""
        return self.place / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The agent's certificate, for collectors and for enrolment over HTTPS."""
        return self.place / "client.pem"

    @property
    def key(self) -> Path:
        """The certificate's private key."""
        return self.place / "client.key"

    @property
    def enrolment(self) -> Path:
        """What was agreed on: `Enrolled`."""
        return self.place / "enrolment.json"

    def read(self) -> Enrolled | None:
        """The contents of `enrolment.json`; None without one. Raises ValueError for one that is damaged."""
        try:
            return msgspec.json.decode(self.enrolment.read_bytes(), type=Enrolled)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ValueError(f"{self.enrolment} cannot be read: {error}") from None
