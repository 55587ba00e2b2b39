"""What an account's next reset forgives is known again once the account is rebuilt."""

from __future__ import annotations

import pytest

from gateway.counters.layouts.states import FORGIVES
from tests.background.backend import backend_at
from tests.background.verifying.test_verifier import START, restarted


@pytest.mark.parametrize("how", ["moved", "edited", "moved and reset"])
async def test_a_rebuilt_account_knows_what_its_next_reset_forgives(
    own_valkey: START, migrated: str, how: str
) -> None:
    """Debt that was owed for with a plan before, or before its plan carried."""
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        world = await backend.settle_in(1000, reset_interval="monthly", overage_policy="block")
        world.reserve(need=10).settle(tokens=1300)
        await backend.flush()
        if how == "edited":
            [(plan_id,)] = [tuple(row.values()) for row in backend.rows("SELECT plan_id FROM tenant")]
            await backend.write("token-plans", "change", plan_id, overage_policy="carry")
        else:
            terms = {"total_amount": 500, "reset_interval": "monthly", "overage_policy": "carry"}
            plan = await backend.made("token-plans", name="carries", **terms)
            await backend.write("tenants", "change", world.caller.tenant_id, plan_id=plan)
        await backend.push()
        if "reset" in how:
            await backend.write("tenants", "reset", world.caller.tenant_id)
            await backend.push()
        await backend.flush()
        assert bool(world.tenant.flags & FORGIVES) is ("reset" not in how)
        before = world.tenant.flags
        async with restarted(server, backend):
            pass
        await backend.verify()
        assert world.again().tenant.flags == before
