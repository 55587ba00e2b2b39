"""Definitions of a partition that are written in bulk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.accounts.definitions import (
    KeyDefinition,
    NegotiatedTerms,
    OrganizationDefinition,
    OrganizationTerms,
)
from gateway.core.model import Caller, Limits
from gateway.counters.admission.stored import encode_identity, encode_terms
from gateway.counters.keeper.bulk import BulkLoader
from gateway.counters.redis import keys
from tests.builders import World
from tests.counters.conftest import Connect

KEY = KeyDefinition(3, 7, 1, "d" * 64, Limits(concurrency=2), "ann", frozenset({"m"}))


def as_caller(key: KeyDefinition) -> Caller:
    partition = keys.partition_of(key.organization_id)
    return Caller(key.organization_id, key.tenant_id, key.key_id, partition, key.user, key.models)


async def test_identities_writes_one_command_for_each_slot(world: World, connect: Connect) -> None:
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
    # A second run writes no key that is there, and deletes none that is gone.
    world.client.config_resetstat()
    await filling.identities(all_of)
    asked = world.client.info("commandstats")
    assert not asked.keys() & {f"cmdstat_{verb}" for verb in ("mset", "set", "del")}


@pytest.mark.parametrize("stored", [b"{", b"[]", b'{"version":"x"}', b"\xff"])
async def test_bulk_loader_overwrites_unreadable_terms_and_identities(
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
