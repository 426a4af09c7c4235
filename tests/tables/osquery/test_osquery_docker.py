"""The tables of Docker, compared with docker(1) on an engine of the test, and with engines that are pretended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL
from docker_engine import AVAILABLE, DockerEngine, docker_engine, http, pretended_engine
from waiting import until

from zeek_agent.config.sections import LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.errors import SqlError
from zeek_agent.table import TableContext
from zeek_agent.tables.osquery import _docker, docker_containers, docker_details
from zeek_agent.tables.osquery import docker_engine as engine_tables

ID = "c0ffee" + "0" * 58


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    if not AVAILABLE:
        pytest.skip("needs root and Docker's engine")
    place = tmp_path_factory.mktemp("docker")
    with docker_engine(place) as started:
        labels = ("LABEL maker=zeek", "LABEL quoted=a=b", 'ENTRYPOINT ["/bin/sleep"]', "ENV SECRET=abc", "EXPOSE 80")
        started.add_image(place, *labels)
        started.docker("network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.1", "inner")
        started.docker("volume", "create", "--label", "kept=yes", "--opt", "type=tmpfs", "--opt", "device=x", "store")
        run = "run -d --name one --label a=b -e TOKEN=xyz -v /usr:/usr:ro -v data:/data --network inner --user 65534"
        options = f"{run} -p 127.0.0.1:8080:80 --security-opt no-new-privileges --read-only"
        started.docker(*options.split(), "tests/tiny:1", "100")
        started.docker("run", "--name", "two", "-v", "/usr:/usr:ro", "tests/tiny:1", "0")
        started.docker("create", "--name", "three", "--privileged", "tests/tiny:1", "0")
        yield started


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    tables = (*docker_containers.TABLES, *docker_details.TABLES, *engine_tables.TABLES)
    opened = Database(tables, TableContext(NoAgent(), READS_ALL), LimitSettings())
    opened.scans.max_age_seconds = 0
    yield opened
    await opened.aclose()


@pytest.fixture
def asked_engine(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> DockerEngine:
    monkeypatch.setattr(_docker, "SOCKET", engine.socket)
    return engine


async def rows(db: Database, sql: str) -> list[dict[str, Any]]:
    result = await db.query(sql)
    assert result.errors == ()
    return [dict(zip((column.name for column in result.columns), row, strict=True)) for row in result.rows]


async def row(db: Database, sql: str) -> dict[str, Any]:
    (found,) = await rows(db, sql)
    return found


def seconds(timestamp: str) -> int:
    return int(datetime.fromisoformat(timestamp[:19] + "+00:00").timestamp())


def namespaces(pid: int) -> dict[str, str | None]:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    return {f"{kind}_namespace": str(Path(f"/proc/{pid}/ns/{kind}").stat().st_ino) if pid else None for kind in kinds}


async def test_containers_are_those_of_docker_inspect(db: Database, asked_engine: DockerEngine) -> None:
    assert [one["name"] for one in await rows(db, "SELECT name FROM docker_containers")] == ["/one"]
    for name, command in (("one", "/bin/sleep 100"), ("two", "/bin/sleep 0"), ("three", "/bin/sleep 0")):
        known = asked_engine.inspect("inspect", name)
        found = await row(db, f"SELECT * FROM docker_containers WHERE id = '{known['Id']}'")
        status = asked_engine.docker("ps", "-a", "--filter", f"name=^/{name}$", "--format", "{{.Status}}")
        assert found.pop("status").split()[0] == status.split()[0]
        state, host = known["State"], known["HostConfig"]
        assert found == {
            "id": known["Id"],
            "name": known["Name"],
            "image": known["Config"]["Image"],
            "image_id": known["Image"].removeprefix("sha256:"),
            "command": command,
            "created": seconds(known["Created"]),
            "state": state["Status"],
            "pid": state["Pid"],
            "path": known["Path"],
            "config_entrypoint": ", ".join(known["Config"]["Entrypoint"]),
            "started_at": state["StartedAt"],
            "finished_at": "" if state["Running"] else state["FinishedAt"],
            "privileged": int(host["Privileged"]),
            "security_options": ", ".join(host["SecurityOpt"] or ()),
            "env_variables": "***",
            "readonly_rootfs": int(host["ReadonlyRootfs"]),
            **namespaces(state["Pid"]),
        }


async def test_the_beginning_of_an_id_finds_a_container(db: Database, asked_engine: DockerEngine) -> None:
    beginning = asked_engine.inspect("inspect", "two")["Id"][:12]
    sql = "SELECT id, name FROM docker_containers WHERE id IN ('{}', 'not an id', '')"
    assert await rows(db, sql.format(beginning)) == [{"id": beginning, "name": "/two"}]
    assert await rows(db, "SELECT * FROM docker_containers WHERE id = '\"}}'") == []


async def test_labels_mounts_networks_and_ports_are_those_of_docker_inspect(
    db: Database, asked_engine: DockerEngine
) -> None:
    known = asked_engine.inspect("inspect", "one")
    where = f"WHERE id = '{known['Id']}'"
    labels = await rows(db, f"SELECT * FROM docker_container_labels {where}")
    assert {one["key"]: one["value"] for one in labels} == known["Config"]["Labels"]
    assert len(labels) == 3
    mounts = {one["destination"]: one for one in await rows(db, f"SELECT * FROM docker_container_mounts {where}")}
    assert len(mounts) == len(known["Mounts"]) == 2
    for mount in known["Mounts"]:
        assert mounts[mount["Destination"]] == {
            "id": known["Id"],
            "type": mount["Type"],
            "name": mount.get("Name", ""),
            "source": mount["Source"],
            "destination": mount["Destination"],
            "driver": mount.get("Driver", ""),
            "mode": mount["Mode"],
            "rw": int(mount["RW"]),
            "propagation": mount["Propagation"],
        }
    network = known["NetworkSettings"]["Networks"]["inner"]
    assert await row(db, f"SELECT * FROM docker_container_networks {where}") == {
        "id": known["Id"],
        "name": "inner",
        "network_id": network["NetworkID"],
        "endpoint_id": network["EndpointID"],
        "gateway": "10.77.0.1",
        "ip_address": network["IPAddress"],
        "ip_prefix_len": 24,
        "ipv6_gateway": network["IPv6Gateway"],
        "ipv6_address": network["GlobalIPv6Address"],
        "ipv6_prefix_len": network["GlobalIPv6PrefixLen"],
        "mac_address": network["MacAddress"],
    }
    assert await rows(db, f"SELECT * FROM docker_container_ports {where}") == [
        {"id": known["Id"], "type": "tcp", "port": 80, "host_ip": "127.0.0.1", "host_port": 8080}
    ]


async def test_processes_are_those_of_proc(db: Database, asked_engine: DockerEngine) -> None:
    known = asked_engine.inspect("inspect", "one")
    pid = known["State"]["Pid"]
    found = await row(db, f"SELECT * FROM docker_container_processes WHERE id = '{known['Id'][:12]}'")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    started = int(stat[19]) / 100
    assert abs(found.pop("start_time") - started) <= 2
    assert 0 <= found.pop("cpu") <= 100
    assert 0 <= found.pop("mem") < 1
    rss = found.pop("resident_size")
    assert 0 < rss <= int(status["VmHWM"].split()[0]) * 1_000
    uids, gids = status["Uid"].split(), status["Gid"].split()
    assert found == {
        "id": known["Id"][:12],
        "pid": pid,
        "name": status["Name"],
        "cmdline": "/bin/sleep 100",
        "state": status["State"][0],
        "uid": int(uids[0]),
        "gid": int(gids[0]),
        "euid": int(uids[1]),
        "egid": int(gids[1]),
        "suid": int(uids[2]),
        "sgid": int(gids[2]),
        "wired_size": None,
        "total_size": int(status["VmSize"].split()[0]) * 1_000,
        "parent": int(status["PPid"]),
        "pgroup": int(stat[2]),
        "threads": int(status["Threads"]),
        "nice": int(stat[16]),
        "user": "nobody",
        "time": "00:00:00",
    }


async def test_images_are_those_of_docker_inspect(db: Database, asked_engine: DockerEngine) -> None:
    known = asked_engine.inspect("image", "inspect", "tests/tiny:1")
    identifier = known["Id"].removeprefix("sha256:")
    assert await rows(db, "SELECT * FROM docker_images") == [
        {
            "id": identifier,
            "created": seconds(known["Created"]),
            "size_bytes": known["Size"],
            "tags": ",".join(known["RepoTags"]),
        }
    ]
    labels = await rows(db, f"SELECT * FROM docker_image_labels WHERE id = '{identifier[:9]}'")
    assert (
        {one["key"]: one["value"] for one in labels} == known["Config"]["Labels"] == {"maker": "zeek", "quoted": "a=b"}
    )
    assert {one["id"] for one in labels} == {identifier[:9]}


async def test_networks_and_volumes_are_those_of_docker_inspect(db: Database, asked_engine: DockerEngine) -> None:
    listed = asked_engine.docker("network", "ls", "--no-trunc", "-q").split()
    found = {one["id"]: one for one in await rows(db, "SELECT * FROM docker_networks")}
    assert set(found) == set(listed)
    for identifier in listed:
        known = asked_engine.inspect("network", "inspect", identifier)
        addresses = (known["IPAM"]["Config"] or [None])[0]
        assert found[identifier] == {
            "id": identifier,
            "name": known["Name"],
            "driver": known["Driver"],
            "created": seconds(known["Created"]),
            "enable_ipv6": int(known["EnableIPv6"]),
            "subnet": addresses and addresses["Subnet"],
            "gateway": addresses and addresses.get("Gateway", ""),
        }
    known = asked_engine.inspect("volume", "inspect", "store")
    assert await row(db, "SELECT * FROM docker_volumes WHERE name = 'store'") == {
        "name": "store",
        "driver": known["Driver"],
        "mount_point": known["Mountpoint"],
        "type": known["Options"]["type"],
    }
    assert await rows(db, "SELECT * FROM docker_volume_labels") == [{"name": "store", "key": "kept", "value": "yes"}]
    assert len(await rows(db, "SELECT name FROM docker_volumes")) == 2
    asked_engine.docker("network", "create", "--label", "l=1", "labelled")
    labels = await rows(db, "SELECT key, value FROM docker_network_labels")
    asked_engine.docker("network", "rm", "labelled")
    assert labels == [{"key": "l", "value": "1"}]


async def test_version_and_info_are_those_of_docker(db: Database, asked_engine: DockerEngine) -> None:
    known = json.loads(asked_engine.docker("version", "--format", "{{json .Server}}"))
    found = await row(db, "SELECT * FROM docker_version")
    names = {"version": "Version", "api_version": "ApiVersion", "min_api_version": "MinAPIVersion", "os": "Os"}
    names |= {"git_commit": "GitCommit", "go_version": "GoVersion", "arch": "Arch", "kernel_version": "KernelVersion"}
    assert found == {**{column: known[name] for column, name in names.items()}, "build_time": known["BuildTime"]}
    known = asked_engine.get("/info") | json.loads(asked_engine.docker("info", "--format", "{{json .}}"))
    found = await row(db, "SELECT * FROM docker_info")
    for column, (name, kind, _) in engine_tables._INFO.items():
        value = known.get(name, 0 if kind == "flag" else "")
        assert found[column] == (int(value) if kind == "flag" else value), column
    assert (found["containers"], found["containers_running"], found["images"]) == (3, 1, 1)


async def test_steps_and_layers_of_images_are_those_of_docker(db: Database, asked_engine: DockerEngine) -> None:
    known = asked_engine.inspect("image", "inspect", "tests/tiny:1")
    identifier = known["Id"].removeprefix("sha256:")
    layers = [one.removeprefix("sha256:") for one in known["RootFS"]["Layers"]]
    assert await rows(db, "SELECT * FROM docker_image_layers") == [
        {"id": identifier, "layer_id": layer, "layer_order": number} for number, layer in enumerate(layers, 1)
    ]
    listed = asked_engine.docker("history", "--no-trunc", "--human=false", "--format", "{{json .}}", "tests/tiny:1")
    steps = [json.loads(line) for line in listed.splitlines()]
    assert await rows(db, f"SELECT * FROM docker_image_history WHERE id = '{identifier[:12]}'") == [
        {
            "id": identifier[:12],
            "created": int(datetime.fromisoformat(step["CreatedAt"]).timestamp()),
            "size": int(step["Size"].removesuffix("B")),
            "created_by": step["CreatedBy"],
            "tags": "tests/tiny:1" if number == 0 else "",
            "comment": step["Comment"],
        }
        for number, step in enumerate(steps)
    ]
    assert len(steps) > 0


async def test_changed_files_and_resources_are_those_of_docker(db: Database, asked_engine: DockerEngine) -> None:
    script = "echo x > /tmp/added; rm -r /etc; exec sleep 100"
    arguments = ("-d", "--name", "four", "-v", "/usr:/usr:ro", "--entrypoint", "/bin/sh", "tests/tiny:1", "-c", script)
    identifier = asked_engine.docker("run", *arguments)
    try:
        await until(lambda: "D /etc" in asked_engine.docker("diff", "four"))
        found = await rows(db, f"SELECT * FROM docker_container_fs_changes WHERE id = '{identifier}'")
        assert {f"{row['change_type']} {row['path']}" for row in found} == {
            *asked_engine.docker("diff", "four").splitlines()
        }
        (stats,) = await rows(db, f"SELECT * FROM docker_container_stats WHERE id = '{identifier[:12]}'")
        raw = asked_engine.get(f"/containers/{identifier}/stats?stream=false")
    finally:
        asked_engine.docker("rm", "-f", "four")
    assert (stats["id"], stats["name"], stats["pids"]) == (identifier[:12], "/four", raw["pids_stats"]["current"])
    assert abs(stats["read"] - time.time()) < 60
    assert stats["interval"] == 0 or 0 < stats["interval"] < 10**10
    for column, (path, _) in docker_details._STATS.items():
        value: Any = raw
        for name in path.split("."):
            value = value.get(name, {})
        if "memory" in column and column != "memory_limit":
            assert (stats[column] > 0) == bool(value), column
        elif column.endswith("_usage"):
            assert 0 <= stats[column] <= (value or 0), column
        else:
            assert stats[column] == (value or 0), column
    assert (stats["disk_read"], stats["disk_write"]) == (0, 0)
    assert stats["network_rx_bytes"] <= sum(one["rx_bytes"] for one in raw.get("networks", {}).values())


async def test_a_change_is_seen(db: Database, asked_engine: DockerEngine) -> None:
    asked_engine.docker("pause", "one")
    assert await rows(db, "SELECT state FROM docker_containers") == [{"state": "paused"}]
    asked_engine.docker("unpause", "one")
    assert await rows(db, "SELECT state FROM docker_containers") == [{"state": "running"}]


# Pretended engines, with the answers that the API's documentation describes


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_docker, "SOCKET", str(tmp_path / "socket"))
    return tmp_path / "socket"


async def test_without_docker_the_tables_are_empty(db: Database, path: Path) -> None:
    for table in (*docker_containers.TABLES, *docker_details.TABLES, *engine_tables.TABLES):
        where = f" WHERE id = '{ID}'" if table.required else ""
        assert await rows(db, f"SELECT * FROM {table.name}{where}") == []


async def test_secrets_are_masked(db: Database, path: Path) -> None:
    listed = [{"Id": ID, "Names": ["/db"], "Command": "mysqld --password=hunter2", "State": "running"}]
    details = {"Config": {"Entrypoint": ["curl", "--user", "me:hunter2"], "Env": ["PASSWORD=hunter2"]}}
    ps = [*("1", "S", "0", "0", "0", "0", "0", "0", "12", "34", "1-02:03:04", "0", "1", "1", "0", "root"), "00:00:01"]
    top = {"Processes": [[*ps, "0.0", "0.1", "x", "x --token hunter2"]]}
    info = {"HttpProxy": "http://me:hunter2@proxy:3128"}
    documents: dict[str, Any] = {"/containers/json": listed, "/info": info}
    documents |= {"/images/json": [{"Id": f"sha256:{ID}"}]}
    documents |= {f"/images/{ID}/history": [{"CreatedBy": "/bin/sh -c mysql --password=hunter2", "Tags": None}]}
    documents |= {f"/containers/{ID}/json": details, f"/containers/{ID}/top": top}
    with pretended_engine(path, lambda target: http(documents[target.partition("?")[0]])) as asked:
        container = await row(db, "SELECT * FROM docker_containers")
        process = await row(db, f"SELECT * FROM docker_container_processes WHERE id = '{ID}'")
        information = await row(db, "SELECT http_proxy FROM docker_info")
        step = await row(db, "SELECT created_by FROM docker_image_history")
    assert "hunter2" not in str((container, process, information, step))
    assert container["command"] == "mysqld --password=***"
    assert (container["env_variables"], container["config_entrypoint"]) == ("***", "curl, --user, me:***")
    assert container["pid"] == -1
    expected = time.clock_gettime(time.CLOCK_BOOTTIME) - ((24 + 2) * 60 + 3) * 60 - 4
    assert abs(process["start_time"] - expected) < 60
    assert asked[1] == f"/containers/{ID}/json"


async def test_containers_are_inspected_only_for_columns_that_need_it(db: Database, path: Path) -> None:
    with pretended_engine(path, lambda _: http([{"Id": ID, "Names": ["/db"]}])) as asked:
        assert await rows(db, "SELECT id, name FROM docker_containers") == [{"id": ID, "name": "/db"}]
        assert await rows(db, f"SELECT id FROM docker_container_labels WHERE id = '{ID[:7]}'") == []
    assert asked == ["/containers/json", f"/containers/json?all=1&filters=%7B%22id%22%3A%7B%22{ID[:7]}%22%3Atrue%7D%7D"]


async def test_namespaces_are_those_of_a_process_that_exists(db: Database, path: Path) -> None:
    pids = iter((os.getpid(), 2**22 + 1, 0, -1, 2**62, "1"))

    def answer(target: str) -> bytes:
        if target == "/containers/json":
            return http([{"Id": ID, "Names": [f"/{number}"]} for number in range(6)])
        return http({"State": {"Pid": next(pids)}})

    with pretended_engine(path, answer):
        found = await rows(db, "SELECT net_namespace FROM docker_containers")
    mine = str(Path("/proc/self/ns/net").stat().st_ino)
    assert [row["net_namespace"] for row in found] == [mine, None, None, None, None, None]


async def test_a_container_that_ends_meanwhile_has_no_details(db: Database, path: Path) -> None:
    def answer(target: str) -> bytes:
        gone = http({"message": "No such container"}, "404 Not Found")
        return http([{"Id": ID, "State": "running"}]) if target == "/containers/json" else gone

    with pretended_engine(path, answer):
        found = await row(db, "SELECT id, name, state, pid, path FROM docker_containers")
    assert found == {"id": ID, "name": None, "state": "running", "pid": None, "path": None}


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "the answer is not HTTP"),
        (b"SSH-2.0-x\r\n\r\n", "the answer is not HTTP"),
        (http({}, "500 Internal Server Error"), "answered with status 500"),
        (http(b"[{"), "is not JSON"),
        (http(b"[" * 100_000), "is not JSON"),
        (http(b"[]", head="Content-Length: 20\r\n"), "is incomplete"),
        (b"HTTP/1.0 200 OK\r\n" + b"x" * 70_000, "the answer is not HTTP"),
    ],
)
async def test_other_answers_are_errors(db: Database, path: Path, sent: bytes, message: str) -> None:
    with pretended_engine(path, lambda _: sent), pytest.raises(SqlError, match=message):
        await db.query("SELECT * FROM docker_images")


async def test_values_of_other_types_cost_values_only(db: Database, path: Path) -> None:
    odd: list[Any] = [{"Id": 7, "Names": {}, "Created": 2**70, "State": None, "Ports": [3, {}], "Mounts": "x"}, 8, None]
    odd += [{"Id": ID, "Labels": {"a": 1, "b": "c"}, "NetworkSettings": {"Networks": {"n": None}}}]
    with pretended_engine(path, lambda _: http(odd)):
        assert [one["created"] for one in await rows(db, "SELECT id, created FROM docker_containers")] == [0, 0]
        assert [one["port"] for one in await rows(db, "SELECT port FROM docker_container_ports")] == [0]
        assert await rows(db, "SELECT * FROM docker_container_mounts") == []
        assert await rows(db, "SELECT key, value FROM docker_container_labels") == [{"key": "b", "value": "c"}]
        assert [one["name"] for one in await rows(db, "SELECT name FROM docker_container_networks")] == ["n"]


async def test_resources_of_other_kinds_are_zero_or_their_sums(db: Database, path: Path) -> None:
    operations = [{"op": "Read", "value": 3}, {"op": "read", "value": 4}, {"op": "Write", "value": 5}, {"value": 9}, 7]
    stats: dict[str, Any] = {
        "read": "2026-11-29T09:27:52.5Z",
        "preread": "2026-11-29T09:27:51.123456789Z",
        "blkio_stats": {"io_service_bytes_recursive": operations},
        "networks": {"eth0": {"rx_bytes": 10, "tx_bytes": 1}, "eth1": {"rx_bytes": 20}},
        "memory_stats": {"usage": "many"},
    }
    columns = (
        "read - preread AS seconds, interval, disk_read, disk_write, network_rx_bytes, network_tx_bytes, memory_usage"
    )
    sql = f"SELECT {columns} FROM docker_container_stats WHERE id = '{ID}'"
    with pretended_engine(path, lambda _: http(stats)):
        assert tuple((await row(db, sql)).values()) == (1, 1_376_543_211, 7, 5, 30, 1, 0)
    path.unlink()
    stats = {"read": "0001-01-01T00:00:00Z", "preread": "soon"}
    with pretended_engine(path, lambda _: http(stats)):
        assert tuple((await row(db, sql)).values()) == (0, 0, 0, 0, 0, 0, 0)


async def test_an_answer_that_does_not_end_is_refused(
    db: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zeek_agent.host import docker

    monkeypatch.setattr(docker, "ANSWER_BYTES_MAX", 100_000)
    with pretended_engine(path, lambda _: http([" " * 150_000])), pytest.raises(SqlError, match="more than 100000"):
        await db.query("SELECT * FROM docker_images")
