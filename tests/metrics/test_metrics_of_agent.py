"""The metrics of a running agent and collector, and the alert rules and the dashboard that use them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from running_agent import RunningAgent, running
from waiting import until

from zeek_agent.control import messages
from zeek_agent.metrics import agent_metrics, collector_metrics
from zeek_agent.metrics.exposition import Exposition, Family
from zeek_agent.queries.installed import QueryStatus

ROOT: Final = Path(__file__).parents[2]
ALERTS: Final = ROOT / "packaging/prometheus/alerts.yml"
DASHBOARD: Final = ROOT / "packaging/prometheus/dashboard.json"
DECLARED: Final[dict[str, Family]] = {
    family.name: family for family in (*agent_metrics.FAMILIES, *collector_metrics.FAMILIES)
}
FROM_PROMETHEUS: Final = {"job", "instance"}
"""Labels that Prometheus adds."""


async def fetched(path: Path) -> str:
    """The body of the answer on a Unix socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.decode()


def parsed(text: str) -> dict[str, Metric]:
    """The families by their names as declared."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert (family.type, family.documentation) == (DECLARED[name].kind, DECLARED[name].meaning)
        assert all(
            sample.name == name and set(sample.labels) == set(DECLARED[name].labels) for sample in family.samples
        )
        found[name] = family
    return found


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """The value of the one sample with these labels."""
    (found,) = [sample for sample in metrics[name].samples if labels.items() <= sample.labels.items()]
    return float(found.value)


async def with_collected_rows(path: Path) -> dict[str, Metric] | None:
    """The metrics, once the embedded collector has reported rows."""
    metrics = parsed(await fetched(path))
    rows = metrics.get("zeek_agent_collector_rows_total")
    return metrics if rows is not None and rows.samples[0].value > 0 else None


async def test_an_agents_metrics_say_what_its_tables_say(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    async with running(tmp_path, settings={"metrics.listen": f"unix:{path}"}) as agent:
        shell = messages.ControlClient(agent.state / "zeek-agent.sock")
        reports = shell.responses(messages.SubscribeRequest("SELECT name FROM users", "Snapshots", 60))
        await asyncio.to_thread(next, reports)
        metrics = await until(lambda: with_collected_rows(path))
        shell.close()
        printed = await asyncio.to_thread(status_in_prometheus_format, agent)
        (connection,) = await agent.ask("SELECT * FROM zeek_agent_connections")
        queries = await agent.ask("SELECT * FROM zeek_agent_queries WHERE recipient = 'embedded'")
        sources = await agent.ask("SELECT * FROM zeek_agent_sources")
        (identity,) = await agent.ask("SELECT id, hostname FROM zeek_agent")

    without_samples = {"zeek_agent_gaps", "zeek_agent_last_gap_end_timestamp_seconds"}
    assert DECLARED.keys() - metrics.keys() <= without_samples
    assert printed.keys() == metrics.keys()
    assert value(metrics, "zeek_agent_info", id=identity["id"], hostname=identity["hostname"]) == 1
    assert (
        value(metrics, "zeek_agent_connection_up", destination="embedded") == (connection["state"] == "connected") == 1
    )
    assert 0 < value(metrics, "zeek_agent_connection_sent_rows_total") <= connection["sent_rows"]
    ids = {sample.labels["query"] for sample in metrics["zeek_agent_query_runs_total"].samples}
    assert ids == {query["id"] for query in queries}
    for source in sources:
        labels = {"source": source["source"], "backend": source["backend"]}
        assert value(metrics, "zeek_agent_source_active", **labels) == source["active"]
        assert value(metrics, "zeek_agent_source_events_total", **labels) <= source["received"]
    assert value(metrics, "zeek_agent_collector_rows_total") > 0
    assert value(metrics, "zeek_agent_resident_bytes") > 10_000_000
    assert value(metrics, "zeek_agent_workers", **{"class": "collector", "state": "busy"}) == 1


def status_in_prometheus_format(agent: RunningAgent) -> dict[str, Metric]:
    command = [sys.executable, "-m", "zeek_agent", "status", "--state-dir", str(agent.state), "--format", "prometheus"]
    return parsed(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def test_the_number_of_series_is_bounded() -> None:
    """A hostile Zeek can install a hundred thousand queries."""
    one = QueryStatus(*[None] * len(QueryStatus._fields))._replace(  # type: ignore[arg-type]
        recipient="z", event="e", state="running", runs=1, rows=1, lost=0, errors=0, killed=0, cpu=0.5, peak_bytes=1
    )
    exposition = Exposition(agent_metrics.FAMILIES)
    queries = [one._replace(id=str(number)) for number in range(agent_metrics.QUERIES_MAX + 7)]
    agent_metrics._add_queries(exposition, queries, now=0.0)
    families = {family.name: family for family in text_string_to_metric_families(exposition.text())}
    assert value(families, "zeek_agent_queries_omitted") == 7
    assert len(families["zeek_agent_query_runs"].samples) == agent_metrics.QUERIES_MAX


async def test_a_gap_is_counted(tmp_path: Path) -> None:
    for _ in range(2):
        async with running(tmp_path) as agent:
            metrics = await asyncio.to_thread(status_in_prometheus_format, agent)
            gaps = await agent.ask("SELECT source, until FROM zeek_agent_gaps WHERE source = 'agent'")
    assert len(gaps) >= 1
    assert value(metrics, "zeek_agent_gaps", source="agent") == len(gaps)
    ended = value(metrics, "zeek_agent_last_gap_end_timestamp_seconds", source="agent")
    assert ended == pytest.approx(max(gap["until"] for gap in gaps))


async def test_an_agent_whose_metrics_cannot_be_served_says_so_and_records(tmp_path: Path) -> None:
    settings = {"metrics.listen": f"unix:{tmp_path}/missing-is-made/but/this-is-a-file/metrics.sock"}
    (tmp_path / "missing-is-made").mkdir()
    (tmp_path / "missing-is-made" / "but").write_text("in the way")
    async with running(tmp_path, settings=settings) as agent:
        assert "metrics are not served" in agent.output.read_text()
        assert await agent.ask("SELECT pid FROM processes WHERE pid = 1")


async def test_a_collector_of_its_own_has_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    command = [sys.executable, "-m", "zeek_agent", "collector", "--listen", "127.0.0.1:0", "--logs", str(tmp_path)]
    command += ["--set", f"metrics.listen=unix:{path}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            await until(path.exists)
            metrics = parsed(await fetched(path))
        finally:
            process.send_signal(signal.SIGTERM)
    assert value(metrics, "zeek_agent_collector_connections") == 0
    assert {family.name for family in collector_metrics.FAMILIES} - metrics.keys() <= {
        "zeek_agent_collector_log_rows_total",
        "zeek_agent_collector_log_dropped_total",
    }
    assert not path.exists()


def expressions() -> list[str]:
    """All PromQL in the alert rules and the dashboard."""
    rules = re.findall(r"^\s+expr: (.+)$", ALERTS.read_text(), re.MULTILINE)
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [*rules, *(target["expr"] for panel in panels for target in panel["targets"])]


@pytest.mark.parametrize("expression", expressions())
def test_rules_and_dashboard_use_metrics_and_labels_that_exist(expression: str) -> None:
    names = re.findall(r"\bzeek_agent_[a-z_]+", expression)
    assert names
    assert set(names) <= DECLARED.keys()
    labels = {label for name in names for label in DECLARED[name].labels} | FROM_PROMETHEUS
    grouped = re.findall(r"(?:by|on) \(([^)]*)\)", expression)
    matched = re.findall(r'[{,](\w+)=~?"', expression)
    assert {label.strip() for group in grouped for label in group.split(",")} | set(matched) <= labels


def test_alerts_name_labels_that_their_expression_keeps() -> None:
    rules = re.findall(r"expr: (.+?)\n.*?description: [^\n]*", ALERTS.read_text(), re.DOTALL)
    texts = re.findall(r"expr: .+?description: [^\n]*", ALERTS.read_text(), re.DOTALL)
    assert len(rules) == len(texts) > 5
    for expression, text in zip(rules, texts, strict=True):
        kept = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        kept = kept or {
            label for name in re.findall(r"\bzeek_agent_[a-z_]+", expression) for label in DECLARED[name].labels
        }
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept | FROM_PROMETHEUS


FIRING: Final = {
    "ZeekAgentNotConnected": {'zeek_agent_connection_up{destination="z"}': "0x180"},
    "ZeekAgentNotRecording": {
        'zeek_agent_source_active{source="sockets",backend="ebpf"}': "0x180",
        'zeek_agent_source_active{source="sockets",backend="inet_diag"}': "0x180",
    },
    "ZeekAgentEventsLost": {
        'zeek_agent_source_lost_total{source="sockets",backend="ebpf",cause="overrun"}': "0x170 5x10"
    },
    "ZeekAgentEventsEvicted": {'zeek_agent_store_evicted_total{table="sockets_events"}': "0x170 5x10"},
    "ZeekAgentEventsNotDelivered": {'zeek_agent_connection_lost_events_total{destination="z"}': "0x170 5x10"},
    "ZeekAgentStoreDegraded": {"zeek_agent_store_degraded": "1x180"},
    "ZeekAgentQueryFailing": {'zeek_agent_query_state{recipient="z",event="e",query="q",state="failing"}': "1x180"},
    "ZeekAgentWorkersKilled": {'zeek_agent_workers_killed_total{cause="time"}': "0x120 6x60"},
    "ZeekAgentRestarting": {"zeek_agent_start_timestamp_seconds": "0x150 1x5 2x5 3x5 4x5"},
    "ZeekAgentCollectorLosesRows": {"zeek_agent_collector_disk_failing": "1x180"},
    "ZeekAgentHostsOffline": {'zeek_agent_collector_hosts{state="offline"}': "0x170 5x10"},
    "ZeekAgentIdInUse": {"zeek_agent_collector_conflicts_total": "0x170 5x10"},
    "ZeekAgentCollectorRemovesLogsEarly": {'zeek_agent_collector_removed_logs_total{cause="size"}': "0x170 5x10"},
}
"""By alert: series, one sample a minute, at whose end it fires. Counters begin with 0, as they do here."""


def promtool() -> str:
    """The program, or the test is skipped."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool (Debian package prometheus) on PATH")
    return found


def test_each_alert_fires(tmp_path: Path) -> None:
    declared = re.findall(r"alert: (\w+)", ALERTS.read_text())
    assert declared == list(FIRING)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in FIRING[alert].items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                    "eval_time": "175m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        for alert in declared
    ]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool(), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_alert_rules() -> None:
    checked = subprocess.run([promtool(), "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "13 rules found" in checked.stdout
