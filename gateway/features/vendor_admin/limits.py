"""Spend limits at the paths, and in the shapes, of Anthropic's and OpenAI's own Admin APIs.

They are views of budgets of money that are enforced, for each day, week or month in UTC. Anthropic's of a
workspace and all of OpenAI's are shared; Anthropic's of an organization is a budget of each user, of a group
or a user an override of it. Sources: both vendors' references of their spend limits, and the page of Claude
apps gateway. Amounts are in cents.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.bodies import Body, read_body
from gateway.admin.http.guard import REQUEST_ID, Shape
from gateway.admin.http.requests import require_read, require_write
from gateway.admin.live import budget_overrides
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.quota import OVERRIDES
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, Query, Row
from gateway.core.accounts.budget_amounts import MONEY_MAX
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ENFORCE, MONEY, OF_GROUP, USER, owner_of
from gateway.core.accounts.groups import ID
from gateway.core.accounts.intervals import INTERVALS, PERIODS
from gateway.errors import NotFound, Unprocessable
from gateway.features.vendor_admin import anthropic, openai
from gateway.features.vendor_admin.report import handler

BUDGETS_READ_MAX: Final = 1_000
LIMITS_MAX: Final = 1_000
AMOUNT_DIGITS_MAX: Final = 12
NAME: Final = "Spend limit"
# Fields of a budget that are the scope of a spend limit.
_SCOPES: Final = ("tenant_id", "user", "each")
_PREFIX: Final = "spl_"
_DIGITS: Final = re.compile(r"[0-9]{1,16}")
Shown = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _SpendLimit:
    """A spend limit of Anthropic's: the `amount` of a budget, or with `who` of a user or group in a budget of each user.

    The amount None is no limit.
    """

    row: Row
    amount: Decimal | None
    who: str = ""

    @property
    def id(self) -> str:
        """The id; that of a user's or group's limit ends in its name, or in the hash of it."""
        group = self.who.removeprefix(OF_GROUP) if self.who.startswith(OF_GROUP) else ""
        end = f"_g{group}" if group else f"_u{owner_of(self.who)}" if self.who else ""
        return f"{_PREFIX}{self.row['id']}{end}"


class _Limits:
    """The spend limits of the organization of the caller's token."""

    def __init__(self, ports: AdminPorts) -> None:
        self._ports = ports
        self._budgets = Operations(ports, RESOURCES["budgets"])
        self._organizations = Operations(ports, RESOURCES["organizations"])
        self._organization = ports.actor.organization_id
        self._actor = ports.actor

    async def rows(self) -> list[Row]:
        """Return the budgets that are spend limits, the oldest first."""
        require_read(self._actor, self._budgets.resource)
        filters = {"organization_id": self._of(), "unit": MONEY}
        rows, _ = await self._budgets.list(Query(filters, None, None, None, BUDGETS_READ_MAX))
        return [row for row in rows if _is_limit(row)]

    async def all(self) -> list[_SpendLimit]:
        """Return Anthropic's spend limits, those of the newest budgets first.

        A budget that a whole organization shares is none: its organization's limit is of each user.
        """
        limits = list[_SpendLimit]()
        for row in reversed(await self.rows()):
            if row["each"] or row["tenant_id"] or row["user"]:
                amount = Decimal(str(row["amount"]))
                limits.append(_SpendLimit(row, None if amount == MONEY_MAX else amount))
            if row["each"]:
                limits += await self._overrides(row)
        return limits

    async def _overrides(self, row: Row) -> list[_SpendLimit]:
        limits, after = list[_SpendLimit](), None
        while True:
            page = await budget_overrides(self._ports, row, Query({}, None, None, after, LIMITS_MAX))
            for own in page.rows:
                amount = None if own["amount"] is None else Decimal(str(own["amount"]))
                limits.append(_SpendLimit(row, amount, str(own["name"])))
            after = page.next_after
            if after is None:
                return limits

    async def find(self, interval: str, **scope: object) -> Row | None:
        wanted = dict.fromkeys(_SCOPES) | scope
        for row in await self.rows():
            if row["interval"] == interval and all(row[name] == wanted[name] for name in _SCOPES):
                return row
        return None

    async def set(self, asked: WriteRequest, amount: str, interval: str, **scope: object) -> Row:
        """Create a budget that is a spend limit, or change the amount of the existing one."""
        require_write(self._actor, self._budgets.resource, CREATE)
        row = await self.find(interval, **scope)
        if row is not None:
            return (await self._budgets.change(asked, int(str(row["id"])), {"amount": amount})).content
        name = NAME + "".join(f" of {name.removesuffix('_id')} {value}" for name, value in scope.items())
        if any(other["name"] == name for other in await self.rows()):
            name += f", {INTERVALS[interval].per}"
        sent = {
            "organization_id": self._of(), "name": name, "unit": MONEY, "amount": amount,
            "interval": interval, **scope,
        }  # fmt: skip
        return (await self._budgets.create(asked, sent)).content

    async def set_each(self, asked: WriteRequest, amount: str | None, interval: str, who: str) -> _SpendLimit:
        """Set what each user may spend, or with `who` what one user or each member of a group may; None is no limit."""
        stated = None if amount is None else Decimal(amount)
        row = await self.find(interval, each=USER)
        if row is None or not who:
            most = str(MONEY_MAX) if who or amount is None else amount
            row = await self.set(asked, most, interval, each=USER)
        if not who:
            return _SpendLimit(row, stated)
        if (alone := await self.find(interval, user=who)) is not None:  # as limits of a user once were
            await self.delete(asked, _SpendLimit(alone, stated))
        try:
            await self._override(asked, row, who, {"amount": amount})
        except Unprocessable as refused:
            raise _wrong("scope", f"names nobody here: {refused.errors[0][1]}") from refused
        return _SpendLimit(row, stated, who)

    async def delete(self, asked: WriteRequest, limit: _SpendLimit) -> None:
        """Remove a limit; a budget of each user without any limit is deleted, too."""
        row_id, is_last = int(str(limit.row["id"])), True
        if limit.who:
            await self._override(asked, limit.row, limit.who, None)
            is_last = Decimal(str(limit.row["amount"])) == MONEY_MAX
        if limit.row["each"] and is_last and await self._overrides(limit.row):
            await self._budgets.change(asked, row_id, {"amount": str(MONEY_MAX)})
        elif is_last:
            await self._budgets.delete(asked, row_id)

    async def _override(self, asked: WriteRequest, row: Row, who: str, sent: Body | None) -> None:
        action = OVERRIDES.delete if sent is None else OVERRIDES.put
        assert action is not None
        row_id = int(str(row["id"]))
        await self._budgets.write_part(OVERRIDES, action, asked, row_id, named=who, sent=sent or {})

    async def currency(self) -> str:
        return str((await self._organizations.show(self._of()))["currency"])

    def _of(self) -> int:
        if self._organization is None:
            raise Unprocessable("Limits of spend are an organization's: ask with a token of one.")
        return self._organization


def _is_limit(row: Row) -> bool:
    narrowed = [
        name for name in (*SELECTING, "tags") if name not in _SCOPES and row.get(name) not in (None, {})
    ]
    plain = (row["mode"], row["time_zone"], row["anchor_day"]) == (ENFORCE, "UTC", 1)
    in_period = row["interval"] is not None and INTERVALS[str(row["interval"])].period != ""
    scopes = [row[name] for name in _SCOPES if row[name]]
    return plain and in_period and not narrowed and len(scopes) < 2 and row["each"] in {None, USER}


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


def _money(field: str, said: object, least: int = 1) -> str:
    """Return an amount of money from `said`, a number of cents, which may be a text."""
    text = str(said) if isinstance(said, str | int) and not isinstance(said, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= AMOUNT_DIGITS_MAX and int(text) >= least):
        right = "above 0" if least else "or null"
        raise _wrong(field, f'must be a whole number of cents {right}, such as 50000 for "500.00"')
    return f"{Decimal(text).scaleb(-2):f}"


def _wrong(field: str, reason: str) -> Unprocessable:
    return Unprocessable(f"The field {field} {reason}.", ((field, reason),))


def _only(sent: Mapping[str, object], *names: str) -> None:
    for name in sent:
        if name not in names:
            raise _wrong(name, f"is not known here: expected some of {', '.join(names)}")


# Anthropic's: each has an id, and is set by its scope and period.
async def _list(limits: _Limits, request: web.Request, _: Body) -> Shown:
    _only(request.query, "limit", "page")
    text = request.query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= LIMITS_MAX):
        raise _wrong("limit", f"must be a number from 1 to {LIMITS_MAX}")
    start = request.query.get("page", "0")
    if not _DIGITS.fullmatch(start):
        raise _wrong("page", "must be the next_page of an answer")
    every, currency = await limits.all(), await limits.currency()
    end = int(start) + int(text)
    shown = [_of_anthropic(limit, currency) for limit in every[int(start) : end]]
    return {"data": shown, "next_page": str(end) if end < len(every) else None}


async def _set(limits: _Limits, request: web.Request, sent: Body) -> Shown:
    _only(sent, "amount", "scope", "period")
    period = sent.get("period", "monthly")
    if period not in PERIODS:
        raise _wrong("period", f"must be one of {', '.join(PERIODS)}")
    tenant, who = _scope(sent.get("scope"))
    amount, interval = sent.get("amount", ""), PERIODS[str(period)].name
    if tenant is not None:
        row = await limits.set(_write(request), _money("amount", amount), interval, tenant_id=tenant)
        limit = _SpendLimit(row, Decimal(str(row["amount"])))
    else:
        money = None if amount is None else _money("amount", amount, least=0 if who else 1)
        limit = await limits.set_each(_write(request), money, interval, who)
    return _of_anthropic(limit, await limits.currency())


async def _show(limits: _Limits, request: web.Request, _: Body) -> Shown:
    return _of_anthropic(await _by_id(limits, request), await limits.currency())


async def _delete(limits: _Limits, request: web.Request, _: Body) -> Shown:
    limit = await _by_id(limits, request)
    await limits.delete(_write(request), limit)
    return {"id": limit.id, "type": "spend_limit_deleted"}


async def _by_id(limits: _Limits, request: web.Request) -> _SpendLimit:
    for limit in await limits.all():
        if limit.id == request.match_info["id"]:
            return limit
    raise NotFound


def _scope(said: object) -> tuple[int | None, str]:
    """Return the tenant of a scope, and the owner of an override; neither for an organization."""
    if isinstance(said, dict) and said.get("type") == "organization" and len(said) == 1:
        return None, ""
    if isinstance(said, dict) and len(said) == 2:
        tenant, group, user = (said.get(f"{kind}_id") for kind in ("workspace", "rbac_group", "user"))
        if said.get("type") == "workspace" and isinstance(tenant, str) and _DIGITS.fullmatch(tenant):
            return int(tenant), ""
        if said.get("type") == "rbac_group" and isinstance(group, str) and ID.fullmatch(group):
            return None, OF_GROUP + group
        if said.get("type") == "user" and isinstance(user, str) and user and not user.startswith(OF_GROUP):
            return None, user
    raise _wrong(
        "scope",
        "must have the type organization, workspace with its workspace_id, rbac_group with its rbac_group_id"
        " (the id of a group), or user with its user_id",
    )


def _of_anthropic(limit: _SpendLimit, currency: str) -> Shown:
    scope: Shown = {"type": "organization"}
    row, who = limit.row, limit.who or limit.row["user"]
    if row["tenant_id"] is not None:
        scope = {"type": "workspace", "workspace_id": str(row["tenant_id"])}
    elif limit.who.startswith(OF_GROUP):
        scope = {"type": "rbac_group", "rbac_group_id": limit.who.removeprefix(OF_GROUP)}
    elif who is not None and who != "":
        scope = {"type": "user", "user_id": who}
    amount = None if limit.amount is None else _cents(limit.amount)
    return {
        "type": "spend_limit", "id": limit.id, "amount": amount, "currency": currency,
        "period": INTERVALS[str(row["interval"])].period, "scope": scope, "is_enabled": True, "created_at": row["created_at"],
        "updated_at": row["created_at"],
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
    return _of_openai(request, await _the_one(limits, request), await limits.currency())


async def _set_one(limits: _Limits, request: web.Request, sent: Body) -> Shown:
    _only(sent, "threshold_amount", "currency", "interval")
    currency = await limits.currency()
    if sent.get("currency") != currency:
        raise _wrong("currency", f"must be {currency}, which the organization pays in")
    if sent.get("interval") != "month":
        raise _wrong("interval", "must be month")
    amount = _money("threshold_amount", sent.get("threshold_amount"))
    return _of_openai(
        request, await limits.set(_write(request), amount, "month", **_project(request)), currency
    )


async def _delete_one(limits: _Limits, request: web.Request, _: Body) -> Shown:
    row = await _the_one(limits, request)
    await limits.delete(_write(request), _SpendLimit(row, Decimal(str(row["amount"]))))
    return {"object": f"{_object(request)}.deleted", "deleted": True}


def _object(request: web.Request) -> str:
    return "project.spend_limit" if "id" in request.match_info else "organization.spend_limit"


def _of_openai(request: web.Request, row: Row, currency: str) -> Shown:
    used = Decimal(str(row.get("used") or 0))
    status = "enforcing" if used >= Decimal(str(row["amount"])) else "inactive"
    return {
        "object": _object(request), "threshold_amount": int(_cents(row["amount"])), "currency": currency,
        "interval": "month", "enforcement": {"status": status},
    }  # fmt: skip
