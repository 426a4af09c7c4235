"""docs/deploy.md and the Ansible role: variables, files that they name, and ansible-lint where it is installed.

`tests/packages/test_ansible_role.py` runs the role.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from places import ROOT

from zeek_agent.config import declarations

PAGE = (ROOT / "docs/deploy.md").read_text()
ANSIBLE = ROOT / "packaging/ansible"
ROLE = ANSIBLE / "roles/zeek_agent"
LINT = shutil.which("ansible-lint")


def variables(text: str, indentation: str = "") -> set[str]:
    return set(re.findall(rf"^{indentation}(zeek_agent_\w+):", text, re.MULTILINE))


def test_each_variable_has_a_default_a_specification_a_use_and_a_row_in_the_page() -> None:
    defaults = variables((ROLE / "defaults/main.yml").read_text())
    assert len(defaults) >= 10
    assert variables((ROLE / "meta/argument_specs.yml").read_text(), " {6}") == defaults
    section = PAGE.partition("\n## The role\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`zeek_agent_.*?) \| ", section, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == defaults
    used = "".join(path.read_text() for part in ("tasks", "templates", "vars") for path in (ROLE / part).iterdir())
    assert not [name for name in defaults if not re.search(rf"\b{name}\b", used)]


def test_settings_that_the_role_and_the_page_name_exist() -> None:
    known = declarations.settings()
    for name in re.findall(r"`((?:zeek|events|limits|sources|collector|metrics)\.[a-z_.]+)`", PAGE):
        assert name in known, name
    derived = (ROLE / "vars/main.yml").read_text()
    assert set(re.findall(r"'(ca_file|certificate|key|destinations|groups)':", derived)) == {
        name.rpartition(".")[2] for name in known if name in ("zeek.destinations", "zeek.groups")
    } | {"ca_file", "certificate", "key"}
    assert {"zeek.tls.ca_file", "zeek.tls.certificate", "zeek.tls.key"} <= known.keys()


def test_the_role_restarts_on_what_the_agent_reports() -> None:
    """Its handler looks for words of `zeek-agent reload`."""
    (words,) = re.findall(r"changed_when: \"'(.*?)' in", (ROLE / "handlers/main.yml").read_text())
    assert f"; {words}: " in (ROOT / "src/zeek_agent/reload.py").read_text()


def test_alerts_of_the_page_exist() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "packaging/prometheus/alerts.yml").read_text()))
    named = set(re.findall(r"`(ZeekAgent[A-Z][a-zA-Z]+)`", PAGE))
    assert len(named) >= 5
    assert named <= alerts


def test_files_of_the_role_that_the_page_shows_are_valid() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    collector = tomllib.loads(toml)["collector"]
    assert collector["listen"].endswith(":27759")
    settings = {name.rpartition(".")[2] for name in declarations.settings() if name.startswith("collector.tls.")}
    assert collector["tls"].keys() == settings - {"crl"}, "lists of revoked certificates are made for fleets only"
    assert "serial" in PAGE
    assert 'serial: [2, "5%", "25%", "100%"]' in (ANSIBLE / "deploy.yml").read_text()


@pytest.mark.skipif(LINT is None, reason="needs ansible-lint")
def test_ansible_lint_accepts_the_role_for_production(tmp_path: Path) -> None:
    assert LINT is not None
    copied = shutil.copytree(ANSIBLE, tmp_path / "ansible")
    done = subprocess.run(
        [LINT, "--offline", "--profile", "production", "--nocolor"],
        cwd=copied,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed: 0 failure(s), 0 warning(s)" in done.stdout + done.stderr
