"""The files of an enrolled agent, in `<state>/fleet`; imports nothing that a running agent does not need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

GATEWAY_UNIT: Final = "gateway"
"""The organizational unit in the certificates of gateways, which have connections for many agents."""


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
