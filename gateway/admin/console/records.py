"""A row's page, and everything that can be done with a row: make, change, delete, act.

Writes go through the operations the Admin API calls. A form that is refused comes back as it
was typed, each message beside its field; one that is taken sends the browser on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin import body
from gateway.admin.console import forms
from gateway.admin.console.cells import Cell, cell, label_of, references, state_of
from gateway.admin.console.desk import Desk, Posted, see
from gateway.admin.console.forms import Form
from gateway.admin.console.screens import Screen
from gateway.admin.console.sessions import Signed
from gateway.admin.operations import Done
from gateway.admin.resources import Action
from gateway.admin.resources.fields import Field, fields_of
from gateway.admin.views import row_id
from gateway.core.accounts.administration import Row
from gateway.errors import AdminRefusal, Conflict, NotFound, Unprocessable

CHANGE = "change"
DELETE = "delete"
# What a change is called where more than words can be changed.
EDITS = {"tenants": "Change plan, name or limits"}
# Actions that cannot be taken back as simply as they are done.
DANGEROUS = frozenset({"revoke", "void", "block", "cancel", "reset", DELETE})

# What a page of a certain resource shows beyond its fields.
Extras = Callable[[Desk, web.Request, Row], Awaitable[Mapping[str, Any]]]


def fields_for(screen: Screen, model: Any) -> tuple[Field, ...]:
    """The form fields of a model of a screen's resource."""
    return fields_of(screen.resource, model) if model is not None else ()


async def show(
    desk: Desk,
    screen: Screen,
    request: web.Request,
    signed: Signed,
    *,
    extras: Extras | None = None,
    refused: Form | None = None,
    status: int = 200,
) -> web.Response:
    """`GET /<resource>/{id}`; `refused` is a form that comes back."""
    row = await desk.operations[screen.name].show(row_id(request))
    more = await extras(desk, request, row) if extras is not None else {}
    names = await desk.names(references([(screen, [row])]))
    offered = await forms_of(desk, screen, {**row, **more}) if signed.actor.role == "admin" else []
    if refused is not None:
        # First, and there even if the row no longer offers it.
        others = [each for each in offered if (each.action, each.title) != (refused.action, refused.title)]
        offered = [refused, *others]
    return desk.answer(
        request,
        signed,
        f"{screen.name}.html" if extras is not None else "record.html",
        status,
        screen=screen,
        row=row,
        name=title_of(screen, row),
        state=state_of(screen.name, {**row, **more}),
        facts=facts_of(screen, row, names),
        names=names,
        forms=offered,
        **more,
    )


def title_of(screen: Screen, row: Row) -> str:
    """What a row's page is called."""
    said = row.get(screen.title_field) if screen.title_field != "id" else None
    return str(said or f"{screen.one[:1].upper()}{screen.one[1:]} {row['id']}")


def facts_of(screen: Screen, row: Row, names: Mapping[tuple[str, int], str]) -> list[tuple[str, Cell]]:
    """Every field of a row with its label."""
    return [(label_of(name), cell(screen, row, name, names)) for name in row]


async def forms_of(desk: Desk, screen: Screen, row: Row) -> list[Form]:
    """Every form a row's page offers."""
    resource, where = screen.resource, f"/{screen.name}/{row['id']}"
    found = [
        _action_form(screen, where, action) for action in resource.actions if _is_offered(screen, action, row)
    ]
    if resource.patch is not None:
        fields = fields_for(screen, resource.patch)
        values = forms.in_form(fields, row)
        found.append(
            Form(
                f"{where}/{CHANGE}",
                EDITS.get(screen.name, "Edit"),
                "Save changes",
                fields,
                values,
                former=values,
            )
        )
    if resource.deletable and (screen.name != "invoices" or row["status"] == "draft"):
        note = f"Deletes this {screen.one}. What was recorded of it stays in the ledgers."
        found.append(Form(f"{where}/{DELETE}", "Delete", "Delete", note=note, is_dangerous=True))
    return [await with_choices(desk, each) for each in found]


async def with_choices(desk: Desk, form: Form) -> Form:
    """A form with the short lists its ids may be chosen from."""
    return replace(form, choices=await desk.choices({each.refers for each in form.fields if each.refers}))


async def blank(desk: Desk, screen: Screen, request: web.Request) -> Form:
    """The form that makes a row; what its address says is filled in."""
    fields = fields_for(screen, screen.resource.create)
    values = forms.defaults(fields)
    for each in fields:
        if each.name in request.query and each.kind != "many":
            values[each.name] = request.query[each.name]
    title = f"New {screen.one}"
    return await with_choices(desk, Form(f"/{screen.name}", title, f"Make {screen.one}", fields, values))


async def new(desk: Desk, screen: Screen, request: web.Request, signed: Signed) -> web.Response:
    """`GET /<resource>/new`."""
    if screen.resource.create is None or signed.actor.role != "admin":
        raise NotFound
    return desk.answer(request, signed, "new.html", screen=screen, form=await blank(desk, screen, request))


async def create(
    desk: Desk, screen: Screen, request: web.Request, signed: Signed, posted: Posted
) -> web.Response:
    """`POST /<resource>`; a secret made here is shown once."""
    resource = screen.resource
    if resource.create is None:
        raise NotFound
    fields = fields_for(screen, resource.create)
    sent = forms.body_of(fields, posted, changes=False)
    try:
        asked = desk.asked(request, signed, posted, body.digest(sent))
        done = await desk.operations[screen.name].create(asked, sent)
    except (Unprocessable, Conflict) as error:
        form = await blank(desk, screen, request)
        form = came_back(replace(form, values=forms.posted_values(fields, posted)), error)
        return desk.answer(request, signed, "new.html", error.status, screen=screen, form=form)
    if resource.secret is not None:
        owner = done.content.get("tenant_id")
        back = f"/{screen.name}" if owner is None else f"/tenants/{owner}"
        shown_once = str(done.content.get(resource.secret.field, ""))
        return desk.answer(
            request, signed, "secret.html", 201, screen=screen, row=done.content, secret=shown_once, back=back
        )
    return see(f"/{screen.name}/{done.content['id']}?{_said('made', done)}")


async def change(
    desk: Desk,
    screen: Screen,
    request: web.Request,
    signed: Signed,
    posted: Posted,
    *,
    extras: Extras | None = None,
) -> web.Response:
    """`POST /<resource>/{id}/change`: only what was typed over is sent."""
    fields = fields_for(screen, screen.resource.patch)
    sent = forms.body_of(fields, posted, changes=True)
    where = f"/{screen.name}/{row_id(request)}"
    if not sent:
        return see(f"{where}?done=nothing")
    try:
        asked = desk.asked(request, signed, posted, body.digest(sent))
        done = await desk.operations[screen.name].change(replace(asked, claim=None), row_id(request), sent)
    except (Unprocessable, Conflict) as error:
        form = Form(
            f"{where}/{CHANGE}", EDITS.get(screen.name, "Edit"), "Save changes", fields,
            forms.posted_values(fields, posted), forms.former_values(fields, posted),
        )  # fmt: skip
        refused = came_back(await with_choices(desk, form), error)
        return await show(desk, screen, request, signed, extras=extras, refused=refused, status=error.status)
    return see(f"{where}?{_said('changed', done)}")


async def delete(
    desk: Desk,
    screen: Screen,
    request: web.Request,
    signed: Signed,
    posted: Posted,
    *,
    extras: Extras | None = None,
) -> web.Response:
    """`POST /<resource>/{id}/delete`."""
    where = f"/{screen.name}/{row_id(request)}"
    try:
        asked = replace(desk.asked(request, signed, posted, ""), claim=None)
        await desk.operations[screen.name].delete(asked, row_id(request))
    except (Unprocessable, Conflict) as error:
        form = Form(f"{where}/{DELETE}", "Delete", "Delete", is_dangerous=True)
        refused = came_back(form, error)
        return await show(desk, screen, request, signed, extras=extras, refused=refused, status=error.status)
    return see(f"/{screen.name}?done=deleted")


async def act(
    desk: Desk,
    screen: Screen,
    request: web.Request,
    signed: Signed,
    posted: Posted,
    *,
    action: Action,
    extras: Extras | None = None,
) -> web.Response:
    """`POST /<resource>/{id}/<action>`."""
    fields = fields_for(screen, action.body)
    sent = forms.body_of(fields, posted, changes=False)
    where = f"/{screen.name}/{row_id(request)}"
    try:
        asked = desk.asked(request, signed, posted, body.digest(sent))
        done = await desk.operations[screen.name].act(action, asked, row_id(request), sent)
    except (Unprocessable, Conflict) as error:
        form = replace(_action_form(screen, where, action), values=forms.posted_values(fields, posted))
        refused = came_back(await with_choices(desk, form), error)
        return await show(desk, screen, request, signed, extras=extras, refused=refused, status=error.status)
    if not action.quota and done.content.get("id") not in {None, row_id(request)}:
        where = f"/{screen.name}/{done.content['id']}"
    return see(f"{where}?{_said(action.name, done)}")


def address_of(action: Action) -> str:
    """Where an action is sent to; one that is called as the change of a row has a longer name."""
    return action.name if action.name != CHANGE else f"{CHANGE}-plan"


def came_back(form: Form, error: AdminRefusal) -> Form:
    """A refused form with what is wrong beside its fields."""
    beside, others = forms.errors_by_field(form.fields, error.errors)
    message = "; ".join(others) if error.errors else error.message
    return replace(form, errors=beside, message=message, is_open=True)


def _action_form(screen: Screen, where: str, action: Action) -> Form:
    title = action.name.replace("-", " ").capitalize()
    fields = fields_for(screen, action.body)
    return Form(
        f"{where}/{address_of(action)}", title, title, fields, forms.defaults(fields),
        note=f"{action.summary}.", is_dangerous=action.name in DANGEROUS,
    )  # fmt: skip


def _is_offered(screen: Screen, action: Action, row: Row) -> bool:
    """Whether an action can do anything with a row as it is."""
    quota: Any = row.get("quota") or {}
    rules: Sequence[tuple[str, str, Callable[[], bool]]] = (
        ("tenants", "block", lambda: not quota.get("manual_block")),
        ("tenants", "unblock", lambda: bool(quota.get("manual_block"))),
        ("invoices", "finalize", lambda: row["status"] == "draft"),
        ("invoices", "recompute", lambda: row["status"] == "draft"),
        ("invoices", "void", lambda: row["status"] == "finalized"),
        ("invoices", "credit-note", lambda: row["status"] == "finalized" and row["kind"] == "invoice"),
    )
    if action.name == "revoke":
        return row.get("revoked_at") is None
    if screen.name in {"dead-letters", "quarantine"}:
        return row.get("resolved_at") is None and row.get("released_at") is None
    if screen.name == "organization-subscriptions":
        return row["status"] != "over"
    return all(rule() for name, verb, rule in rules if (name, verb) == (screen.name, action.name))


def _said(what: str, done: Done) -> str:
    return urlencode({"done": what} | ({"later": "1"} if done.status == 202 else {}))
