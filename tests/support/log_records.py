"""Lines of `log stream --style ndjson` in their documented shape, made up for tests: none was written by macOS."""

from __future__ import annotations

import json
from typing import Any

HEADER = b'Filtering the log data using "eventType == logEvent"'


def record(message: str, **fields: Any) -> dict[str, Any]:
    """An entry."""
    return {
        "traceID": 4_120_793_665_540_100,
        "eventMessage": message,
        "eventType": "logEvent",
        "source": None,
        "formatString": "%{public}s",
        "userID": 501,
        "activityIdentifier": 0,
        "subsystem": "com.example.vault",
        "category": "keys",
        "threadID": 1_234,
        "senderImageUUID": "9D1F6A44-0000-4000-8000-00000000ABCD",
        "backtrace": {"frames": [{"imageOffset": 4096, "imageUUID": "9D1F6A44-0000-4000-8000-00000000ABCD"}]},
        "bootUUID": "",
        "processImagePath": "/usr/libexec/vaultd",
        "senderImagePath": "/usr/lib/libvault.dylib",
        "timestamp": "2026-03-01 13:00:00.250000+0100",
        "machTimestamp": 8_812_004_411,
        "messageType": "Default",
        "processImageUUID": "9D1F6A44-0000-4000-8000-00000000ABCE",
        "processID": 321,
        "senderProgramCounter": 86_232,
        "parentActivityIdentifier": 0,
        "creatorActivityID": 0,
        "timezoneName": "",
    } | fields


def loss(entries: int) -> dict[str, Any]:
    """What the system writes in place of entries that it dropped."""
    return {"eventType": "lossEvent", "lossCount": entries, "timestamp": "2026-03-01 13:00:01.000000+0100"}


def line(entry: dict[str, Any]) -> bytes:
    """As `log` writes it, without a newline: slashes are escaped, in keys too."""
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/").encode()
