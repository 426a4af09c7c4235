"""TLS of a collector that listens: its certificate, the authorities of agents' certificates, and their replacement.

Who may connect is decided here alone: by the signature of a client's certificate. Enrolment, which would bind agent ids
to keys, belongs between this and `clients.IdHolders`.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zeek_agent.collector import revocations
from zeek_agent.config.server_sections import CollectorTlsSettings
from zeek_agent.errors import UsageError
from zeek_agent.fleet.enrolled import GATEWAY_UNIT, certified_id

HANDSHAKE_SECONDS: Final = 10.0
"""How long a client may take for the TLS handshake."""
_READ: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_CRYPTIC: Final = {
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_START_LINE": "it is not in PEM format",
    "PEM": "it is not a valid PEM file",
    "NO_CERTIFICATE_OR_CRL_FOUND": "it contains no certificate in PEM format",
}


log = logging.getLogger("zeek_agent.collector")


class ServerTls(ssl.SSLContext):
    """The TLS context of a listening server. New connections use the certificates that were loaded last."""

    _current: ssl.SSLContext

    def __new__(cls, settings: CollectorTlsSettings) -> ServerTls:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._current = load(settings)
        return made

    def use(self, loaded: ssl.SSLContext) -> None:
        """Replace the certificates, with a context from `load`. Open connections continue."""
        self._current = loaded

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Called for each new connection."""
        return self._current.wrap_bio(*arguments, **options)


def load(settings: CollectorTlsSettings) -> ssl.SSLContext:
    """A context with the certificates as they are on disk. Raises UsageError that names the file and the problem."""
    certificate, key = settings.certificate, settings.key or settings.certificate
    if certificate is None or key is None:
        raise UsageError("collector.tls.certificate is not set")
    for name, file in (
        ("certificate", certificate),
        ("key", key),
        ("client_ca", settings.client_ca),
        ("crl", settings.crl),
    ):
        if file is not None:
            _check_readable(name, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(certificate, key, password=_refuse_passphrase)
    except (OSError, ValueError) as error:
        with_key = f" with the key in {key}" if key != certificate else ""
        raise UsageError(
            f"collector.tls: cannot use the certificate in {certificate}{with_key}: {_why(error)}"
        ) from None
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except (OSError, ValueError) as error:
            raise UsageError(f"collector.tls.client_ca: cannot use {settings.client_ca}: {_why(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    if settings.crl is not None:
        revocations.check(settings.crl, context.get_ca_certs(binary_form=True), time.time())
        try:
            context.load_verify_locations(settings.crl)
        except (OSError, ValueError) as error:
            raise UsageError(f"collector.tls.crl: cannot use {settings.crl}: {_why(error)}") from None
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


def log_doubts(settings: CollectorTlsSettings) -> None:
    """Warn about files that `load` accepts, but with which agents cannot connect, or that others can read."""
    loaded = load(settings)
    if exposure := exposed_key(settings):
        log.warning("%s", exposure)
    if reason := _refusal_of_server(settings):
        log.warning("agents will refuse the certificate in %s: %s", settings.certificate, reason)
    if settings.client_ca is not None:
        authorities = loaded.get_ca_certs()
        now = time.time()
        if not authorities:
            log.warning("no certificate in %s is that of a CA: no agent can connect", settings.client_ca)
        elif all(ssl.cert_time_to_seconds(str(authority["notAfter"])) < now for authority in authorities):
            log.warning("every CA in %s has expired: no agent can connect", settings.client_ca)


def _refusal_of_server(settings: CollectorTlsSettings) -> str | None:
    """Why a client that trusts just this certificate refuses it; OpenSSL judges, in a handshake in memory."""
    server_context = load(CollectorTlsSettings(settings.certificate, settings.key))
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(settings.certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return None


def check(settings: CollectorTlsSettings) -> None:
    """Raises UsageError for settings that do not go together, without opening the files."""
    if settings.certificate is None:
        for name in ("key", "client_ca"):
            if getattr(settings, name) is not None:
                raise UsageError(f"collector.tls.{name} needs a collector.tls.certificate")
    if settings.ids == "certificate" and settings.client_ca is None:
        raise UsageError('collector.tls.ids = "certificate" needs a collector.tls.client_ca')
    if settings.crl is not None and settings.client_ca is None:
        raise UsageError("collector.tls.crl needs a collector.tls.client_ca")


def exposed_key(settings: CollectorTlsSettings) -> str | None:
    """Why others can read the private key, if they can."""
    file = settings.key or settings.certificate
    if file is not None and (mode := stat.S_IMODE(Path(file).stat().st_mode)) & stat.S_IROTH:
        return f"every user can read the private key in {file} (mode {mode:04o}): chmod o-r it"
    return None


def subject(certificate: Mapping[str, Any] | None) -> str | None:
    """The subject of a peer's certificate, such as `O=Example, CN=agent`, or else its first alternative name."""
    if not certificate:
        return None
    names = [f"{_SHORT.get(name, name)}={value}" for part in certificate.get("subject", ()) for name, value in part]
    names = names or [f"{kind}:{value}" for kind, value in certificate.get("subjectAltName", ())[:1]]
    return ", ".join(names) or None


def serial(certificate: Mapping[str, Any] | None) -> int | None:
    """The serial number of a peer's certificate."""
    number = (certificate or {}).get("serialNumber")
    return None if number is None else int(number, 16)


def may_speak_for(certificate: Mapping[str, Any] | None, agent_id: str) -> bool:
    """Whether a certificate names that agent, or is a gateway's, which speaks for many."""
    names = [named for part in (certificate or {}).get("subject", ()) for named in part]
    is_gateway = ("organizationalUnitName", GATEWAY_UNIT) in names
    return is_gateway or certified_id(certificate) == agent_id


_SHORT: Final = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


def _check_readable(name: str, file: str) -> None:
    try:
        descriptor = os.open(file, _READ)
    except OSError as error:
        raise UsageError(f"collector.tls.{name}: cannot read {file}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # OpenSSL would wait for a pipe, or read a device for ever
            raise UsageError(f"collector.tls.{name}: cannot use {file}: it is not a regular file")
    finally:
        os.close(descriptor)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason is None and isinstance(error, ssl.SSLError) and "PEM lib" in str(error):
        return "there is no such certificate and key in PEM format"
    return _CRYPTIC.get(reason or "", None) or getattr(error, "strerror", None) or str(error)


def _refuse_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase; use one without")
