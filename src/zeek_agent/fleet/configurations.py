"""The texts that `fleet init` writes: configurations of servers and collector, systemd units, and a README.

Paths in a server's configuration are relative to its directory, which is also its working directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from zeek_agent.fleet.directory import Fleet

CLIENT_PORT: Final = 4222
LEAF_PORT: Final = 7422
CLUSTER_PORT: Final = 6222
HTTPS_PORT: Final = 27_760
SERVER_HOME: Final = "/var/lib/zeek-agent-nats"
ENROLMENT_HOME: Final = "/var/lib/zeek-agent-enrolment"
GATEWAY_HOME: Final = "/etc/zeek-agent-gateway"
COLLECTOR_HOME: Final = "/etc/zeek-agent-collector"
RESOLVER_INTERVAL: Final = "30s"
"""A server that missed a revocation, because it was down or cut off, has it after this time at most."""

_SERVER: Final = """\
# {title}. Needs nats-server 2.12.7 or later; see README.md.
server_name: "{name}"
host: "0.0.0.0"
port: {port}
tls {{
  cert_file: "server.pem"
  key_file: "server.key"
  ca_file: "ca.pem"
  timeout: 10
}}

max_connections: 50000
max_control_line: 4096
max_payload: 1048576
max_pending: 67108864
write_deadline: "10s"
ping_interval: "30s"
ping_max: 3
# Clients without valid credentials have this many seconds.
authorization {{ timeout: 10 }}
# Metrics and the state of connections, for this host only.
http: "127.0.0.1:8222"

# Who may connect is decided by signatures of these keys. Revoked keys come with newer account tokens, which
# `zeek-agent fleet revoke` pushes; they are kept in the directory jwt.
operator: "{operator}"
system_account: "{system_account}"
resolver {{
  type: full
  dir: "jwt"
  allow_delete: false
  interval: "{interval}"
}}
resolver_preload {{
  {account}: "{account_token}"
  {system_account}: "{system_token}"
}}
"""

_HUB: Final = """
# Servers of sites, which dial in.
leafnodes {{
  host: "0.0.0.0"
  port: {port}
  tls {{
    cert_file: "server.pem"
    key_file: "server.key"
    ca_file: "ca.pem"
    timeout: 10
  }}
}}
"""

_CLUSTER: Final = """
# The other hubs. Both sides show a certificate of the servers' authority.
cluster {{
  name: "{name}"
  host: "0.0.0.0"
  port: {port}
  tls {{
    cert_file: "server.pem"
    key_file: "server.key"
    ca_file: "ca.pem"
    verify: true
    timeout: 10
  }}
  routes: [ {routes} ]
}}
"""

_LEAF: Final = """
# Dials the hubs; nothing at the hubs dials this server. The second connection receives revocations only.
leafnodes {{
  remotes: [
    {{
      urls: [ {urls} ]
      account: "{account}"
      credentials: "leaf.creds"
      tls {{ ca_file: "ca.pem", timeout: 10 }}
    }}
    {{
      urls: [ {urls} ]
      account: "{system_account}"
      credentials: "system.creds"
      tls {{ ca_file: "ca.pem", timeout: 10 }}
    }}
  ]
}}
"""

_UNIT: Final = """\
[Unit]
Description={description}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
Group={user}
WorkingDirectory={home}
ExecStart={command}
{reload}Restart=always
RestartSec=2
LimitNOFILE=100000
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={home}
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""

_COLLECTOR: Final = """\
# {title}: a collector that accepts enrolled agents only, at wss://HOST:27759.
[collector]
listen = "0.0.0.0:27759"
logs = "/var/log/zeek-agent-collector"

[collector.tls]
certificate = "{home}/server.pem"
key = "{home}/server.key"
client_ca = "{home}/agents-ca.pem"
# Replace it after each `fleet revoke`, and reload the collector.
crl = "{home}/agents.crl"
# An agent may only have the id that its certificate names; gateways speak for many.
ids = "certificate"
"""

_GATEWAY: Final = """\
# {title}: gateway {name}. Start it with `zeek-agent gateway --config {home}/zeek-agent.toml`.
[gateway]
servers = {servers}
cluster = "{cluster}"
name = "{name}"
credentials = "{home}/gateway.creds"
# Zeek on this host, whose port then needs to listen on loopback only.
zeek = "ws://127.0.0.1:27759"

[gateway.tls]
ca_file = "{home}/ca.pem"

# For a collector of the fleet instead of Zeek: gateway.zeek = "wss://HOST:27759"
[zeek.tls]
ca_file = "{home}/ca.pem"
certificate = "{home}/client.pem"
key = "{home}/client.key"
"""

_README: Final = """\
# The fleet {name}

Made by `zeek-agent fleet init`. Whoever reads it can act for the fleet: keep the directory on one host that few
people reach, and copy from it only what the table says, over an encrypted connection, with mode 0600.

| Directory | Goes to | As |
|---|---|---|
| `hubs/HOST/` | that hub | `{server_home}/`, owned by the user `nats`; the unit to `/etc/systemd/system/` |
| `leaves/SITE/` | the server of that site; it dials the hubs, nobody dials it from outside | the same |
| `enrolment/` | the host of the enrolment service, one per fleet | `{enrolment_home}/`, owned by its user |
| `gateways/NAME/` | the host of that gateway, next to its Zeek | `{gateway_home}/` |
| `collector/` | a host with `zeek-agent collector`, for sites without NATS | `{collector_home}/` |
| `operator/` | who runs commands on the fleet | |
| `agent/` | every host, unless it enrols: the authority of the servers | |
| `keys/` | nowhere: needed by the commands `fleet revoke`, `hub`, `site` and `gateway` only | |

Hubs: {hubs}. Ports: {client} for agents and gateways, {leaf} for leaves, {https} for enrolment over HTTPS.

## An agent

    zeek-agent fleet token DIR --site SITE > token      # for one host of this site, valid for 7 days
    zeek-agent enroll tls+nats://{hub}:{client} - < token      # on the host, or https://HOST:{https}

DIR is the directory that the enrolment service uses. If that is a copy of `enrolment/`, it has the registry of tokens
and agents, and the one here stays empty: a token that is made here is unknown to the service. After `fleet site` and
`fleet hub`, copy `enrolment.json` there again, after `fleet services` also `server.pem`, `server.key` and
`enrolment.creds`, but never `registry.db`.

Servers of other sites do not pass this agent. `--roaming` is for those that move between sites, `--site hub` for those
that connect to hubs only. Without sites, neither is needed.

The agent makes its keys itself, and renews its credentials after 20 of 30 days. The clocks of host and service may
differ by 5 minutes at most.

## A lost or taken host

    zeek-agent fleet agents DIR
    zeek-agent fleet revoke DIR ID

ends its connections to all servers that are reachable, and prints which have confirmed it. A leaf that is away learns
of it within {interval} of coming back. If `enrolment/` is on another host than `keys/`, run the command on both: there
it refuses renewal, here it is pushed to the servers, and the id has to be the key that the first one prints.

Collectors learn of it from `collector/agents.crl`, which the command writes. Copy it to them, and
`systemctl reload zeek-agent-collector` there: that ends the connections of a revoked agent or gateway. The list is
valid for a year; `zeek-agent fleet services DIR` writes a new one. A collector refuses everybody when its list has
expired. If `enrolment/` is on another host, the list with the agents is `agents.crl` there. The command adds to the
list that it finds, so copy that of a revoked gateway there first.

Run nats-server 2.12.7 or later, everywhere. Older ones have known vulnerabilities, and hubs of version 2.9 do not check
what a leaf publishes: a taken leaf could act as a gateway.

A taken leaf server can read and forge messages of the agents of its own site, as any router could, but not of other
sites; one with `fleet site --roaming` also of roaming agents. Give each site only its clusters (`fleet site DIR NAME
--cluster CLUSTER`), and revoke a taken leaf's credentials with `zeek-agent fleet revoke DIR leaf:SITE`, which
includes those that were renewed since. Those of a gateway are `gateway:NAME`.

## Life of what is in here

Server certificates: 2 years; credentials of gateways and leaves: 1 year. `zeek-agent fleet gateway`, `fleet site`,
`fleet hub` and `fleet services` write new ones, and the first three add hosts. Authorities: 10 years.
"""


def hub(fleet: Fleet, host: str, operator: str, account: str, system: str) -> str:
    """The configuration of a hub; the last three are the tokens of the operator and the accounts."""
    text = _server(fleet, f"hub-{host}", f"Hub of the fleet {fleet.name}", operator, account, system)
    text += _HUB.format(port=LEAF_PORT)
    if len(fleet.hubs) > 1:
        routes = ", ".join(_quoted(f"tls://{_address(other)}:{CLUSTER_PORT}") for other in fleet.hubs if other != host)
        text += _CLUSTER.format(name=fleet.name, port=CLUSTER_PORT, routes=routes)
    return text


def leaf(fleet: Fleet, site: str, operator: str, account: str, system: str) -> str:
    text = _server(fleet, f"leaf-{site}", f"Leaf of the fleet {fleet.name} at {site}", operator, account, system)
    urls = ", ".join(_quoted(f"tls://{_address(host)}:{LEAF_PORT}") for host in fleet.hubs)
    return text + _LEAF.format(urls=urls, account=fleet.account, system_account=fleet.system)


def server_unit(description: str) -> str:
    return _UNIT.format(
        description=description,
        user="nats",
        home=SERVER_HOME,
        command="nats-server --config nats.conf",
        reload="ExecReload=/bin/kill -HUP $MAINPID\n",
    )


def enrolment_unit() -> str:
    return _UNIT.format(
        description="Zeek Agent: enrolment of agents",
        user="zeek-agent-enrolment",
        home=ENROLMENT_HOME,
        command=f"zeek-agent fleet enrolment {ENROLMENT_HOME} --listen 0.0.0.0:{HTTPS_PORT}",
        reload="",
    )


def collector(fleet: Fleet) -> str:
    return _COLLECTOR.format(title=f"Fleet {fleet.name}", home=COLLECTOR_HOME)


def gateway(fleet: Fleet, name: str, cluster: str) -> str:
    """The configuration of a gateway."""
    servers = json.dumps(client_urls(fleet.hubs))
    return _GATEWAY.format(title=f"Fleet {fleet.name}", name=name, cluster=cluster, servers=servers, home=GATEWAY_HOME)


def collector_unit() -> str:
    text = _UNIT.format(
        description="Zeek Agent: collector for enrolled agents",
        user="zeek-agent-collector",
        home="/var/log/zeek-agent-collector",
        command=f"zeek-agent collector --config {COLLECTOR_HOME}/zeek-agent.toml",
        reload="ExecReload=/bin/kill -HUP $MAINPID\n",
    )
    return text.replace("UMask=0077\n", "UMask=0077\nLogsDirectory=zeek-agent-collector\n")


def readme(fleet: Fleet) -> str:
    return _README.format(
        name=fleet.name,
        hubs=", ".join(fleet.hubs),
        hub=fleet.hubs[0],
        client=CLIENT_PORT,
        leaf=LEAF_PORT,
        https=HTTPS_PORT,
        server_home=SERVER_HOME,
        enrolment_home=ENROLMENT_HOME,
        collector_home=COLLECTOR_HOME,
        gateway_home=GATEWAY_HOME,
        interval=RESOLVER_INTERVAL,
    )


def server_names(fleet: Fleet) -> set[str]:
    """The names of all servers, as their configurations have them."""
    return {f"hub-{host}" for host in fleet.hubs} | {f"leaf-{site.name}" for site in fleet.sites}


def client_urls(hosts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"tls://{_address(host)}:{CLIENT_PORT}" for host in hosts)


def _server(fleet: Fleet, name: str, title: str, operator: str, account: str, system: str) -> str:  # noqa: PLR0917
    return _SERVER.format(
        title=title,
        name=name,
        port=CLIENT_PORT,
        operator=operator,
        system_account=fleet.system,
        account=fleet.account,
        account_token=account,
        system_token=system,
        interval=RESOLVER_INTERVAL,
    )


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _quoted(text: str) -> str:
    return json.dumps(text)
