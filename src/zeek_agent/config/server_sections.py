"""The sections of the configuration that collectors and gateways use."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from zeek_agent.config.sections import NotNegativeInt, Positive, PositiveInt, Section, TlsSettings

RETENTION_BYTES_MIN: Final = 16 << 20
"""Less would not hold what agents send in a second."""


class CollectorTlsSettings(Section, frozen=True):
    """TLS of `zeek-agent collector`, version 1.2 or later. Without a certificate it accepts unencrypted connections."""

    certificate: Annotated[
        str | None, Meta(description="PEM file of the collector's certificate, followed by intermediate ones")
    ] = None
    key: Annotated[str | None, Meta(description="PEM file of its private key; default: in `certificate`")] = None
    client_ca: Annotated[
        str | None,
        Meta(description="PEM file of CA certificates; agents then need a client certificate signed by one of these"),
    ] = None
    crl: Annotated[
        str | None,
        Meta(
            description="PEM file of these CAs' revocation lists, `collector/agents.crl` of a fleet; whose certificate "
            "is in it is refused, and so is everybody once a list has expired"
        ),
    ] = None
    ids: Annotated[
        Literal["any", "certificate"],
        Meta(
            description="`certificate`: an agent may only have the id in its certificate, in the alternative name "
            "`urn:zeek-agent:ID` as enrolment issues it, or else the common name; one of the organizational unit "
            "`gateway` may have connections for any"
        ),
    ] = "any"


class CollectorSettings(Section, frozen=True):
    """The embedded collector, or `zeek-agent collector`."""

    listen: Annotated[
        str,
        Meta(
            description="address and port that `zeek-agent collector` listens on; port 0: any free one. The embedded "
            "collector does not listen"
        ),
    ] = "127.0.0.1:27759"
    logs: Annotated[str, Meta(description="log directory")] = "./logs"
    format: Annotated[
        Literal["tsv", "json", "osquery"],
        Meta(description="log format: Zeek's TSV or JSON, or osquery's result format"),
    ] = "tsv"
    pack: Annotated[
        str | None,
        Meta(
            description="query pack, instead of the default one: a TOML file, or a pack or configuration of osquery "
            "(JSON); a pattern names several"
        ),
    ] = None
    packs: Annotated[
        tuple[str, ...], Meta(description="further query packs and patterns; `default` is the default pack")
    ] = ()
    schedule: Annotated[
        Positive | None,
        Meta(description="seconds between runs, overriding the pack except for the subscription `Events`"),
    ] = None
    rotate_interval: Annotated[float, Meta(ge=0, description="seconds after which logs are rotated; 0: never")] = 3600.0
    rotate_bytes: Annotated[int, Meta(ge=0, description="bytes after which a log is rotated; 0: never")] = 104_857_600
    compress: Annotated[bool, Meta(description="compress rotated logs with gzip")] = True
    retention_age: Annotated[
        float, Meta(ge=0, description="seconds after which rotated logs are removed; 0: never")
    ] = 2_592_000.0
    retention_bytes: Annotated[
        NotNegativeInt | None,
        Meta(
            description="maximum size of all logs together, rotated ones included; rotated logs are removed to stay "
            "below it. At least 16777216, or 0: no limit; unset: a tenth of the file system, but from 64 MiB to 10 GiB",
        ),
    ] = None
    agent_timeout: Annotated[
        Positive,
        Meta(
            description="seconds of silence after which an agent is offline; at least three times the longest "
            "`zeek.hello_interval` of the agents"
        ),
    ] = 180.0
    hosts_max: Annotated[
        PositiveInt,
        Meta(description="maximum number of hosts to remember; of those not connected, the least known one is removed"),
    ] = 20_000
    tls: CollectorTlsSettings = CollectorTlsSettings()

    @property
    def pack_names(self) -> tuple[str, ...]:
        """The paths and patterns of all query packs; none for the default pack alone."""
        return (*((self.pack,) if self.pack else ()), *self.packs)


class GatewayTlsSettings(TlsSettings, frozen=True):
    """TLS to NATS servers, for `tls://` URLs and servers that require it."""

    server_name: Annotated[
        str | None, Meta(description="expected name in the server's certificate, instead of the host")
    ] = None


class GatewaySettings(Section, frozen=True):
    """`zeek-agent gateway`, which connects the agents on a NATS bus with one Zeek or collector.

    The connection to Zeek has the settings of the section `zeek`.
    """

    servers: Annotated[
        tuple[str, ...], Meta(description="NATS servers (`nats://host:port`, `tls://…`), of which one is used")
    ] = ()
    cluster: Annotated[
        str | None,
        Meta(description="name of the Zeek cluster, the same for all its gateways: letters, digits, `-` and `_`"),
    ] = None
    name: Annotated[
        str | None,
        Meta(
            description="name of this gateway, unlike that of any other in the cluster; default: the name in its "
            "credentials, or the host name"
        ),
    ] = None
    zeek: Annotated[str, Meta(description="URL of the Zeek or collector")] = "ws://127.0.0.1:27759"
    credentials: Annotated[
        str | None,
        Meta(
            description="file with the gateway's NATS credentials (JWT and seed), whose tag `agents:KEY` names the key "
            "that signs agents; without a file, agents' ids and sites are not verified"
        ),
    ] = None
    agents_max: Annotated[PositiveInt, Meta(description="maximum number of agents; others are refused")] = 10_000
    queries_max: Annotated[PositiveInt, Meta(description="maximum number of queries per agent")] = 2_000
    places: Annotated[
        PositiveInt,
        Meta(description="batches of more than 4 KiB that may be on their way at one time, from all agents together"),
    ] = 64
    places_per_agent: Annotated[PositiveInt, Meta(description="those of one agent")] = 8
    rows_per_second: Annotated[
        float, Meta(ge=0, description="maximum rate of rows per agent, 10 s of which may be sent at once; 0: no limit")
    ] = 0.0
    bytes_per_second: Annotated[
        float, Meta(ge=0, description="maximum rate of bytes per agent, 10 s of which may be sent at once; 0: no limit")
    ] = 0.0
    hello_interval: Annotated[
        Positive,
        Meta(
            description="seconds between hellos of an agent that are passed on to Zeek if nothing has changed; at most "
            "60 to a collector"
        ),
    ] = 300.0
    hellos_per_second: Annotated[
        Positive, Meta(description="maximum rate of hellos to Zeek, and of agents that move to another gateway")
    ] = 500.0
    drain_per_second: Annotated[
        Positive, Meta(description="agents per second that are sent to other gateways when this one stops")
    ] = 200.0
    tls: GatewayTlsSettings = GatewayTlsSettings()
