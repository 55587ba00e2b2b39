"""Explains step by step why a call was refused or what it cost, for Admin API, console and command line.

It reads the journal and the rows that the call used, with the reader's rights: other rows are left out.
Budgets that a call takes from are shown to everybody who may read the call, as the gateway shows them to its
caller. Limits and budgets are current ones: the journal stores the use of a call, not their state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from gateway import errors
from gateway.admin import live
from gateway.admin.operations import Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.budgets import render_budget
from gateway.admin.resources.registry import RESOURCES
from gateway.calls.journal import itemize
from gateway.core.accounts.administration import Query, Row
from gateway.core.accounts.budget_amounts import read_budget
from gateway.core.accounts.budget_selectors import BUDGETS_MAX
from gateway.core.accounts.budgets import BY_GROUP, BY_OVERRIDE, BY_RAISE, CallAttributes
from gateway.core.accounts.window_words import render_window
from gateway.core.billing.price_book import KINDS, TOKENS_A_PRICE, USES_A_PRICE
from gateway.core.families.mcp import PREFIX
from gateway.core.times import in_utc
from gateway.errors import Forbidden, NotFound

Json = dict[str, Any]  # a row as the Admin API answers it

MOVEMENTS_MAX: Final = 100
PER: Final = {TOKENS_A_PRICE: "per million", USES_A_PRICE: "per thousand", 1: "per call"}
PASSED, REFUSED, STATED = "passed", "refused", "stated"

# Other reasons in the journal besides refusals: of calls that were admitted.
_BROKEN = {
    "upstream_error": "The upstream answered with an error.",
    "client_gone": "The client closed its connection before it had its answer.",
    "answer_cut": "The answer had begun, and could not be completed, or ended without its API's last word.",
    "reclaimed": "Its gateway died; the call was charged by what was seen of it.",
    "upstream_unreachable": "The upstream could not be reached.",
    "upstream_credentials": "The gateway had no valid credentials for the upstream.",
    "upstream_timeout": "The upstream did not answer in time.",
}
# The step that refuses for a reason; a reason without one is shown with the outcome.
_REFUSES = {
    "too_many_budgets": "budgets",
    "tenant_blocked": "caller", "model_not_allowed": "caller", "user_required": "caller",
    "run_required": "caller",
    "service_not_included": "service", "rate_limited": "limits", "concurrency_limited": "limits",
    "quota_exceeded": "tokens", "budget_exceeded": "budgets", "insufficient_credits": "balance",
    "spend_cap_reached": "balance", "run_exceeded": "run", "run_ended": "run",
}  # fmt: skip
# A block that is in force, and what ends it, by its cause.
_BLOCKED = {
    "manual": "the tenant is blocked by a person; `tollkeeper tenant unblock` lets it go",
    "dunning": "the tenant is blocked because an invoice is not paid; its payment lets it go, and so does "
    "`dunning: false` of the organization",
    "backlog": "the tenant is blocked because too much of its use waits to be stored; decide about the "
    "account in quarantine, then `tollkeeper tenant unblock` lets it go",
}
# Steps that let a call pass, or refuse it; the others state facts.
_DECIDING = frozenset({"caller", "service", "limits", "tokens", "balance", "budgets", "run"})


@dataclass(slots=True)
class ExplainedStep:
    """One step of a call: a sentence, facts, and whether the call passed it."""

    step: str
    detail: str
    facts: list[str] = field(default_factory=list)
    outcome: str = STATED


async def find_call(ports: AdminPorts, request_id: str) -> Row:
    """Return the journal's row of a request; `NotFound` states why there may be none."""
    rows, _ = await Operations(ports, RESOURCES["calls"]).list(_query(1, request_id=request_id))
    if not rows:
        raise NotFound(
            f"The journal has no call {request_id}. A row is written within seconds; calls without a valid "
            "key, on a free route, or refused beyond 600 a minute have none."
        )
    return rows[0]


async def explain(ports: AdminPorts, call: Row) -> list[ExplainedStep]:
    """Return the steps of a call that the reader may see, in their order."""
    explanation = Explanation(ports, dict(call))
    await explanation.read()
    return await explanation.steps()


class Explanation:
    """The steps of one call, with the rights of the actor of `ports`."""

    def __init__(self, ports: AdminPorts, call: Json) -> None:
        self._ports, self._call = ports, call
        # For rows that every reader of the call may see.
        self._wide = ports.of(replace(ports.actor, tenant_id=None, api_key_id=None))
        self._reason = str(call["reason"] or "")
        self._is_refused = self._reason != "" and self._reason in REFUSALS and self._reason not in _BROKEN
        self._organization: Json = {}
        self._tenant: Json = {}
        self._key: Json = {}
        self._quota: Json = {}
        self._user = ""

    async def read(self) -> None:
        """Read the rows of the call's organization, tenant, API key and user."""
        call = self._call
        self._organization, self._tenant, self._quota, self._key, self._user = await asyncio.gather(
            self._read("organizations", call["organization_id"]), self._read("tenants", call["tenant_id"]),
            self._read("tenant-quotas", call["tenant_id"]),
            self._read("api-keys", call["api_key_id"]), self._user_of(call["user_id"]),
        )  # fmt: skip

    async def _user_of(self, user_id: object) -> str:
        """Return the external id of a call's user, which every reader of the call may see."""
        if not user_id:
            return ""
        try:
            return str((await self._wide.store.get("users", int(str(user_id))))["external_id"])
        except NotFound:
            return ""

    async def steps(self) -> list[ExplainedStep]:
        """Return the steps by which a call was admitted, priced and settled, or by which it was refused."""
        found = [
            self._request(), self._substitution(), self._caller(), await self._service(), self._limits(),
            await self._tokens(),
            self._balance(), await self._budgets(), await self._run(),
        ]  # fmt: skip
        steps = [step for step in found if step is not None]
        for step in steps:
            if step.step in _DECIDING:
                step.outcome = self._outcome(step.step)
        if self._is_refused:
            is_admitted = not any(step.outcome == REFUSED for step in steps)
            says = f"Refused: {self._reason}. {REFUSALS[self._reason]}"
            steps.append(ExplainedStep("outcome", says, outcome=REFUSED if is_admitted else STATED))
            steps.append(ExplainedStep("cost", "A refused call costs nothing, and takes no tokens."))
            return steps
        return [*steps, self._hold(), self._use(), await self._cost(), await self._settlement()]

    def _outcome(self, step: str) -> str:
        if self._is_refused:
            return REFUSED if _REFUSES.get(self._reason) == step else STATED
        return PASSED

    async def _read(self, resource: str, row_id: object) -> Json:
        """Return a row, or an empty one if it is gone or the reader may not see it."""
        if not row_id:
            return {}
        try:
            return dict(await Operations(self._ports, RESOURCES[resource]).show(int(str(row_id))))
        except (NotFound, Forbidden):
            return {}

    async def _movements(self, resource: str) -> Sequence[Json]:
        """Return the call's rows in a ledger; none if the reader may not see them."""
        query = _query(MOVEMENTS_MAX, request_id=self._call["request_id"])
        try:
            rows, _ = await Operations(self._ports, RESOURCES[resource]).list(query)
        except Forbidden:
            return []
        return [dict(row) for row in rows]

    def _request(self) -> ExplainedStep:
        """Return the step about the request: route, model, status and duration."""
        call = self._call
        model = f" for {call['model']}" if call["model"] else ""
        if call["response_model"] and call["response_model"] != call["model"]:
            model += f" (answered by {call['response_model']})"
        stream = ", streamed" if call["streamed"] else ""
        says = (
            f"{call['route'] or 'an event'}{model}{stream}: {call['status']} after {call['duration_ms']} ms"
        )
        facts = [f"at {in_utc(call['created_at'])}"]
        if call["upstream_request_id"]:
            facts.append(f"the upstream calls it {call['upstream_request_id']}")
        return ExplainedStep("request", f"{says}.", facts)

    def _substitution(self) -> ExplainedStep | None:
        """Return the step of a call that went as another model than its caller named; None if it did not."""
        call = self._call
        if call["model_asked"] is None:
            return None
        by, saved = call["substituted_by"], call["saved"]
        says = f"{call['model_asked']} was asked for, and sent as {call['model']}: by a step of the budget {by['name']} ({by['id']})."
        if saved is None:
            return ExplainedStep("model", says)
        more, amount = ("more" if Decimal(saved) >= 0 else "less"), _plain(abs(Decimal(saved)))
        fact = f"as {call['model_asked']} the same tokens would have cost {amount} {call['currency']} {more}"
        return ExplainedStep("model", says, [fact])

    def _caller(self) -> ExplainedStep:
        """Return the step about who made the call, and what its key may do."""
        call = self._call
        said = [
            f"organization {_named(self._organization, call['organization_id'])}",
            f"tenant {_named(self._tenant, call['tenant_id'])}",
        ]
        if call["api_key_id"]:
            said.append(f"key {_named(self._key, call['api_key_id'])}")
        if call["user_id"]:
            said.append(f"user {self._user or call['user_id']}")
        said += [f"project {call['project_id']}"] if call["project_id"] is not None else []
        said += [f"session {call['session']}"] if call["session"] else []
        said += [f"tag {name} {value}" for name, value in call["tags"].items()]
        facts = []
        if models := self._key.get("models"):
            facts.append(f"the key may use {', '.join(models)}")
        if self._key.get("user_header") == "require":
            facts.append("the key must name a user for each call")
        if self._key.get("revoked_at"):
            facts.append(f"the key was revoked at {in_utc(self._key['revoked_at'])}")
        if (cause := self._quota.get("block_cause")) is not None:
            facts.append(_BLOCKED[cause])
        return ExplainedStep("caller", ", ".join(said) + ".", facts)

    async def _service(self) -> ExplainedStep | None:
        if not (row := await self._read("services", self._call["service_id"])):
            return None
        tier, sold = self._call["service_tier"], await self._read("business-models", row["business_model_id"])
        says = f"{row['key']}, sold as {sold['name']}" if sold else row["key"]
        return ExplainedStep("service", says + (f", service tier {tier}." if tier else "."))

    def _limits(self) -> ExplainedStep:
        """Return the step about the rate limits of key, user, tenant and organization."""
        owners = (
            ("key", self._key, "limits"), ("user", self._tenant, "user_limits"),
            ("tenant", self._tenant, "limits"), ("organization", self._organization, "limits"),
        )  # fmt: skip
        facts = [
            f"{owner}: " + ", ".join(f"{name.replace('_', ' ')} {most:,}" for name, most in limits.items())
            for owner, row, column in owners
            if (limits := {name: most for name, most in (row.get(column) or {}).items() if most})
        ]
        return ExplainedStep(
            "limits", "As they are now:" if facts else "No rate limit is set for this caller.", facts
        )

    async def _tokens(self) -> ExplainedStep | None:
        """Return the step of the tenant's token plan; None if it has none."""
        quota = self._quota
        plan = await self._read("token-plans", quota.get("plan_id")) if quota else {}
        if not plan:
            return None
        left = quota["tokens_remaining"]
        says = f"plan {plan['name']}: " + ("unlimited" if left is None else f"{left:,} tokens are left now")
        resets = quota["next_reset_at"]
        return ExplainedStep("tokens", says + (f"; it resets at {in_utc(resets)}." if resets else "."))

    def _balance(self) -> ExplainedStep | None:
        """Return the step of the organization's credits and spend cap; None if neither applies."""
        row = self._organization
        facts = []
        if row.get("credit_balance"):
            facts.append(f"{row['credit_balance']:,} credits are left now")
        if row.get("spend_cap") is not None:
            facts.append(f"the spend cap is {row['spend_cap']} {row['currency']} a month")
        if not facts and _REFUSES.get(self._reason) != "balance":
            return None
        if not row:
            return ExplainedStep("balance", "Of the organization, which this reader may not read.")
        return ExplainedStep(
            "balance", "Of the organization:" if facts else "The organization has no credits.", facts
        )

    async def _budgets(self) -> ExplainedStep:
        """Return the step about which budgets apply to the call, and which one refused it."""
        call = self._call
        is_tool = (call["route"] or "").startswith(PREFIX)
        server, _, tool = (call["model"] or "").partition("/") if is_tool else ("", "", "")
        asked = CallAttributes(
            call["tenant_id"], call["api_key_id"] or 0, call["service_id"] or 0,
            self._user or str(self._key.get("user") or ""), call["project_id"],
            tuple(filter(None, (call["model"], call["response_model"]))), call["session"] or "", tool, server,
            tuple(call["tags"].items()),
            tuple(call["groups"]),
        )  # fmt: skip
        query = _query(BUDGETS_MAX, organization_id=call["organization_id"])
        rows = (await self._wide.store.page("budgets", query)).rows
        by = call["refused_by"] or {}
        refusing = by.get("id") if by.get("kind") == "budget" else None
        facts = [
            f"{fact} It refused this call." if row["id"] == refusing else fact
            for row in rows
            if (fact := await _budget(self._wide, row, asked))
        ]
        if not facts:
            return ExplainedStep("budgets", "No budget applies to this call.")
        return ExplainedStep("budgets", "Those that apply to this call, as they are now:", facts)

    async def _run(self) -> ExplainedStep | None:
        """Return the step of the call's run, with its current use; None if the call has no run."""
        name, by = self._call["run"], self._call["refused_by"] or {}
        if name is None or "runs" not in RESOURCES:
            return None
        query = _query(1, id=name, tenant_id=self._call["tenant_id"])
        rows, _ = await Operations(self._ports, RESOURCES["runs"]).list(replace(query, descending=True))
        if not rows:
            return ExplainedStep("run", f"{name}.")
        row: Json = dict(rows[0])
        unit = row["currency"] if row["unit"] == "money" else row["unit"]
        facts = [f"{_plain(row['used'])} of {_plain(row['max'])} {unit} are used"] if row["max"] else []
        facts += [f"{row['calls']:,} of {row['max_calls']:,} calls are made"] if row["max_calls"] else []
        facts += [f"draws from the run {row['parent_id']}"] if row["parent_id"] else []
        if by.get("kind") == "run" and by["name"] != name:
            facts.append(f"the run {by['name']} refused this call")
        return ExplainedStep(
            "run", f"{name}: {row['status']}, expires at {in_utc(row['expires_at'])}.", facts
        )

    def _hold(self) -> ExplainedStep:
        says = "All limits and budgets had room: what the call might use was held until it was settled."
        return ExplainedStep("hold", says)

    def _use(self) -> ExplainedStep:
        """Return the step about the tokens, tools and units that the call used."""
        call, usage = self._call, self._call["usage"]
        facts = [f"{kind.replace('_', ' ')}: {usage[kind]:,} tokens" for kind in KINDS if usage.get(kind)]
        facts += [f"tool {name}: {uses:,}" for name, uses in (usage.get("tools") or {}).items()]
        facts += [f"units: {call['units']:,}"] if call["units"] else []
        how = "counted by the gateway, as the upstream reported none" if call["estimated"] else "as reported"
        if not facts:
            how = "nothing"
        broken = f" {_BROKEN.get(self._reason, self._reason)}" if self._reason else ""
        return ExplainedStep("use", f"{how[:1].upper()}{how[1:]}.{broken}", facts)

    async def _cost(self) -> ExplainedStep:
        """Return the step about the cost of the call, by the lines of its price."""
        call = self._call
        if call["cost"] is None:
            return ExplainedStep("price", "No price covers this call: it has no cost.")
        cost = f"{call['cost']} {call['currency']}"
        row = await self._read("prices", call["price_id"])
        if not row:
            return ExplainedStep("price", f"{cost}; its price is not one of the price book.")
        items, adds_up = itemize(
            call, {**row, "effective_from": datetime.fromisoformat(row["effective_from"])}
        )
        facts = [
            f"{line.kind.removeprefix('tools.').replace('_', ' ')}: {line.quantity:,} at "
            f"{_plain(line.unit_price)} {PER[line.per]} = {_plain(line.amount)}"
            for line in items
        ]
        facts += [f"{tool} was used, and has no price: the cost is without it" for tool in call["unpriced"]]
        if not adds_up:
            facts.append("these lines are not all of the cost: tokens of other models have their own prices")
        says = (
            f"{cost} by price {row['id']} of {row['model']}, in force since {in_utc(row['effective_from'])}:"
        )
        return ExplainedStep("price", says if facts else f"{says[:-1]}.", facts)

    async def _settlement(self) -> ExplainedStep:
        """Return the step that shows the rows by which a call was charged."""
        facts = [
            _render_movement(resource, row, self._call["currency"])
            for resource in ("token-ledger", "credit-transactions", "feature-usage")
            for row in await self._movements(resource)
        ]
        says = "These rows charge it:" if facts else "It is in the journal; no ledger charges it."
        return ExplainedStep("settlement", says, facts)


async def _budget(ports: AdminPorts, row: Row, asked: CallAttributes) -> str:
    """Return a sentence about a budget, if the call with attributes `asked` takes from it; else ""."""
    budget = read_budget(row)
    if not budget.matches(asked):
        return ""
    whose = ""
    if budget.each:
        who = budget.value_of(asked)
        if not who:
            return ""
        whose = f", {budget.each} {who}"
        [now] = await live.own_budgets(ports, [row], who)
    else:
        [now] = await live.overlay_budgets(ports, [row])
    figures = dict(render_budget(now))
    unit = figures["currency"] if figures["unit"] == "money" else figures["unit"]
    left, used, held = (_plain(figures[name] or 0) for name in ("remaining", "used", "held"))
    by = BY_RAISE if figures["raised_to"] is not None else figures["limit_by"]
    until = f" until {in_utc(figures['raised_until'])}" if figures["raised_until"] else ""
    own = f", by {_BY[by]}{until}" if by in _BY else ""
    if by == BY_GROUP:
        group = await ports.store.get("groups", int(str(now["limit_group_id"])))
        own += f" {_named(dict(group), group['id'])}"
    if figures["limit"] is None:
        rest = f"no limit ({used} {unit} used"
    else:
        rest = f"{left} of {_plain(figures['limit'])} {unit} {render_window(figures)} are left ({used} used"
    held = "" if held == "0" else f", {held} held by calls in flight"
    resets = f", resets at {in_utc(figures['resets_at'])}" if figures["resets_at"] else ""
    only = "" if figures["mode"] == "enforce" else " It only counts: it refuses nothing."
    return f'"{figures["name"]}"{whose}: {rest}{held}){resets}{own}.{only}'


# What decides a limit in place of the budget.
_BY = {BY_RAISE: "a raise", BY_OVERRIDE: "an override", BY_GROUP: "an override of the group"}


def _render_movement(resource: str, row: Json, currency: str | None) -> str:
    """Return a row of a ledger as text for people."""
    if resource == "token-ledger":
        left = "unlimited" if row["total_remaining"] is None else f"{row['total_remaining']:,} left"
        return f"tokens: {row['transaction_type']} {row['amount']:,} {row['direction']}, {left}"
    if resource == "credit-transactions":
        return f"credits: {row['credits_used']:,} used, balance {row['balance_after']:,}"
    cost = "" if row["cost"] is None else f", {row['cost']} {currency or ''}".rstrip()
    return f"next invoice: {row['usage_amount']:,} units{cost}"


def _named(row: Json, row_id: object) -> str:
    """Return a row's name with its id, or the id alone."""
    return f"{row['name']} ({row_id})" if row.get("name") else str(row_id)


def _plain(amount: object) -> str:
    """Return a decimal without trailing zeros."""
    return f"{Decimal(str(amount)).normalize():f}"


def _query(limit: int, **filters: object) -> Query:
    return Query(filters, None, None, None, limit)


def _refusals() -> dict[str, str]:
    """Return the sentence for each reason of a refusal: the docstring of its error."""
    reasons: dict[str, str] = {}
    classes: Sequence[type[errors.Refusal]] = [errors.Refusal]
    while classes:
        classes = [subclass for class_ in classes for subclass in class_.__subclasses__()]
        for class_ in reversed(classes):
            reasons[class_.reason] = " ".join((class_.__doc__ or "").split())
    return reasons


REFUSALS: Final = _refusals()
