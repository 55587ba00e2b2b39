"""The counters as the keeper uses them: writes, definitions, identities, the catalogue, looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.budgets import DEFINED_WINDOW, LiveWindow
from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    ControlWrite,
    KeyDefinition,
    NegotiatedTerms,
    OrganizationDefinition,
    OrganizationTerms,
    TenantDefinition,
)
from gateway.core.accounts.plans import PlanTerms
from gateway.core.layout import LAYOUT
from gateway.core.model import INTEGER_MAX, PARTITIONS, Caller, Limits, Verdict
from gateway.counters.admission.stored import encode_identity, encode_terms
from gateway.counters.keeper.control import BulkLoader, ControlClient
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import WindowState, pack_windows
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange
from tests.builders import CHAT, NO_LIMITS, UNITS, World, new_id
from tests.counters.conftest import Connect
from tests.lua.windows import window

KEY = KeyDefinition(3, 7, 1, "d" * 64, Limits(concurrency=2), "ann", frozenset({"m"}))


@pytest.fixture
async def control(world: World, connect: Connect) -> ControlClient:
    return ControlClient(await connect(world.url))


def as_caller(key: KeyDefinition) -> Caller:
    partition = keys.partition_of(key.organization_id)
    return Caller(key.organization_id, key.tenant_id, key.key_id, partition, key.user, key.models)


def write(verb: str, position: int = 1, **payload: Any) -> ControlWrite:
    return ControlWrite(new_id(), position, "tenant:7", verb, payload, tenant_id=7, organization_id=1)


# --- writes -----------------------------------------------------------------------------


async def test_writes_move_the_account_in_the_direction_they_say(
    world: World, control: ControlClient
) -> None:
    terms = PlanTerms(plan_id=1, total_amount=100)
    for one in (
        replace(write("plan"), terms=terms),
        write("recharge", amount=50),
        write("adjust", amount=30, direction="OUT", reason='so "it" is'),
        write("adjust", amount=5, direction="IN"),
        write("block"),
    ):
        assert await control.apply(one) is True
        assert await control.apply(one) is True
    assert (world.tenant.remaining, world.tenant.manual_block, world.tenant.seq) == (125, True, 4)
    assert [event.metadata for event in world.events()[2:4]] == [b'{"reason":"so \\"it\\" is"}', b""]


async def test_credits_go_to_the_organization(world: World, control: ControlClient) -> None:
    one = ControlWrite(new_id(), 1, "organization:1", "credits", {"amount": 70}, organization_id=1)
    assert await control.apply(one) is True
    assert world.organization.balance == 70


async def test_an_unknown_account_has_to_wait(world: World, control: ControlClient) -> None:
    assert await control.apply(replace(write("recharge", amount=1), tenant_id=99)) is False
    tenant = TenantDefinition(99, 1, NO_LIMITS, NO_LIMITS, PlanTerms(), has_ledger=True)
    assert await control.apply(replace(write("define"), definitions=(tenant,))) is False
    assert (
        await control.apply(replace(write("define"), definitions=(replace(tenant, has_ledger=False),)))
        is True
    )


async def test_out_of_range_is_said_as_such(world: World, control: ControlClient) -> None:
    world.plan(INTEGER_MAX)
    with pytest.raises(OutOfRange):
        await control.apply(write("recharge", amount=1))


async def test_nothing_is_written_where_unverified(world: World, control: ControlClient) -> None:
    world.client.delete(keys.marker(world.p))
    for one in (write("recharge", amount=1), replace(write("define"), definitions=(KEY,))):
        with pytest.raises(CountersUnavailable):
            await control.apply(one)


async def test_a_sweep_says_whether_it_reset(world: World, control: ControlClient) -> None:
    world.plan(100, reset_interval="daily")
    assert await control.sweep(7, 1) is False
    world.put_tenant(next_reset=world.now_ms() // 86_400_000 * 86_400_000)
    assert await control.sweep(7, 1) is True


# --- definitions ------------------------------------------------------------------------


async def test_a_key_is_its_state_and_its_identity(world: World, control: ControlClient) -> None:
    name = keys.identity(KEY.digest)
    assert await control.define(KEY, 10) is True
    assert world.key.concurrency == 2
    caller = replace(world.caller, user="ann", models=frozenset({"m"}))
    assert (world.get(name), world.client.ttl(name)) == (encode_identity(caller), -1)
    expires = world.now_ms() + 60_000
    assert await control.define(replace(KEY, expires_ms=expires), 11) is True
    assert (world.client.pexpiretime(name), world.key.expires) == (expires, expires)
    assert await control.define(replace(KEY, revoked=True), 12) is True
    world.plan(10)
    assert (world.client.exists(name), world.reserve().verdict) == (0, Verdict.REVOKED)


async def test_identities_are_written_together_those_of_a_slot_in_one_command(
    world: World, connect: Connect
) -> None:
    filling, expires = BulkLoader(await connect(world.url)), world.now_ms() + 60_000
    staying = [replace(KEY, key_id=n, digest=f"{n:064x}", user=f"user {n}") for n in range(200)]
    ends = replace(KEY, key_id=300, digest="e" * 64, expires_ms=expires)
    revoked = replace(KEY, key_id=301, digest="f" * 64)
    await filling.identities([ends, revoked])
    assert world.get(keys.identity(revoked.digest)) == encode_identity(as_caller(revoked))
    # What had an end and has none any more stays.
    was_ending = replace(staying[7], expires_ms=expires)
    await filling.identity(was_ending)
    world.client.config_resetstat()
    later = replace(ends, expires_ms=expires + 1_000)
    all_of = [*staying, later, replace(revoked, revoked=True)]
    await filling.identities(all_of)
    asked = world.client.info("commandstats")
    slots = {keys.partition_of_digest(one.digest) for one in staying}
    counted = {verb: asked[f"cmdstat_{verb}"]["calls"] for verb in ("mset", "set", "del")}
    assert counted == {"mset": len(slots), "set": 1, "del": 1}
    for one in staying:
        name = keys.identity(one.digest)
        assert (world.get(name), world.client.ttl(name)) == (encode_identity(as_caller(one)), -1)
    assert world.client.pexpiretime(keys.identity(ends.digest)) == later.expires_ms
    assert not world.client.exists(keys.identity(revoked.digest))
    # What is there is not written again, and who is gone is not deleted again.
    world.client.config_resetstat()
    await filling.identities(all_of)
    asked = world.client.info("commandstats")
    assert not asked.keys() & {f"cmdstat_{verb}" for verb in ("mset", "set", "del")}


async def test_an_organizations_terms_are_written_and_older_ones_are_not(
    world: World, control: ControlClient
) -> None:
    newer, older = (OrganizationTerms((NegotiatedTerms(2, credits_),)) for credits_ in (6, 7))
    for terms, version in ((newer, 9), (older, 8)):
        assert await control.define(OrganizationDefinition(1, NO_LIMITS, terms=terms), version) is True
        assert world.get(keys.organization_terms(1)) == encode_terms(9, newer)


async def test_newer_terms_written_meanwhile_are_put_back(
    world: World, control: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = encode_terms(9, OrganizationTerms((NegotiatedTerms(2, 6),)))
    ask = control.ask_everybodys

    async def overtaken(*parts: bytes) -> Any:
        answer = await ask(*parts)
        if parts[0] == b"GET":
            world.client.set(keys.organization_terms(1), newer)
        return answer

    monkeypatch.setattr(control, "ask_everybodys", overtaken)
    assert await control.define(OrganizationDefinition(1, NO_LIMITS), 8) is True
    assert world.get(keys.organization_terms(1)) == newer


async def test_an_older_list_that_replaced_what_is_no_list_meanwhile_is_written_over(
    world: World, control: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = (encode_terms(version, OrganizationTerms()) for version in (8, 9))
    name, ask = keys.organization_terms(1), control.ask_everybodys
    world.client.delete(name)
    world.client.rpush(name, "somebody else's")

    async def overtaken(*parts: bytes) -> Any:
        answer = await ask(*parts)
        if parts[0] == b"SET" and parts[-1] != b"GET":
            world.client.set(name, older)
        return answer

    monkeypatch.setattr(control, "ask_everybodys", overtaken)
    await control.newest(name, newer, 9)
    assert world.get(name) == newer


async def test_what_this_user_may_not_read_is_neither_replaced_nor_taken_for_something_else(
    world: World, connect: Connect
) -> None:
    world.client.acl_setuser(
        "blind", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-get"]
    )
    try:
        keeper = KeeperCounters(await connect(world.url.replace("://", "://blind:any@")))
        before = world.client.get(keys.CATALOGUE)
        with pytest.raises(CountersRefused, match="NOPERM"):
            await keeper.publish(CatalogueDefinition((CHAT,)), 10**9)
        with pytest.raises(CountersRefused, match="NOPERM"):
            await keeper.published(whole=True)
        assert world.client.get(keys.CATALOGUE) == before
    finally:
        world.client.acl_deluser("blind")


async def test_the_catalogue_is_published_and_asked_for_everywhere(
    world: World, control: ControlClient
) -> None:
    for partition in range(PARTITIONS):
        world.client.set(keys.marker(partition), packing.marker(world.run_id, 3, 1))
    assert await control.define(CatalogueDefinition((CHAT, UNITS)), 8) is True
    assert b'"version":8' in world.get(keys.CATALOGUE)
    for partition in range(PARTITIONS):
        assert packing.read_marker(world.get(keys.marker(partition)))[1:] == (3, 8)
    world.plan(10)
    assert world.reserve().verdict is Verdict.STALE


async def test_an_older_catalogue_is_not_brought_over_a_newer_one(
    world: World, control: ControlClient
) -> None:
    """Markers ask for the newer one: with the older in its place no call would be served."""
    for partition in range(PARTITIONS):
        world.client.set(keys.marker(partition), packing.marker(world.run_id, 3, 9))
    await control.publish(CatalogueDefinition((CHAT, UNITS)), 9)
    newer = world.get(keys.CATALOGUE)
    assert await control.define(CatalogueDefinition((CHAT,)), 8) is True
    assert world.get(keys.CATALOGUE) == newer
    assert packing.read_marker(world.get(keys.marker(0)))[2] == 9


async def test_a_catalogue_waits_where_not_all_is_verified(world: World, control: ControlClient) -> None:
    with pytest.raises(CountersUnavailable):
        await control.define(CatalogueDefinition((CHAT,)), 8)


# --- looks ------------------------------------------------------------------------------


async def test_quotas_are_read_over_partitions_and_batches(world: World, connect: Connect) -> None:
    status = AccountHeads(await connect(world.url), batch_max=2)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    world.plan(100)
    other.plan(None)
    world.reserve(need=30)
    found = await status.peek_tenants([(world.p, 7), (world.p, 70), (world.p, 71), (other.p, 8)])
    assert (found[70], found[71]) == (None, None)
    mine, theirs = found[7], found[8]
    assert mine is not None
    assert theirs is not None
    assert (mine.tokens_remaining, mine.tokens_held, mine.cycle, mine.seq) == (100, 30, 1, 1)
    assert (theirs.tokens_remaining, theirs.is_blocked) == (None, False)
    assert await status.holds() == 1


async def test_what_nobody_can_read_is_in_no_answer_and_the_rest_is(world: World, connect: Connect) -> None:
    status = AccountHeads(await connect(world.url))
    world.plan(100)
    theirs = [keys.tenant_state(world.p, 70), keys.tenant_state(world.p, 71)]
    for name, raw in zip(theirs, (b"\x01garbage", bytes([LAYOUT + 1]) + bytes(40)), strict=True):
        world.client.set(name, raw)
    found = await status.peek_tenants([(world.p, id_) for id_ in (70, 7, 71, 72)])
    assert (found.keys(), found[72]) == ({7, 72}, None)
    assert found[7] is not None
    assert found[7].tokens_remaining == 100
    world.client.set(world.organization_key, b"\x01")
    assert await status.peek_balances([(world.p, world.caller.organization_id), (world.p, 99)]) == {99: None}
    odd, none = "a" * 16, "b" * 16
    world.client.set(keys.budget_account(world.p, odd), b"\x01")
    assert await status.peek_budgets([(world.p, odd), (world.p, none)]) == {none: None}
    assert status.left_alone.count("account") == 4


async def test_quotas_of_an_unverified_partition_are_unavailable(world: World, connect: Connect) -> None:
    world.client.delete(keys.marker(world.p))
    status = AccountHeads(await connect(world.url))
    with pytest.raises(CountersUnavailable):
        await status.peek_tenants([(world.p, 7)])


async def test_windows_of_budgets_are_read_over_partitions_and_batches(
    world: World, connect: Connect
) -> None:
    status = AccountHeads(await connect(world.url), batch_max=2)
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    hour = window(7, 100, at=(1_000, 2_000, 3_000))
    for name, one in (("a" * 16, world), ("b" * 16, world), ("c" * 16 + ":" + "d" * 24, other)):
        packed = pack_windows([WindowState(*map(int, DEFINED_WINDOW.struct.unpack(hour)), 30, 4)])
        one.client.set(keys.budget_account(one.p, name), packed)
    names = [
        (world.p, "a" * 16),
        (world.p, "b" * 16),
        (world.p, "e" * 16),
        (other.p, "c" * 16 + ":" + "d" * 24),
    ]
    found = await status.peek_budgets(names)
    assert found.pop("e" * 16) is None
    assert list(found.values()) == [{7: LiveWindow(7, used=30, held=4, start_ms=1_000)}] * 3
    assert len(found) == 3


async def test_windows_of_an_unverified_partition_are_unavailable(world: World, connect: Connect) -> None:
    world.client.delete(keys.marker(world.p))
    status = AccountHeads(await connect(world.url))
    with pytest.raises(CountersUnavailable):
        await status.peek_budgets([(world.p, "a" * 16)])


@pytest.mark.parametrize("stored", [b"{", b"[]", b'{"version":"x"}', b"\xff"])
async def test_what_nobody_can_read_is_written_over_when_its_partition_is_filled(
    world: World, connect: Connect, stored: bytes
) -> None:
    filling = BulkLoader(await connect(world.url))
    organization = OrganizationDefinition(1, Limits(), terms=OrganizationTerms((NegotiatedTerms(2, 5),)))
    of_tokens = replace(KEY, of_tokens=True)
    for name in (keys.organization_terms(1), keys.identity(KEY.digest)):
        world.client.set(name, stored)
    await filling.write_terms([organization], 4)
    await filling.identities([of_tokens])
    assert world.get(keys.organization_terms(1)) == encode_terms(4, organization.terms)
    assert world.get(keys.identity(KEY.digest)) == encode_identity(as_caller(KEY))
