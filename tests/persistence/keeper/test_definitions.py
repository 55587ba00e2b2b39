"""What the counters are told of accounts is what the ledgers have, and not what callers write."""

from __future__ import annotations

import uuid

from gateway.core.accounts.outbox import EventKind
from persistence.keeper import definitions
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.billing.test_early_use import BEGINS, BLOCKS
from tests.persistence.scenario import document

__all__ = ["april"]


async def forgives(april: April, tenant_id: int) -> bool:
    async with april.pool.connect() as connection:
        [found] = await definitions.tenants(connection, "t.id = :id", {"id": tenant_id})
    return found.forgives


async def test_only_a_change_of_plan_says_that_the_next_reset_forgives_debt(april: April) -> None:
    carries = BLOCKS | {"overage_policy": "carry"}
    small = await plan(april, "Small", "1.00", 1_000, **carries)
    ids = await customer(april, small, BEGINS, None)
    await april.on(at(4, 1))
    request_id = str(uuid.uuid4())
    april.account.consume(3_000, request_id=request_id)
    # A settlement that comes late says what its caller said.
    said = document(corrects=request_id, reason="settled late", forgives=1)
    april.account.consume(5, kind=EventKind.ADJUST, metadata=said)
    april.flush()
    assert not await forgives(april, ids["tenant"])
    blocks = await plan(april, "Blocks", "1.00", 500, **BLOCKS)
    await act(april, ids, "change", plan_id=blocks, when="now")
    await act(april, ids, "change", plan_id=small, when="now")
    assert await forgives(april, ids["tenant"])
