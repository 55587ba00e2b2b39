"""Ids are given once, also behind a PostgreSQL that was set back while Redis went on."""

from __future__ import annotations

from tests.background.backend import Backend, backend_at
from tests.background.flushing.test_rollbacks import older_copy

# Each set-back moves ids by so much beyond all that Redis knows.
AHEAD = 1_000_000


async def ids_of_new(backend: Backend) -> dict[str, int]:
    """Create an organization with a tenant, a budget and a key, and push them; return their ids."""
    organization = await backend.made("organizations", name="new")
    tenant = await backend.made("tenants", name="new", organization_id=organization)
    budget = await backend.made(
        "budgets", organization_id=organization, name="new", unit="tokens", amount=1_000, interval="month"
    )
    key = await backend.made("api-keys", tenant_id=tenant, name="new", digest="a" * 64, prefix="tk_test")
    await backend.push()
    return {"organization": organization, "tenant": tenant, "budget": budget, "api_key": key}


async def test_ids_go_on_above_those_that_redis_knows_behind_a_database_set_back_twice(
    valkey: str, migrated: str
) -> None:
    async with backend_at(valkey, migrated) as backend:
        await backend.settle_in()
        await backend.push()
    with older_copy(migrated) as older:
        async with backend_at(valkey, migrated) as backend:
            lost = await ids_of_new(backend)
        for _ in range(2):
            with older_copy(older) as once:
                async with backend_at(valkey, once) as backend:
                    given = await ids_of_new(backend)
                    assert {name for name in lost if given[name] <= lost[name] + AHEAD} == set()
                    # Only the first write moves them.
                    again = await backend.made("organizations", name="another")
                    assert again == given["organization"] + 1
                lost = given
