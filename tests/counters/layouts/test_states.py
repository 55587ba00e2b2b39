"""What another version has stored: the layout before is read, a newer one is left where it is, and told.

`unnumbered.json` was recorded from the version that stored no numbers yet, on a real server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.layout import EARLIER, FIRST, LAYOUT, UnknownLayout
from gateway.core.model import PARTITIONS, HoldRequest, Service, SettleResult, Verdict
from gateway.counters.keeper.client import KINDS
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.late import late_settlement, read_entry
from gateway.counters.layouts import packing, states
from gateway.counters.leases import allowance
from gateway.counters.redis import keys
from gateway.counters.redis.calls import NEWER_CODE
from gateway.counters.settlement_log.log import BLOCK_BYTES, HEADER_BYTES, RECORD_BYTES
from gateway.counters.settlement_log.settlement_record import partition_of, unpack
from tests.builders import BY_TOKEN, CHAT, ONE_TIME, TTL_MS, Call, World
from tests.counters.conftest import Connect
from tests.counters.segments import contents_of
from tests.older_layouts import stored_before

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "unnumbered.json").read_text())
STRINGS = {name: bytes.fromhex(packed) for name, packed in RECORDED["strings"].items()}
IDS: dict[str, str] = RECORDED["ids"]
TIERED = Service(
    id=4, key="search", meter="pay_per_use", counts_tokens=False,
    pricing=ServicePricing(tiers=(PriceTier(10, Decimal("0.001")), PriceTier(None, Decimal("0.0008")))),
)  # fmt: skip
UNPACK: dict[str, Callable[[bytes], Any]] = {
    "k": partial(states.unpack, states.KeyState),
    "u": partial(states.unpack, states.UserState),
    "t": partial(states.unpack, states.TenantState),
    "o": partial(states.unpack, states.OrganizationState),
    "a": partial(states.unpack, states.ActivationState),
    "h": lambda packed: states.unpack_hold(packed)[0],
}


def kind_of(name: str) -> str:
    return name.split(":")[2]


@pytest.fixture
def before(world: World) -> World:
    """What the version before has left, in a partition that it has verified."""
    world.client.flushall()
    world.load_library()
    for name, packed in STRINGS.items():
        world.client.set(name, of_this_month(packed))
    world.client.zadd(keys.deadlines(world.p), RECORDED["deadlines"])
    world.client.set(keys.marker(world.p), unnumbered_marker(world))
    world.catalogue = 1
    return world


@pytest.fixture
def ours(before: World) -> World:
    """The same, once the partition is this version's."""
    before.client.set(keys.marker(before.p), packing.marker(before.run_id, 1, 1))
    return before


def of_this_month(packed: bytes) -> bytes:
    """Return a recorded value as it would be stored in this month: its plan resets a year ahead."""
    quota = RECORDED["read"]["tk:{p50}:t:7"]
    now = datetime.now(UTC)
    ahead = (now.timestamp() // 1 + 366 * 86_400) * 1_000
    month = RECORDED["read"]["tk:{p50}:o:1"]["month"]
    for before, after in ((quota["next_reset"], ahead), (month, now.year * 12 + now.month)):
        packed = packed.replace(struct.pack("<d", before), struct.pack("<d", after))
    return packed


def unnumbered_marker(world: World) -> bytes:
    return struct.pack("<40sdd", world.run_id, 1, 1)


def call(world: World, name: str, service: Service = CHAT, user: str = "") -> Call:
    """One that was in flight."""
    request = HoldRequest(world.caller, IDS[name], user, service, 0, 0)
    return Call(world, request, packing.decision(struct.pack("<d", 0), service))


@pytest.mark.parametrize("name", RECORDED["read"])
def test_the_layout_before_is_read(name: str) -> None:
    read = UNPACK[kind_of(name)](STRINGS[name])
    recorded = RECORDED["read"][name]
    assert {one: getattr(read, one) for one in recorded} == recorded
    moved = {"limit": ("remaining",), "credits_used": ("balance",)}  # what was recorded by another name
    new = {one for one in asdict(read) if not {one, *moved.get(one, ())} & {*recorded}}
    blank = type(read)()  # a field that it could not have has its default
    assert {one: getattr(read, one) for one in new} == {one: getattr(blank, one) for one in new}


@pytest.mark.parametrize("number", range(FIRST, LAYOUT))
@pytest.mark.parametrize("total", [-1, 100])
def test_windows_of_every_layout_before_are_read_alike(world: World, number: int, total: int) -> None:
    """By Python and by the scripts: `peek` shows what these make of it."""
    world.grant("credits", 70)
    world.define_organization(credit_limit=9, cap=8)
    world.plan(90, reset_interval="monthly", overage_policy="bill")
    world.put_tenant(total=total, used=30, remaining=65, held=4, ledger_at=5, last_reset=6)
    world.put_organization(spent=3, spend_held=2, month=24_000, spend_seq=1, credits_held=11)
    for kind, name, state in (
        (3, world.tenant_key, world.tenant), (4, world.organization_key, world.organization),
    ):  # fmt: skip
        older = stored_before(number, state)
        world.client.set(name, older)
        assert older != states.pack(state)
        assert states.unpack(type(state), older) == state
        shown = states.unpack(type(state), world.peek(kind, name)[0])
        assert replace(shown, at=state.at) == state


def test_a_hold_of_before_has_its_user_and_tiers() -> None:
    _, user, tiers = states.unpack_hold(STRINGS[f"tk:{{p50}}:h:{IDS['units']}"])
    assert (user, len(tiers)) == ("ünï", 48)


def test_calls_of_before_end_as_they_would_have(ours: World) -> None:
    remaining, balance = ours.tenant.remaining, ours.organization.balance
    assert call(ours, "tokens", user="ann").settle(tokens=60) is SettleResult.DONE
    assert call(ours, "own", user="own").settle(tokens=10) is SettleResult.DONE
    assert call(ours, "one_time", ONE_TIME).settle(credits=50) is SettleResult.DONE
    assert call(ours, "units", TIERED, "ünï").settle(units=12) is SettleResult.DONE
    assert call(ours, "by_token", BY_TOKEN).settle(credits=7) is SettleResult.DONE
    assert call(ours, "reclaimed").settle(tokens=12) is SettleResult.RECLAIMED
    assert ours.late()[-1][b"charged"] == b"11"
    given_back = allowance.lease(ours.run_id, ours.caller, IDS["lease"], allowance.GIVE_BACK)
    assert packing.code_of(ours.run("lease", given_back)) == allowance.NONE
    # One call's hold was forgotten before: its slots and three tokens.
    assert ours.slots("ann") == [1, 0, 1, 1]
    assert (ours.tenant.held, ours.tenant.remaining) == (3, remaining - 70)
    organization = ours.organization
    assert (organization.credits_held, organization.balance) == (0, balance - 57)
    # Eight units were settled before: two more at the first price, ten at the second.
    assert (organization.spend_held, organization.spent) == (0, 8_000 + 2_000 + 8_000)
    stored = [ours.get(name) for name in STRINGS if kind_of(name) in "ktoa"]
    assert {packed[0] for packed in stored} == {LAYOUT}


def test_calls_of_before_are_kept_and_raised(ours: World) -> None:
    held = ours.tenant.held
    assert call(ours, "tokens").extend(100, 50) == (150, 0)
    raised = call(ours, "own", user="own").raised(30)
    assert raised.verdict is Verdict.ADMITTED
    assert ours.tenant.held == held + 50 + 20
    hold = raised.hold
    assert hold is not None
    assert hold.tokens == 30


def test_accounts_of_before_admit_are_granted_defined_and_shown(ours: World) -> None:
    ours.version = ours.tenant.version
    user_limits = ours.tenant.user_rpm, ours.tenant.user_tpm, ours.tenant.user_concurrency
    assert states.unpack(states.TenantState, ours.peek(3, ours.tenant_key)[0]).held == ours.tenant.held
    inflight = ours.key.inflight
    assert ours.reserve(need=10, user="new").verdict is Verdict.ADMITTED
    assert ours.key.inflight == inflight + 1
    new = ours.user("new")
    assert (new.rpm, new.tpm, new.concurrency) == user_limits
    total = ours.tenant.remaining
    assert ours.grant("recharge", 5).code == 1
    assert ours.tenant.remaining == total + 5
    balance = ours.organization.balance
    assert ours.define_organization(cap=7) == 1
    assert (ours.organization.balance, ours.organization.cap) == (balance, 7)


def test_what_a_worker_kept_on_disk_before_is_read() -> None:
    data = bytes.fromhex(RECORDED["segment"])
    contents = contents_of(data)
    assert (contents.understood, len(contents.waiting)) == (True, 1)
    arguments = data[HEADER_BYTES + BLOCK_BYTES + RECORD_BYTES :]
    kept = unpack(arguments)
    assert (kept.caller.tenant_id, kept.tokens, kept.user, kept.request_id) == (7, 42, "ann", IDS["tokens"])
    assert (kept.attribution, kept.metadata) == ("c\tp\t2", b'{"m":1}')
    assert partition_of(arguments) == keys.partition_of(1)


def test_what_waits_in_a_late_lane_since_before_is_read() -> None:
    fields = [
        part for name, value in RECORDED["late"][0].items() for part in (name.encode(), bytes.fromhex(value))
    ]
    entry = read_entry([b"5-0", cast("Any", fields)])
    assert entry is not None
    late = late_settlement(entry)
    used = late.settlement
    assert (used.caller.organization_id, used.caller.key_id, used.tokens, late.charged) == (1, 3, 4, 0)
    assert used.request_id == IDS["late"]


# --- whose a partition is ---------------------------------------------------------------------


def test_a_partition_of_the_version_before_is_not_served(before: World) -> None:
    everything = before.everything()
    assert before.reserve(need=1).verdict is Verdict.UNVERIFIED
    assert call(before, "tokens", user="ann").settle(tokens=1) is SettleResult.UNVERIFIED
    assert before.grant("recharge", 5).code == 0
    assert before.everything() == everything


async def test_a_keeper_takes_it_over_as_it_is(before: World, connect: Connect) -> None:
    keeper = KeeperCounters(await connect(before.url))
    found = await keeper.markers()
    assert (found.verified[before.p], found.closed) == (1, {})
    assert before.get(keys.marker(before.p)) == packing.marker(before.run_id, 1, 1, EARLIER)
    assert before.reserve(need=1).verdict is Verdict.ADMITTED


@pytest.mark.parametrize(("layout", "all_read_it"), [(EARLIER, False), (EARLIER, True), (LAYOUT, True)])
async def test_a_partition_is_taken_up_once_all_read_todays_layout(
    world: World, connect: Connect, layout: int, *, all_read_it: bool
) -> None:
    keeper = KeeperCounters(await connect(world.url), takes_up=lambda: all_read_it)
    before = packing.marker(bytes(40), 1, 1, layout)
    world.client.set(keys.marker(world.p), before)
    everything = world.everything()
    after = await keeper.take_up_layout(world.p, before, is_needed=False)
    assert after == packing.marker(bytes(40), 1, 1, LAYOUT if all_read_it else EARLIER)
    assert world.get(keys.marker(world.p)) == after
    assert (world.everything() == everything) is (after == before)
    assert await keeper.take_up_layout(world.p, b"other", is_needed=True) is None


async def test_a_partition_of_a_newer_version_is_left_alone(world: World, connect: Connect) -> None:
    newer = bytes([LAYOUT + 1]) + packing.marker(world.run_id, 1, 1)[1:] + b"more"
    world.client.set(keys.marker(world.p), newer)
    everything = world.everything()
    assert world.reserve(need=1).verdict is Verdict.UNVERIFIED
    keeper = KeeperCounters(await connect(world.url))
    found = await keeper.markers()
    assert (found.others, world.p in found.verified) == ([world.p], False)
    assert found.unverified == [(p, b"", 0) for p in range(PARTITIONS) if p != world.p]
    assert keeper.left_alone.figures() == {"left_alone": figures_of(partition=1)}
    assert world.everything() == everything


def figures_of(**found: int) -> list[list[object]]:
    return [[kind, found.get(kind, 0)] for kind in KINDS]


@pytest.mark.parametrize("which", ["tenant", "organization", "key", "user", "hold"])
def test_what_a_newer_version_has_stored_is_left_where_it_is(world: World, which: str) -> None:
    world.define_user("ann", packing.Limits(concurrency=9))
    admitted = world.reserve(need=5, user="ann")
    name = {
        "tenant": world.tenant_key, "organization": world.organization_key, "key": world.api_key,
        "user": world.user_key("ann"), "hold": keys.hold(world.p, admitted.id),
    }[which]  # fmt: skip
    newer = bytes([LAYOUT + 1]) + world.get(name)[1:] + bytes(8)
    world.client.set(name, newer)
    everything = world.everything()
    with pytest.raises(redis.ResponseError, match=f"^{NEWER_CODE}.* of layout {LAYOUT + 1}"):
        admitted.settle(tokens=5)
    with pytest.raises(redis.ResponseError, match=f"^{NEWER_CODE}.* of layout {LAYOUT + 1}"):
        admitted.raised(7) if which == "hold" else world.reserve(need=1, user="ann", ttl_ms=TTL_MS)
    with pytest.raises(UnknownLayout):
        UNPACK[kind_of(name)](newer)
    assert world.everything() == everything
