"""Control writes, definitions, identities and the catalogue, as the keeper writes them to Redis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
from gateway.core.model import INTEGER_MAX, PARTITIONS, Limits, Verdict
from gateway.counters.admission.stored import encode_identity, encode_terms
from gateway.counters.keeper.control_writes import ControlClient
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange
from tests.builders import CHAT, NO_LIMITS, UNITS, World, new_id
from tests.counters.conftest import Connect

KEY = KeyDefinition(3, 7, 1, "d" * 64, Limits(concurrency=2), "ann", frozenset({"m"}))


@pytest.fixture
async def control(world: World, connect: Connect) -> ControlClient:
    return ControlClient(await connect(world.url))


def write(verb: str, position: int = 1, **payload: Any) -> ControlWrite:
    return ControlWrite(new_id(), position, "tenant:7", verb, payload, tenant_id=7, organization_id=1)


# --- writes -----------------------------------------------------------------------------


async def test_apply_moves_account_in_direction_of_write(world: World, control: ControlClient) -> None:
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


async def test_apply_adds_credits_to_organization(world: World, control: ControlClient) -> None:
    one = ControlWrite(new_id(), 1, "organization:1", "credits", {"amount": 70}, organization_id=1)
    assert await control.apply(one) is True
    assert world.organization.balance == 70


async def test_apply_returns_false_for_unknown_account(world: World, control: ControlClient) -> None:
    assert await control.apply(replace(write("recharge", amount=1), tenant_id=99)) is False
    tenant = TenantDefinition(99, 1, NO_LIMITS, NO_LIMITS, PlanTerms(), has_ledger=True)
    assert await control.apply(replace(write("define"), definitions=(tenant,))) is False
    assert (
        await control.apply(replace(write("define"), definitions=(replace(tenant, has_ledger=False),)))
        is True
    )


async def test_apply_raises_out_of_range_above_exact_integers(world: World, control: ControlClient) -> None:
    world.plan(INTEGER_MAX)
    with pytest.raises(OutOfRange):
        await control.apply(write("recharge", amount=1))


async def test_apply_is_unavailable_in_unverified_partition(world: World, control: ControlClient) -> None:
    world.client.delete(keys.marker(world.p))
    for one in (write("recharge", amount=1), replace(write("define"), definitions=(KEY,))):
        with pytest.raises(CountersUnavailable):
            await control.apply(one)


async def test_sweep_returns_whether_quota_was_reset(world: World, control: ControlClient) -> None:
    world.plan(100, reset_interval="daily")
    assert await control.sweep(7, 1) is False
    world.put_tenant(next_reset=world.now_ms() // 86_400_000 * 86_400_000)
    assert await control.sweep(7, 1) is True


# --- definitions ------------------------------------------------------------------------


async def test_define_writes_state_and_identity_of_key(world: World, control: ControlClient) -> None:
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


async def test_define_keeps_newer_terms_of_organization(world: World, control: ControlClient) -> None:
    newer, older = (OrganizationTerms((NegotiatedTerms(2, credits_),)) for credits_ in (6, 7))
    for terms, version in ((newer, 9), (older, 8)):
        assert await control.define(OrganizationDefinition(1, NO_LIMITS, terms=terms), version) is True
        assert world.get(keys.organization_terms(1)) == encode_terms(9, newer)


async def test_define_restores_newer_terms_written_meanwhile(
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


async def test_newest_overwrites_older_value_that_replaced_another_type(
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


async def test_publish_is_refused_without_right_to_read_catalogue(world: World, connect: Connect) -> None:
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


async def test_define_publishes_catalogue_and_marks_all_partitions(
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


async def test_define_keeps_newer_catalogue(world: World, control: ControlClient) -> None:
    """Markers ask for the newer one: with the older in its place no call would be served."""
    for partition in range(PARTITIONS):
        world.client.set(keys.marker(partition), packing.marker(world.run_id, 3, 9))
    await control.publish(CatalogueDefinition((CHAT, UNITS)), 9)
    newer = world.get(keys.CATALOGUE)
    assert await control.define(CatalogueDefinition((CHAT,)), 8) is True
    assert world.get(keys.CATALOGUE) == newer
    assert packing.read_marker(world.get(keys.marker(0)))[2] == 9


async def test_define_is_unavailable_for_catalogue_where_partitions_are_unverified(
    world: World, control: ControlClient
) -> None:
    with pytest.raises(CountersUnavailable):
        await control.define(CatalogueDefinition((CHAT,)), 8)
