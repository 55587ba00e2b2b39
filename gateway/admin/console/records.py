"""The page of a row and its forms: create, change, delete, and actions.

Writes use the same operations as the Admin API. A refused form is shown again with the submitted values and
the errors next to their fields; after a successful one the browser is redirected.

Pages of accounts also show their spend, quota, use, keys and ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin import live
from gateway.admin.api.views import row_id
from gateway.admin.console import formatting, forms, lists, meaning, reports
from gateway.admin.console.formatting import cell, label_of, references, state_of
from gateway.admin.console.forms import PageForm, Tick
from gateway.admin.console.home import FOUND, LISTED, ConsoleShell, Posted, SignedInPerson, query, see
from gateway.admin.console.month_end import months_until, period_of_month
from gateway.admin.console.outlines import fit_to
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.explanation import explain
from gateway.admin.http.bodies import Body
from gateway.admin.http.requests import id_of
from gateway.admin.operations import WriteResult
from gateway.admin.resources import form_fields
from gateway.admin.resources.budgets import OVERRIDES, render_budget
from gateway.admin.resources.form_fields import FormField
from gateway.admin.resources.resource import Action, SubResource, fields_of
from gateway.admin.resources.values import In
from gateway.calls.journal import itemize
from gateway.core.accounts.administration import CHANGE, CREATE, DELETE, OWNER, Row, refused_write, settable
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ALL_OTHERS, OF_GROUP
from gateway.core.accounts.tags import TAG
from gateway.core.accounts.usage import GROUPS, UsageQuery, end_of
from gateway.core.billing.finance import ReportPeriod
from gateway.core.billing.payments import PAID, WAITING
from gateway.core.billing.price_book import KINDS, PARTS, TOKENS_A_PRICE, UNITS, USES_A_PRICE
from gateway.core.billing.vector import IMAGES
from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable

# Titles of change forms with more than texts.
EDITS = {"tenants": "Change plan, name or limits"}
# Actions that are hard or impossible to undo.
DANGEROUS = frozenset(
    ("revoke", "void", "block", "cancel", "reset", "uncollectible", "reverse", "end", "drop", DELETE)
)

# A form with more fields shows only the required ones and the list's columns; the others are folded.
FIELDS_IN_SIGHT_MAX = 8
NAME_CHARS_MAX = 200
# Fields that are filled in if a form leaves them empty, and how.
FILLED = {
    "budgets": {"name": "Empty: the sentence above.", "organization_id": "Empty: that of the tenant."},
}
# Titles of actions whose names do not suit a button, and actions that apply to ticked rows.
TITLES = {
    ("invoices", "payments"): "Record a payment",
    ("invoices", "refund"): "Record a refund",
    ("invoices", "apply"): "Apply its credit",
    ("budgets", "override"): "Give one another amount",
    ("budgets", "remove-override"): "Remove such an amount",
    ("invoices", "credit-note"): "Draft a credit note",
    ("invoices", "uncollectible"): "Make uncollectible",
}
TICKED = {("invoices", "credit-note")}
# Actions for which most people open a row: their forms are open where they are offered.
EXPECTED = {("invoices", "payments"), ("raise-requests", "approve")}
# Visible fields beyond the list's columns: without its user a key counts for nobody.
IN_SIGHT = {"api-keys": {"user"}}
# Forms whose fields beyond the list's columns are always folded.
FOLDED = frozenset({"invoices"})
# The word for null in a field that is required.
NONE = "none"
# A key with one of these fields set cannot be rotated.
KEPT = ("revoked_at", "replaced_by_id", "issuer")
# The consequence to be ticked before an action that refuses calls or cannot be undone.
DELETED = "It is gone from all lists. Its past stays in the ledgers."
CONFIRMED = {
    # The form appends `DELETED` to these.
    ("api-keys", DELETE): "Every call with the key is refused (401).",
    ("budgets", DELETE): "It limits calls no longer.",
    ("models", DELETE): "Calls of this name go where their paths say.",
    ("webhooks", DELETE): "It gets no message any more.",
    ("budgets", "reset"): "All that was used of it counts no more.",
    ("tenants", "reset"): "A new cycle begins, and the rest of this one ends.",
    ("tenants", "block"): "Every call of the tenant is refused (403) until it is unblocked.",
    ("api-keys", "revoke"): "Every call with the key is refused (401), and the key never works again.",
    ("admin-tokens", "revoke"): "Who uses the token is out at once, and the token never works again.",
    ("organization-subscriptions", "cancel"): "It ends with its paid time, and is not renewed.",
    ("invoices", "finalize"): "It gets its number, and nothing changes it any more.",
    ("invoices", "void"): "It keeps its number, and what it billed is owed again.",
    ("invoices", "payments"): "The money has arrived. A payment can be reversed, and not edited.",
    ("invoices", "apply"): "The credit goes to that invoice. Only a void of one of them takes it back.",
    ("invoices", "refund"): "The money has been sent. A refund can be reversed, and not edited.",
    ("invoices", "uncollectible"): "The rest is written off, and reminders end.",
    ("payments", "reverse"): "The payment is undone: its invoice is due again, or its note has credit again.",
}

# Reads the facts that a row's page shows beyond its fields.
Extras = Callable[[ConsoleShell, web.Request, Row], Awaitable[Mapping[str, Any]]]
# The facts of a call's page: its use by kind, and its cost line by line.


# The quantity that a price is for.
PER = {TOKENS_A_PRICE: "a million", USES_A_PRICE: "a thousand", 1: "a call"}


class Records:
    """The pages and forms of a resource's rows; `extras` reads what a row's page shows beyond its fields."""

    def __init__(self, desk: ConsoleShell, screen: Screen, extras: Extras | None = None) -> None:
        self._desk = desk
        self._screen = screen
        self._extras = extras
        self._operations = desk.operations[screen.name]

    async def show(
        self, request: web.Request, signed: SignedInPerson, refused: PageForm | None = None, status: int = 200
    ) -> web.Response:
        """`GET /<resource>/{id}`; `refused` is a refused form to show again."""
        desk, screen = self._desk, self._screen
        row = await self._operations.show(row_id(request))
        more = await self._extras(desk, request, row) if self._extras is not None else {}
        names = await desk.names(references(screen, [row]))
        offered = await self._forms({**row, **more})
        if refused is not None:
            # First, and even if the row no longer offers it.
            offered = [refused, *(offer for offer in offered if offer.action != refused.action)]
        offered = [replace(offer, ticks=_ticks(more)) for offer in offered]
        return desk.answer(
            request,
            signed,
            (f"{screen.name}.html", "record.html"),
            status,
            screen=screen,
            row=row,
            name=str(
                row.get(screen.resource.named_by) or f"{screen.one[:1].upper()}{screen.one[1:]} {row['id']}"
            ),
            state=state_of(screen.name, {**row, **more}),
            facts=[(label_of(name), cell(screen, row, name, names)) for name in row],
            forms=offered,
            **more,
        )

    async def new(self, request: web.Request, signed: SignedInPerson) -> web.Response:
        """`GET /<resource>/new`; query parameters fill in fields."""
        if not self._may(CREATE):
            raise NotFound
        form = self._blank()
        said = {
            field.name: request.query[field.name]
            for field in form.fields
            if field.name in request.query and field.kind != "many"
        }
        usual = {slot.field: slot.usual for slot, _ in form.sentence if slot.usual}
        own = {OWNER: str(signed.actor.organization_id or "")}
        values = await self._with_names(form, {**form.values, **usual, **own, **said})
        # Links name the organization, which is no field for people of that organization.
        given = {OWNER} if request.query.get(OWNER) == own[OWNER] else set()
        wrong = lists.unknown(request.query, said.keys() | given, "is not a field to fill in by an address")
        form = replace(form, values=values, presets=self._presets(said), message=lists.in_words(wrong))
        return await self._form_page(request, signed, form, 422 if wrong else 200)

    async def create(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>`; a new secret is shown once."""
        screen, secret, form = self._screen, self._screen.resource.secret, self._blank()
        try:
            sent = await self.typed(posted)
            done = await self._operations.create(self._desk.make_write(request, signed, posted, sent), sent)
        except (Unprocessable, Conflict) as error:
            return await self._form_page(request, signed, forms.form_again(form, posted, error), error.status)
        if secret is not None and secret.is_made(sent):
            return self._shown_once(request, signed, secret.field, done)
        return _redirect_done(f"/{screen.name}/{done.content['id']}", "made", done)

    def _shown_once(
        self, request: web.Request, signed: SignedInPerson, field: str, done: WriteResult
    ) -> web.Response:
        """Return the page that shows a new secret, the only time that it is known."""
        screen, owner = self._screen, done.content.get("tenant_id")
        back = f"/{screen.name}" if owner is None else f"/tenants/{owner}"
        return self._desk.answer(
            request, signed, "secret.html", 201, screen=screen, row=done.content, back=back,
            secret=str(done.content.get(field, "")),
        )  # fmt: skip

    async def change(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>/{id}/change`: only changed fields are written."""
        where = self._address(row_id(request))
        form = self._change_form(where)
        form = replace(form, former=forms.former_values(form.fields, posted))
        sent = forms.body_of(form.fields, posted, changes=True)
        if not sent:
            return see(f"{where}?done=nothing")

        async def change() -> WriteResult:
            meant = await self._in_unit(form, sent, row_id(request))
            return await self._operations.change(
                self._desk.make_write(request, signed, posted), row_id(request), meant
            )

        done = await self._done(request, signed, posted, form, change())
        return _redirect_done(where, "changed", done) if isinstance(done, WriteResult) else done

    async def delete(self, request: web.Request, signed: SignedInPerson, posted: Posted) -> web.Response:
        """`POST /<resource>/{id}/delete`: delete a row and show the list."""
        form = self._delete_form(self._address(row_id(request)))
        doing = self._operations.delete(self._desk.make_write(request, signed, posted), row_id(request))
        done = await self._done(request, signed, posted, form, doing)
        return see(f"/{self._screen.name}?done=deleted") if isinstance(done, WriteResult) else done

    async def act(
        self, request: web.Request, signed: SignedInPerson, posted: Posted, *, action: Action,
        part: SubResource | None = None,
    ) -> web.Response:  # fmt: skip
        """`POST /<resource>/{id}/<action>`: run an action on a row, or on a `part` of it, and show the row."""
        acted = row_id(request)
        form = self._action_form(self._address(acted), action, part)

        async def act() -> WriteResult:
            sent = await self._in_unit(form, forms.body_of(form.fields, posted, changes=False), acted)
            asked = self._desk.make_write(request, signed, posted, sent)
            if part is None:
                return await self._operations.act(action, asked, acted, sent)
            named = str(sent.get(part.key, ""))
            body = {
                name: None if value == NONE else value for name, value in sent.items() if name != part.key
            }
            return await self._operations.write_part(part, action, asked, acted, named=named, sent=body)

        done = await self._done(request, signed, posted, form, act())
        if not isinstance(done, WriteResult):
            return done
        if action.mints and self._screen.resource.secret is not None:
            return self._shown_once(request, signed, self._screen.resource.secret.field, done)
        answered = acted if action.quota else done.content.get("id", acted)
        return _redirect_done(self._address(answered), action.name, done)

    async def typed(self, posted: Posted) -> Body:
        """Return the body of a form for a new row, as the Admin API takes it."""
        form = self._blank()
        sent = await self._in_unit(form, forms.body_of(form.fields, posted, changes=False))
        return await self._filled(sent)

    async def typed_meaning(self, request: web.Request) -> list[str]:
        """Return the sentences on the budget in an incomplete form."""
        form = self._blank()
        with suppress(Unprocessable):
            sent = forms.body_of(form.fields, request.query, changes=False)
            return await meaning.typed(self._desk, await self._in_unit(form, sent))
        return []

    async def _filled(self, sent: Body) -> Body:
        """Return the body with defaults for a budget's owner and name, which people may leave empty."""
        if self._screen.name != "budgets":
            return sent
        sent = {**await meaning.with_owner(self._desk, sent)}
        if "name" not in sent and (sentence := await meaning.typed(self._desk, sent)):
            sent["name"] = sentence[0].partition(". ")[0][:NAME_CHARS_MAX]
        return sent

    async def _in_unit(self, form: PageForm, sent: Body, of: int | None = None) -> Body:
        """Return the body of a form with ids instead of names, and amounts in the unit of the row.

        The unit is that of the existing row with the id `of`, or that in the form.
        """
        targets = {field.name: field.refers for field in form.fields if field.refers}
        nested = {name: value for name, value in sent.items() if isinstance(value, dict | list)}
        if form.model is not None:
            sent = {**sent, **{name: fit_to(form.model, name, value) for name, value in nested.items()}}
        typed = {name: value for name, value in sent.items() if isinstance(value, str)}
        sent = {**sent, **await lists.ids_of_names(self._desk, typed, targets)}
        names = form_fields.amounts(form.fields, sent)
        if not names:
            return sent
        unit = str(sent.get("unit") if of is None else (await self._operations.show(of))["unit"])
        return form_fields.set_amounts(names, sent, unit)

    async def _done(
        self,
        request: web.Request,
        signed: SignedInPerson,
        posted: Posted,
        form: PageForm,
        doing: Coroutine[Any, Any, WriteResult],
    ) -> WriteResult | web.Response:
        """Return the result of a write; if it is refused, the row's page with the submitted form."""
        try:
            return await doing
        except (Unprocessable, Conflict) as error:
            refused = await self._with_choices(forms.form_again(form, posted, error))
            return await self.show(request, signed, refused, error.status)

    async def _form_page(
        self, request: web.Request, signed: SignedInPerson, form: PageForm, status: int = 200
    ) -> web.Response:
        form = await self._with_choices(form)
        return self._desk.answer(request, signed, "new.html", status, screen=self._screen, form=form)

    async def _with_choices(self, form: PageForm) -> PageForm:
        """Return a form with choices for those fields of ids whose resources have few rows."""
        targets = {field.refers for field in form.fields if field.refers}
        form = replace(form, choices=await self._desk.choices(targets))
        if self._screen.name != "budgets" or all(field.name != "each" for field in form.fields):
            return form
        named = {"organization_id": str(form.values.get("organization_id") or "")}
        ids, _ = await lists.find_names(self._desk, named, form_fields.REFERS)
        owner = self._desk.ports.actor.organization_id or id_of((named | ids)["organization_id"])
        tags = [] if owner is None else [TAG + name for name in await self._desk.tags(owner)]
        fields = [
            replace(field, choices=(*field.choices, *tags)) if field.name == "each" else field
            for field in form.fields
        ]
        return replace(form, fields=fields)

    async def _forms(self, row: Row) -> list[PageForm]:
        screen, resource, where = self._screen, self._screen.resource, self._address(row["id"])
        found = [
            self._action_form(where, action)
            for action in resource.actions
            if self._may(action.name) and _is_offered(screen, action, row)
        ]
        found += [
            self._action_form(where, action, part)
            for part in resource.parts
            for _, action in part.writes
            if self._may(action.name) and _is_offered(screen, action, row)
        ]
        if resource.patch is not None and self._may(resource.patch_verb):
            form = self._change_form(where)
            values = forms.fields_in_form(form.fields, row)
            found.append(replace(form, values=values, former=values))
        if (
            resource.deletable
            and self._may(DELETE)
            and (screen.name != "invoices" or row["status"] == "draft")
        ):
            found.append(self._delete_form(where))
        return [await self._with_choices(form) for form in found]

    def _may(self, verb: str) -> bool:
        resource = self._screen.resource
        return refused_write(self._desk.ports.actor, resource.name, resource.access, verb) is None

    async def _with_names(self, form: PageForm, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values with names instead of ids, where a name identifies the row."""
        refers = {field.name: field.refers for field in form.fields if field.refers in FOUND - LISTED}
        ids = {name: id_ for name in refers if (id_ := id_of(str(values.get(name, "")))) is not None}
        wanted: dict[str, set[int]] = {}
        for name, number in ids.items():
            wanted.setdefault(refers[name], set()).add(number)
        called = await self._desk.names(wanted)
        named = {name: called.get((refers[name], number), "") for name, number in ids.items()}
        meant, _ = await lists.find_names(self._desk, named, refers)
        return {**values, **{name: named[name] for name, text in meant.items() if text == str(ids[name])}}

    def _presets(self, document: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return title and address of the invoice form for usual periods."""
        if self._screen.name != "invoices":
            return []
        this, last, *_ = (period_of_month(month) for month in months_until(datetime.now(UTC).date()))
        return [
            (title, f"/invoices/new?{urlencode({**document, 'period_start': start, 'period_end': end})}")
            for title, (start, end) in (("Last month", last), ("This month", this))
        ]

    def _blank(self) -> PageForm:
        noun, model = self._screen.one, self._screen.resource.create
        form = self._form(f"/{self._screen.name}", f"New {noun}", f"Create {noun}", model, CREATE)
        filled = FILLED.get(self._screen.name, {})
        # The organization of a new row is fixed for people of one organization.
        is_given = self._desk.ports.actor.organization_id is not None and model is not None
        given = {OWNER} if is_given and OWNER in model.model_fields else set()  # type: ignore[union-attr]  # given
        fields = [
            replace(field, required=False, hint=filled[field.name]) if field.name in filled else field
            for field in form.fields
            if field.name not in given or not field.required
        ]
        return replace(form, fields=fields, slots=self._screen.sentence)

    def _change_form(self, where: str) -> PageForm:
        title = EDITS.get(self._screen.name, "Edit")
        resource = self._screen.resource
        return self._form(f"{where}/{CHANGE}", title, "Save changes", resource.patch, resource.patch_verb)

    def _delete_form(self, where: str) -> PageForm:
        note = f"Deletes this {self._screen.one}."
        return PageForm(
            f"{where}/{DELETE}",
            "Delete",
            "Delete",
            note=note,
            is_dangerous=True,
            confirmed=f"{CONFIRMED.get((self._screen.name, DELETE), '')} {DELETED}".strip(),
        )

    def _action_form(self, where: str, action: Action, part: SubResource | None = None) -> PageForm:
        title = TITLES.get((self._screen.name, action.name), action.name.replace("-", " ").capitalize())
        model = action.body if part is None else part.form_of(action)
        form = self._form(f"{where}/{address_of(action)}", title, title, model, action.name)
        if part is not None:  # an empty field is not sent: a word says null where a value is required
            fields = [
                replace(field, hint=field.hint.replace("empty", NONE))
                if field.required and field.nullable
                else field
                for field in form.fields
            ]
            form = replace(form, fields=fields)
        if (self._screen.name, action.name) in TICKED:
            form = replace(form, fields=[replace(field, kind="ticks") for field in form.fields])
        confirmed = action.confirmed or CONFIRMED.get((self._screen.name, action.name), "")
        dangerous = action.name in DANGEROUS
        is_open = (self._screen.name, action.name) in EXPECTED
        return replace(
            form, note=f"{action.summary}.", is_dangerous=dangerous, confirmed=confirmed, is_open=is_open
        )

    def _form(self, action: str, title: str, submit: str, model: type[In] | None, verb: str) -> PageForm:
        resource = self._screen.resource
        fields: Sequence[FormField] = ()
        if model is not None:
            may = settable(self._desk.ports.actor, resource.access, verb, model.model_fields)
            fields = tuple(
                field for field in fields_of(resource, model) if field.name.partition(".")[0] in may
            )
        seen = IN_SIGHT.get(self._screen.name, set()).union(self._screen.columns)
        main = {field.name for field in fields if field.required or field.name in seen}
        folds = len(fields) > FIELDS_IN_SIGHT_MAX or (verb == CREATE and self._screen.name in FOLDED)
        return PageForm(
            action, title, submit, fields, forms.defaults(fields), main=frozenset(main if folds else ()),
            model=model,
        )  # fmt: skip

    def _address(self, row: object) -> str:
        return f"/{self._screen.name}/{row}"


def _ticks(more: Mapping[str, Any]) -> list[Tick]:
    """Return the invoice lines that can be refunded, without taxes, which follow from them."""
    lines = (line for line in more.get("shown", ()) if line["kind"] != "tax" and Decimal(line["amount"]) > 0)
    return [Tick(line["position"], line["description"], line["amount"]) for line in lines]


def address_of(action: Action) -> str:
    """Return the path segment of an action: its name, but `change-plan` for `change`, a form's segment."""
    return action.name if action.name != CHANGE else f"{CHANGE}-plan"


def _is_offered(screen: Screen, action: Action, row: Row) -> bool:
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
        ("budgets", "override", lambda: row["each"] is not None),
        ("budgets", "remove-override", lambda: bool(row.get("overrides"))),
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


def _redirect_done(where: str, what: str, done: WriteResult) -> web.Response:
    """Return a redirect to the page `where`, which shows that the action `what` was done or comes later."""
    return see(f"{where}?done={what}{'&later=1' if done.status == 202 else ''}")


async def about_call(desk: ConsoleShell, _: web.Request, row: Row) -> Mapping[str, Any]:
    """Return a call's tokens by kind, its cost by the price at admission, and links to its ledger rows."""
    usage: Any = row["usage"]
    tools: Mapping[str, int] = usage.get("tools") or {}
    price = await _price(desk, row["price_id"])
    items, adds_up = ([], False) if price is None else itemize(row, price)
    owners = {"tenants": "tenant_id", "api-keys": "api_key_id", "users": "user_id"}
    names = await desk.names({name: {int(str(row[of]))} for name, of in owners.items() if row[of]})
    counted = {name for name in tools if name in UNITS or name.startswith(IMAGES)}
    return {
        "kinds": [(kind, usage[kind], kind in PARTS) for kind in KINDS if usage.get(kind)],
        "tools": sorted(tools.items()),
        "unknown": usage.get("unknown"),
        "price": price,
        "lines": [
            (line, "each" if line.per == 1 and line.kind in counted else PER[line.per]) for line in items
        ],
        "adds_up": adds_up,
        "called": {name: text for (name, _), text in names.items()},
        "steps": await explain(desk.ports, row),
        "refuser": await _refuser(desk, row["refused_by"]),
        "ledgers": [
            ("Token ledger", f"/tenants/{row['tenant_id']}?request_id={row['request_id']}#ledger"),
            ("Credit transactions", f"/credit-transactions?request_id={row['request_id']}"),
            ("Feature usage", f"/feature-usage?request_id={row['request_id']}"),
        ],
    }


async def _refuser(desk: ConsoleShell, refused_by: object) -> str:
    """Return the address of the budget that refused a call; "" if the reader may not open it."""
    if not isinstance(refused_by, dict) or refused_by["kind"] != "budget":
        return ""
    try:
        return f"/budgets/{(await desk.operations['budgets'].show(refused_by['id']))['id']}"
    except (NotFound, Forbidden):
        return ""


async def _price(desk: ConsoleShell, price_id: object) -> Row | None:
    if not isinstance(price_id, int):
        return None
    try:
        return await desk.ports.store.get("prices", price_id)
    except NotFound:
        return None


# Budgets on pages: their use, the accounts with the highest use, and the budgets of a tenant, key or user.

ACCOUNTS_SHOWN = 50
SCREEN = SCREENS["budgets"]


async def about_budget(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    targets = {name: SCREEN.resource.target(name) for name in SELECTING}
    ids = {targets[name]: {int(str(row[name]))} for name in SELECTING if targets[name] and row[name]}
    ids["organizations"] = {int(str(row["organization_id"]))}
    names = await desk.names(ids)
    others = await overrides_of(desk, row)
    first, *rest = await meaning.meaning_of(desk, row)
    own = meaning.override_sentence(row, others["overrides"], bool(others["overrides_more"]))
    return {
        "use": formatting.use_of(row),
        "meaning": [first, *([own] if own else []), *rest],
        "of": formatting.budget_selector(row, names, targets),
        "organization": names.get(("organizations", int(str(row["organization_id"]))), ""),
        "saved": await read_savings(desk, row),
        **await accounts_of(desk, row),
        **others,
    }


async def read_savings(desk: ConsoleShell, row: Row) -> Sequence[Row]:
    """Return what the steps of a budget saved in the last days, by pairs of models."""
    if not row["steps"]:
        return ()
    until, owner = end_of("day", datetime.now(UTC)), {"organization_id": row["organization_id"]}
    asked = UsageQuery(until - DAYS * DAY, until, "none", (), owner, 0)
    return await desk.ports.store.substitutions(asked, int(str(row["id"])))


async def budget_meaning(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /budgets/meaning`: the meaning of an incomplete form."""
    return desk.answer(
        request, signed, "meaning.html", meaning=await Records(desk, SCREEN).typed_meaning(request)
    )


async def budget_use(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /budgets/{id}/use`: the use alone, for updates every two seconds."""
    row = await desk.operations["budgets"].show(row_id(request))
    return desk.answer(
        request, signed, "use.html", row=row, use=formatting.use_of(row), **await accounts_of(desk, row)
    )


async def of_account(
    desk: ConsoleShell, organization_id: int, owner: Mapping[str, object], scope: str = "", whose: str = ""
) -> dict[str, Any]:
    """Return a table of the budgets that select `owner`, and of those with an account for `whose`.

    `whose` is a user, key or tenant; `scope` is the kind of budgets with such accounts.
    """
    named, more = await desk.operations["budgets"].list(query(PREVIEW_ROWS, newest_first=False, **owner))
    rows = [*named, *(await _own(desk, organization_id, scope, whose) if scope else ())]
    columns = [at for at, column in enumerate(SCREEN.columns) if column not in {"organization_id", "of"}]
    return {
        "screen": SCREEN,
        "labels": [label_of(SCREEN.columns[at]) for at in columns],
        "columns": columns,
        "lines": await lists.lines_of(desk, SCREEN, rows),
        "all": f"/budgets?{urlencode(owner)}" if more else "",
        "new": f"/budgets/new?{urlencode({'organization_id': organization_id, **owner})}",
    }


async def _own(desk: ConsoleShell, organization_id: int, scope: str, whose: str) -> Sequence[Row]:
    """Return the budgets with an account for each of the kind `scope`, with the use of account `whose`."""
    wanted = query(PREVIEW_ROWS, organization_id=organization_id, each=scope)
    page = await desk.ports.store.page("budgets", wanted)
    return [render_budget(row) for row in await live.own_budgets(desk.ports, page.rows, whose)]


async def accounts_of(desk: ConsoleShell, row: Row, most: int = ACCOUNTS_SHOWN) -> dict[str, Any]:
    """Return the accounts of a budget with the highest use, and whether more exist."""
    if row["each"] is None:
        return {"accounts": (), "accounts_more": 0}
    stored = await desk.ports.store.get("budgets", int(str(row["id"])))
    most_used_accounts = await live.most_used_accounts(desk.ports, stored, most + 1)
    called = await owner_names(desk, row, [account["who"] for account in most_used_accounts])
    shown = [
        (
            who,
            ALL_OTHERS if most_used_account["shared"] else called.get(who, ""),
            formatting.use_of(row, most_used_account),
            most_used_account["limit_by"],
            next_text({**row, **most_used_account}),
        )
        for most_used_account in most_used_accounts[:most]
        for who in (str(most_used_account["who"]),)
    ]
    return {"accounts": shown, "accounts_more": most if len(most_used_accounts) > most else 0}


def next_text(account: Row) -> str:
    """Return what comes next for an account of a budget: what is carried, or when it begins or is free again."""
    return formatting.carried_text(account) or "—" if account["carry"] else formatting.resets_text(account)


async def overrides_of(desk: ConsoleShell, row: Row, most: int = ACCOUNTS_SHOWN) -> dict[str, Any]:
    """Return owners, names, amounts, ends and reasons of a budget's overrides, and whether more exist."""
    if row["each"] is None:
        return {"overrides": (), "overrides_more": 0}
    page = await live.budget_overrides(desk.ports, row, query(most, newest_first=False))
    owners = [str(own["name"]) for own in page.rows]
    called = {**await owner_names(desk, row, owners), **await _group_names(desk, owners)}
    shown = [
        (own["who"], called.get(str(own["who"]), ""), formatting.amount(row, own["amount"]), own)
        for own in map(OVERRIDES.render, page.rows)
    ]
    return {"overrides": shown, "overrides_more": most if page.next_after is not None else 0}


async def _group_names(desk: ConsoleShell, owners: Sequence[str]) -> Mapping[str, str]:
    """Return the words for those owners of overrides that are groups."""
    groups = {int(who.removeprefix(OF_GROUP)) for who in owners if who.startswith(OF_GROUP)}
    names = await desk.names({"groups": groups})
    return {f"{OF_GROUP}{row_id}": f"each of {name}" for (_, row_id), name in names.items()}


async def owner_names(desk: ConsoleShell, row: Row, owners: Sequence[object]) -> Mapping[str, str]:
    """Return the names of those owners of a budget with `each` that are ids of rows, by id."""
    resource = formatting.NAMED_OWNERS.get(str(row["each"]))
    if resource is None:
        return {}
    names = await desk.names({resource: {int(who) for who in map(str, owners) if who.isdecimal()}})
    return {str(row_id): name for (_, row_id), name in names.items()}


DAYS = 30
DAY_ROWS_MAX = 5_000
DAY = timedelta(days=1)
# The groups of an account's cost, and the maximum of groups that a page names.
COST_GROUPS = {
    "model": "model",
    "service": "service",
    "user": "user",
    "api_key": "API key",
    "project": "project",
}
PARTS_MAX = 12
PREVIEW_ROWS = 10
# An organization has one currency, and rows from before it changed.
CURRENCIES_MAX = 10
LEDGER_ROWS = 25
# The lists whose first rows an organization's page shows.
PREVIEWS = (
    "tenants",
    "budgets",
    "credit-additions",
    "organization-subscriptions",
    "invoices",
    "organization-services",
)
# Maximum of tenants times days summed for one chart: for 20,000 tenants, the last 10 days.
TENANT_DAYS_MAX = 200_000


LEDGER = Screen(
    "", "token-ledger", "Ledger", "movement",
    ("created_at", "transaction_type", "change", "total_remaining", "service_id", "model", "request_id"),
    empty="No movement yet.", only=("transaction_type", "direction", "request_id"), has_page=False,
    spans_time=True, besides=("of", "by"),
)  # fmt: skip


async def about_tenant(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Return a tenant's quota, its recent cost, its keys, budgets and ledger."""
    tenant_id = int(str(row["id"]))
    [with_quota], keys, ledger, cost, its_budgets = await asyncio.gather(
        lists.with_quotas(desk, [row]),
        preview(desk, "api-keys", tenant_id=tenant_id),
        lists.page_of(
            desk,
            LEDGER,
            request,
            rows_max=LEDGER_ROWS,
            file=f"/tenants/{tenant_id}/ledger.csv",
            tenant_id=str(tenant_id),
        ),
        _cost(desk, request, "tenant_id", tenant_id),
        of_account(
            desk, int(str(row["organization_id"])), {"tenant_id": tenant_id}, "tenant", str(tenant_id)
        ),
    )
    quota: Any = with_quota["quota"]
    owner: Any = row["organization_id"]
    plan: Any = quota["plan_id"] if quota else None
    names = await desk.names({"organizations": {owner}, "token-plans": {plan} - {None}})
    return {
        "quota": quota,
        "organization": names.get(("organizations", owner), ""),
        "plan": names.get(("token-plans", plan), ""),
        "keys": keys,
        "ledger": ledger,
        "budgets": its_budgets,
        **cost,
    }


async def about_key(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Return the recent cost of an API key's calls, and its budgets."""
    key_id = int(str(row["id"]))
    tenant = await desk.ports.store.get("tenants", int(str(row["tenant_id"])))
    cost, its_budgets = await asyncio.gather(
        _cost(desk, request, "api_key_id", key_id),
        of_account(desk, int(str(tenant["organization_id"])), {"api_key_id": key_id}, "key", str(key_id)),
    )
    return {**cost, "budgets": its_budgets}


async def about_user(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Return the recent cost of a user's calls, and the user's budgets; staff have no budgets."""
    cost = await _cost(desk, request, "user_id", int(str(row["id"])))
    if row["organization_id"] is None:
        return {**cost, "budgets": None}
    organization_id, user = int(str(row["organization_id"])), str(row["external_id"])
    owner = {"organization_id": organization_id, "user": user}
    return {**cost, "budgets": await of_account(desk, organization_id, owner, "user", user)}


async def quota(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    """`GET /tenants/{id}/quota`: the quota alone, for updates every two seconds."""
    [row] = await lists.with_quotas(desk, [{"id": row_id(request)}])
    if row["quota"] is None:
        raise NotFound
    return desk.answer(request, signed, "quota.html", quota=row["quota"])


async def about_organization(desk: ConsoleShell, request: web.Request, row: Row) -> Mapping[str, Any]:
    """Return an organization's spend, credits, tenants, subscription, invoices and recent use."""
    organization_id = int(str(row["id"]))
    measure = request.query.get("of", "")
    measure = measure if measure in {"tokens", "credits", "usage_amount"} else "tokens"
    until = end_of("day", datetime.now(UTC))
    owner = {"organization_id": organization_id}
    asked = UsageQuery((until - DAY).replace(day=1), until, "none", (), owner, 0)
    account = ReportPeriod(until, organization_id=organization_id)
    usage, spent, balances, *previews = await asyncio.gather(
        _organization_use(desk, organization_id, measure),
        reports.spent(desk.ports.store, asked, "cost"),
        desk.ports.store.report("balances", account, 0, CURRENCIES_MAX),
        *(preview(desk, name, organization_id=organization_id) for name in PREVIEWS),
    )
    return {
        "previews": previews,
        "chart": usage,
        "of": measure,
        "month": spent.totals,
        "balances": balances,
    }


async def preview(desk: ConsoleShell, name: str, **filters: int) -> dict[str, Any]:
    """Return the first rows of a list for another page, and the address of the whole list."""
    screen = SCREENS[name]
    wanted = query(PREVIEW_ROWS, newest_first=screen.newest_first, **filters)
    rows, more = await desk.operations[name].list(wanted)
    [(owner, owner_id)] = filters.items()
    columns = [index for index, column in enumerate(screen.columns) if column != owner]
    lines = await lists.lines_of(desk, screen, rows)
    return {
        "screen": screen,
        "labels": [label_of(screen.columns[index]) for index in columns],
        "columns": columns,
        "lines": lines,
        "all": f"/{name}?{owner}={owner_id}" if more else "",
        "new": f"/{name}/new?{owner}={owner_id}",
    }


async def _cost(desk: ConsoleShell, request: web.Request, column: str, row_id: int) -> dict[str, Any]:
    """Return the cost of an account's calls this month and in the last days, by the group in the query."""
    until = end_of("day", datetime.now(UTC))
    measure, group = request.query.get("of", ""), request.query.get("by", "")
    measure = measure if measure in reports.MEASURES else reports.MEASURES[0]
    groups = {group: title for group, title in COST_GROUPS.items() if GROUPS[group] != column}
    group = group if group in groups else next(iter(groups))
    days = UsageQuery(until - DAYS * DAY, until, "day", (group,), {column: row_id}, 0)
    month = replace(days, since=(until - DAY).replace(day=1), interval="none", groups=())
    found, this_month = await asyncio.gather(
        reports.spent(desk.ports.store, days, measure), reports.spent(desk.ports.store, month, measure)
    )
    return {
        "cost": found,
        "month": this_month.totals,
        "of": measure,
        "by": group,
        "cost_groups": groups,
        "parts_of_cost": [(reports.name_of(each, (group,)), each) for each in found.groups[:PARTS_MAX]],
        "parts_more": max(0, len(found.groups) - PARTS_MAX),
        "filter": f"{column}={row_id}",
    }


async def _organization_use(desk: ConsoleShell, organization_id: int, measure: str) -> formatting.Chart:
    tenants = await desk.ports.figures.tenants_of(organization_id, TENANT_DAYS_MAX)
    until, span = datetime.now(UTC).date(), max(1, min(DAYS, TENANT_DAYS_MAX // max(1, tenants)))
    since = until - timedelta(days=span - 1)
    days = await desk.ports.figures.organization_days(organization_id, since, DAY_ROWS_MAX)
    names = await desk.ports.figures.names("services", {int(str(row["service_id"])) for row in days})
    return formatting.stacked(
        [(row["day"], row["service_id"], row[measure]) for row in days],  # type: ignore[misc]  # roll-ups have a day and counts
        [since + n * DAY for n in range((until - since).days + 1)],
        {
            row["service_id"]: names.get(int(str(row["service_id"])), f"service {row['service_id']}")
            for row in days
        },
        unit="units" if measure == "usage_amount" else measure,
    )
