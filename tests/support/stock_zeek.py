"""A real Zeek with a stock package of Zeek Agent v2, whose scripts stay as they are.

`ZEEK_AGENT_STOCK_PACKAGE` names the scripts directory of 2.4, `ZEEK_AGENT_OLD_STOCK_PACKAGE` that of one up to 2.3,
with which agents connect to Broker's own WebSocket server. Since 8.1 Zeek has no function for scripts to start this,
which a script here provides.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from zeek_program import Zeek, tool

VARIABLES: Final = {"2.4": "ZEEK_AGENT_STOCK_PACKAGE", "2.3": "ZEEK_AGENT_OLD_STOCK_PACKAGE"}
_SETTINGS_BEFORE_8_1: Final = """
redef Broker::disable_ssl = T;
redef Broker::default_listen_address_websocket = "127.0.0.1";
redef Broker::default_port_websocket = {port}/tcp;
"""
_SETTINGS_SINCE_8_1: Final = """
@load frameworks/cluster/backend/broker
redef Broker::disable_ssl = T;
module Broker;
export {{ global listen_websocket: function(a: string &default="127.0.0.1"): port; }}
function listen_websocket(a: string): port {{ return __listen("127.0.0.1", {port}/tcp, Broker::WEBSOCKET); }}
module GLOBAL;
"""
"""Declares what a package up to 2.3 expects of Zeek."""


def version_number() -> int:
    """Of the Zeek on PATH, as 80100 for 8.1.0."""
    told = subprocess.run([tool("zeek"), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", told)
    assert found, told
    major, minor, patch = map(int, found.groups())
    return major * 10_000 + minor * 100 + patch


@contextmanager
def stock_zeek(directory: Path, version: str = "2.4", site: str = "") -> Iterator[str]:
    """A Zeek with that package, which has settings after its scripts; the URL for agents."""
    variable = VARIABLES[version]
    if variable not in os.environ:
        pytest.skip(f"needs the stock package {version}: {variable} names its scripts directory")
    is_new = version_number() >= 80_100
    if version == "2.4" and not is_new:
        pytest.skip("the stock package 2.4 needs Zeek 8.1")
    settings = (_SETTINGS_SINCE_8_1 if is_new else _SETTINGS_BEFORE_8_1) if version == "2.3" else ""
    one = Zeek(site, package=Path(os.environ[variable]), before=settings)
    one.start(directory)
    try:
        yield one.url
    finally:
        one.stop()
