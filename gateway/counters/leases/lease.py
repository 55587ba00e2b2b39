"""What is set aside for one gateway: how `lease` is asked for it and what it answers.

Pure. `Share` is one account's part, in tokens or credits: `kept` is what the gateway still counts
on, `spent` what it used of that and nobody has charged yet, `handed` what of that has come into
the late queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gateway.core.model import Caller
from gateway.counters.layouts import table
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys

MILLION = 1_000_000
GIVE_BACK, IF_OVER = 0, -1
LEASED, NONE, RENEWED, UNVERIFIED, UNKNOWN = 1, 2, 3, 0, -2


class Share(NamedTuple):
    """One account's part of a lease, as the gateway sees it."""

    kept: int = 0
    spent: int = 0
    handed: int = 0


NOTHING = Share()


@dataclass(frozen=True, slots=True)
class Leased:
    """What a gateway may count on. `tokens` is None where nothing limits them.

    `strict` and `cuts` are the plan's; `capped` says that a spend cap limits the organization;
    `charged` that all it said to have handed in is charged by now; `plan_id` is the plan.
    """

    tokens: int | None
    credits: int
    strict: bool
    cuts: bool
    capped: bool
    charged: bool
    plan_id: int = 0


def lease(
    run_id: bytes, caller: Caller, lease_id: str, ttl_ms: int, *, fraction: float = 0.0,
    tokens: Share = NOTHING, credits_: Share = NOTHING,
) -> Call:  # fmt: skip
    """Keys and arguments of `lease`; a `ttl_ms` of GIVE_BACK or IF_OVER ends it."""
    p = caller.partition
    return (
        keys.deadlines(p),
        keys.outbox(p),
        keys.late(p),
        keys.marker(p),
        keys.hold(p, lease_id),
        keys.tenant_state(p, caller.tenant_id),
        keys.organization_state(p, caller.organization_id),
    ), (table.LEASE.pack(run_id, ttl_ms, round(fraction * MILLION), *tokens, *credits_, lease_id.encode()),)


def leased(answer: bytes) -> Leased | None:
    """The answer of `lease`; None where there is no lease or nobody can know."""
    if len(answer) != table.LEASED.size:
        return None
    found = table.LEASED.read(answer)
    strict, cuts, capped, charged = (bool(found[name]) for name in ("strict", "cuts", "capped", "charged"))
    tokens = None if found["tokens"] < 0 else found["tokens"]
    return Leased(tokens, found["credits"], strict, cuts, capped, charged, found["plan_id"])
