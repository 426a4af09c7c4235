"""Security descriptors of Windows as text: who may change a directory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from zeek_agent import platforms
from zeek_agent.config.loading import config_file
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.platforms.winapi import folders, pipes, security
from zeek_agent.platforms.windows import Windows
from zeek_agent.platforms.windows_descriptors import replacers, writers
from zeek_agent.service import windows_service

INSTALLER = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
ALICE = "S-1-5-21-1004336348-1177238915-682003330-1001"


@pytest.fixture(autouse=True)
def _data_of_all_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folders, "program_data", lambda: tmp_path)


@pytest.mark.parametrize(
    ("sddl", "expected"),
    [
        ("O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", set()),
        ("O:BAD:(A;OICI;FA;;;SY)(A;OICIID;0x1200a9;;;BU)(A;CIID;LC;;;BU)", {"BU"}),
        ("O:SYD:(A;OICIIO;GA;;;CO)(A;;0x1301bf;;;AU)(D;;FA;;;WD)", {"AU"}),
        (f"O:{INSTALLER}D:PAI(A;;FA;;;{INSTALLER})(A;CIIO;GA;;;{INSTALLER})(A;;0x1200a9;;;BU)", set()),
        ("O:BAG:SYD:AI(A;OICIID;FA;;;SY)(A;ID;0x1301bf;;;SY)", set()),
    ],
)
def test_who_may_write_to_a_directory_is_in_its_descriptor(sddl: str, expected: set[str]) -> None:
    assert writers(sddl) == expected


def test_the_owner_of_a_directory_can_change_its_list() -> None:
    assert writers(f"O:{ALICE}D:P(A;;FA;;;SY)(A;;FA;;;BA)") == {ALICE}
    assert writers(f"O:{ALICE}G:{ALICE}D:P(A;;FA;;;SY)") == {ALICE}


@pytest.mark.parametrize(
    "sddl", ["", "O:BA", "O:BAG:BA", "O:BAD:NO_ACCESS_CONTROL", "D:P(A;;FA;;;SY)", "O:BAS:(ML;;NW;;;LW)"]
)
def test_without_a_list_or_an_owner_everyone_may_write(sddl: str) -> None:
    assert writers(sddl) == {"WD"}


@pytest.mark.parametrize(
    ("sddl", "expected"),
    [
        (f"O:{INSTALLER}D:PAI(A;OICIIO;SDGXGWGR;;;AU)(A;;LC;;;AU)(A;;FA;;;SY)(A;OICI;0x1200a9;;;BU)", set()),  # C:\\
        ("O:SYD:AI(A;OICI;FA;;;SY)(A;CI;DCLCRPCR;;;BU)(A;OICI;0x1200a9;;;BU)", set()),  # C:\\ProgramData
        ("O:BAD:(A;OICIID;0x1301bf;;;AU)", {"AU"}),  # a directory in C:\\
        ("O:BAD:(A;;DT;;;BU)", {"BU"}),
        (f"O:{ALICE}D:(A;;FA;;;SY)", {ALICE}),
    ],
)
def test_who_may_replace_a_directory_is_in_the_descriptor_of_the_one_above(sddl: str, expected: set[str]) -> None:
    assert replacers(sddl) == expected


def test_the_interpreter_of_an_environment_must_not_be_a_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platforms, "HERE", Windows())
    monkeypatch.setattr(security, "user_sid", lambda: "S-1-5-18")
    monkeypatch.setattr(security, "is_administrator", lambda: True)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    open_to_users = {tmp_path: "O:BAD:(A;;FA;;;SY)(A;;0x1301bf;;;BU)"}
    monkeypatch.setattr(security, "describe", lambda path: open_to_users.get(path, "O:BAD:(A;;FA;;;SY)"))
    with pytest.raises(ZeekAgentError, match=f"{re.escape(str(tmp_path))}, which others can change: .* BU"):
        list(windows_service.WindowsService().install(start=False))


def test_an_empty_list_permits_nothing() -> None:
    assert writers("O:BAD:P") == set()


@pytest.mark.parametrize(
    "entry",
    [
        "(A;;DT;;;BU)",  # FILE_DELETE_CHILD
        "(A;;CCDCLCSWRPWPDTLOCRSDRCWDWO;;;BU)",
        "(A;;0X40;;;BU)",
        "(A;;64;;;BU)",
        "(A;;0100;;;BU)",
        "(OA;;GA;;;BU)",
        '(XA;;FA;;;BU;(@User.Title=="PM" && (Member_of {SID(BA)})))',
        "(ZA;;FW;;;BU)",
        "(A;OICI;WO;;;BU)",
    ],
)
def test_every_kind_of_entry_that_permits_changes_counts(entry: str) -> None:
    assert writers(f"O:BAD:P(A;;FA;;;SY){entry}") == {"BU"}


@pytest.mark.parametrize("sddl", [security.PRIVATE_DIRECTORY, security.PRIVATE_FILE, pipes.OWNERS])
def test_what_an_administrator_makes_is_not_the_same_users_without_elevation(
    monkeypatch: pytest.MonkeyPatch, sddl: str
) -> None:
    monkeypatch.setattr(security, "user_sid", lambda: ALICE)
    monkeypatch.setattr(security, "is_administrator", lambda: False)
    assert writers(security.for_this_process(sddl)) - {"WD"} == {ALICE}
    monkeypatch.setattr(security, "is_administrator", lambda: True)
    assert writers(security.for_this_process(sddl)) == set()
    assert ALICE not in security.for_this_process(sddl)


def test_a_default_configuration_that_others_could_have_written_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in `%ProgramData%`, where every user can create the directory first."""
    here = Windows()
    (tmp_path / "ZeekAgent").mkdir()
    file = tmp_path / "ZeekAgent" / "zeek-agent.toml"
    file.write_text("[zeek]\n")
    environment = {"LOCALAPPDATA": str(tmp_path)}
    monkeypatch.setattr(platforms, "HERE", here)
    monkeypatch.setattr(security, "user_sid", lambda: "S-1-5-18")
    descriptors = {file.parent: f"O:{ALICE}D:P(A;;FA;;;SY)", file: "O:BAD:P(A;;FA;;;SY)"}
    monkeypatch.setattr(security, "describe", descriptors.__getitem__)
    monkeypatch.setattr(security, "is_administrator", lambda: True)
    with pytest.raises(UsageError, match=f"others could have written it: .*ZeekAgent is owned or writable by {ALICE}"):
        config_file(None, environment)
    assert config_file(file, environment) == file
    descriptors[file.parent], descriptors[file] = "O:BAD:P(A;;FA;;;SY)", "O:BAD:(A;ID;FA;;;BU)"
    with pytest.raises(UsageError, match=r"zeek-agent\.toml is owned or writable by BU"):
        config_file(None, environment)
    descriptors[file] = "O:BAD:P(A;;FA;;;SY)"
    assert config_file(None, environment) == file
    del descriptors[file.parent]
    monkeypatch.setattr(security, "is_administrator", lambda: False)
    assert config_file(None, environment) == file


def test_a_system_without_the_directory_of_all_users_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise OSError("the directory for programs' data is unknown")

    monkeypatch.setattr(folders, "program_data", unknown)
    with pytest.raises(ZeekAgentError, match="data is unknown"):
        _ = Windows().system_state


def test_the_service_does_not_use_a_directory_that_another_user_has_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platforms, "HERE", Windows())
    monkeypatch.setattr(security, "user_sid", lambda: "S-1-5-18")
    monkeypatch.setattr(security, "is_administrator", lambda: True)
    monkeypatch.setattr(security, "create_directory", lambda path, _: Path(path).mkdir())
    monkeypatch.setattr(security, "describe", lambda _: f"O:{ALICE}D:P(A;;FA;;;SY)")
    with pytest.raises(ZeekAgentError, match=r"another user has made .*ZeekAgent, or may change it: .* Remove it"):
        windows_service.run(lambda: 0)


def test_the_service_does_not_run_programs_in_a_users_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An administrator's own programs can change it without elevation."""
    monkeypatch.setattr(platforms, "HERE", Windows())
    monkeypatch.setattr(security, "user_sid", lambda: ALICE)
    monkeypatch.setattr(security, "is_administrator", lambda: True)
    monkeypatch.setattr(security, "describe", lambda _: f"O:{ALICE}D:P(A;;FA;;;SY)")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "Python" / "python.exe"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with pytest.raises(ZeekAgentError, match="in the profile"):
        list(windows_service.WindowsService().install(start=False))
