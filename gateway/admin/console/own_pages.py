"""Pages of people who are not staff: an engineer's own page, a lead's tenant, a customer's account.

An engineer may sign in with only an API key. They see their tenant's rows, and of keys with a user only their
own. Budgets of the whole organization are shown as far as their calls take from them, as the gateway does at
`/.tollkeeper/usage`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple
from uuid import uuid4

from aiohttp import web

from gateway.admin import live
from gateway.admin.api.views import row_id
from gateway.admin.console import formatting, lists, records, reports
from gateway.admin.console.formatting import BudgetUse
from gateway.admin.console.home import ConsoleShell, Posted, Reading, SignedInPerson, query, see
from gateway.admin.console.screens import SCREENS, is_customer, leads
from gateway.admin.explanation import explain
from gateway.admin.http.requests import may_write
from gateway.admin.operations import finish
from gateway.admin.resources import form_fields
from gateway.admin.resources.budgets import render_budget
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts import groups
from gateway.core.accounts.administration import (
    BILLING,
    CREATE,
    KEY_HOLDER,
    MEMBER,
    Actor,
    Command,
    Row,
    StoredReply,
    access,
    refused_write,
)
from gateway.core.accounts.budget_amounts import read_budget
from gateway.core.accounts.budget_selectors import BUDGETS_MAX, SELECTING
from gateway.core.accounts.budgets import KEY, OPEN, TENANT, USER, is_of
from gateway.core.accounts.usage import UsageQuery, end_of
from gateway.core.billing.payments import purchase_price
from gateway.core.families.registry import ALL
from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable

KEYS_SHOWN = 20
CALLS_SHOWN = 20
REQUESTS_SHOWN = 20
PARTS_SHOWN = 8
REQUESTS = "raise-requests"
_DAY = timedelta(days=1)
# A key with one of these fields set cannot be rotated.
_DONE = ("revoked_at", "replaced_by_id", "issuer")


class OwnScope(NamedTuple):
    """The rows of a person: their tenant, user id, API keys, and the filter of their calls."""

    tenant: Row
    user: str
    keys: Sequence[Row]
    calls: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class OwnBudget:
    """A budget that a person's calls take from: its selector, and the use (None if it has many accounts).

    `who` is the person's own user or key in a budget with `each`; empty for other budgets.
    """

    row: Row
    of: str
    use: BudgetUse | None
    state: str
    who: str


def or_home(page: Reading) -> Reading:
    """Wrap a page for whole organizations: people of one tenant or key are redirected to their own page."""

    async def show_own(
        desk: ConsoleShell, request: web.Request, signed: SignedInPerson
    ) -> web.StreamResponse:
        return await page(desk, request, signed) if signed.actor.tenant_id is None else see("/me")

    return show_own


# The page `/me`: one's keys, the rest of one's budgets, the last calls, and example programs.


async def show_me(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    return await _me(desk, request, signed)


async def _me(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, refused: str = "", status: int = 200
) -> web.Response:
    scope = await _scope(desk, signed.actor)
    wide = _of_organization(desk, signed.actor)
    store = desk.ports.store
    budgets, calls, spent, asked, allowed, [tenant] = await asyncio.gather(
        _budgets(wide, scope),
        store.page("calls", query(CALLS_SHOWN, newest_first=True, **scope.calls)),
        reports.spent(store, _month(scope.calls, "model"), "cost"),
        _requests(wide, requested_by=signed.actor.scope),
        _model_lists(wide, scope),
        lists.with_quotas(wide, [scope.tenant]),
    )
    return desk.answer(
        request, signed, "me.html", status,
        tenant=tenant, user=scope.user, keys=[_key(row) for row in scope.keys], budgets=budgets,
        calls=[RESOURCES["calls"].render(row) for row in calls.rows], month=spent,
        saved=await store.substitutions(_month(scope.calls, "model")),
        parts_max=PARTS_SHOWN, asked=asked, refused=refused, may_ask=_may_ask(signed.actor), may_rotate=_may_rotate(signed.actor),
        snippets=snippets(desk.ports.gateway_url, _models(calls.rows, allowed)),
    )  # fmt: skip


async def show_call(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /me/calls/{request_id}`: why one's own call was refused, or what it cost."""
    scope, of = await _scope(desk, signed.actor), request.match_info["request_id"]
    named: dict[str, Any] = {**scope.calls, "request_id": of}
    page = await desk.ports.store.page("calls", query(1, **named))
    if not page.rows:
        raise NotFound
    row = RESOURCES["calls"].render(page.rows[0])
    steps = await explain(desk.of(_acting(signed.actor)).ports, row)
    return desk.answer(request, signed, "own_call.html", row=row, steps=steps)


async def rotate(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.Response:
    """`POST /me/keys/{id}/rotate`: replace one's own key; the new one is shown once."""
    key_id, actor, scope = row_id(request), signed.actor, await _scope(desk, signed.actor)
    if not _may_rotate(actor):
        raise Forbidden("A readonly token rotates no key.")
    is_own = actor.api_key_id in {None, key_id}  # a key that was replaced may not rotate its replacement
    if not is_own or all(row["id"] != key_id for row in scope.keys):
        raise NotFound
    keys = desk.of(_acting(actor)).operations["api-keys"]
    [action] = [action for action in keys.resource.actions if action.name == "rotate"]
    try:
        done = await keys.act(action, desk.make_write(request, signed, posted, {"id": key_id}), key_id, {})
    except Conflict as error:
        return await _me(desk, request, signed, error.message, error.status)
    return desk.answer(
        request, signed, "secret.html", 201, screen=SCREENS["api-keys"], row=done.content, back="/me",
        secret=str(done.content.get("key", "")),
    )  # fmt: skip


async def ask(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.Response:
    """`POST /me/budgets/{id}/ask`: request more of a budget that one's calls take from."""
    scope, wide = await _scope(desk, signed.actor), _of_organization(desk, signed.actor)
    if not _may_ask(signed.actor):
        raise Forbidden("This token may not ask for more of a budget.")
    budget_id = row_id(request)
    amount, reason, until = (str(posted.get(name, "")).strip() for name in ("amount", "reason", "until"))
    who = str(posted.get("who", ""))
    mine = [budget for budget in await _budgets(wide, scope) if budget.row["id"] == budget_id]
    if not any(budget.who in {who, ""} or not who for budget in mine):
        raise NotFound
    sent: dict[str, object] = {"budget_id": budget_id, "reason": reason, **({"who": who} if who else {})}
    sent["amount"] = form_fields.amount(str(mine[0].row["unit"]), amount)
    if until:
        sent["until"] = f"{until}T00:00:00Z"
    try:
        await wide.operations[REQUESTS].create(desk.make_write(request, signed, posted, sent), sent)
    except (Unprocessable, Conflict) as error:
        wrong = "; ".join(f"{name} {message}" for name, message in getattr(error, "errors", ()))
        return await _me(desk, request, signed, wrong or error.message, error.status)
    return see("/me?done=asked")


async def _scope(desk: ConsoleShell, actor: Actor) -> OwnScope:
    """Return the rows of a person; raise `Forbidden` for a person without a single tenant."""
    if actor.tenant_id is None:
        raise Forbidden("This page is for people of one tenant, and for who signs in with an API key.")
    wide = _of_organization(desk, actor).ports.store
    tenant = RESOURCES["tenants"].render(await wide.get("tenants", actor.tenant_id))
    own: dict[str, Any] = {"tenant_id": actor.tenant_id}
    calls = own
    user = ""
    if actor.user_id is not None:
        user = str((await wide.get("users", actor.user_id))["external_id"])
        calls = {"user_id": actor.user_id}
    if actor.api_key_id is not None:
        calls = {"api_key_id": actor.api_key_id}
    # The user's keys, and those that the whole tenant shares.
    filters = [{**own, "user": user}, {**own, "user": None}] if user else [own]
    queries = [query(KEYS_SHOWN, newest_first=True, **wanted) for wanted in filters]
    pages = await asyncio.gather(*(desk.ports.store.page("api-keys", query_) for query_ in queries))
    keys = [row for page in pages for row in page.rows]
    if actor.api_key_id is not None:
        user = str(next((row["user"] for row in keys if row["id"] == actor.api_key_id), None) or "")
    return OwnScope(tenant, user, keys, calls)


def _acting(actor: Actor) -> Actor:
    """Return the actor; the holder of an API key gets the role of a member."""
    return replace(actor, role=MEMBER) if actor.role == KEY_HOLDER else actor


def _of_organization(desk: ConsoleShell, actor: Actor) -> ConsoleShell:
    """Return the shell of the whole organization, for rows already checked to be this person's."""
    return desk.of(replace(_acting(actor), tenant_id=None, api_key_id=None))


def _may_rotate(actor: Actor) -> bool:
    return may_write(_acting(actor), RESOURCES["api-keys"], "rotate")


def _may_ask(actor: Actor) -> bool:
    return REQUESTS in RESOURCES and may_write(_acting(actor), RESOURCES[REQUESTS], CREATE)


def _key(row: Row) -> Row:
    """Return an API key for the page, with its state and whether it can be rotated."""
    key = RESOURCES["api-keys"].render(row)
    state = formatting.state_of("api-keys", key)
    return {**key, "state": state, "rotates": state == "active" and all(key[name] is None for name in _DONE)}


async def _budgets(wide: ConsoleShell, scope: OwnScope) -> list[OwnBudget]:
    """Return the budgets that a person's calls take from, with the person's own account if there is one."""
    page = await wide.ports.store.page(
        "budgets", query(BUDGETS_MAX, organization_id=scope.tenant["organization_id"])
    )
    members = {
        groups.API_KEY: [str(row["id"]) for row in scope.keys],
        groups.TENANT: [str(scope.tenant["id"])],
        groups.USER: [scope.user] if scope.user else [],
    }
    within = await wide.ports.figures.groups_of(int(str(scope.tenant["organization_id"])), members)
    mine = [row for row in page.rows if _takes_from(row, scope, within)]
    accounts = {
        KEY: {str(row["id"]): str(row["name"]) for row in scope.keys},
        TENANT: {str(scope.tenant["id"]): str(scope.tenant["name"])},
    }
    if scope.user:
        accounts[USER] = {scope.user: scope.user}
    plain = await live.overlay_budgets(wide.ports, [row for row in mine if row["each"] not in accounts])
    for account, named in accounts.items():
        rows = [row for row in mine if row["each"] == account]
        for value, whose in named.items() if rows else ():
            plain += [
                {**row, "whose": whose, "value": value}
                for row in await live.own_budgets(wide.ports, rows, value)
            ]
    targets = {name: SCREENS["budgets"].resource.target(name) for name in SELECTING}
    names = await wide.names(
        {
            targets[name]: {int(str(row[name])) for row in plain if row[name] is not None}
            for name in SELECTING
            if targets[name]
        }
    )
    return [_own_budget(row, names, targets) for row in plain]


def _own_budget(row: Row, names: Mapping[tuple[str, int], str], targets: Mapping[str, str]) -> OwnBudget:
    budget = render_budget(row)
    of = formatting.budget_selector(budget, names, targets)
    of += f": {row['whose']}" if "whose" in row else ""
    use, state = formatting.use_of(budget), formatting.budget_state_of(budget)
    return OwnBudget(budget, of, use, state, str(row.get("value", "")))


def _takes_from(row: Row, scope: OwnScope, within: Collection[int]) -> bool:
    """Return whether calls of a person, who is in the groups `within`, may take from a budget."""
    budget = read_budget(row)
    keys = {0, *(int(str(key["id"])) for key in scope.keys)}
    return (
        budget.tenant_id in {0, scope.tenant["id"]}
        and budget.api_key_id in keys
        and budget.user in {"", scope.user}
        and budget.group_id in {0, *within}
    )


async def _askers(wide: ConsoleShell, asked: Sequence[Row]) -> list[str]:
    """Return the names of the keys or tokens that made these requests."""
    screen = SCREENS.get(REQUESTS)
    if screen is None:
        return []
    names = await wide.names(formatting.references(screen, asked))
    return [formatting.cell(screen, row, "requested_by", names).text for row in asked]


async def _requests(wide: ConsoleShell, **filters: object) -> list[Row]:
    """Return the latest raise requests; none if the feature is not installed."""
    if REQUESTS not in RESOURCES:
        return []
    page = await wide.ports.store.page(REQUESTS, query(REQUESTS_SHOWN, newest_first=True, **filters))
    return [RESOURCES[REQUESTS].render(row) for row in page.rows]


# Example programs: one for each SDK, with a model that the person may use.

_EXAMPLES = [family.example for family in reversed(ALL) if family.example is not None]
# A name that needs no escaping in Python, JSON or a shell.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}", re.ASCII)
ANYWHERE = "https://YOUR-GATEWAY"

Lists = Sequence[Sequence[str]]


async def _model_lists(wide: ConsoleShell, scope: OwnScope) -> Lists:
    """Return the model lists of organization, tenant, user and newest key; a model must be on each."""
    store, owner = wide.ports.store, int(str(scope.tenant["organization_id"]))
    said: list[Any] = [(await store.get("organizations", owner))["models"], scope.tenant["models"]]
    if scope.user:
        users = await store.page("users", query(1, organization_id=owner, external_id=scope.user))
        said += [row["models"] for row in users.rows]
    said += [row["models"] for row in scope.keys[:1]]
    return [models for models in said if models is not None]


def _models(calls: Sequence[Row], allowed: Lists) -> Mapping[str, str]:
    """Return, for each SDK, a model that the person may use, the last used first; SDKs may be missing."""
    used = [str(row["model"]) for row in calls if row["model"] and int(str(row["status"])) < 400]
    listed = [name for models in allowed for name in models if not name.endswith("*")]
    known = [example.model for example in _EXAMPLES]
    may = [
        name
        for name in (*used, *listed, *known)
        if _PLAIN_NAME.fullmatch(name)
        and all(any(is_of(name, model) for model in models) for models in allowed)
    ]
    names = {
        example.sdk: next((name for name in may if name.lower().startswith(example.begins)), "")
        for example in _EXAMPLES
    }
    # Most other models are called by the API of the first example.
    if not any(names.values()) and may:
        names[_EXAMPLES[0].sdk] = may[0]
    return {sdk: name for sdk, name in names.items() if name}


def snippets(url: str, models: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return example programs by SDK name, each with its model, and a `curl` call."""
    base, parts, by_hand = url or ANYWHERE, [], ""
    for example in _EXAMPLES:
        if model := models.get(example.sdk):
            parts.append((example.sdk, _filled(example.program, base, model)))
            by_hand = by_hand or _filled(_CURL, base, model, example.path, example.body)
    return [*parts, ("curl", by_hand)] if parts else []


_CURL = """\
curl {base}{path} \\
  -H 'Authorization: Bearer tk_…' \\
  -H 'Content-Type: application/json' \\
  -d '{body}'
"""


def _filled(text: str, base: str, model: str, path: str = "", body: str = "") -> str:
    text = text.replace("{path}", path).replace("{body}", body)
    return text.replace("{base}", base).replace("{model}", model)


# The page of a tenant's lead: people and keys, spend by each, the tenant's budgets, and raise requests.

MEMBERS_SHOWN = 50


async def show_team(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    actor = signed.actor
    if not leads(actor) or actor.tenant_id is None:
        raise Forbidden("This page is for the lead of one tenant.")
    wide, store = _of_organization(desk, actor), desk.ports.store
    own: dict[str, Any] = {"tenant_id": actor.tenant_id}
    tenant = RESOURCES["tenants"].render(await store.get("tenants", actor.tenant_id))
    month = _month(own, "user")
    by_user, by_model, members, keys, budgets, asked = await asyncio.gather(
        reports.spent(store, month, "cost"),
        reports.spent(store, replace(month, groups=("model",)), "cost"),
        wide.ports.store.page(
            "admin-tokens", query(MEMBERS_SHOWN, newest_first=True, revoked_at=None, **own)
        ),
        records.preview(desk, "api-keys", **own),
        records.of_account(desk, int(str(tenant["organization_id"])), own),
        _requests(desk, status=OPEN),
    )
    [with_quota] = await lists.with_quotas(desk, [tenant])
    theirs, _ = await desk.operations["budgets"].list(query(BUDGETS_MAX, **own))
    of_team = {row["id"] for row in theirs if row["of_team"]}
    who = await _askers(wide, asked)
    return desk.answer(
        request, signed, "team.html",
        tenant=with_quota, members=[RESOURCES["admin-tokens"].render(row) for row in members.rows], keys=keys,
        spent=(("By person", "user", by_user), ("By model", "model", by_model)), parts_max=PARTS_SHOWN,
        name_of=reports.name_of, budgets=budgets,
        asked=[
            {**row, "decides": row["budget_id"] in of_team, "by": by}
            for row, by in zip(asked, who, strict=True)
        ],
    )  # fmt: skip


# The page of a customer: plan, use, credits and invoices.

DOCUMENTS_SHOWN = 12


async def show_account(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, refused: str = "", status: int = 200
) -> web.Response:
    """`GET /account`; `refused` is the error message of a purchase."""
    actor = signed.actor
    if not is_customer(actor) or actor.organization_id is None:
        raise Forbidden("This page is for people of one organization.")
    owner: dict[str, Any] = {"organization_id": actor.organization_id}
    month = _month(owner, "service")
    row, subscribed, grants, invoices, by_service, by_model = await asyncio.gather(
        desk.operations["organizations"].show(actor.organization_id),
        desk.operations["organization-subscriptions"].list(query(1, **owner)),
        desk.operations["credit-additions"].list(query(DOCUMENTS_SHOWN, newest_first=True, **owner)),
        desk.operations["invoices"].list(query(DOCUMENTS_SHOWN, newest_first=True, **owner)),
        reports.spent(desk.ports.store, month, "cost"),
        reports.spent(desk.ports.store, replace(month, groups=("model",)), "cost"),
    )
    subscription: Row | None = next(iter(subscribed[0]), None)
    plan = subscription and await desk.operations["subscription-plans"].show(
        int(str(subscription["plan_id"]))
    )
    seller = desk.ports.store.letterhead.seller
    return desk.answer(
        request, signed, "account.html", status, refused=refused, buys=_offer(desk, row, actor),
        row=row, subscription=subscription, plan=plan, grants=grants[0], invoices=invoices[0],
        spent=(("By service", "service", by_service), ("By model", "model", by_model)), parts_max=PARTS_SHOWN,
        name_of=reports.name_of, seller=seller.name if seller is not None else "",
        files=[document.suffix for document in RESOURCES["invoices"].documents],
    )  # fmt: skip


# The right to buy credits, which the organization pays at once.
CHECKOUTS, BUYERS = "checkouts", access(BILLING, theirs=(CREATE,))
_COUNT = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)


class PurchaseOffer(NamedTuple):
    """The price of a credit, and the least and most of a purchase, in money before tax and in credits."""

    price: Decimal
    least: Decimal
    most: Decimal
    fewest_credits: int
    most_credits: int
    once: str


def _offer(desk: ConsoleShell, owner: Row, actor: Actor) -> PurchaseOffer | None:
    """Return the offer of credits for this person; None if buying is impossible or not allowed."""
    checkout, price = desk.ports.checkout, purchase_price(owner)
    if checkout is None or price is None or refused_write(actor, CHECKOUTS, BUYERS, CREATE) is not None:
        return None
    least = checkout.least(str(owner["currency"]))
    fewest, most = int((least / price).to_integral_value(ROUND_CEILING)), int(checkout.most / price)
    return PurchaseOffer(price, least, checkout.most, fewest, most, uuid4().hex) if fewest <= most else None


async def buy(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.Response:
    """`POST /account/credits`: store a purchase, and show its total and the link to pay it.

    The browser sends only the number of credits, never a price.
    """
    actor, checkout = signed.actor, desk.ports.checkout
    if checkout is None or not is_customer(actor) or actor.organization_id is None:
        raise NotFound
    if (why := refused_write(actor, CHECKOUTS, BUYERS, CREATE)) is not None:
        raise Forbidden(why)
    owner = await desk.operations["organizations"].show(actor.organization_id)
    count = str(posted.get("credits", "")).strip()
    if not _COUNT.fullmatch(count):
        return await show_account(desk, request, signed, "must be a whole number, such as 1000", 422)
    sent: dict[str, object] = {"credits": int(count)}
    asked = desk.make_write(request, signed, posted, sent)
    values = {
        **sent, "organization_id": actor.organization_id, "most": checkout.most,
        "least": checkout.least(str(owner["currency"])),
    }  # fmt: skip
    done = await desk.ports.store.write(
        Command(CHECKOUTS, CREATE, actor, asked.request_id, _bought, None, values, asked.claim)
    )
    bought = done.body if isinstance(done, StoredReply) else _bought(done.row)
    if asked.claim is not None:
        await finish(desk.ports, asked.claim, 201, bought, asked.request_id)
    customer = owner["stripe_customer"]
    page = await checkout.page(bought, None if customer is None else str(customer))
    shown = {name: Decimal(str(bought[name])) for name in ("unit_cost", "amount")}
    return desk.answer(request, signed, "checkout.html", 201, bought={**bought, **shown}, page=page)


def _bought(row: Row) -> Row:
    named = ("organization_id", "credits", "currency")
    values = {name: str(row[name]) for name in ("key", "unit_cost", "amount")}
    return {**{name: row[name] for name in named}, **values}


def _month(owner: Mapping[str, object], group: str) -> UsageQuery:
    """Return the usage query of an owner since the first of this month, by a group."""
    until = end_of("day", datetime.now(UTC))
    return UsageQuery((until - _DAY).replace(day=1), until, "none", (group,), owner, 0)
