"""Credit for large batches, and limits on single agents."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.bus.messages import GRANT_SECONDS
from zeek_agent.gateway.allowance import BURST_SECONDS, DELAY_SECONDS_MAX, Allowance
from zeek_agent.gateway.credits import LEEWAY_SECONDS, UNUSED_AT_FIRST, UNUSED_FACTOR, Credits

LAPSE = GRANT_SECONDS + LEEWAY_SECONDS


def test_credit_is_given_in_the_order_of_the_wants() -> None:
    lanes: Credits[str] = Credits(2, 1)
    for name in "abc":
        lanes.want(name, 50_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a", "b"]
    assert lanes.use("a", 50_000, 1.0)
    assert list(lanes.grants(1.0)) == [], "a batch on its way takes the place of its grant"
    lanes.acknowledged("a")
    lanes.want("a", 50_000, 1.0)
    assert list(lanes.grants(1.0)) == ["c"], "who had credit waits behind the others"


def test_a_batch_beyond_its_credit_is_refused() -> None:
    lanes: Credits[str] = Credits(2, 1)
    assert not lanes.use("a", 1, 0.0)
    lanes.want("a", 50_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a"]
    assert not lanes.use("a", 50_001, 0.0)
    assert lanes.use("a", 50_000, 0.0)
    assert not lanes.use("a", 1, 0.0), "credit is for one batch"


def test_credit_that_is_not_used_gives_its_place_to_the_next_and_remains_valid() -> None:
    lanes: Credits[str] = Credits(1, 1)
    lanes.want("a", 5_000, 0.0)
    lanes.want("b", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a"]
    patience = UNUSED_AT_FIRST * UNUSED_FACTOR
    assert list(lanes.grants(patience - 0.1)) == []
    assert list(lanes.grants(patience + 0.1)) == ["b"]
    assert (lanes.overdue, lanes.lapsed) == (1, 0)
    assert lanes.use("a", 5_000, patience + 0.2)
    assert not lanes.use("a", 5_000, patience + 0.2)
    assert lanes.late == 0


def test_agents_behind_a_dead_leaf_do_not_keep_the_places_of_others() -> None:
    lanes: Credits[str] = Credits(64, 8)
    for _ in range(50):
        lanes.want("live", 5_000, 0.0)
        assert list(lanes.grants(0.0)) == ["live"]
        assert lanes.use("live", 5_000, 0.01)
        lanes.acknowledged("live")
    for number in range(1_000):
        lanes.want(f"dead{number}", 50_000, 1.0)
    lanes.want("live", 5_000, 1.0)
    now = 1.0
    while "live" not in list(lanes.grants(now)):
        now += 0.5  # as the gateway asks without any other reason
    assert now <= 1.0 + (1_000 / 64 + 1) * 0.5, "not after 12 s for each 64 of them"
    assert list(lanes.grants(now + 2 * LAPSE)) == []
    assert (lanes.lapsed, lanes.used) == (1_001, 0)


def test_the_places_of_slow_agents_are_kept_for_as_long_as_these_usually_take() -> None:
    lanes: Credits[str] = Credits(1, 1)
    now = 0.0
    for _ in range(50):
        lanes.want("slow", 5_000, now)
        assert list(lanes.grants(now)) == ["slow"]
        now += 2.0
        assert lanes.use("slow", 5_000, now)
        lanes.acknowledged("slow")
    overdue = lanes.overdue
    lanes.want("slow", 5_000, now)
    lanes.want("other", 5_000, now)
    assert list(lanes.grants(now)) == ["slow"]
    assert list(lanes.grants(now + 3.0)) == []
    assert lanes.overdue == overdue


def test_one_batch_may_come_after_its_credit_has_lapsed() -> None:
    lanes: Credits[str] = Credits(1, 1)
    lanes.want("a", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a"]
    assert not lanes.use("a", 5_001, 10 * LAPSE)
    assert lanes.use("a", 5_000, 10 * LAPSE)
    assert not lanes.use("a", 5_000, 10 * LAPSE)
    assert (lanes.lapsed, lanes.late, lanes.used) == (1, 1, 1)


def test_a_lapsed_credit_is_void_once_another_one_is_wanted() -> None:
    lanes: Credits[str] = Credits(1, 1)
    lanes.want("a", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a"]
    assert list(lanes.grants(LAPSE + 0.1)) == []
    lanes.want("a", 100, LAPSE + 0.1)
    assert not lanes.use("a", 5_000, LAPSE + 0.1)


async def test_late_batches_wait_while_too_many_are_unacknowledged() -> None:
    lanes: Credits[str] = Credits(2, 1)
    names = [f"a{number}" for number in range(6)]
    now = 0.0
    for name in names:
        lanes.want(name, 5_000, now)
        assert list(lanes.grants(now)) == [name]
        now += 2 * LAPSE
    for name in names[:4]:
        await lanes.room(name, now)
        assert lanes.use(name, 5_000, now)
    waiting = asyncio.create_task(lanes.room(names[4], now))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    lanes.acknowledged(names[0])
    await waiting
    assert lanes.use(names[4], 5_000, now)
    assert lanes.used == 4, "twice the places"
    waiting = asyncio.create_task(lanes.room(names[5], now))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    lanes.clear()
    await waiting


def test_an_agent_that_is_held_is_passed_over_and_keeps_its_turn() -> None:
    held = {"a"}
    lanes: Credits[str] = Credits(1, 1, lambda name: name not in held)
    lanes.want("a", 5_000, 0.0)
    lanes.want("b", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == ["b"]
    assert lanes.waiting == 1
    held.clear()
    assert lanes.use("b", 5_000, 0.0)
    lanes.acknowledged("b")
    assert list(lanes.grants(0.0)) == ["a"]


def test_the_batches_of_an_ended_session_keep_their_places() -> None:
    lanes: Credits[str] = Credits(1, 1)
    lanes.want("a", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == ["a"]
    assert lanes.use("a", 5_000, 0.0)
    lanes.forget("a")
    lanes.want("b", 5_000, 0.0)
    assert list(lanes.grants(0.0)) == []
    lanes.acknowledged("a")
    assert list(lanes.grants(0.0)) == ["b"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["want", "grants", "use", "acknowledged", "forget", "clear", "wait"]),
                  st.sampled_from("abcde"), st.integers(1, 9_000)),
        max_size=80,
    )
)  # fmt: skip
def test_no_sequence_of_messages_takes_more_than_all_places_and_as_many_late_ones(
    steps: list[tuple[str, str, int]],
) -> None:
    lanes: Credits[str] = Credits(3, 2)
    now, on_their_way = 0.0, []
    for step, name, size in steps:
        match step:
            case "want":
                lanes.want(name, size, now)
            case "grants":
                list(lanes.grants(now))
            case "use":
                is_held_back = lanes._is_late(name) and len(on_their_way) >= 6
                if not is_held_back and lanes.use(name, size, now):
                    on_their_way.append(name)
            case "acknowledged" if name in on_their_way:
                on_their_way.remove(name)
                lanes.acknowledged(name)
            case "forget":
                lanes.forget(name)
            case "clear":
                lanes.clear()
                on_their_way.clear()
            case "wait":
                now += LAPSE / 2
        assert len(on_their_way) <= lanes.used <= 6
        assert lanes.used <= 3 or lanes.used == len(on_their_way), "only batches that are late exceed the places"
        assert all(on_their_way.count(each) <= 2 for each in on_their_way)


def test_an_agent_may_save_up_and_then_has_to_wait() -> None:
    allowance = Allowance(10.0, 0.0, 0.0)
    assert allowance.spend(int(10 * BURST_SECONDS), 10**9, 0.0) == 0
    assert allowance.spend(20, 0, 0.0) == 2.0
    assert allowance.spend(0, 0, 2.0) == 0
    assert allowance.spend(int(10 * BURST_SECONDS), 0, 10_000.0) == 0, "nobody saves up more than that"
    assert allowance.spend(10**6, 0, 10_000.0) == DELAY_SECONDS_MAX


def test_bytes_are_limited_as_well_and_zero_is_no_limit() -> None:
    assert Allowance(0.0, 100.0, 0.0).spend(10**6, 1_500, 0.0) == 5.0
    assert Allowance(0.0, 0.0, 0.0).spend(10**6, 10**9, 0.0) == 0
