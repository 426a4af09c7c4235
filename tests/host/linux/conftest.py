from __future__ import annotations

from collections.abc import Iterator

import pytest

from zeek_agent.bpf import iterators as bpf_iterators
from zeek_agent.bpf.iterators import Iterators, why_no_iterators


@pytest.fixture(params=["proc", "iterators"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the tables read processes with."""
    if request.param == "proc":
        monkeypatch.setattr(bpf_iterators, "_loaded", None)
        yield "proc"
        return
    if (reason := why_no_iterators()) is not None:
        pytest.skip(reason)
    loaded = Iterators()
    monkeypatch.setattr(bpf_iterators, "_loaded", loaded)
    yield "iterators"
    loaded.close()
