"""Spend limits at the paths, and in the shapes, of Anthropic's and OpenAI's own Admin APIs.

They are views of budgets of money that are enforced and shared, for an organization, one tenant or one user
of it, for each day, week or month in UTC. Sources: both vendors' references of their spend limits. Amounts
are in cents.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.http.guard import REQUEST_ID, Shape
from gateway.admin.http.requests import Body, read_body, require_read, require_write
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, Query, Row
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ENFORCE, MONEY
from gateway.core.accounts.intervals import INTERVALS, PERIODS
from gateway.errors import NotFound, Unprocessable
from gateway.features.vendor_admin import anthropic, openai
from gateway.features.vendor_admin.report import handler

BUDGETS_READ_MAX: Final = 1_000
LIMITS_MAX: Final = 1_000
AMOUNT_DIGITS_MAX: Final = 12
NAME: Final = "Spend limit"
# Fields of a budget that are the scope of a spend limit.
_SCOPES: Final = ("tenant_id", "user")
_PREFIX: Final = "spl_"
_DIGITS: Final = re.compile(r"[0-9]{1,16}")
Shown = dict[str, Any]


class _Limits:
    """The spend limits of the organization of the caller's token."""

    def __init__(self, ports: AdminPorts) -> None:
        self._budgets = Operations(ports, RESOURCES["budgets"])
        self._organizations = Operations(ports, RESOURCES["organizations"])
        self._organization = ports.actor.organization_id
        self._actor = ports.actor

    async def all(self) -> list[Row]:
        """Return the budgets that are spend limits, the oldest first."""
        require_read(self._actor, self._budgets.resource)
        filters = {"organization_id": self._of(), "unit": MONEY}
        rows, _ = await self._budgets.list(Query(filters, None, None, None, BUDGETS_READ_MAX))
        return [row for row in rows if _is_limit(row)]

    async def find(self, interval: str, **scope: object) -> Row | None:
        wanted = dict.fromkeys(_SCOPES) | scope
        for row in await self.all():
            if row["interval"] == interval and all(row[name] == wanted[name] for name in _SCOPES):
                return row
        return None

    async def set(self, asked: WriteRequest, amount: str, interval: str, **scope: object) -> Row:
        """Create a spend limit, or change the amount of the existing one."""
        require_write(self._actor, self._budgets.resource, CREATE)
        row = await self.find(interval, **scope)
        if row is not None:
            return (await self._budgets.change(asked, int(str(row["id"])), {"amount": amount})).content
        narrowed = "".join(f" of {name.removesuffix('_id')} {value}" for name, value in scope.items())
        sent = {
            "organization_id": self._of(), "name": NAME + narrowed, "unit": MONEY, "amount": amount,
            "interval": interval, **scope,
        }  # fmt: skip
        return (await self._budgets.create(asked, sent)).content

    async def delete(self, asked: WriteRequest, row: Row) -> None:
        await self._budgets.delete(asked, int(str(row["id"])))

    async def currency(self) -> str:
        return str((await self._organizations.show(self._of()))["currency"])

    def _of(self) -> int:
        if self._organization is None:
            raise Unprocessable("Limits of spend are an organization's: ask with a token of one.")
        return self._organization


def _is_limit(row: Row) -> bool:
    narrowed = [
        name
        for name in (*SELECTING, "tags", "each")
        if name not in _SCOPES and row.get(name) not in (None, {})
    ]
    plain = (row["mode"], row["time_zone"], row["anchor_day"]) == (ENFORCE, "UTC", 1)
    interval = INTERVALS.get(str(row["interval"]))  # a rolling window has none
    in_period = interval is not None and interval.period != ""
    return plain and in_period and not narrowed and not (row["tenant_id"] and row["user"])


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


def _cents(row: Row) -> str:
    return f"{Decimal(str(row['amount'])).scaleb(2).to_integral_value():f}"


def _money(field: str, said: object) -> str:
    """Return an amount of money from `said`, a number of cents, which may be a text."""
    text = str(said) if isinstance(said, str | int) and not isinstance(said, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= AMOUNT_DIGITS_MAX and int(text) > 0):
        raise _wrong(field, 'must be a whole number of cents above 0, such as 50000 for "500.00"')
    return f"{Decimal(text).scaleb(-2):f}"


def _wrong(field: str, reason: str) -> Unprocessable:
    return Unprocessable(f"The field {field} {reason}.", ((field, reason),))


def _only(sent: Mapping[str, object], *names: str) -> None:
    for name in sent:
        if name not in names:
            raise _wrong(name, f"is not known here: expected some of {', '.join(names)}")


# Anthropic's: each has an id, and is set by its scope and period.
async def _list(limits: _Limits, request: web.Request, _: Body) -> Shown:
    _only(request.query, "limit")
    text = request.query.get("limit", "20")
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= LIMITS_MAX):
        raise _wrong("limit", f"must be a number from 1 to {LIMITS_MAX}")
    rows, currency = await limits.all(), await limits.currency()
    shown = [_of_anthropic(row, currency) for row in reversed(rows)]
    if len(shown) > int(text):
        raise _wrong("limit", f"must be {len(shown)} at least: there is one page")
    return {"data": shown, "next_page": None}


async def _set(limits: _Limits, request: web.Request, sent: Body) -> Shown:
    _only(sent, "amount", "scope", "period")
    period = sent.get("period", "monthly")
    if period not in PERIODS:
        raise _wrong("period", f"must be one of {', '.join(PERIODS)}")
    scope = _scope(sent.get("scope"))
    row = await limits.set(
        _write(request), _money("amount", sent.get("amount")), PERIODS[str(period)].name, **scope
    )
    return _of_anthropic(row, await limits.currency())


async def _show(limits: _Limits, request: web.Request, _: Body) -> Shown:
    return _of_anthropic(await _by_id(limits, request), await limits.currency())


async def _delete(limits: _Limits, request: web.Request, _: Body) -> Shown:
    row = await _by_id(limits, request)
    await limits.delete(_write(request), row)
    return {"id": f"{_PREFIX}{row['id']}", "type": "spend_limit_deleted"}


async def _by_id(limits: _Limits, request: web.Request) -> Row:
    for row in await limits.all():
        if f"{_PREFIX}{row['id']}" == request.match_info["id"]:
            return row
    raise NotFound


def _scope(said: object) -> dict[str, object]:
    if isinstance(said, dict) and said.get("type") == "organization" and len(said) == 1:
        return {}
    if isinstance(said, dict) and len(said) == 2:
        tenant, user = said.get("workspace_id"), said.get("user_id")
        if said.get("type") == "workspace" and isinstance(tenant, str) and _DIGITS.fullmatch(tenant):
            return {"tenant_id": int(tenant)}
        if said.get("type") == "user" and isinstance(user, str) and user:
            return {"user": user}
    raise _wrong(
        "scope", "must have the type organization, workspace with its workspace_id, or user with its user_id"
    )


def _of_anthropic(row: Row, currency: str) -> Shown:
    scope: Shown = {"type": "organization"}
    if row["tenant_id"] is not None:
        scope = {"type": "workspace", "workspace_id": str(row["tenant_id"])}
    elif row["user"] is not None:
        scope = {"type": "user", "user_id": row["user"]}
    return {
        "type": "spend_limit", "id": f"{_PREFIX}{row['id']}", "amount": _cents(row), "currency": currency,
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
    await limits.delete(_write(request), await _the_one(limits, request))
    return {"object": f"{_object(request)}.deleted", "deleted": True}


def _object(request: web.Request) -> str:
    return "project.spend_limit" if "id" in request.match_info else "organization.spend_limit"


def _of_openai(request: web.Request, row: Row, currency: str) -> Shown:
    used = Decimal(str(row.get("used") or 0))
    status = "enforcing" if used >= Decimal(str(row["amount"])) else "inactive"
    return {
        "object": _object(request), "threshold_amount": int(_cents(row)), "currency": currency,
        "interval": "month", "enforcement": {"status": status},
    }  # fmt: skip
