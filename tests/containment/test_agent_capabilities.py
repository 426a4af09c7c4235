"""What the agent is left with when root starts it by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running_agent import running, started
from waiting import until

from zeek_agent.containment import agent_capabilities, kernel
from zeek_agent.recording.periodic import URGENT_NICENESS

pytestmark = pytest.mark.root
CAN_RAISE_LIMITS = kernel.bounding_set() & kernel.capability_mask(("CAP_SYS_RESOURCE",))
KEPT = (
    kernel.capability_mask(
        (*agent_capabilities.PURPOSES, *(() if CAN_RAISE_LIMITS else agent_capabilities.FOR_PRIORITY))
    )
    & kernel.bounding_set()
)
FOR_OTHERS = kernel.capability_mask(agent_capabilities.FOR_OTHERS_DIRECTORIES) & kernel.bounding_set()
NOBODY = 65534
SETTINGS = {"sources.processes": "snapshots", "sources.sockets": "snapshots", "sources.snapshot_interval": 60}


def masks(status: str) -> dict[str, int]:
    lines = (line.partition(":") for line in status.splitlines())
    return {name: int(value, 16) for name, _, value in lines if name.startswith("Cap")}


@pytest.mark.long
async def test_root_keeps_the_units_capabilities_and_no_program_regains_others(tmp_path: Path) -> None:
    async def ready() -> bool:
        return await agent.ready() is None

    with started(tmp_path, settings=SETTINGS) as agent:
        await until(ready, 60)
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            status = (task / "status").read_text()
            assert masks(status) == {"CapInh": 0, "CapPrm": KEPT, "CapEff": KEPT, "CapBnd": KEPT, "CapAmb": 0}
            assert "NoNewPrivs:\t1" in status


@pytest.mark.long
async def test_readers_of_kernel_events_still_raise_their_priority(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"sources.processes": "proc_connector"}) as agent:
        tasks = Path(f"/proc/{agent.pid}/task")
        niceness = [int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in tasks.iterdir()]
        assert URGENT_NICENESS in niceness


@pytest.mark.long
def test_another_users_directory_keeps_the_capability_to_write_there(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chown(logs, NOBODY, NOBODY)
    program = (
        "from pathlib import Path; from zeek_agent.containment import agent_capabilities as c; "
        f"print(c.drop([Path('{tmp_path}/state'), Path('{logs}')]).directory); "
        f"open('{logs}/x', 'w').close(); "
        "import subprocess; print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, _, status = done.stdout.partition("\n")
    assert first == str(logs)
    assert masks(status)["CapEff"] == KEPT | FOR_OTHERS


@pytest.mark.long
def test_what_cannot_be_dropped_is_no_error_and_an_ordinary_user_drops_nothing(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from zeek_agent.containment import agent_capabilities as c; "
        f"print(len(c.drop([Path('{tmp_path}')]).names), c.drop([]).names)"
    )
    without = ["setpriv", "--bounding-set", "-setpcap"]
    done = subprocess.run([*without, sys.executable, "-c", program], capture_output=True, text=True, check=True)
    number, _, again = done.stdout.partition(" ")
    assert int(number) > 0
    assert again == "()\n"
    nobody = [
        "setpriv",
        f"--reuid={NOBODY}",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    done = subprocess.run(
        [*nobody, sys.executable, "-c", program.replace(str(tmp_path), "/tmp")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 ()\n"
