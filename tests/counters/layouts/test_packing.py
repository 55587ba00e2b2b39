"""How calls and answers are packed: what Python says, Lua reads, and the other way round."""

from __future__ import annotations

import re
import struct
from dataclasses import astuple, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.model import INTEGER_MAX, PARTITIONS, Scope, Verdict
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.connection import encode_script
from gateway.counters.redis.scripts import DIGEST_LENGTH, VERBS, library
from tests.builders import CHAT

INTEGERS = st.integers(-INTEGER_MAX, INTEGER_MAX)
KINDS = [states.KeyState, states.UserState, states.TenantState, states.OrganizationState]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_states_survive_packing(kind: Any, data: st.DataObject) -> None:
    numbers = (data.draw(st.integers(0, 255)), *(data.draw(INTEGERS) for _ in fields(kind)[1:]))
    assert astuple(states.unpack(kind, states.pack(kind(*numbers)))) == numbers


def test_a_hold_carries_its_users_name() -> None:
    hold = states.HoldState(flags=1, tokens=5, created=7)
    packed = states.pack(hold) + "ünï".encode()
    assert states.unpack_hold(packed) == (hold, "ünï", b"")
    assert states.unpack_hold(packed + b"\0\0tiers") == (hold, "ünï", b"\0tiers")


@pytest.mark.parametrize(
    ("state", "blocked"),
    [
        (states.TenantState(flags=states.MANUAL_BLOCK), True),
        (states.TenantState(total=100), False),
        (states.TenantState(flags=states.HAS_PLAN, total=100, limit=1), False),
        (states.TenantState(flags=states.HAS_PLAN, total=100, limit=0), True),
        (states.TenantState(flags=states.HAS_PLAN, total=100, limit=-5, overage_policy=1), True),
        (states.TenantState(flags=states.HAS_PLAN, total=100, limit=-5, overage_policy=2), False),
        (states.TenantState(flags=states.HAS_PLAN, total=-1), False),
    ],
)
def test_who_is_blocked(state: states.TenantState, blocked: bool) -> None:
    assert state.is_blocked is blocked


@given(st.binary(min_size=40, max_size=40), st.integers(1, 2**31), st.integers(0, INTEGER_MAX))
def test_markers_survive_packing(run_id: bytes, epoch: int, catalogue: int) -> None:
    assert packing.read_marker(packing.marker(run_id, epoch, catalogue)) == (run_id, epoch, catalogue)


def test_no_marker_is_nobodys() -> None:
    assert packing.read_marker(b"") == (b"", 0, 0)


@pytest.mark.parametrize("verdict", [Verdict.UNVERIFIED, Verdict.STALE, Verdict.UNKNOWN_ACCOUNT])
def test_a_bare_answer_is_a_verdict(verdict: Verdict) -> None:
    assert packing.decision(struct.pack("<d", verdict), CHAT).verdict is verdict


@given(st.lists(st.tuples(INTEGERS, INTEGERS, st.integers(0, 2), INTEGERS, INTEGERS), max_size=5))
def test_an_answer_of_extend_is_five_numbers_a_call(calls: list[tuple[int, int, int, int, int]]) -> None:
    answer = struct.pack("<d", 1) + b"".join(struct.pack("<5d", *one) for one in calls)
    assert packing.extended(answer) == calls


def test_a_refusal_names_scope_and_limit() -> None:
    answer = struct.pack("<14q", Verdict.RATE_LIMITED, 1000, Scope.USER, 1, 5, 5, 2000, *[0] * 7)
    decision = packing.decision(answer, CHAT)
    assert (decision.verdict, decision.scope, decision.kind) == (Verdict.RATE_LIMITED, 2, 1)
    assert (decision.used, decision.limit, decision.until_ms, decision.now_ms) == (5, 5, 2000, 1000)


# --- names ------------------------------------------------------------------------------


@given(st.integers(1, 2**62))
def test_an_organization_has_one_partition_for_ever(organization_id: int) -> None:
    assert 0 <= keys.partition_of(organization_id) < PARTITIONS


def test_partitions_are_those_written_down() -> None:
    """CRC16 (XMODEM) of the decimal id: a change would lose every account."""
    assert keys.partition_of(123456789) == 0x31C3 % 64  # the check value of this CRC
    assert [keys.partition_of(one) for one in (1, 2, 3, 1000, 2**53)] == [50, 17, 48, 62, 53]


def test_partitions_are_used_evenly() -> None:
    count = [0] * PARTITIONS
    for organization_id in range(1, 6401):
        count[keys.partition_of(organization_id)] += 1
    assert max(count) < 2 * min(count)


@pytest.mark.parametrize("user", ["ann", "a:b", "{p01}", "ü" * 128, "\r\n"])
def test_a_users_name_never_reaches_a_keys_name(user: str) -> None:
    name = keys.user_state(3, 7, user)
    assert name.startswith("tk:{p03}:u:7:")
    assert name.isascii()
    assert name != keys.user_state(3, 7, user + "x")


# --- scripts ----------------------------------------------------------------------------


def test_every_verb_is_one_function_of_a_library_named_by_its_text() -> None:
    made = library()
    assert made is library()
    assert list(made.functions) == list(VERBS)
    digest = made.name.removeprefix("tollkeeper_")
    assert len(digest) == DIGEST_LENGTH
    assert all(name == f"tk_{verb}_{digest}" for verb, name in made.functions.items())
    assert made.text.startswith(f"#!lua name={made.name}\n")


def test_only_peek_writes_nothing_and_what_callers_make_needs_memory() -> None:
    flags = dict(re.findall(r"callback=verbs\['(\w+)'\], flags=\{(.*?)\}", library().text))
    assert flags.pop("peek") == "'no-writes'"
    assert [flags.pop(verb) for verb in ("reserve", "run", "note", "grow")] == [""] * 4
    assert set(flags.values()) == {"'allow-oom'"}


def test_a_verb_without_a_script_is_refused() -> None:
    with pytest.raises(KeyError):
        encode_script("nothing", (), ())
