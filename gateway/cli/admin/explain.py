"""`tollkeeper explain`: why a call was refused, or cost what it cost, step by step.

It reads the journal, and the rows that the call met, with the token of the caller; rows that it may not read
are left out. Limits and budgets are as they are now: the journal keeps the use of a call, not their state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import typer

from gateway import errors
from gateway.calls.journal import itemize
from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.output import AsJson, admin, console, escape, print_json
from gateway.core.accounts.budgets import CallAttributes, read_budget
from gateway.core.billing.price_book import KINDS, TOKENS_A_PRICE, USES_A_PRICE
from gateway.core.families.mcp import PREFIX

BUDGETS_MAX = 10_000
ACCOUNTS_MAX = 10_000
MOVEMENTS_MAX = 100
PER = {TOKENS_A_PRICE: "per million", USES_A_PRICE: "per thousand", 1: "per call"}

# Reasons that the journal has besides those of refusals; a call with one of these was admitted.
_BROKEN = {
    "upstream_error": "The upstream answered with an error.",
    "client_gone": "The client closed its connection before it had its answer.",
    "answer_cut": "The answer had begun, and could not be completed, or ended without its API's last word.",
    "reclaimed": "Its gateway died; the call was charged by what was seen of it.",
    "upstream_unreachable": "The upstream could not be reached.",
    "upstream_credentials": "The gateway had no valid credentials for the upstream.",
    "upstream_timeout": "The upstream did not answer in time.",
}
# The step that refuses for a reason.
_REFUSES = {
    "tenant_blocked": "caller", "model_not_allowed": "caller", "user_required": "caller",
    "run_required": "caller",
    "service_not_included": "service", "model_not_priced": "price", "rate_limited": "limits",
    "concurrency_limited": "limits", "quota_exceeded": "tokens", "budget_exceeded": "budgets",
    "insufficient_credits": "balance", "spend_cap_reached": "balance",
}  # fmt: skip


@dataclass(slots=True)
class ExplainedStep:
    """One step of a call's way: a sentence, facts below it, and whether it refused the call."""

    step: str
    says: str
    facts: list[str] = field(default_factory=list)
    refused: bool = False


def explain(
    request_id: Annotated[
        UUID, typer.Argument(metavar="REQUEST_ID", help="The answer's x-request-id.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Tell step by step why a call was refused, or cost what it cost."""
    with admin() as api:
        call = _call(api, str(request_id))
        steps = list(Explanation(api, call).steps())
        if as_json:
            print_json({"request_id": str(request_id), "steps": [asdict(step) for step in steps]})
            return
        out = console()
        for number, step in enumerate(steps, 1):
            mark = " [bold red]REFUSED HERE[/]" if step.refused else ""
            title = f"[bold]{number}. {step.step.capitalize()}[/]"
            out.print(f"{title}  {escape(step.says)}{mark}", highlight=False, soft_wrap=True)
            for fact in step.facts:
                out.print(f"     {escape(fact)}", highlight=False, soft_wrap=True)


def _call(api: AdminClient, request_id: str) -> Json:
    found = api.get("calls", request_id=request_id, limit=1)["items"]
    if not found:
        raise CommandFailed(
            f"The journal has no call {request_id}. A row is written within seconds; calls without a valid "
            "key, on a free route, or refused beyond 600 a minute have none."
        )
    call: Json = found[0]
    return call


class Explanation:
    """The steps of one call, in the order of its way."""

    def __init__(self, api: AdminClient, call: Json) -> None:
        self._api, self._call = api, call
        self._reason = str(call["reason"] or "")
        self._is_refused = self._reason != "" and self._reason in _refusals() and self._reason not in _BROKEN
        self._organization = self._read("organizations", call["organization_id"])
        self._tenant = self._read("tenants", call["tenant_id"])
        self._key = self._read("api-keys", call["api_key_id"])
        self._user = self._read("users", call["user_id"])

    def steps(self) -> Iterator[ExplainedStep]:
        yield self._request()
        for made in (self._caller, self._service, self._limits, self._tokens, self._balance, self._budgets):
            if (step := made()) is not None:
                step.refused = self._is_refused and _REFUSES.get(self._reason) == step.step
                yield step
        if self._is_refused:
            refused = _REFUSES.get(self._reason, "price") == "price"  # no step above is about it
            yield ExplainedStep(
                "outcome", f"Refused: {self._reason}. {_refusals()[self._reason]}", refused=refused
            )
            yield ExplainedStep("cost", "A refused call costs nothing, and takes no tokens.")
            return
        yield self._hold()
        yield self._use()
        yield self._cost()
        yield self._settlement()

    def _read(self, resource: str, row_id: object) -> Json:
        if not row_id:
            return {}
        try:
            return self._api.get(f"{resource}/{row_id}")
        except CommandFailed:
            return {}

    def _items(self, path: str, most: int, **query: object) -> list[Json] | None:
        """Rows; None where this token may not read them."""
        try:
            return self._api.items(path, most, **query)
        except CommandFailed:
            return None

    def _request(self) -> ExplainedStep:
        call = self._call
        model = f" for {call['model']}" if call["model"] else ""
        if call["response_model"] and call["response_model"] != call["model"]:
            model += f" (answered by {call['response_model']})"
        stream = ", streamed" if call["streamed"] else ""
        says = (
            f"{call['route'] or 'an event'}{model}{stream}: {call['status']} after {call['duration_ms']} ms"
        )
        facts = [f"at {call['created_at']}"]
        if call["upstream_request_id"]:
            facts.append(f"the upstream calls it {call['upstream_request_id']}")
        return ExplainedStep("request", f"{says}.", facts)

    def _caller(self) -> ExplainedStep:
        call = self._call
        said = [
            f"organization {_named(self._organization, call['organization_id'])}",
            f"tenant {_named(self._tenant, call['tenant_id'])}",
        ]
        if call["api_key_id"]:
            said.append(f"key {_named(self._key, call['api_key_id'])}")
        if call["user_id"]:
            said.append(f"user {self._user.get('external_id') or call['user_id']}")
        said += [f"{name} {call[f'{name}_id']}" for name in ("project",) if call[f"{name}_id"] is not None]
        said += [f"session {call['session']}"] if call["session"] else []
        facts = []
        if models := self._key.get("models"):
            facts.append(f"the key may use {', '.join(models)}")
        if self._key.get("user_header") == "require":
            facts.append("the key must name a user for each call")
        if self._key.get("revoked_at"):
            facts.append(f"the key was revoked at {self._key['revoked_at']}")
        return ExplainedStep("caller", ", ".join(said) + ".", facts)

    def _service(self) -> ExplainedStep | None:
        if not (row := self._read("services", self._call["service_id"])):
            return None
        tier, sold = self._call["service_tier"], self._read("business-models", row["business_model_id"])
        says = f"{row['key']}, sold as {sold['name']}" if sold else row["key"]
        return ExplainedStep("service", says + (f", service tier {tier}." if tier else "."))

    def _limits(self) -> ExplainedStep:
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

    def _tokens(self) -> ExplainedStep | None:
        """The tenant's token plan."""
        quota = self._read("tenant-quotas", self._call["tenant_id"])
        plan = self._read("token-plans", quota.get("plan_id")) if quota else {}
        if not plan:
            return None
        left = quota["tokens_remaining"]
        says = f"plan {plan['name']}: " + ("unlimited" if left is None else f"{left:,} tokens are left now")
        resets = quota["next_reset_at"]
        return ExplainedStep("tokens", says + (f"; it resets at {resets}." if resets else "."))

    def _balance(self) -> ExplainedStep | None:
        """The organization's credits and spend cap, where one of them decides."""
        row = self._organization
        facts = []
        if row.get("credit_balance"):
            facts.append(f"{row['credit_balance']:,} credits are left now")
        if row.get("spend_cap") is not None:
            facts.append(f"the spend cap is {row['spend_cap']} {row['currency']} a month")
        if not facts and _REFUSES.get(self._reason) != "balance":
            return None
        return ExplainedStep(
            "balance", "Of the organization:" if facts else "The organization has no credits.", facts
        )

    def _budgets(self) -> ExplainedStep:
        call = self._call
        rows = self._items("budgets", BUDGETS_MAX, organization_id=call["organization_id"])
        if rows is None:
            return ExplainedStep("budgets", "This token may not read the organization's budgets.")
        is_tool = (call["route"] or "").startswith(PREFIX)
        server, _, tool = (call["model"] or "").partition("/") if is_tool else ("", "", "")
        asked = CallAttributes(
            call["tenant_id"], call["api_key_id"] or 0, call["service_id"] or 0,
            str(self._user.get("external_id") or self._key.get("user") or ""), call["project_id"],
            tuple(filter(None, (call["model"], call["response_model"]))), call["session"] or "", tool, server,
        )  # fmt: skip
        facts = [fact for row in rows if (fact := self._budget(row, asked))]
        if not facts:
            return ExplainedStep("budgets", "No budget applies to this call.")
        return ExplainedStep("budgets", "Those that apply to this call, as they are now:", facts)

    def _budget(self, row: Json, asked: CallAttributes) -> str:
        """One budget that the call takes from; empty where it does not."""
        moments = {name: _moment(row[name]) for name in ("created_at", "raised_until")}
        budget = read_budget({**row, **moments})
        if not budget.matches(asked):
            return ""
        whose = ""
        if budget.each:
            who = budget.value_of(asked)
            if not who:
                return ""
            whose = f", {budget.each} {who}"
            accounts = self._items(f"budgets/{row['id']}/accounts", ACCOUNTS_MAX) or []
            unused = {"used": 0, "held": 0, "remaining": row["amount"]}
            row = row | next((each for each in accounts if each["who"] == who), unused)
        unit = row["currency"] if row["unit"] == "money" else row["unit"]
        left, amount, used, held = (
            _plain(row[name] or 0) for name in ("remaining", "amount", "used", "held")
        )
        held = "" if held == "0" else f", {held} held by calls in flight"
        resets = f", resets at {row['resets_at']}" if row["resets_at"] else ""
        only = "" if row["mode"] == "enforce" else " It only counts: it refuses nothing."
        return (
            f'"{row["name"]}"{whose}: {left} of {amount} {unit} a {row["interval"]} are left '
            f"({used} used{held}){resets}.{only}"
        ).replace(" a total", " in all")

    def _hold(self) -> ExplainedStep:
        says = "All limits and budgets had room: what the call might use was held until it was settled."
        return ExplainedStep("hold", says)

    def _use(self) -> ExplainedStep:
        call, usage = self._call, self._call["usage"]
        facts = [f"{kind.replace('_', ' ')}: {usage[kind]:,} tokens" for kind in KINDS if usage.get(kind)]
        facts += [f"tool {name}: {uses:,}" for name, uses in (usage.get("tools") or {}).items()]
        facts += [f"units: {call['units']:,}"] if call["units"] else []
        how = "counted by the gateway, as the upstream reported none" if call["estimated"] else "as reported"
        if not facts:
            how = "nothing"
        broken = f" {_BROKEN.get(self._reason, self._reason)}" if self._reason else ""
        return ExplainedStep("use", f"{how[:1].upper()}{how[1:]}.{broken}", facts)

    def _cost(self) -> ExplainedStep:
        call = self._call
        if call["cost"] is None:
            return ExplainedStep("price", "No price covers this call: it has no cost.")
        cost = f"{call['cost']} {call['currency']}"
        row = self._read("prices", call["price_id"])
        if not row:
            return ExplainedStep("price", f"{cost}; its price is not one of the price book.")
        found, adds_up = itemize(call, {**row, "effective_from": _moment(row["effective_from"])})
        facts = [
            f"{line.kind.removeprefix('tools.').replace('_', ' ')}: {line.quantity:,} at "
            f"{_plain(line.unit_price)} {PER[line.per]} = {_plain(line.amount)}"
            for line in found
        ]
        facts += [f"{tool} was used, and has no price: the cost is without it" for tool in call["unpriced"]]
        if not adds_up:
            facts.append("these lines are not all of the cost: tokens of other models have their own prices")
        says = f"{cost} by price {row['id']} of {row['model']}, in force since {row['effective_from']}:"
        return ExplainedStep("price", says if facts else f"{says[:-1]}.", facts)

    def _settlement(self) -> ExplainedStep:
        call = self._call
        facts = [
            _movement(path, row, call["currency"])
            for path in ("token-ledger", "credit-transactions", "feature-usage")
            for row in self._items(path, MOVEMENTS_MAX, request_id=call["request_id"]) or ()
        ]
        says = "These rows charge it:" if facts else "It is in the journal; no ledger charges it."
        return ExplainedStep("settlement", says, facts)


def _movement(path: str, row: Json, currency: str | None) -> str:
    if path == "token-ledger":
        left = "unlimited" if row["total_remaining"] is None else f"{row['total_remaining']:,} left"
        return f"tokens: {row['transaction_type']} {row['amount']:,} {row['direction']}, {left}"
    if path == "credit-transactions":
        return f"credits: {row['credits_used']:,} used, balance {row['balance_after']:,}"
    cost = "" if row["cost"] is None else f", {row['cost']} {currency or ''}".rstrip()
    return f"next invoice: {row['usage_amount']:,} units{cost}"


def _named(row: Json, row_id: object) -> str:
    """What people call a row, with its id."""
    return f"{row['name']} ({row_id})" if row.get("name") else str(row_id)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _plain(amount: object) -> str:
    """A decimal without zeros that say nothing."""
    return f"{Decimal(str(amount)).normalize():f}"


def _refusals() -> dict[str, str]:
    """The sentence of each reason of a refusal."""
    found: dict[str, str] = {}
    classes: Sequence[type[errors.Refusal]] = [errors.Refusal]
    while classes:
        classes = [each for one in classes for each in one.__subclasses__()]
        for each in reversed(classes):
            found[each.reason] = " ".join((each.__doc__ or "").split())
    return found
