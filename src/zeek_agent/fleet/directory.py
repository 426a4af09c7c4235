"""The directory of a fleet: its keys and what `fleet init` made for each host. Only its owner can read it.

| Below the directory | Contents | For |
|---|---|---|
| `fleet.json` | names, public keys, revoked keys | the commands |
| `keys/` | keys of the operator, the accounts, most roles, and the servers' authority | offline |
| `enrolment/` | keys that sign agents and tokens, the agents' authority, the registry | the enrolment service |
| `hubs/HOST/`, `leaves/SITE/` | configuration, credentials and certificate of a NATS server | that host |
| `gateways/NAME/`, `collector/`, `operator/`, `agent/` | credentials and certificates | those hosts |
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import structs

from zeek_agent import platforms
from zeek_agent.bus.subjects import ROAMING
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet.authority import Authority, Pair
from zeek_agent.fleet.nkey import Key
from zeek_agent.text import is_text

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_T = TypeVar("_T")


class Site(msgspec.Struct, frozen=True):
    """A site with a leaf server; its agents may reach these clusters, `*` is all.

    The server passes agents of its own site, with `roaming` also those of no site, and those of the sites in `passes`,
    whose leaf servers are connected to it.
    """

    name: str
    hosts: tuple[str, ...]
    clusters: tuple[str, ...] = ("*",)
    roaming: bool = False
    passes: tuple[str, ...] = ()

    @property
    def passed(self) -> tuple[str, ...]:
        """All sites whose agents the server passes."""
        return tuple(dict.fromkeys((self.name, *self.passes, *[ROAMING] * self.roaming)))


class Revocation(msgspec.Struct, frozen=True):
    """A revoked key: credentials that were issued until `time` are refused. After `until` all have expired."""

    time: float
    until: float


class Fleet(msgspec.Struct, frozen=True):
    """The contents of `fleet.json`; keys are public ones."""

    name: str
    operator: str
    account: str
    system: str
    roles: dict[str, str]
    """The scoped signing keys, by role."""
    hubs: tuple[str, ...]
    enrolment: tuple[str, ...]
    """Names and addresses of the enrolment service, for its certificate."""
    collector: tuple[str, ...]
    """The same of a collector."""
    sites: tuple[Site, ...] = ()
    issued: dict[str, str] = {}
    """The last key of each gateway, leaf and so on, by `ROLE:NAME`."""
    earlier: dict[str, tuple[str, ...]] = {}
    """Its keys before that, whose credentials may still be valid."""
    certificates: dict[str, tuple[str, ...]] = {}
    """Serial numbers of the certificates that a gateway had before its last one, in hexadecimal digits."""
    revoked: dict[str, Revocation] = {}
    """Revoked keys of the account's users, and of leaves in the system account."""
    tokens_issued: int = 0
    """When the accounts' tokens were made, in seconds since the epoch; servers keep the newest."""


class EnrolmentSettings(msgspec.Struct, frozen=True):
    """The contents of `enrolment/enrolment.json`: the account, where the service is reached, and names of sites."""

    fleet: str
    account: str
    servers: tuple[str, ...]
    sites: tuple[str, ...] = ()


class Place:
    """A fleet's directory, or one that has only a copy of its `enrolment`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        nested = directory / "enrolment"
        self.enrolment = nested if nested.is_dir() or not (directory / "enrolment.json").exists() else directory

    @property
    def registry(self) -> Path:
        return self.enrolment / "registry.db"

    @property
    def has_keys(self) -> bool:
        return (self.keys / "operator.seed").exists()

    def fleet(self) -> Fleet:
        return read_json(self.directory / "fleet.json", Fleet)

    def settings(self) -> EnrolmentSettings:
        return read_json(self.enrolment / "enrolment.json", EnrolmentSettings)

    def sites(self) -> tuple[str, ...]:
        """The names of the sites; a copy of `enrolment` has those of when it was made."""
        if (self.directory / "fleet.json").exists():
            return tuple(site.name for site in self.fleet().sites)
        return self.settings().sites

    def key(self, name: str) -> Key:
        """A key of `keys`, or of `enrolment`."""
        file = self.keys / f"{name}.seed"
        if not file.exists():
            file = self.enrolment / f"{name}.seed"
        try:
            return Key.from_seed(read_text(file))
        except ValueError as error:
            raise UsageError(f"cannot use the key {file}: {error}") from None

    def authority(self, name: str) -> Authority:
        """`server-ca` of `keys`, or `agents-ca` of `enrolment`."""
        directory = self.keys if name == "server-ca" else self.enrolment
        try:
            return Authority(self.pair(directory / name))
        except ValueError as error:
            raise UsageError(f"cannot use the authority {directory / name}.pem: {error}") from None

    @staticmethod
    def pair(path: Path) -> Pair:
        return Pair(read_text(path.with_name(f"{path.name}.pem")), read_text(path.with_name(f"{path.name}.key")))


def labels(fleet: Fleet) -> dict[str, str]:
    """Whose each key is, `ROLE:NAME`, of all that were issued to other than agents."""
    earlier = {key: label for label, keys in fleet.earlier.items() for key in keys}
    return earlier | {key: label for label, key in fleet.issued.items()}


def remember(place: Place, label: str, key: Key) -> None:
    """Record the new key of a gateway, leaf and so on."""
    fleet = place.fleet()
    earlier = fleet.earlier
    if label in fleet.issued:
        earlier = {**earlier, label: (*earlier.get(label, ()), fleet.issued[label])}
    issued = {**fleet.issued, label: key.public}
    write_json(place.directory / "fleet.json", structs.replace(fleet, issued=issued, earlier=earlier))


def remember_certificate(place: Place, gateway: str, serial: int) -> None:
    """Record a gateway's certificate, which a new one replaces, for its revocation."""
    fleet = place.fleet()
    certificates = {**fleet.certificates, gateway: (*fleet.certificates.get(gateway, ()), f"{serial:x}")}
    write_json(place.directory / "fleet.json", structs.replace(fleet, certificates=certificates))


def create(directory: Path) -> None:
    """Create a directory that does not exist or is empty. Raises UsageError for any other."""
    if not is_text(str(directory)):  # SQLite opens no such path
        raise UsageError("the name of the directory is not valid UTF-8: choose another one")
    try:
        _make(directory)
        require_own(directory)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty: nothing is overwritten")
        directory.chmod(DIRECTORY_MODE)
    except OSError as error:
        raise UsageError(f"cannot create {directory}: {error.strerror}") from None


def require_own(directory: Path) -> None:
    """Raise UsageError for a directory, or a link to one, of another user, who could replace or read what is in it."""
    for found in (directory.lstat(), directory.stat()):
        if not platforms.HERE.is_own(found):
            raise UsageError(f"{directory} belongs to another user (uid {found.st_uid}): choose another one")


def write(file: Path, text: str) -> None:
    """Replace a file atomically, with its directory. A crash leaves the old or the new contents.

    Raises ZeekAgentError if that is not possible.
    """
    try:
        _make(file.parent)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")  # of mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            Path(name).replace(file)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ZeekAgentError(f"cannot write {file}: {error.strerror}") from None


def _make(directory: Path) -> None:
    """Create a directory and those above it; `Path.mkdir` gives the latter the usual mode."""
    for each in reversed((directory, *directory.parents)):
        each.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def write_json(file: Path, value: msgspec.Struct) -> None:
    write(file, msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def read_text(file: Path) -> str:
    """Raises UsageError that names the file."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read {file}: {reason}") from None


def read_json(file: Path, kind: type[_T]) -> _T:
    """Raises UsageError that names the file."""
    try:
        return msgspec.json.decode(read_text(file), type=kind)
    except msgspec.DecodeError as error:
        raise UsageError(f"{file} is damaged: {error}") from None
