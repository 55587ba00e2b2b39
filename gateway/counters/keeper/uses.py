"""Charges that come without a hold: use outside the gateway, amendments of calls, and late settlements.

Each settles once by its id. Quota, credits and spend move now, as for a call that settles late. Of budgets
only windows that had begun when the use happened count it; an amendment moves no budget.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import msgspec

from gateway.core.accounts.budgets import CallAttributes
from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.call_facts import write_facts
from gateway.core.accounts.definitions import ControlWrite, OrganizationTerms
from gateway.core.accounts.groups import Groups
from gateway.core.billing import events
from gateway.core.billing.events import EventSettlement
from gateway.core.billing.money import ServicePricing, read_tiers
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, SUBSCRIPTION
from gateway.core.model import BudgetAccount, Caller, Service, Settlement
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import APPLIED, UNVERIFIED, Client
from gateway.counters.late import windows
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import TOMBSTONE_MS
from gateway.counters.settlement_log.settlement_record import acknowledged, unpack
from gateway.errors import CountersRefused, CountersUnavailable

# Fields of a write that its rows repeat, and more for units: older writes have no days.
_SAID, _SAID_OF_UNITS = ("corrects", "reason"), ("supplied_on", "told_on")


async def charge_use(client: Client, write: ControlWrite) -> bool:
    """Charge the use of a control write; False if its account does not exist yet."""
    use = events.read(write.payload)
    organization_id = write.organization_id
    caller = Caller(organization_id, use.tenant_id, 0, keys.partition_of(organization_id))
    accounts = await _budgets(client, organization_id, use)
    settlement = _settlement(caller, write.id, use, accounts)
    call = packing.settle(
        client.run_id_of(caller.partition), TOMBSTONE_MS, settlement, packing.MODE_POST,
        b"%d" % use.facts.used_ms,
        definitions=tuple(account.defined for account in accounts),
    )  # fmt: skip
    return await _settle(client, caller, call)


async def charge_late(client: Client, write: ControlWrite) -> bool:
    """Charge a late settlement, one that arrived after its hold ended, as of now.

    False if its account does not exist yet. CountersRefused if the organization's budgets are unreadable.
    """
    late = unpack(base64.b64decode(str(write.payload["record"])))
    known, unread = await windows(client, [late])
    if unread:
        raise CountersRefused("nobody can read which budgets its organization has")
    budgets = tuple(budget for budget in late.budgets if budget in known)
    call = packing.settle(
        client.run_id_of(late.caller.partition), TOMBSTONE_MS, replace(late, budgets=budgets),
        packing.MODE_POST, b"%d" % await client.now_ms(),
        definitions=tuple(known[budget] for budget in budgets),
    )  # fmt: skip
    return await _settle(client, late.caller, call)


async def amend(client: Client, write: ControlWrite) -> bool:
    """Change the charge of a call by the amounts of a control write; negative amounts are charged.

    The movement gets the write's id. False if an account does not exist yet.
    """
    amended: dict[str, Any] = dict(write.payload)
    organization_id = write.organization_id
    caller = Caller(organization_id, amended["tenant_id"], 0, keys.partition_of(organization_id))
    tokens, units, credits_ = amended["tokens"], amended["units"], amended.get("credits", 0)
    meter = PAY_PER_USE if units else CONSUMPTION if credits_ else SUBSCRIPTION
    service = Service(
        amended["service_id"], "", meter, tokens != 0,
        pricing=ServicePricing(read_tiers(bytes.fromhex(amended["tiers"]))),
    )  # fmt: skip
    said = (*_SAID, *_SAID_OF_UNITS) if units else _SAID
    settlement = Settlement(
        caller, write.id, "", service, True, -tokens, -credits_, -units, amended["attribution"],
        msgspec.json.encode({name: amended[name] for name in said if name in amended}),
    )  # fmt: skip
    now = b"%d" % await client.now_ms()
    run_id = client.run_id_of(caller.partition)
    call = packing.settle(run_id, TOMBSTONE_MS, settlement, packing.MODE_CORRECT, now)
    return await _settle(client, caller, call)


async def _settle(client: Client, caller: Caller, call: packing.Call) -> bool:
    """Run `settle` without a hold; False if an account does not exist yet."""
    answer = await client.run("settle", call)
    code = packing.code_of(answer)
    if code == UNVERIFIED:
        raise CountersUnavailable
    client.moved += acknowledged(caller, answer)
    return code == APPLIED


def _settlement(
    caller: Caller, request_id: str, use: EventSettlement, accounts: tuple[BudgetAccount, ...]
) -> Settlement:
    service = Service(
        use.service_id, "", use.meter, use.counts_tokens, one_time=use.one_time,
        pricing=ServicePricing(read_tiers(use.tiers)),
    )  # fmt: skip
    tokens, quota_tokens = (use.tokens, use.quota_tokens) if use.counts_tokens else (0, 0)
    return Settlement(
        caller, request_id, use.user, service, True, tokens, use.credits, use.units, use.attribution,
        write_facts(use.facts), use.over, None if quota_tokens == tokens else quota_tokens,
        budgets=tuple(account.name for account in accounts), money=use.money, budget_tokens=use.tokens,
    )  # fmt: skip


async def _budgets(client: Client, organization_id: int, use: EventSettlement) -> tuple[BudgetAccount, ...]:
    """Return the accounts of present budgets that count this use; () if there are too many for a call.

    Its facts get the groups that it is in.
    """
    raw = await client.ask(b"GET", keys.organization_terms(organization_id).encode())
    terms = decode_terms(raw) if isinstance(raw, bytes) else OrganizationTerms()
    caller = Caller(organization_id, use.tenant_id, 0, 0)
    use.facts.groups = Groups(terms.groups).of(caller, use.user, use.project_id)
    budgets = terms.budgets
    if not budgets:
        return ()
    models = (use.facts.model,) if use.facts.model else ()
    asked = CallAttributes(
        use.tenant_id, 0, use.service_id, use.user, use.project_id, models, groups=use.facts.groups
    )
    now_ms = await client.now_ms()
    try:
        return OrganizationBudgets(organization_id, budgets, "").find(asked, now_ms).accounts
    except CountersUnavailable:  # no caller can ask for fewer, and a use that happened cannot wait for that
        return ()
