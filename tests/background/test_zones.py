"""A plan by its zone's clocks, from calls to an invoice: what is beyond it is billed once, by UTC days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.background.verifying.reconciler import Reconciler
from gateway.core.accounts.intervals import window_bounds
from gateway.counters.redis.keys import partition_of
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import ReconciliationResults
from tests.background.backend import Backend
from tests.persistence.scenario import broken


async def compared(backend: Backend) -> list[Any]:
    reconciler = Reconciler(
        backend.counters, Accounts(backend.engine), ReconciliationResults(backend.engine, partition_of),
        lambda: datetime.now(UTC), partition_of=partition_of, look_again_s=0.01,
    )  # fmt: skip
    return list((await reconciler.run_now())["items"])  # type: ignore[call-overload]  # a list


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue"])
async def test_what_is_beyond_a_plan_of_a_zone_is_billed_once(backend: Backend, zone: str) -> None:
    """Where one zone's day is not that of UTC, the other's is: 14 hours ahead of it, 11 behind."""
    world = await backend.settle_in(
        100, reset_interval="daily", overage_policy="bill", overage_unit_price=Decimal("0.01"),
        time_zone=zone,
    )  # fmt: skip
    begun, ends, _ = window_bounds("day", zone, 1, world.now_ms())
    assert world.tenant.next_reset == ends
    world.reserve(need=60).settle(tokens=150)
    world.put_tenant(next_reset=begun, limit=100, used=150)  # the zone's day is over
    world.reserve(need=1).settle(tokens=7)
    assert (world.tenant.cycle, world.tenant.next_reset) == (2, ends)
    await backend.flush()
    [charge] = backend.rows("SELECT quantity, amount, period_start FROM charge")
    [span] = backend.rows("SELECT min(began) AS began FROM overage_span WHERE cycle = 1")
    day = span["began"].astimezone(UTC).date()
    assert (charge["quantity"], charge["amount"]) == (50, Decimal("0.50"))
    assert charge["period_start"].astimezone(UTC).date() == day
    assert await compared(backend) == []
    asked = {"organization_id": world.caller.organization_id, "period_start": day}
    invoice = await backend.made("invoices", **asked, period_end=day + timedelta(days=1))
    await backend.write("invoices", "finalize", invoice)
    [line] = backend.rows("SELECT kind, quantity, amount FROM invoice_line")
    assert line == {"kind": "overage", "quantity": 50, "amount": Decimal("0.50")}
    assert await backend.store.unbilled(world.caller.organization_id) == []
    assert await broken(backend.database) == []
