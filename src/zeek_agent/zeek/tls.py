"""TLS to Zeek and to the bus: trusted authorities and the agent's certificate."""

from __future__ import annotations

import ssl

from zeek_agent.config.sections import TlsSettings
from zeek_agent.errors import UsageError


def client_context(settings: TlsSettings, section: str = "zeek.tls") -> ssl.SSLContext:
    """A context that checks the server's certificate and host name, unless the settings are `insecure`.

    An insecure context also accepts a server without any certificate, the default of Zeek before 8.1: encrypted, but
    not authenticated. Raises UsageError, which names the file, for an unreadable file.
    """
    context = _trust(settings)
    if settings.certificate is not None:
        try:
            context.load_cert_chain(settings.certificate, settings.key, password=_refuse_passphrase)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot use the client certificate {settings.certificate}"
                f"{f' with the key {settings.key}' if settings.key else ''}: {error}"
            ) from None
    elif settings.key is not None:
        raise UsageError(f"{section}.key {settings.key} needs a {section}.certificate")
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ALL:+aNULL:@SECLEVEL=0")
    return context


def _trust(settings: TlsSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot use the CA certificates in {settings.ca_file}: {error}") from None


def _refuse_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase; use one without")
