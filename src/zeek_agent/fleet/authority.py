"""Certificate authorities of a fleet, and what they sign: X.509 with keys on the curve P-256 (RFC 5280)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zeek_agent.errors import UsageError
from zeek_agent.fleet.enrolled import COMMON_NAME_CHARACTERS_MAX, GATEWAY_UNIT, id_uri

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 730
CRL_DAYS: Final = 365
SKEW: Final = timedelta(minutes=5)
"""A certificate is valid from so long before it was made, for clocks that are behind."""


class Pair(NamedTuple):
    """A certificate and its private key, both in PEM format."""

    certificate: str
    key: str


class Authority:
    """A certificate authority that can sign."""

    def __init__(self, pair: Pair) -> None:
        """Raises ValueError for anything but a certificate and its key."""
        self.certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.key.encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key on an elliptic curve")
        self._key = key

    def server(self, hosts: Sequence[str], now: float, *, is_hub: bool = False) -> Pair:
        """A certificate for a server that is reached by these names and addresses, with a new key.

        Hubs trust whoever shows them a certificate for clients to be another hub.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        end = _time(now) + timedelta(days=SERVER_DAYS)
        usage = (ExtendedKeyUsageOID.SERVER_AUTH, *[ExtendedKeyUsageOID.CLIENT_AUTH] * is_hub)
        made = self._signed(_name(hosts[0]), key.public_key(), usage, now, end, names)
        return Pair(made, _key_text(key))

    def agent(self, agent_id: str, public: ec.EllipticCurvePublicKey, now: float, expires: float) -> str:
        """An agent's client certificate in PEM format."""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(id_uri(agent_id))])
        return self._client(_name(agent_id), public, now, expires, names)

    def gateway(self, name: str, public: ec.EllipticCurvePublicKey, now: float, expires: float) -> str:
        """A gateway's client certificate in PEM format."""
        return self._client(_name(name, GATEWAY_UNIT), public, now, expires, None)

    def _client(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        now: float,
        expires: float,
        names: x509.SubjectAlternativeName | None,
    ) -> str:
        return self._signed(subject, public, (ExtendedKeyUsageOID.CLIENT_AUTH,), now, _time(expires), names)

    def _signed(  # noqa: PLR0917 - a certificate's parts
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        usage: Sequence[x509.ObjectIdentifier],
        now: float,
        end: datetime,
        names: x509.SubjectAlternativeName | None,
    ) -> str:
        issuer = self.certificate
        builder = (
            _builder(subject, issuer.subject, public, now, min(end, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(issuer)), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def revocation_list(self, revoked: Mapping[int, float], now: float) -> str:
        """A list of revoked certificates, by serial number and time, in PEM format."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_time(now) - SKEW)
            .next_update(_time(now) + timedelta(days=CRL_DAYS))
            .add_extension(x509.CRLNumber(int(now)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(self.certificate)), critical=False
            )
        )
        for serial, when in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(when)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def revoked(self, revocation_list: str) -> dict[int, float]:
        """The certificates in a list of this authority, as `revocation_list` takes them. Raises ValueError."""
        read = x509.load_pem_x509_crl(revocation_list.encode())
        if not read.is_signature_valid(_public(self.certificate)):
            raise ValueError("the revocation list is of another authority")
        return {one.serial_number: one.revocation_date_utc.timestamp() for one in read}


def new_authority(name: str, now: float) -> Pair:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    made = (
        _builder(subject, subject, key.public_key(), now, _time(now) + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(made.public_bytes(serialization.Encoding.PEM).decode(), _key_text(key))


def new_key() -> str:
    """A private key in PEM format."""
    return _key_text(ec.generate_private_key(ec.SECP256R1()))


def public_key(key: str) -> ec.EllipticCurvePublicKey:
    """The public key of a private one. Raises ValueError."""
    return _private(key).public_key()


def signing_request(common_name: str, key: str) -> str:
    """A certificate signing request in PEM format. Raises ValueError for a key that cannot be used."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name))
    return request.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def requested_key(request: str) -> ec.EllipticCurvePublicKey:
    """The key of a signing request, which it proves to hold. Raises ValueError."""
    try:
        read = x509.load_pem_x509_csr(request.encode())
        public = read.public_key()
        valid = read.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise ValueError("not a certificate signing request") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ValueError("not a certificate signing request of a key on the curve P-256")
    if not valid:
        raise ValueError("the certificate signing request has a wrong signature")
    return public


def fits(certificate: str, key: str, agent_id: str) -> bool:
    """Whether a certificate is that of the key and of the agent."""
    try:
        read = x509.load_pem_x509_certificate(certificate.encode())
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return read.public_key() == public_key(key) and uris == [id_uri(agent_id)]
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False


def serial_number(certificate: str) -> int:
    """Of a certificate in PEM format. Raises ValueError."""
    return x509.load_pem_x509_certificate(certificate.encode()).serial_number


def der(certificate: str) -> bytes:
    return x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)


def pem(certificate: bytes) -> str:
    """The PEM format of an encoded certificate. Raises ValueError for anything else."""
    return x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: float, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now) - SKEW)
        .not_valid_after(end)
    )


def _name(common_name: str, unit: str | None = None) -> x509.Name:
    common_name = common_name[:COMMON_NAME_CHARACTERS_MAX]
    parts = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise UsageError(f"not a host name or address: {host[:100]!r}") from None


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


def _private(key: str) -> ec.EllipticCurvePrivateKey:
    try:
        read = serialization.load_pem_private_key(key.encode(), None)
    except (TypeError, UnsupportedAlgorithm):
        raise ValueError("not a private key without a passphrase") from None
    if not isinstance(read, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on an elliptic curve")
    return read


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
