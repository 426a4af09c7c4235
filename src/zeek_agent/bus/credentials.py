"""The agent's files for the bus: NATS credentials and TLS, by setting or as `zeek-agent enroll` leaves them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct, structs

from zeek_agent.bus import subjects
from zeek_agent.bus.messages import TOKEN_CHARACTERS_MAX
from zeek_agent.bus.subjects import Address
from zeek_agent.errors import UsageError
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.config.sections import BusSettings, BusTlsSettings

DIRECTORY: Final = "fleet"
"""In the state directory."""
CREDENTIALS: Final = "agent.creds"
CA: Final = "ca.pem"
CERTIFICATE: Final = "client.pem"
KEY: Final = "client.key"
CREDENTIALS_BYTES_MAX: Final = 64 * 1024
"""A user's JWT has about 1 KB."""
SITE_TAG: Final = "site:"
"""Begins the tag of a user's JWT that names the site."""
_BEGIN: Final = "-----BEGIN NATS USER JWT-----"


class _NatsClaims(Struct, frozen=True):
    tags: tuple[Annotated[str, Meta(max_length=1024)], ...] = ()


class Claims(Struct, frozen=True):
    """Of a user's JWT: name, and the times in seconds since the epoch when it was issued and when it ends; 0: never."""

    name: Annotated[str, Meta(max_length=1024)] = ""
    nats: _NatsClaims = _NatsClaims()
    issued: int = msgspec.field(default=0, name="iat")
    valid_from: int = msgspec.field(default=0, name="nbf")
    expires: int = msgspec.field(default=0, name="exp")

    @property
    def site(self) -> str:
        """The user's site. Raises UsageError for several, or one that is not a name."""
        sites = sites_of(self.nats.tags) or (subjects.ROAMING,)
        if len(sites) > 1 or not subjects.is_name(sites[0]):
            raise UsageError(f"the JWT in the credentials does not name one site: {clipped(', '.join(sites))}")
        return sites[0]


class User(NamedTuple):
    """Who the agent is on the bus. `credentials` is the text of its file and `token` the JWT there, if it has any."""

    address: Address
    credentials: str | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class BusFiles:
    """What the agent uses for a connection to the bus."""

    credentials: Path | None
    tls: BusTlsSettings

    @property
    def has_tls(self) -> bool:
        """Whether there are settings for TLS, which a server without a `tls+nats://` URL may demand, too."""
        return self.tls != structs.replace(self.tls, ca_file=None, certificate=None, key=None)


def locate(settings: BusSettings, state: Path) -> BusFiles:
    """The files that the settings name, and for other ones those of an enrolled agent, as far as they exist."""
    fleet = state / DIRECTORY
    tls = settings.tls
    if tls.ca_file is None and (ca := _existing(fleet / CA)) is not None:
        tls = structs.replace(tls, ca_file=str(ca))
    if tls.certificate is None and tls.key is None:
        certificate, key = _existing(fleet / CERTIFICATE), _existing(fleet / KEY)
        if certificate is not None and key is not None:
            tls = structs.replace(tls, certificate=str(certificate), key=str(key))
    if settings.credentials is not None:
        return BusFiles(Path(settings.credentials), tls)
    return BusFiles(_existing(fleet / CREDENTIALS), tls)


def read(file: Path) -> str:
    """The text of a .creds file. Raises UsageError for one that cannot be read or is not such a file."""
    try:
        with file.open("rb") as stream:
            text = stream.read(CREDENTIALS_BYTES_MAX).decode("ascii")
    except OSError as error:
        raise UsageError(f"cannot read the credentials {file} (bus.credentials): {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if _BEGIN not in text or "BEGIN USER NKEY SEED" not in text:
        raise UsageError(f"{file} (bus.credentials) is not a file of NATS credentials: `zeek-agent enroll` writes one")
    return text


def user(files: BusFiles, agent_id: str) -> User:
    """The agent as its credentials describe it. Raises UsageError if they cannot be used."""
    if files.credentials is None:
        return User(Address(subjects.ROAMING, agent_id))
    text = read(files.credentials)
    jwt = token(text)
    if len(jwt) > TOKEN_CHARACTERS_MAX:
        raise UsageError(
            f"the JWT in {files.credentials} has {len(jwt):,} characters, {TOKEN_CHARACTERS_MAX:,} at most"
        )
    return User(Address(claims(text).site, agent_id), text, jwt)


def sites_of(tags: Sequence[str]) -> tuple[str, ...]:
    """The sites in the tags of a user's JWT."""
    return tuple(tag.removeprefix(SITE_TAG) for tag in tags if tag.startswith(SITE_TAG))


def token(credentials: str) -> str:
    """The user's JWT."""
    return credentials.partition(_BEGIN)[2].partition("-----")[0].strip().strip("-").strip()


def claims(credentials: str) -> Claims:
    """What the user's JWT says, not verified: the server does that. Raises UsageError."""
    try:
        payload = token(credentials).split(".")[1]
        decoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return msgspec.json.decode(decoded, type=Claims)
    except (IndexError, ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise UsageError(f"the JWT in the credentials cannot be read: {error}") from None


def _existing(file: Path) -> Path | None:
    return file if file.exists() else None
