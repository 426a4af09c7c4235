"""Subjects of the bus: one token an id, and nothing but what was written is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.bus import subjects
from zeek_agent.bus.subjects import Address, Down, Up
from zeek_agent.errors import UsageError

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)


@given(IDS)
def test_any_id_is_one_token_that_reads_back(agent_id: str) -> None:
    written = subjects.token(agent_id)
    assert not set(written) & set(".*> \t\r\n")
    assert written.isascii()
    assert subjects.text(written) == agent_id


def test_an_ordinary_id_is_its_own_token() -> None:
    assert subjects.token("H2xK_9-z") == "H2xK_9-z"
    assert subjects.token("a.b*c>d e") == "a%2Eb%2Ac%3Ed%20e"


@pytest.mark.parametrize("written", ["a%2eb", "a%41", "a.b", "", "%", "%2", "ä"])
def test_another_spelling_of_an_id_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"not (a token|usable)"):
        subjects.text(written)


@pytest.mark.parametrize("agent_id", ["", "x" * 201, "." * 67])
def test_an_empty_or_long_id_has_no_token(agent_id: str) -> None:
    with pytest.raises(UsageError, match="not usable as a name on the bus"):
        subjects.token(agent_id)


@given(IDS, st.integers(0, 10**17))
def test_subjects_read_back(agent_id: str, number: int) -> None:
    agent = Address("site-a", agent_id)
    batch = subjects.read_up(subjects.up("gw1", agent, "s1", Up.BATCH, number))
    assert batch == ("gw1", agent, "s1", Up.BATCH, number)
    assert subjects.read_up(subjects.up("gw1", agent, "s1", Up.BEAT)) == ("gw1", agent, "s1", Up.BEAT, 0)
    assert subjects.read_down(subjects.down(agent, "s1", Down.GONE)) == (agent, "s1", Down.GONE)
    assert subjects.read_hello(subjects.hello("zeek", agent)) == ("zeek", agent)
    assert subjects.read_who(subjects.who(agent)) == agent
    assert subjects.read_renewal(subjects.renewal(agent)) == agent
    assert subjects.read_claim(subjects.peers("zeek", subjects.Peer.CLAIM, agent_id)) == agent_id


@pytest.mark.parametrize(
    "subject",
    [
        "za.v1.up.gw1.site.a.s1.batch",
        "za.v1.up.gw1.site.a.s1.batch.x",
        "za.v1.up.gw1.site.a.s1.batch.1.2",
        "za.v1.up.gw1.site.a.s1.query",
        "za.v1.up.gw1.site.a.s1.beat.1",
        "za.v1.up.gw1.a.s1.beat",
        "za.v1.dn.site.a.s1.beat",
        "za.v2.up.gw1.site.a.s1.beat",
        "",
    ],
)
def test_a_subject_of_another_form_is_refused(subject: str) -> None:
    with pytest.raises(ValueError, match=r"not a subject|is not a valid"):
        subjects.read_up(subject)


def test_a_reply_is_not_a_message_of_a_session() -> None:
    with pytest.raises(ValueError, match="not a subject to an agent"):
        subjects.read_down(f"{subjects.inbox(Address('site', 'a'))}.frame")


def test_a_question_of_a_site_is_not_one_of_an_operator() -> None:
    assert subjects.read_who(subjects.operator_who("fra")) == "fra"
    for subject in ("za.v1.who.a%2E.H1", "za.v1.who.fra.H1.x", "za.v1.who..H1", "za.v1.who.a%2E"):
        with pytest.raises(ValueError, match=r"not a (question|token)"):
            subjects.read_who(subject)


@pytest.mark.parametrize("site", ["", "*", ">", "%41", "a" * 65])
def test_a_site_has_a_plain_name(site: str) -> None:
    with pytest.raises(ValueError, match="not a subject"):
        subjects.read_hello(f"za.v1.hello.zeek.{site}.H1")
    with pytest.raises(ValueError, match="not a subject"):
        subjects.read_renewal(f"za.v1.renew.{site}.H1")
