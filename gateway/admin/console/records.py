"""A row's page, and everything that can be done with a row: make, change, delete, act.

Writes go through the operations the Admin API calls. A form that is refused comes back as it
was typed, each message beside its field; one that is taken sends the browser on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.admin.api.views import row_id
from gateway.admin.console import formatting
from gateway.admin.console.formatting import PageForm, cell, label_of, references, state_of
from gateway.admin.console.home import ConsoleShell, Posted, SignedInPerson, see
from gateway.admin.console.screens import Screen
from gateway.admin.http.requests import Body
from gateway.admin.operations import WriteResult
from gateway.admin.resources import resource as resources_resource
from gateway.admin.resources.resource import Action, FormField, fields_of
from gateway.admin.resources.values import In
from gateway.core.accounts.administration import CHANGE, CREATE, DELETE, Row, refused_write, settable
from gateway.core.billing.payments import PAID, WAITING
from gateway.errors import Conflict, NotFound, Unprocessable

# What a change is called where more than words can be changed.
EDITS = {"tenants": "Change plan, name or limits"}
# Actions that cannot be taken back as simply as they are done.
DANGEROUS = frozenset(
    ("revoke", "void", "block", "cancel", "reset", "uncollectible", "reverse", "end", "drop", DELETE)
)

# A key with one of these has none made in its place.
KEPT = ("revoked_at", "replaced_by_id", "issuer")
# Ticks before an action of the core that nothing takes back.
CONFIRMED = {
    ("invoices", "finalize"): "It gets its number, and nothing changes it any more.",
    ("invoices", "void"): "It keeps its number, and what it billed is owed again.",
    ("invoices", "payments"): "The money is there: a payment is given back, never changed.",
    ("invoices", "apply"): "The invoice has it: nothing but its end, or that of the note, takes it back.",
    ("invoices", "refund"): "The money went out: a refund is taken back, never changed.",
    ("invoices", "uncollectible"): "Nobody hopes for what is left to pay.",
    ("payments", "reverse"): "The money went back: an invoice is to be paid again, a note has credit again.",
}

# What a page of a certain resource shows beyond its fields.
Extras = Callable[[ConsoleShell, web.Request, Row], Awaitable[Mapping[str, Any]]]


class Records:
    """The pages and forms of a screen's rows; `extras` reads what a row's page shows beyond its fields."""

    def __init__(self, desk: ConsoleShell, screen: Screen, extras: Extras | None = None) -> None:
        self._desk = desk
        self._screen = screen
        self._extras = extras
        self._operations = desk.operations[screen.name]

    async def show(
        self, request: web.Request, signed: SignedInPerson, refused: PageForm | None = None, status: int = 200
    ) -> web.Response:
        """`GET /<resource>/{id}`; `refused` is a form that comes back."""
        desk, screen = self._desk, self._screen
        row = await self._operations.show(row_id(request))
        more = await self._extras(desk, request, row) if self._extras is not None else {}
        names = await desk.names(references(screen, [row]))
        offered = await self._forms({**row, **more})
        if refused is not None:
            # First, and there even if the row no longer offers it.
            offered = [refused, *(each for each in offered if each.action != refused.action)]
        return desk.answer(
            request,
            signed,
            f"{screen.name}.html" if self._extras is not None else "record.html",
            status,
            screen=screen,
            row=row,
            name=_title_of(screen, row),
            state=state_of(screen.name, {**row, **more}),
            facts=[(label_of(name), cell(screen, row, name, names)) for name in row],
            forms=offered,
            **more,
        )

    async def new(self, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /<resource>/new`; what the address says is filled in."""
        if not self._may(CREATE):
            raise NotFound
        form = self._blank()
        said = {
            each.name: request.query[each.name]
            for each in form.fields
            if each.name in request.query and each.kind != "many"
        }
        own = {"organization_id": str(signed.actor.organization_id or "")}
        return await self._form_page(request, signed, replace(form, values={**form.values, **own, **said}))

    async def create(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>`; a secret made here is shown once."""
        screen, secret, form = self._screen, self._screen.resource.secret, self._blank()
        sent = await self._in_unit(form, formatting.body_of(form.fields, posted, changes=False))
        try:
            done = await self._operations.create(self._desk.asked(request, signed, posted, sent), sent)
        except (Unprocessable, Conflict) as error:
            return await self._form_page(
                request, signed, formatting.form_again(form, posted, error), error.status
            )
        if secret is not None and secret.is_made(sent):
            return self._shown_once(request, signed, secret.field, done)
        return _said(f"/{screen.name}/{done.content['id']}", "made", done)

    def _shown_once(
        self, request: web.Request, signed: SignedInPerson, field: str, done: WriteResult
    ) -> web.Response:
        """The page that shows a secret, the one time that it is known."""
        screen, owner = self._screen, done.content.get("tenant_id")
        back = f"/{screen.name}" if owner is None else f"/tenants/{owner}"
        return self._desk.answer(
            request, signed, "secret.html", 201, screen=screen, row=done.content, back=back,
            secret=str(done.content.get(field, "")),
        )  # fmt: skip

    async def change(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>/{id}/change`: only what was typed over is sent."""
        where = self._address(row_id(request))
        form = self._change_form(where)
        form = replace(form, former=formatting.former_values(form.fields, posted))
        sent = formatting.body_of(form.fields, posted, changes=True)
        sent = await self._in_unit(form, sent, row_id(request))
        if not sent:
            return see(f"{where}?done=nothing")
        doing = self._operations.change(self._desk.asked(request, signed, posted), row_id(request), sent)
        done = await self._done(request, signed, posted, form, doing)
        return _said(where, "changed", done) if isinstance(done, WriteResult) else done

    async def delete(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>/{id}/delete`."""
        form = PageForm(f"{self._address(row_id(request))}/{DELETE}", "Delete", "Delete", is_dangerous=True)
        doing = self._operations.delete(self._desk.asked(request, signed, posted), row_id(request))
        done = await self._done(request, signed, posted, form, doing)
        return see(f"/{self._screen.name}?done=deleted") if isinstance(done, WriteResult) else done

    async def act(
        self, request: web.Request, signed: SignedInPerson, posted: Posted, *, action: Action
    ) -> web.Response:
        """`POST /<resource>/{id}/<action>`."""
        acted = row_id(request)
        form = self._action_form(self._address(acted), action)
        sent = await self._in_unit(form, formatting.body_of(form.fields, posted, changes=False), acted)
        doing = self._operations.act(action, self._desk.asked(request, signed, posted, sent), acted, sent)
        done = await self._done(request, signed, posted, form, doing)
        if not isinstance(done, WriteResult):
            return done
        if action.mints and self._screen.resource.secret is not None:
            return self._shown_once(request, signed, self._screen.resource.secret.field, done)
        answered = acted if action.quota else done.content.get("id", acted)
        return _said(self._address(answered), action.name, done)

    async def _in_unit(self, form: PageForm, sent: Body, of: int | None = None) -> Body:
        """A body whose amounts are of its unit, or of that of the row it is for."""
        names = resources_resource.amounts(form.fields, sent)
        if not names:
            return sent
        unit = str(sent.get("unit") if of is None else (await self._operations.show(of))["unit"])
        return {**sent, **{name: resources_resource.amount(unit, str(sent[name])) for name in names}}

    async def _done(
        self,
        request: web.Request,
        signed: SignedInPerson,
        posted: Posted,
        form: PageForm,
        doing: Coroutine[Any, Any, WriteResult],
    ) -> WriteResult | web.Response:
        """The outcome of a write; where it is refused, the row's page with the form as it was typed."""
        try:
            return await doing
        except (Unprocessable, Conflict) as error:
            refused = await self._with_choices(formatting.form_again(form, posted, error))
            return await self.show(request, signed, refused, error.status)

    async def _form_page(
        self, request: web.Request, signed: SignedInPerson, form: PageForm, status: int = 200
    ) -> web.Response:
        form = await self._with_choices(form)
        return self._desk.answer(request, signed, "new.html", status, screen=self._screen, form=form)

    async def _with_choices(self, form: PageForm) -> PageForm:
        """A form with the short lists its ids may be chosen from."""
        targets = {each.refers for each in form.fields if each.refers}
        return replace(form, choices=await self._desk.choices(targets))

    async def _forms(self, row: Row) -> list[PageForm]:
        """Every form a row's page offers."""
        screen, resource, where = self._screen, self._screen.resource, self._address(row["id"])
        found = [
            self._action_form(where, action)
            for action in resource.actions
            if self._may(action.name) and _is_offered(screen, action, row)
        ]
        if resource.patch is not None and self._may(resource.patch_verb):
            form = self._change_form(where)
            values = formatting.fields_in_form(form.fields, row)
            found.append(replace(form, values=values, former=values))
        if (
            resource.deletable
            and self._may(DELETE)
            and (screen.name != "invoices" or row["status"] == "draft")
        ):
            note = f"Deletes this {screen.one}. Its records stay in the ledgers."
            found.append(PageForm(f"{where}/{DELETE}", "Delete", "Delete", note=note, is_dangerous=True))
        return [await self._with_choices(each) for each in found]

    def _may(self, verb: str) -> bool:
        resource = self._screen.resource
        return refused_write(self._desk.ports.actor, resource.name, resource.access, verb) is None

    def _blank(self) -> PageForm:
        one, model = self._screen.one, self._screen.resource.create
        return self._form(f"/{self._screen.name}", f"New {one}", f"Make {one}", model, CREATE)

    def _change_form(self, where: str) -> PageForm:
        title = EDITS.get(self._screen.name, "Edit")
        resource = self._screen.resource
        return self._form(f"{where}/{CHANGE}", title, "Save changes", resource.patch, resource.patch_verb)

    def _action_form(self, where: str, action: Action) -> PageForm:
        title = action.name.replace("-", " ").capitalize()
        form = self._form(f"{where}/{address_of(action)}", title, title, action.body, action.name)
        confirmed = action.confirmed or CONFIRMED.get((self._screen.name, action.name), "")
        dangerous = action.name in DANGEROUS
        return replace(form, note=f"{action.summary}.", is_dangerous=dangerous, confirmed=confirmed)

    def _form(self, action: str, title: str, submit: str, model: type[In] | None, verb: str) -> PageForm:
        resource = self._screen.resource
        fields: Sequence[FormField] = ()
        if model is not None:
            may = settable(self._desk.ports.actor, resource.access, verb, model.model_fields)
            fields = tuple(each for each in fields_of(resource, model) if each.name.partition(".")[0] in may)
        return PageForm(action, title, submit, fields, formatting.defaults(fields))

    def _address(self, row: object) -> str:
        return f"/{self._screen.name}/{row}"


def address_of(action: Action) -> str:
    """Where an action is sent to; one that is called as the change of a row has a longer name."""
    return action.name if action.name != CHANGE else f"{CHANGE}-plan"


def _title_of(screen: Screen, row: Row) -> str:
    """What a row's page is called."""
    return str(row.get(screen.resource.named_by) or f"{screen.one[:1].upper()}{screen.one[1:]} {row['id']}")


def _is_offered(screen: Screen, action: Action, row: Row) -> bool:
    """Whether an action can do anything with a row as it is."""
    quota: Any = row.get("quota") or {}
    rules: Sequence[tuple[str, str, Callable[[], bool]]] = (
        ("tenants", "block", lambda: not quota.get("manual_block")),
        ("tenants", "unblock", lambda: bool(quota.get("manual_block"))),
        ("invoices", "finalize", lambda: row["status"] == "draft"),
        ("invoices", "recompute", lambda: row["status"] == "draft"),
        ("invoices", "void", lambda: row["status"] == "finalized"),
        ("invoices", "credit-note", lambda: row["payment_status"] is not None),
        ("invoices", "payments", lambda: row["payment_status"] not in {None, PAID}),
        ("invoices", "apply", lambda: _has_credit(row)),
        ("invoices", "refund", lambda: _has_credit(row)),
        ("invoices", "uncollectible", lambda: row["payment_status"] in WAITING),
        ("api-keys", "rotate", lambda: not any(row.get(name) for name in KEPT)),
        ("payments", "reverse", lambda: Decimal(str(row["amount_left"])) != 0),
    )
    if action.name == "revoke":
        return row.get("revoked_at") is None
    if screen.name in {"dead-letters", "quarantine"}:
        return row.get("resolved_at") is None and row.get("released_at") is None
    if screen.name == "organization-subscriptions":
        return row["status"] != "over"
    own = [rule() for name, verb, rule in rules if (name, verb) == (screen.name, action.name)]
    return all(own) and action.offered(row)


def _has_credit(row: Row) -> bool:
    return Decimal(str(row["amount_due"] or 0)) < 0


def _said(where: str, what: str, done: WriteResult) -> web.Response:
    """Send the browser on to a page that says what was done, and whether it is applied later."""
    return see(f"{where}?done={what}{'&later=1' if done.status == 202 else ''}")
