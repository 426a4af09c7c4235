"""The agent's side: makes the keys of a host, has them signed, and keeps what it gets.

Secrets are made here and never leave the host. Each file is replaced atomically, and the keys are on disk before they
are used, so an interrupted enrolment is continued with the same keys.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from zeek_agent.bus import link, subjects
from zeek_agent.bus.credentials import sites_of
from zeek_agent.bus.link import NoListenerError
from zeek_agent.bus.subjects import Address
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.fleet import authority, directory, jwt, messages, nkey
from zeek_agent.fleet.configurations import CLIENT_PORT, HTTPS_PORT
from zeek_agent.fleet.enrolled import Enrolled, EnrolledFiles
from zeek_agent.fleet.messages import BadMessageError, Granted, Request
from zeek_agent.fleet.nkey import Key
from zeek_agent.fleet.tokens import Token
from zeek_agent.text import is_text

ANSWER_SECONDS: Final = 15.0
SCHEMES: Final = {"nats": CLIENT_PORT, "tls+nats": CLIENT_PORT, "https": HTTPS_PORT}


class Url(NamedTuple):
    """Where the enrolment service is reached."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Files(EnrolledFiles):
    """Those of an agent that is being enrolled."""

    @property
    def pending(self) -> Path:
        """The key of an enrolment that has not been answered yet."""
        return self.place / "pending.seed"

    def bus_key(self) -> Key:
        """The agent's key on the bus; made if there is none."""
        for file, read in ((self.credentials, _key_of_credentials), (self.pending, Key.from_seed)):
            if file.exists():
                try:
                    return read(directory.read_text(file))
                except ValueError as error:
                    raise ZeekAgentError(f"{file} is damaged ({error}): remove it and enrol the agent again") from None
        key = Key.generate(nkey.USER)
        directory.write(self.pending, f"{key.seed}\n")
        return key

    def tls_key(self) -> str:
        """The private key of the agent's certificate; made if there is none."""
        if not self.key.exists():
            directory.write(self.key, authority.new_key())
        return directory.read_text(self.key)


def parse_url(text: str) -> Url:
    """Raises UsageError for anything but `nats://`, `tls+nats://` or `https://` with a host."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        not is_text(text)
        or parts.scheme not in SCHEMES
        or not parts.hostname
        or parts.username
        or parts.path.strip("/")
        or parts.query
    ):
        raise UsageError(f"not a URL of an enrolment service (tls+nats://HOST or https://HOST): {text[:80]!r}")
    return Url(parts.scheme, parts.hostname, port or SCHEMES[parts.scheme])


def enroll(  # noqa: PLR0917 - what an agent is
    place: Path, url: Url, token: Token, agent_id: str, hostname: str, clock: Callable[[], float] = time.time
) -> Enrolled:
    """Enrol with a token. Raises ZeekAgentError, which says why the agent is refused and what helps."""
    now = clock()
    if token.expires <= now:
        raise ZeekAgentError(f"the token expired {_ago(now - token.expires)} ago: get another, or set the host's clock")
    _prepare(place)
    files = Files(place)
    key, ca = files.bus_key(), authority.pem(token.ca)
    request = _request(files, key, agent_id, hostname, now, token.key.public)
    payload = messages.seal(request, key, token.key)
    context = ssl.create_default_context(cadata=ca)
    if url.scheme == "https":
        answer = _post(url, messages.ENROL_PATH, payload, context)
    else:
        inbox = subjects.bootstrap_inbox(token.site, token.key.public)
        credentials = jwt.credentials(token.user, token.key)
        subject = subjects.enrolment(token.site, token.key.public)
        answer = asyncio.run(_ask(url, token.site, subject, payload, inbox, credentials, context))
    granted = _granted(answer, now)
    if ca.strip() not in granted.ca:
        raise ZeekAgentError("the answer has other authorities of servers than the token: it is not used")
    return _store(files, granted, key, Address(token.site, agent_id), str(url), token.account, now)


def renew(place: Path, agent_id: str, hostname: str, clock: Callable[[], float] = time.time) -> Enrolled:
    """Renew the credentials of an enrolled agent, with its keys. Raises ZeekAgentError."""
    files, now = Files(place), clock()
    if not files.enrolment.exists() or not files.credentials.exists():
        raise UsageError("the agent is not enrolled: run zeek-agent enroll URL TOKEN")
    enrolled = directory.read_json(files.enrolment, Enrolled)
    if enrolled.agent_id != agent_id:
        raise ZeekAgentError(
            f"the credentials are those of {enrolled.agent_id}, this agent is {agent_id}: remove {place} and enrol it"
        )
    url, key, agent = parse_url(enrolled.url), files.bus_key(), Address(enrolled.site, agent_id)
    payload = messages.seal(_request(files, key, agent_id, hostname, now), key)
    try:
        context = ssl.create_default_context(cafile=str(files.ca))
        if url.scheme == "https":
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:
        raise ZeekAgentError(f"cannot use the certificates in {place}: {error}") from None
    if url.scheme == "https":
        answer = _post(url, messages.RENEW_PATH, payload, context)
    else:
        inbox = f"{subjects.inbox(agent)}.renew"
        credentials = directory.read_text(files.credentials)
        answer = asyncio.run(_ask(url, agent.site, subjects.renewal(agent), payload, inbox, credentials, context))
    return _store(files, _granted(answer, now), key, agent, enrolled.url, enrolled.account, now)


def _prepare(place: Path) -> None:
    try:
        place.mkdir(mode=directory.DIRECTORY_MODE, parents=True, exist_ok=True)
        directory.require_own(place)
        place.chmod(directory.DIRECTORY_MODE)
    except OSError as error:
        raise ZeekAgentError(f"cannot create {place}: {error.strerror}") from None


def _request(files: Files, key: Key, agent_id: str, hostname: str, now: float, token: str = "") -> Request:  # noqa: PLR0917
    subjects.token(agent_id)
    if not is_text(agent_id) or not is_text(hostname):
        raise UsageError("agent.id or agent.hostname is not valid UTF-8")
    try:
        csr = authority.signing_request(agent_id, files.tls_key())
    except ValueError as error:
        raise ZeekAgentError(f"{files.key} is damaged ({error}): remove it") from None
    return Request(agent_id, key.public, csr, now, messages.nonce(), hostname[:256], token)


def _post(url: Url, path: str, payload: bytes, context: ssl.SSLContext) -> bytes:
    connection = http.client.HTTPSConnection(url.host, url.port, timeout=ANSWER_SECONDS, context=context)
    try:
        connection.request("POST", path, payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read(4 * messages.MESSAGE_BYTES_MAX + 1)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(url, error) from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last one of a name that no host can have
        raise ZeekAgentError(f"{url} cannot be used: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ZeekAgentError(f"{url} is not an enrolment service, or refuses the certificate: status {response.status}")
    return body


async def _ask(  # noqa: PLR0917 - those of the connection
    url: Url, site: str, subject: str, payload: bytes, inbox: str, credentials: str, context: ssl.SSLContext
) -> bytes:
    scheme = "tls" if url.scheme == "tls+nats" else "nats"
    server = str(url._replace(scheme=scheme))
    try:
        bus = await link.connect([server], name="enroll", inbox=inbox, credentials=credentials, tls=context)
    except ConnectionError as error:
        text = str(error)
        if "certificate verify failed" in text.lower() or "CERTIFICATE_VERIFY_FAILED" in text:
            raise _untrusted(url, error) from None
        if "authorization" in text.lower() or "authentication" in text.lower():
            raise ZeekAgentError(
                f"{url} refuses the credentials: they are of another fleet, expired or revoked, or a clock is wrong"
            ) from None
        raise ZeekAgentError(f"no connection to {url}: {error}") from None
    try:
        return await bus.request(subject, payload, ANSWER_SECONDS)
    except NoListenerError:
        where = f"{url}, or {bus.server_name or 'the server there'} does not pass on requests of site {site}"
        raise ZeekAgentError(f"the enrolment service is not connected to {where}") from None
    except TimeoutError:
        raise ZeekAgentError(f"the enrolment service does not answer at {url}") from None
    except ConnectionError as error:
        raise ZeekAgentError(f"the connection to {url} was lost: {error}") from None
    finally:
        await bus.close()


def _granted(payload: bytes, now: float) -> Granted:
    try:
        answer = messages.read_answer(payload)
    except BadMessageError as error:
        raise ZeekAgentError(str(error)) from None
    if isinstance(answer, Granted):
        return answer
    hint = ""
    if answer.code == "clock":
        hint = f"; the service's clock is {abs(answer.time - now):.0f} s {'ahead' if answer.time > now else 'behind'}"
    raise ZeekAgentError(f"the enrolment service refuses: {answer.reason}{hint}")


def _store(  # noqa: PLR0917 - what is stored
    files: Files, granted: Granted, key: Key, agent: Address, url: str, account: str, now: float
) -> Enrolled:
    """Check that the credentials are those that were asked for, and replace the files."""
    try:
        claims = jwt.read(granted.token)
    except ValueError as error:
        raise ZeekAgentError(f"the service's answer is not used: {error}") from None
    expected = (key.public, subjects.token(agent.agent_id), account, (agent.site,))
    if (claims.sub, claims.name, claims.nats.issuer_account, sites_of(claims.nats.tags)) != expected:
        raise ZeekAgentError("the service's answer is not used: its token is not this agent's")
    if not authority.fits(granted.certificate, files.tls_key(), agent.agent_id):
        raise ZeekAgentError("the service's answer is not used: its certificate is not this agent's")
    enrolled = Enrolled(agent.agent_id, url, key.public, account, now, granted.expires, granted.groups, agent.site)
    directory.write(files.ca, granted.ca)
    directory.write(files.certificate, granted.certificate)
    directory.write(files.credentials, jwt.credentials(granted.token, key))
    directory.write_json(files.enrolment, enrolled)
    files.pending.unlink(missing_ok=True)
    return enrolled


def _key_of_credentials(text: str) -> Key:
    return jwt.read_credentials(text)[1]


def _untrusted(url: Url, error: Exception) -> ZeekAgentError:
    cause = "its certificate is not of the token's authority, or has another name"
    return ZeekAgentError(f"{url} is not trusted: {cause} ({error})")


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
