"""The collector's unit and configuration of docs/deploy.md, followed word by word. Opt-in: `make test-packages`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from certificates import make_certificates
from debian_root import DebianRoot
from places import ROOT
from waiting import until_sync

pytestmark = [
    pytest.mark.packages,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"),
]
SECTION = (ROOT / "docs/deploy.md").read_text().partition("\n## Collector\n")[2].partition("\n## ")[0]
UNIT = "zeek-agent-collector"
AGENT = """
[zeek]
destinations = ["wss://127.0.0.1:27759"]
[zeek.tls]
ca_file = "/etc/zeek-agent/ca.pem"
certificate = "/etc/zeek-agent/agent.pem"
key = "/etc/zeek-agent/agent.key"
"""


def follow(root: DebianRoot) -> None:
    """Write the files of the section and run its commands, in the directory that has the certificates."""
    for kind in ("ini", "toml"):
        (text,) = re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)
        path = re.match(r"# (/\S+)\n", text)
        assert path is not None
        (root / path[1].lstrip("/")).write_text(text)
    commands = re.findall(r"^# ([a-z].*)$", SECTION, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        root.run(f"cd certificates && {command}")


def connections(root: DebianRoot) -> str:
    return root.query("SELECT state FROM zeek_agent_connections")


def test_the_collector_of_the_page_takes_agents_with_a_certificate_and_no_others(
    root: DebianRoot, packages: dict[str, Path]
) -> None:
    (root / "root/certificates").mkdir()
    made = make_certificates(root / "root/certificates")
    shutil.copy(made.ca, made.path("agents-ca.pem"))
    root.boot()
    root.install(packages["deb"])
    follow(root)
    assert root.run(f"systemctl is-active {UNIT}").strip() == "active"
    user = f"stat -c %U /proc/$(systemctl show {UNIT} --property=MainPID --value)"
    assert root.run(user).strip() == "zeek-collector"

    refused = root.run(
        "zeek-agent doctor --zeek wss://127.0.0.1:27759 --set zeek.tls.ca_file=certificates/ca.pem", fails=True
    )
    assert re.search(r"^fail .*zeek .*certificate", refused, re.MULTILINE), refused

    root.run("install -m 0600 certificates/ca.pem certificates/agent.pem certificates/agent.key /etc/zeek-agent")
    (root / "etc/zeek-agent/zeek-agent.toml").write_text(AGENT)
    root.run("systemctl restart zeek-agent")
    until_sync(lambda: "connected" in connections(root).split(), 60, lambda: connections(root))
    log = root / "var/log/zeek-collector/zeek-agent-users.log"
    until_sync(log.exists, 120, "no log")
    listed = "zeek-agent hosts --config /etc/zeek-agent/collector.toml --connected --format json"
    (host,) = json.loads(root.run(listed))
    assert "agent" in host["certificate"]

    made.make("server", "subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE", subject="renewed")
    root.run("cd certificates && install -m 0644 server.pem /etc/zeek-collector")
    root.run("cd certificates && install -m 0400 -o zeek-collector server.key /etc/zeek-collector")
    root.run(f"systemctl reload {UNIT}")
    shown = "openssl s_client -connect 127.0.0.1:27759 </dev/null 2>/dev/null | openssl x509 -noout -subject"
    until_sync(lambda: "renewed" in root.run(f"{shown} || true"), 60, "the old certificate is still used")
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9132/metrics').read().decode())"
    assert "zeek_agent_collector" in root.run(f'python3 -c "{fetch}"')
