"""Spend limits at the paths, and in the shapes, of Anthropic's and OpenAI's own Admin APIs.

They are views of budgets of money that are enforced, for each day, week or month in UTC. Anthropic's limits of an
organization, a group (`rbac_group`) and a user are each user's own: the amount of a budget of each user, and
overrides in it. Those of a workspace, and OpenAI's, are shared. Sources: both vendors' references of their spend
limits, and the Claude apps gateway's page of them. Amounts are in cents.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from itertools import chain, count
from typing import Any, Final, NamedTuple

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.bodies import Body, read_body
from gateway.admin.http.guard import REQUEST_ID, Shape
from gateway.admin.http.requests import require_read, require_write
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.budgets import OVERRIDES
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import Action
from gateway.core.accounts.administration import CREATE, Query, Row
from gateway.core.accounts.budget_amounts import MONEY_MAX
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ENFORCE, MONEY, OF_GROUP, OVERRIDES_MAX, USER
from gateway.core.accounts.intervals import INTERVALS, PERIODS
from gateway.errors import Forbidden, NotFound, Unprocessable
from gateway.features.vendor_admin import anthropic, openai
from gateway.features.vendor_admin.report import handler

BUDGETS_READ_MAX: Final = 1_000
LIMITS_MAX: Final = 1_000
AMOUNT_DIGITS_MAX: Final = 12
NAME: Final = "Spend limit"
# Fields of a budget that are the scope of a spend limit.
_SCOPES: Final = ("tenant_id", "user", "each")
OVERRIDE, REMOVE_OVERRIDE = "override", "remove-override"
# The amount of each user where the organization has no limit: the largest that a budget may have.
NO_AMOUNT: Final = str(MONEY_MAX)
_PREFIX: Final = "spl_"
_DIGITS: Final = re.compile(r"[0-9]{1,16}")
Shown = dict[str, Any]


class _SpendLimit(NamedTuple):
    """A spend limit: a budget, or with `who` the override of a user or of `group:ID` in a budget of each user.

    `amount` is None for no limit.
    """

    budget: Row
    amount: str | None
    who: str = ""

    @property
    def id(self) -> str:
        suffix = f"_{urlsafe_b64encode(self.who.encode()).decode().rstrip('=')}" if self.who else ""
        return f"{_PREFIX}{self.budget['id']}{suffix}"

    @property
    def scope(self) -> Shown:
        if self.who.startswith(OF_GROUP):
            return {"type": "rbac_group", "rbac_group_id": self.who.removeprefix(OF_GROUP)}
        if self.who or self.budget["user"]:
            return {"type": "user", "user_id": self.who or self.budget["user"]}
        if self.budget["tenant_id"]:
            return {"type": "workspace", "workspace_id": str(self.budget["tenant_id"])}
        return {"type": "organization"}


class _Limits:
    """The spend limits of the organization of the caller's token."""

    def __init__(self, ports: AdminPorts) -> None:
        self._budgets = Operations(ports, RESOURCES["budgets"])
        self._organizations = Operations(ports, RESOURCES["organizations"])
        self._groups = Operations(ports, RESOURCES["groups"])
        self._organization = ports.actor.organization_id
        self._actor = ports.actor

    async def budgets(self) -> list[Row]:
        """Return all budgets of the organization, the oldest first."""
        require_read(self._actor, self._budgets.resource)
        filters = {"organization_id": self._require_organization()}
        return [*(await self._budgets.list(Query(filters, None, None, None, BUDGETS_READ_MAX)))[0]]

    async def all(self) -> list[_SpendLimit]:
        """Return the spend limits in Anthropic's sense, the oldest first: a pool of all has no scope there."""
        limits = []
        for row in filter(_is_limit, await self.budgets()):
            if row["each"] or row["tenant_id"] or row["user"]:
                limits.append(_SpendLimit(row, _amount_of(row)))
            if row["each"]:
                limits += [
                    _SpendLimit(row, _text(own["amount"]), str(own["who"]))
                    for own in await self._overrides(row)
                ]
        return limits

    async def _overrides(self, row: Row) -> Sequence[Row]:
        query = Query({}, None, None, None, OVERRIDES_MAX)
        return (await self._budgets.part(OVERRIDES, int(str(row["id"])), query, ""))[0]

    async def find(self, interval: str, **scope: object) -> Row | None:
        return _limit_in(await self.budgets(), interval, scope)

    async def set(self, asked: WriteRequest, amount: str, interval: str, **scope: object) -> Row:
        """Create a budget with a spend limit, or change the amount of the existing one."""
        require_write(self._actor, self._budgets.resource, CREATE)
        rows = await self.budgets()
        row = _limit_in(rows, interval, scope)
        if row is not None:
            return (await self._budgets.change(asked, int(str(row["id"])), {"amount": amount})).content
        return await self._create(asked, rows, amount, interval, scope)

    async def _create(
        self,
        asked: WriteRequest,
        rows: Sequence[Row],
        amount: str,
        interval: str,
        scope: Mapping[str, object],
    ) -> Row:
        """Create a limit that `rows`, all budgets, do not have, under a free name.

        Raise `Conflict` if another request makes the same limit meanwhile.
        """
        narrowed = "".join(
            " of each user" if value == USER else f" of {field.removesuffix('_id')} {value}"
            for field, value in scope.items()
        )
        name, taken = f"{NAME}{narrowed}, {interval}", {row["name"] for row in rows}
        names = chain([name], (f"{name} ({number})" for number in count(2)))
        sent = {
            "organization_id": self._require_organization(), "name": next(free for free in names if free not in taken),
            "unit": MONEY, "amount": amount, "interval": interval, **scope,
        }  # fmt: skip
        return (await self._budgets.create(asked, sent)).content

    async def set_own(self, asked: WriteRequest, who: str, amount: str | None, interval: str) -> _SpendLimit:
        """Set the amount of a user or a group in the budget of each user, which is made if it is missing."""
        require_write(self._actor, self._budgets.resource, OVERRIDE)
        if who.startswith(OF_GROUP) and not await self._has_group(int(who.removeprefix(OF_GROUP))):
            raise _wrong(
                "scope", "must have as rbac_group_id the id of a group of users of this organization"
            )
        rows = await self.budgets()
        row = _limit_in(rows, interval, {"each": USER})
        if row is None:
            row = await self._create(asked, rows, NO_AMOUNT, interval, {"each": USER})
        action = _action(OVERRIDE)
        await self._budgets.write_part(
            OVERRIDES, action, asked, int(str(row["id"])), named=who, sent={"amount": amount}
        )
        if not who.startswith(OF_GROUP) and (former := await self.find(interval, user=who)) is not None:
            await self._budgets.delete(asked, int(str(former["id"])))
        return _SpendLimit(row, amount, who)

    async def _has_group(self, group_id: int) -> bool:
        try:
            group = await self._groups.show(group_id)
        except NotFound:
            return False
        return (group["organization_id"], group["kind"]) == (self._require_organization(), USER)

    async def delete(self, asked: WriteRequest, limit: _SpendLimit) -> None:
        """Delete a limit; the budget of each user stays while single ones have limits of their own in it."""
        number = int(str(limit.budget["id"]))
        if limit.who:
            action = _action(REMOVE_OVERRIDE)
            await self._budgets.write_part(OVERRIDES, action, asked, number, named=limit.who, sent={})
        has_own = bool(limit.budget["each"]) and bool(await self._overrides(limit.budget))
        if has_own and not limit.who:
            await self._budgets.change(asked, number, {"amount": NO_AMOUNT})
        elif not has_own and (not limit.who or _amount_of(limit.budget) is None):
            await self._budgets.delete(asked, number)

    async def delete_pool(self, asked: WriteRequest, row: Row) -> None:
        await self._budgets.delete(asked, int(str(row["id"])))

    async def currency(self) -> str:
        return str((await self._organizations.show(self._require_organization()))["currency"])

    def _require_organization(self) -> int:
        if self._organization is None:
            raise Unprocessable("Limits of spend are an organization's: ask with a token of one.")
        if self._actor.tenant_id is not None:
            raise Forbidden("Limits of spend are an organization's: this token is of one tenant alone.")
        return self._organization


def _action(verb: str) -> Action:
    [action] = [action for _, action in OVERRIDES.writes if action.name == verb]
    return action


def _text(amount: object) -> str | None:
    return None if amount is None else str(amount)


def _amount_of(row: Row) -> str | None:
    return None if Decimal(str(row["amount"])) == MONEY_MAX else str(row["amount"])


def _is_limit(row: Row) -> bool:
    """Return whether a budget is one that the vendors' APIs can show as a spend limit."""
    interval = INTERVALS.get(str(row["interval"]))  # a window with a length is no period of theirs
    if row["unit"] != MONEY or interval is None or not interval.period or row["carry"] is not None:
        return False
    narrowed = [
        name for name in (*SELECTING, "tags") if name not in _SCOPES and row.get(name) not in (None, {})
    ]
    plain = (row["mode"], row["time_zone"], row["anchor_day"]) == (ENFORCE, "UTC", 1)
    scopes = [row[name] for name in _SCOPES if row[name]]
    return plain and not narrowed and len(scopes) <= 1 and row["each"] in {None, USER}


def _limit_in(rows: Sequence[Row], interval: str, scope: Mapping[str, object]) -> Row | None:
    """Return the budget with the spend limit of a scope, if `rows` have one."""
    wanted = dict.fromkeys(_SCOPES) | {"interval": interval, **scope}
    limits = (row for row in filter(_is_limit, rows) if all(row[name] == wanted[name] for name in wanted))
    return next(limits, None)


def mount_limits(app: web.Application, ports: AdminPorts) -> None:
    """Serve the spend limits: Anthropic's paths have ids, OpenAI's the limited organization or project."""
    path = "/v1/organizations/spend_limits"
    app.router.add_get(path, _handler(ports, anthropic.refusal, _list))
    app.router.add_post(path, _handler(ports, anthropic.refusal, _set))
    app.router.add_get(f"{path}/{{id}}", _handler(ports, anthropic.refusal, _show))
    app.router.add_delete(f"{path}/{{id}}", _handler(ports, anthropic.refusal, _delete))
    for path in ("/v1/organization/spend_limit", "/v1/organization/projects/{id}/spend_limit"):
        app.router.add_get(path, _handler(ports, openai.refusal, _show_one))
        app.router.add_post(path, _handler(ports, openai.refusal, _set_one))
        app.router.add_delete(path, _handler(ports, openai.refusal, _delete_one))


def _handler(
    ports: AdminPorts,
    shape: Shape,
    answer: Callable[[_Limits, web.Request, Body], Awaitable[Shown]],
) -> Callable[[web.Request], Any]:
    async def content(mine: AdminPorts, request: web.Request) -> Shown:
        sent = await read_body(request, needed=True) if request.method == "POST" else {}
        return await answer(_Limits(mine), request, sent)

    return handler(ports, shape, content)


def _write(request: web.Request) -> WriteRequest:
    return WriteRequest(request[REQUEST_ID])


def _cents(amount: object) -> str:
    return f"{Decimal(str(amount)).scaleb(2).to_integral_value():f}"


def _money(field: str, amount: object, least: int = 1) -> str:
    """Return an amount of money from `amount`, a number of cents, which may be a text."""
    text = str(amount) if isinstance(amount, str | int) and not isinstance(amount, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= AMOUNT_DIGITS_MAX and int(text) >= least):
        bound = "above 0" if least else "of 0 or more"
        raise _wrong(field, f'must be a whole number of cents {bound}, such as 50000 for "500.00"')
    return f"{Decimal(text).scaleb(-2):f}"


def _wrong(field: str, reason: str) -> Unprocessable:
    return Unprocessable(f"The field {field} {reason}.", ((field, reason),))


def _only(sent: Mapping[str, object], *names: str) -> None:
    for name in sent:
        if name not in names:
            raise _wrong(name, f"is not known here: expected some of {', '.join(names)}")


# Anthropic's: each has an id, and is set by its scope and period.
async def _list(limits: _Limits, request: web.Request, _: Body) -> Shown:
    """Return a page of spend limits as Anthropic's API has it."""
    _only(request.query, "limit", "page")
    text = request.query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= LIMITS_MAX):
        raise _wrong("limit", f"must be a number from 1 to {LIMITS_MAX}")
    start = request.query.get("page", "0")
    if not _DIGITS.fullmatch(start):
        raise _wrong("page", "must be the next_page of an answer")
    known, currency = [*reversed(await limits.all())], await limits.currency()
    end = int(start) + int(text)
    shown = [_render_anthropic(limit, currency) for limit in known[int(start) : end]]
    return {"data": shown, "next_page": str(end) if end < len(known) else None}


async def _set(limits: _Limits, request: web.Request, sent: Body) -> Shown:
    """Set a spend limit as Anthropic's API has it: of a user, a workspace, or the organization."""
    _only(sent, "amount", "scope", "period")
    period = sent.get("period", "monthly")
    if period not in PERIODS:
        raise _wrong("period", f"must be one of {', '.join(PERIODS)}")
    if "amount" not in sent:
        raise _wrong("amount", "is required: a number of cents, or null for no limit")
    scope, who = _scope(sent.get("scope"))
    # What the answer needs is read before the first write.
    currency, cents, interval = await limits.currency(), sent["amount"], PERIODS[str(period)].name
    if who:
        amount = None if cents is None else _money("amount", cents, least=0)
        limit = await limits.set_own(_write(request), who, amount, interval)
    elif cents is None and "tenant_id" in scope:
        raise _wrong("amount", "must be a number of cents for a workspace: delete its limit instead")
    else:
        amount = NO_AMOUNT if cents is None else _money("amount", cents)
        row = await limits.set(_write(request), amount, interval, **scope)
        limit = _SpendLimit(row, _amount_of(row))
    return _render_anthropic(limit, currency)


async def _show(limits: _Limits, request: web.Request, _: Body) -> Shown:
    return _render_anthropic(await _limit_by_id(limits, request), await limits.currency())


async def _delete(limits: _Limits, request: web.Request, _: Body) -> Shown:
    limit = await _limit_by_id(limits, request)
    await limits.delete(_write(request), limit)
    return {"id": limit.id, "type": "spend_limit_deleted"}


async def _limit_by_id(limits: _Limits, request: web.Request) -> _SpendLimit:
    for limit in await limits.all():
        if limit.id == request.match_info["id"]:
            return limit
    raise NotFound


def _scope(scope: object) -> tuple[dict[str, object], str]:
    """Return the fields of the budget of a scope, and whose override in it the limit is; empty: the budget's."""
    if isinstance(scope, dict) and scope.get("type") == "organization" and len(scope) == 1:
        return {"each": USER}, ""
    if isinstance(scope, dict) and len(scope) == 2:
        tenant, user, group = (scope.get(name) for name in ("workspace_id", "user_id", "rbac_group_id"))
        if scope.get("type") == "workspace" and isinstance(tenant, str) and _DIGITS.fullmatch(tenant):
            return {"tenant_id": int(tenant)}, ""
        if scope.get("type") == "user" and isinstance(user, str) and user and not user.startswith(OF_GROUP):
            return {"each": USER}, user
        if scope.get("type") == "rbac_group" and isinstance(group, str) and _DIGITS.fullmatch(group):
            return {"each": USER}, f"{OF_GROUP}{int(group)}"
    raise _wrong(
        "scope",
        "must have the type organization, workspace with its workspace_id, rbac_group with its rbac_group_id, the"
        " id of a group of users, or user with its user_id",
    )


def _render_anthropic(limit: _SpendLimit, currency: str) -> Shown:
    made = limit.budget["created_at"]
    return {
        "type": "spend_limit", "id": limit.id, "amount": None if limit.amount is None else _cents(limit.amount),
        "currency": currency, "period": INTERVALS[str(limit.budget["interval"])].period, "scope": limit.scope,
        "is_enabled": True, "created_at": made, "updated_at": made,
    }  # fmt: skip


# OpenAI's: one of the organization, and one of each project, a month.
def _project(request: web.Request) -> dict[str, object]:
    return {"tenant_id": row_id(request)} if "id" in request.match_info else {}


async def _the_one(limits: _Limits, request: web.Request) -> Row:
    row = await limits.find("month", **_project(request))
    if row is None:
        raise NotFound
    return row


async def _show_one(limits: _Limits, request: web.Request, _: Body) -> Shown:
    return _render_openai(request, await _the_one(limits, request), await limits.currency())


async def _set_one(limits: _Limits, request: web.Request, sent: Body) -> Shown:
    """Set the spend limit of the organization or a project as OpenAI's API has it."""
    _only(sent, "threshold_amount", "currency", "interval")
    currency = await limits.currency()
    if sent.get("currency") != currency:
        raise _wrong("currency", f"must be {currency}, which the organization pays in")
    if sent.get("interval") != "month":
        raise _wrong("interval", "must be month")
    amount = _money("threshold_amount", sent.get("threshold_amount"))
    return _render_openai(
        request, await limits.set(_write(request), amount, "month", **_project(request)), currency
    )


async def _delete_one(limits: _Limits, request: web.Request, _: Body) -> Shown:
    await limits.delete_pool(_write(request), await _the_one(limits, request))
    return {"object": f"{_object(request)}.deleted", "deleted": True}


def _object(request: web.Request) -> str:
    return "project.spend_limit" if "id" in request.match_info else "organization.spend_limit"


def _render_openai(request: web.Request, row: Row, currency: str) -> Shown:
    used = Decimal(str(row.get("used") or 0))
    status = "enforcing" if used >= Decimal(str(row["amount"])) else "inactive"
    return {
        "object": _object(request), "threshold_amount": int(_cents(row["amount"])), "currency": currency,
        "interval": "month", "enforcement": {"status": status},
    }  # fmt: skip
