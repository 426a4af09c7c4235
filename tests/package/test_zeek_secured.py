"""The ways to a Zeek that docs/zeek.md advises where agents come over a network: its own TLS, and nginx before it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Files, make_certificates
from running_agent import running
from waiting import until
from zeek_program import ROOT, Zeek, free_port, joined, needs_zeek, records, tool, zeek

pytestmark = [needs_zeek, pytest.mark.timeout(90)]

DOCUMENTED = (ROOT / "docs" / "zeek.md").read_text()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    tool("openssl")
    return make_certificates(tmp_path_factory.mktemp("tls"))


def with_certificate(files: Files) -> dict[str, object]:
    return {
        "zeek.tls.ca_file": files.ca,
        "zeek.tls.certificate": files.path("agent.pem"),
        "zeek.tls.key": files.path("agent.key"),
    }


async def refusal(directory: Path, url: str, files: Files) -> str:
    """Why an agent without a certificate does not get in."""
    directory.mkdir()
    async with running(directory, f"--zeek={url}", settings={"zeek.tls.ca_file": files.ca}) as agent:
        rows: list[dict[str, Any]] = []
        while not rows:
            rows = await agent.ask("SELECT last_error FROM zeek_agent_connections WHERE last_error IS NOT NULL")
    return str(rows[0]["last_error"])


@pytest.mark.long
async def test_a_zeek_that_requires_certificates_accepts_only_agents_that_have_one(
    tmp_path: Path, files: Files
) -> None:
    (option,) = re.findall(r"```zeek\n(redef ZeekAgent::listen_address = .*?)```", DOCUMENTED, re.DOTALL)
    for documented, ours in {
        "0.0.0.0": "127.0.0.1",
        "/etc/zeek/server.pem": files.path("server.pem"),
        "/etc/zeek/server.key": files.path("server.key"),
        "/etc/zeek/agents-ca.pem": files.ca,
    }.items():
        assert documented in option
        option = option.replace(documented, ours)
    logs = tmp_path / "zeek"
    with zeek(logs, site=option) as plain:
        url = plain.replace("ws://", "wss://")
        async with running(tmp_path, f"--zeek={url}", settings=with_certificate(files)):
            await joined(logs)
        assert "TLS" in await refusal(tmp_path / "without", url, files)
        assert "TLS" in await refusal(tmp_path / "plain", plain, files)
    assert [one["type_"] for one in records(logs / "zeek-agent.log")] == ["join", "shutdown"]


@contextmanager
def nginx(directory: Path, files: Files, zeek_port: int) -> Iterator[str]:
    """Nginx with the documented configuration; the URL for agents."""
    program = tool("nginx")
    (server,) = re.findall(r"```nginx\n(.*?)```", DOCUMENTED, re.DOTALL)
    port = free_port()
    for documented, ours in {
        "127.0.0.1:27759": f"127.0.0.1:{zeek_port}",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/nginx/zeek.example.net.pem": files.path("server.pem"),
        "/etc/nginx/zeek.example.net.key": files.path("server.key"),
        "/etc/nginx/agents-ca.pem": files.ca,
    }.items():
        assert documented in server
        server = server.replace(documented, ours)
    directory.mkdir()
    paths = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy"))
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\nfastcgi_temp_path {directory}/f;\nuwsgi_temp_path {directory}/u;\n"
        f"scgi_temp_path {directory}/s;\n{paths}{server}}}\n"
    )
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [program, "-p", str(directory), "-e", "stderr", "-c", "nginx.conf"], stdout=output, stderr=output
        )
    try:
        yield f"wss://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
async def test_agents_connect_through_nginx_as_documented(tmp_path: Path, files: Files) -> None:
    """Also after Zeek was gone."""
    one, lives = Zeek(), (tmp_path / "zeek-1", tmp_path / "zeek-2")

    def rows() -> list[dict[str, object]]:
        subprocess.run(["/bin/true"], check=True)
        return records(lives[0] / "zeek-agent-process-events.log")

    one.start(lives[0])
    try:
        with nginx(tmp_path / "nginx", files, one.port) as url:
            async with running(tmp_path, f"--zeek={url}", settings=with_certificate(files)) as agent:
                await joined(lives[0])
                await until(rows, 30, "no rows come")
                assert (await agent.connection())["state"] == "connected"
                one.stop()
                await until(
                    lambda: "does not reach Zeek" in agent.output.read_text(), complaint="no word of Zeek's absence"
                )
                one.start(lives[1])
                await joined(lives[1])
            assert "requires a client certificate" in await refusal(tmp_path / "without", url, files)
    finally:
        one.stop()
