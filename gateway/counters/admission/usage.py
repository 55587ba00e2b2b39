"""The rest of each limit of an API key, for `GET /.tollkeeper/usage`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, cast

import msgspec

from gateway.core.accounts.budget_amounts import render_amount
from gateway.core.accounts.budget_balances import BudgetBalance, LiveWindow, compute_balance
from gateway.core.accounts.budgets import OTHERS, Budget, owner_in
from gateway.core.accounts.call_budgets import CallerBudget
from gateway.core.accounts.windows import ROLLING
from gateway.core.model import Attribution, Caller, Scope
from gateway.core.times import moment_of, ms_of, rfc3339
from gateway.counters.admission.throttle import Throttle
from gateway.counters.layouts import states
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.errors import CountersUnavailable

# The budgets of an API key: their use, and when they reset.

# Budgets in one answer: of all that a caller's calls may take from, the oldest first.
BUDGETS_TOLD_MAX: Final = 100


async def budget_limits(
    wire: RedisConnection, partition: int, budgets: Sequence[CallerBudget], now_ms: int
) -> list[dict[str, object]]:
    """Return the limits of budgets as JSON values; `budgets` are the budgets of a caller."""
    budgets = budgets[:BUDGETS_TOLD_MAX]
    windows = await _windows(wire, partition, dict.fromkeys(own.account for own in budgets))
    newcomers = dict.fromkeys(own.account for own in budgets if own.account not in windows)
    if shared := {name: _shared(name) for name in newcomers if await _is_full(wire, partition, name, now_ms)}:
        windows |= await _windows(wire, partition, dict.fromkeys(shared.values()))
        budgets = [
            CallerBudget(shared[own.account], own.budget) if own.account in shared else own for own in budgets
        ]
    return [
        _budget_limit(
            budget, compute_balance(budget, now_ms, None, windows.get(name), owner_in(name), groups=groups)
        )
        for name, budget, groups in budgets
    ]


async def _windows(
    wire: RedisConnection, partition: int, names: Collection[str]
) -> dict[str, Mapping[int, LiveWindow]]:
    """Return the windows of these accounts, by name; accounts that do not exist are left out."""
    if not names:
        return {}
    raws = await wire.send(
        encode(b"MGET", *(keys.budget_account(partition, name).encode() for name in names))
    )
    if not isinstance(raws, list):
        raise CountersUnavailable
    return {name: live_windows(cast("bytes", raw)) for name, raw in zip(names, raws, strict=True) if raw}


async def _is_full(wire: RedisConnection, partition: int, name: str, now_ms: int) -> bool:
    """Return whether the account of an owner cannot be made, as `too_many` of `lua/lib/budgets.lua` decides."""
    if not owner_in(name):
        return False
    index = keys.each_accounts(partition, name).encode()
    placed = await wire.send(encode(b"ZCOUNT", index, b"%d" % now_ms, b"+inf"))
    known = await wire.send(encode(b"ZCARD", index))
    if not isinstance(placed, int) or not isinstance(known, int):
        raise CountersUnavailable
    return placed >= states.EACH_ACCOUNTS_MAX or known >= states.EACH_KEPT_MAX


def _shared(name: str) -> str:
    """Return the account that the owners without a place share."""
    return f"{name.partition(':')[0]}:{OTHERS}"


def _budget_limit(budget: Budget, now: BudgetBalance) -> dict[str, object]:
    """Return one budget as JSON values; the amounts held by running calls are taken off the rest."""
    limit, left = now.limit_in_force, now.remaining
    more: dict[str, object] = {}
    if length := budget.form.length:
        more |= {"window": budget.window, "length": length}
    if budget.window == ROLLING:
        more["frees"] = [
            {"at": moment(at_ms), "amount": render_amount(budget.unit, amount)} for at_ms, amount in now.frees
        ]
    if budget.carry is not None:
        more["carried"] = render_amount(budget.unit, now.carried)
    return {
        "scope": "budget",
        "name": budget.name,
        "unit": budget.unit,
        "limit": None if limit is None else render_amount(budget.unit, limit),
        "limit_by": now.limit_by,
        "used": render_amount(budget.unit, now.used),
        "remaining": None if left is None else render_amount(budget.unit, max(0, left - now.held)),
        "reset_at": moment(now.resets_ms),
        "interval": budget.interval or None,
        **more,
    }


def moment(ms: int) -> str | None:
    """Return a time in ms since the epoch as RFC 3339 text; None for 0 (never)."""
    return rfc3339(moment_of(ms), "milliseconds") if ms else None


UNIT = 60_000
MILLION = 1_000_000
NOTHING_SAID: Final = Attribution()
BudgetsOf = Callable[[Caller, Attribution], Sequence[CallerBudget]]
Bucket = states.KeyState | states.UserState | states.TenantState | states.OrganizationState


class Usages:
    """Answers callers' queries about their accounts, up to a rate for each key. `clock` is monotonic seconds.

    `budgets_of` returns the budgets that a caller's calls may take from, each with its account's name.
    """

    def __init__(
        self,
        wires: RedisConnections,
        clock: Callable[[], float],
        budgets_of: BudgetsOf = lambda caller, attribution: (),
    ) -> None:
        self._wires = wires
        self._throttle = Throttle(wires, clock)
        self._budgets_of = budgets_of

    async def usage_of(self, caller: Caller, attribution: Attribution = NOTHING_SAID) -> bytes:
        """Return a caller's accounts as JSON, for the attribution `attribution`; RateLimited after many queries."""
        await self._throttle.admit(caller)
        budgets = self._budgets_of(caller, attribution)
        wire = self._wires.of(caller.partition)
        return await usage(wire, caller, caller.acts_for(attribution.user), budgets)


async def usage(
    wire: RedisConnection, caller: Caller, user: str = "", budgets: Sequence[CallerBudget] = ()
) -> bytes:
    """Return the caller's accounts as one JSON object; CountersUnavailable if they cannot be read."""
    p = caller.partition
    asked: tuple[tuple[Scope, type[Bucket], str], ...] = (
        (Scope.KEY, states.KeyState, keys.key_state(p, caller.key_id)),
        (Scope.USER, states.UserState, keys.user_state(p, caller.tenant_id, user or caller.user)),
        (Scope.TENANT, states.TenantState, keys.tenant_state(p, caller.tenant_id)),
        (Scope.ORGANIZATION, states.OrganizationState, keys.organization_state(p, caller.organization_id)),
    )
    waits = [
        wire.send(encode_script("peek", (keys.marker(p), name), (wire.run_id, b"%d" % scope)))
        for scope, _, name in asked
    ]
    scopes: dict[Scope, Bucket] = {}
    for (scope, kind, _), wait in zip(asked, waits, strict=True):
        answer = await wait
        if not isinstance(answer, list) or isinstance(answer[0], int):
            raise CountersUnavailable
        if answer[0]:
            scopes[scope] = states.unpack(kind, cast("bytes", answer[0]))
    if not scopes.keys() >= {Scope.KEY, Scope.TENANT, Scope.ORGANIZATION}:
        raise CountersUnavailable
    now = datetime.now(UTC)
    of_budgets = await budget_limits(wire, p, budgets, ms_of(now))
    tenant = cast("states.TenantState", scopes[Scope.TENANT])
    organization = cast("states.OrganizationState", scopes[Scope.ORGANIZATION])
    return msgspec.json.encode(
        {
            "organization": caller.organization_id,
            "tenant": caller.tenant_id,
            "plan": tenant.plan_id or None,
            "tokens_used": tenant.used,
            "tokens_remaining": None if tenant.unlimited else tenant.remaining,
            "next_reset_at": moment(tenant.next_reset),
            "is_blocked": tenant.is_blocked,
            "credits_remaining": organization.balance + organization.credit_limit - organization.credits_held,
            "limits": [
                *(limit for scope, state in scopes.items() for limit in _limits(scope.name.lower(), state)),
                *_spend(organization, now),
                *of_budgets,
            ],
        }
    )


def _spend(organization: states.OrganizationState, now: datetime) -> list[dict[str, object]]:
    """Return this month's Pay-Per-Use spend as decimals, with its cap if there is one."""
    month = now.year * 12 + now.month
    held = organization.spend_held
    spent = (organization.spent if organization.month >= month else 0) + held
    capped = organization.cap >= 0
    if not capped and not spent:
        return []
    # `month` counts months from January of the year 0.
    begins = datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return [
        {
            "scope": "organization",
            "name": "spend_cap",
            "limit": _money(organization.cap) if capped else None,
            "used": _money(spent),
            "remaining": _money(max(0, organization.cap - spent)) if capped else None,
            "reset_at": moment(ms_of(begins)),
        }
    ]


def _money(millionths: int) -> str:
    return f"{Decimal(millionths) / MILLION:f}"


def _limits(scope: str, state: Bucket) -> list[dict[str, object]]:
    limits: list[dict[str, object]] = []
    for name, limit, level in (
        ("requests_per_minute", state.rpm, state.requests_used),
        ("tokens_per_minute", state.tpm, state.tokens_used),
    ):
        if limit:
            limits.append(_limit(scope, name, limit, -(-level // UNIT), state.at + -(-level // limit)))
    if state.concurrency:
        limits.append(_limit(scope, "concurrency", state.concurrency, state.inflight, 0))
    return limits


def _limit(scope: str, name: str, limit: int, used: int, reset_ms: int) -> dict[str, object]:
    return {
        "scope": scope, "name": name, "limit": limit, "used": used, "remaining": max(0, limit - used),
        "reset_at": moment(reset_ms),
    }  # fmt: skip
