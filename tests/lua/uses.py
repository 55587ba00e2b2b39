"""Use that a control write tells: a settlement without a hold, and without an entry in the late queue."""

from __future__ import annotations

from typing import Any

from gateway.core.model import Settlement, SettleResult
from gateway.counters.layouts import packing
from tests.builders import TOMBSTONE_MS, Call


def tell(
    call: Call, tokens: int = 0, *, used_ms: int, mode: int = packing.MODE_POST, **used: Any
) -> SettleResult:
    """Charge what a call is told to have used at a moment."""
    request = call.request
    settlement = Settlement(
        request.caller, request.request_id, request.user, request.service, charge=True, tokens=tokens,
        budgets=tuple(one.name for one in request.budgets), **used,
    )  # fmt: skip
    asked = packing.settle(
        call.world.run_id, TOMBSTONE_MS, settlement, mode, b"%d" % used_ms,
        definitions=tuple(one.defined for one in request.budgets),
    )  # fmt: skip
    return SettleResult(packing.code_of(call.world.run("settle", asked)))
