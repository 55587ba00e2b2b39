"""Stripe on a socket of this machine: what the hand-over asks of it, with its rules.

What is sent is held against the parameters that Stripe's own library documents. Requests are once by their
key, drafts are filled and final ones never change, notes and payments move what remains. `cut` loses the
answer of a request, before or after it was done.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import UnionType
from typing import Any, ForwardRef, Literal, NotRequired, Required, Union, get_args, get_origin
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.test_utils import TestServer
from stripe import RequestOptions

KEY = "sk_test_of_the_tests_only"
_PART = re.compile(r"[^\[\]]+")
Body = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class Stripe:
    """Everything the account has; `asked` are the requests, in order, by method and path."""

    url: str = ""
    customers: set[str] = field(default_factory=lambda: {"cus_1", "cus_2"})
    balance: dict[str, int] = field(default_factory=dict)
    invoices: dict[str, Body] = field(default_factory=dict)
    notes: dict[str, Body] = field(default_factory=dict)
    moves: dict[str, Body] = field(default_factory=dict)
    sessions: dict[str, Body] = field(default_factory=dict)
    # Of which payment which invoice has how much, and what of payments went back.
    payments: dict[str, Body] = field(default_factory=dict)
    refunds: dict[str, Body] = field(default_factory=dict)
    disputes: dict[str, Body] = field(default_factory=dict)
    answered: dict[str, tuple[str, int, Body]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: Callable[[int, str], str] = lambda _number, _asked: ""
    refuse: Callable[[str], Refused | None] = lambda _asked: None
    # What an account's own settings would put on each invoice.
    beside: int = 0
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def pay(self, invoice_id: str, amount: int | None = None) -> Body:
        """What a customer does; answers the invoice as the event has it."""
        invoice = self.invoices[invoice_id]
        paid = invoice["amount_remaining"] if amount is None else amount
        invoice["amount_paid"] += paid
        invoice["amount_remaining"] -= paid
        if not invoice["amount_remaining"]:
            invoice["status"] = "paid"
        self.allocate(invoice_id, paid, f"pi_{next(self.ids)}")
        return dict(invoice)

    def allocate(self, invoice_id: str, paid: int, payment: str) -> str:
        """Have an invoice paid by a payment, maybe one of others too; answers that."""
        made = {
            "id": f"inpay_{next(self.ids)}", "object": "invoice_payment", "invoice": invoice_id,
            "amount_paid": paid, "status": "paid",
            "payment": {"type": "payment_intent", "payment_intent": payment},
        }  # fmt: skip
        self.payments[str(made["id"])] = made
        return payment

    def payment_of(self, invoice_id: str) -> str:
        """The last payment of an invoice."""
        return [
            str(each["payment"]["payment_intent"])
            for each in self.payments.values()
            if each["invoice"] == invoice_id
        ][-1]

    def give_back(self, payment: str, amount: int, *, by: str = "refund", status: str = "succeeded") -> Body:
        """What a merchant, or a customer's bank, does; answers it as the event has it."""
        made = {
            "id": f"{by}_{next(self.ids)}", "object": by, "payment_intent": payment, "amount": amount,
            "status": status,
        }  # fmt: skip
        (self.refunds if by == "refund" else self.disputes)[str(made["id"])] = made
        return made

    def list_payments(self, sent: Body) -> Body:
        checked("invoice_payment", "InvoicePaymentListParams", sent)
        assert sent["status"] == "paid"
        of = sent.get("payment", {}).get("payment_intent")
        found = [
            each for each in self.payments.values()
            if sent.get("invoice", each["invoice"]) == each["invoice"]
            and (of or each["payment"]["payment_intent"]) == each["payment"]["payment_intent"]
        ]  # fmt: skip
        return page(sent, found)

    def list_refunds(self, sent: Body) -> Body:
        checked("refund", "RefundListParams", sent)
        return page(sent, _of_payment(self.refunds, sent))

    def list_disputes(self, sent: Body) -> Body:
        checked("dispute", "DisputeListParams", sent)
        return page(sent, _of_payment(self.disputes, sent))

    def handle(self, method: str, path: str, sent: Body) -> Body:
        """Do a request; `Refused` where Stripe would."""
        for pattern, do in ROUTES.items():
            verb, template = pattern.split(" ")
            found = re.fullmatch(template.replace("{}", r"([A-Za-z0-9_]+)"), path)
            if verb == method and found:
                return do(self, sent, *found.groups())
        raise Refused(404, f"Unrecognized request URL ({method}: {path}).")

    def create_invoice(self, sent: Body) -> Body:
        checked("invoice", "InvoiceCreateParams", sent)
        if sent["customer"] not in self.customers:
            raise Refused(400, f"No such customer: '{sent['customer']}'")
        if any(each["number"] == sent["number"] for each in self.invoices.values()):
            raise Refused(400, "An invoice of this account has this number already.")
        if sent["collection_method"] == "send_invoice" and int(sent.get("due_date", 1 << 60)) < time.time():
            raise Refused(400, "The due date must be in the future.")
        made: Body = {
            "id": f"in_{next(self.ids)}", "object": "invoice", "customer": sent["customer"],
            "number": sent["number"], "currency": sent["currency"], "status": "draft", "total": 0,
            "amount_due": 0, "amount_paid": 0, "amount_remaining": 0, "pre_payment_credit_notes_amount": 0,
            "created": int(time.time()), "metadata": sent.get("metadata", {}), "hosted_invoice_url": None,
            "auto_advance": sent["auto_advance"], "sent": sent, "of_lines": [],
        }  # fmt: skip
        self.invoices[made["id"]] = made
        return made

    def add_lines(self, sent: Body, invoice_id: str) -> Body:
        checked("invoice", "InvoiceAddLinesParams", sent)
        invoice = self.draft(invoice_id)
        for line in sent["lines"]:
            invoice["of_lines"].append({"id": f"il_{next(self.ids)}", **line, "amount": int(line["amount"])})
        self.sum_up(invoice)
        return invoice

    def sum_up(self, invoice: Body) -> None:
        lines = sum(line["amount"] for line in invoice["of_lines"])
        invoice["total"] = invoice["amount_due"] = lines + self.beside
        invoice["amount_remaining"] = invoice["amount_due"]

    def finalize(self, sent: Body, invoice_id: str) -> Body:
        checked("invoice", "InvoiceFinalizeInvoiceParams", sent)
        invoice = self.draft(invoice_id)
        balance = self.balance.get(invoice["customer"], 0)
        used = min(-balance, invoice["total"]) if balance < 0 else 0
        self.balance[invoice["customer"]] = balance + used
        invoice["amount_due"] = invoice["amount_remaining"] = invoice["total"] - used
        invoice["status"] = "open" if invoice["amount_due"] else "paid"
        invoice["auto_advance"] = sent["auto_advance"]
        invoice["hosted_invoice_url"] = f"https://invoice.example/{invoice_id}"
        return invoice

    def draft(self, invoice_id: str) -> Body:
        invoice = self.invoice({}, invoice_id)
        if invoice["status"] != "draft":
            raise Refused(400, f"This invoice is {invoice['status']}, no draft.")
        return invoice

    def invoice(self, _: Body, invoice_id: str) -> Body:
        if invoice_id not in self.invoices:
            raise Refused(404, f"No such invoice: '{invoice_id}'")
        return self.invoices[invoice_id]

    def delete(self, _: Body, invoice_id: str) -> Body:
        self.draft(invoice_id)
        del self.invoices[invoice_id]
        return {"id": invoice_id, "object": "invoice", "deleted": True}

    def void(self, _: Body, invoice_id: str) -> Body:
        return self.end(invoice_id, "void", {"open", "uncollectible"})

    def uncollectible(self, _: Body, invoice_id: str) -> Body:
        return self.end(invoice_id, "uncollectible", {"open"})

    def paid(self, sent: Body, invoice_id: str) -> Body:
        checked("invoice", "InvoicePayParams", sent)
        assert sent == {"paid_out_of_band": "true"}
        invoice = self.end(invoice_id, "paid", {"open", "uncollectible"})
        invoice["amount_paid"] += invoice["amount_remaining"]
        invoice["amount_remaining"] = 0
        return invoice

    def end(self, invoice_id: str, status: str, of: set[str]) -> Body:
        invoice = self.invoice({}, invoice_id)
        if invoice["status"] not in of:
            raise Refused(400, f"This invoice is {invoice['status']}.")
        invoice["status"] = status
        return invoice

    def list_invoices(self, sent: Body) -> Body:
        checked("invoice", "InvoiceListParams", sent)
        since = int(sent["created"]["gte"])
        mine = [each for each in self.invoices.values() if each["customer"] == sent["customer"]]
        return page(sent, [each for each in mine if each["created"] >= since])

    def list_lines(self, sent: Body, invoice_id: str) -> Body:
        return page(sent, self.invoice({}, invoice_id)["of_lines"])

    def create_note(self, sent: Body) -> Body:
        checked("credit_note", "CreditNoteCreateParams", sent)
        invoice, amount = self.invoice({}, sent["invoice"]), int(sent["amount"])
        if invoice["status"] not in {"open", "paid", "uncollectible"}:
            raise Refused(400, "Only a final invoice has credit notes.")
        before = min(amount, invoice["amount_remaining"])
        credited = int(sent.get("credit_amount", 0))
        if amount - before != credited:
            raise Refused(400, "credit_amount must equal the post payment amount.")
        invoice["amount_due"] -= before
        invoice["amount_remaining"] -= before
        invoice["pre_payment_credit_notes_amount"] += before
        if not invoice["amount_remaining"]:
            invoice["status"] = "paid"
        self.balance[invoice["customer"]] = self.balance.get(invoice["customer"], 0) - credited
        made = {
            "id": f"cn_{next(self.ids)}", "object": "credit_note", "invoice": sent["invoice"],
            "status": "issued", "amount": amount, "pre_payment_amount": before, "pdf": "https://pdf.example",
            "post_payment_amount": credited, "metadata": sent.get("metadata", {}),
        }  # fmt: skip
        self.notes[str(made["id"])] = made
        return made

    def note(self, _: Body, note_id: str) -> Body:
        return self.notes[note_id]

    def void_note(self, _: Body, note_id: str) -> Body:
        note = self.notes[note_id]
        invoice = self.invoices[note["invoice"]]
        if note["post_payment_amount"]:
            raise Refused(400, "A credit note over what was paid cannot be made void.")
        note["status"] = "void"
        invoice["amount_due"] += note["amount"]
        invoice["amount_remaining"] += note["amount"]
        invoice["pre_payment_credit_notes_amount"] -= note["amount"]
        return note

    def list_notes(self, sent: Body) -> Body:
        checked("credit_note", "CreditNoteListParams", sent)
        return page(sent, [each for each in self.notes.values() if each["invoice"] == sent["invoice"]])

    def create_move(self, sent: Body, customer: str) -> Body:
        checked("customer_balance_transaction", "CustomerBalanceTransactionCreateParams", sent)
        self.balance[customer] = self.balance.get(customer, 0) + int(sent["amount"])
        made = {
            "id": f"cbtxn_{next(self.ids)}", "object": "customer_balance_transaction", "customer": customer,
            "amount": int(sent["amount"]), "metadata": sent["metadata"],
        }  # fmt: skip
        self.moves[str(made["id"])] = made
        return made

    def create_session(self, sent: Body) -> Body:
        found = import_module("stripe.params.checkout._session_create_params")
        if wrong := _misfit(found.SessionCreateParams, sent, vars(found), "SessionCreateParams"):
            raise Refused(400, wrong)
        [line] = sent["line_items"]
        made = {
            "id": f"cs_{next(self.ids)}", "object": "checkout.session", "mode": sent["mode"],
            "payment_status": "unpaid", "metadata": sent["metadata"],
            "amount_total": int(line["price_data"]["unit_amount"]) * int(line["quantity"]),
            "currency": line["price_data"]["currency"],
        }  # fmt: skip
        made["url"] = f"https://checkout.example/{made['id']}"
        self.sessions[str(made["id"])] = made
        return made

    def list_moves(self, sent: Body, customer: str) -> Body:
        return page(sent, [each for each in self.moves.values() if each["customer"] == customer])


ROUTES: dict[str, Callable[..., Body]] = {
    "POST /v1/invoices": Stripe.create_invoice,
    "GET /v1/invoices": Stripe.list_invoices,
    "GET /v1/invoices/{}": Stripe.invoice,
    "DELETE /v1/invoices/{}": Stripe.delete,
    "POST /v1/invoices/{}/add_lines": Stripe.add_lines,
    "GET /v1/invoices/{}/lines": Stripe.list_lines,
    "POST /v1/invoices/{}/finalize": Stripe.finalize,
    "POST /v1/invoices/{}/void": Stripe.void,
    "POST /v1/invoices/{}/pay": Stripe.paid,
    "POST /v1/invoices/{}/mark_uncollectible": Stripe.uncollectible,
    "POST /v1/credit_notes": Stripe.create_note,
    "GET /v1/credit_notes": Stripe.list_notes,
    "GET /v1/credit_notes/{}": Stripe.note,
    "POST /v1/credit_notes/{}/void": Stripe.void_note,
    "POST /v1/customers/{}/balance_transactions": Stripe.create_move,
    "GET /v1/customers/{}/balance_transactions": Stripe.list_moves,
    "POST /v1/checkout/sessions": Stripe.create_session,
    "GET /v1/invoice_payments": Stripe.list_payments,
    "GET /v1/refunds": Stripe.list_refunds,
    "GET /v1/disputes": Stripe.list_disputes,
}


def _of_payment(rows: dict[str, Body], sent: Body) -> list[Body]:
    return [each for each in rows.values() if each["payment_intent"] == sent["payment_intent"]]


def checked(module: str, name: str, sent: Body) -> None:
    """Hold what was sent against what the library says may be."""
    found = import_module(f"stripe.params._{module}{_snake(name, module)}")
    if wrong := _misfit(getattr(found, name), sent, vars(found), name):
        raise Refused(400, wrong)


def _misfit(kind: Any, value: Any, names: Body, place: str) -> str:
    """Why a value of a form is none of a kind; empty where it is."""
    if isinstance(kind, ForwardRef):
        kind = kind.__forward_arg__
    if isinstance(kind, str):
        kind = eval(kind, {**vars(typing), **names})
    origin, inner = get_origin(kind), get_args(kind)
    if origin in {NotRequired, Required}:
        return _misfit(inner[0], value, names, place)
    if origin in {Union, UnionType}:
        said = [_misfit(each, value, names, place) for each in inner]
        return "" if "" in said else max(said, key=len)
    if origin is list and isinstance(value, list):
        return next(filter(None, (_misfit(inner[0], each, names, place) for each in value)), "")
    if origin is dict and isinstance(value, dict):
        return "" if all(isinstance(each, str) for each in value.values()) else f"{place} is no map of texts"
    if hasattr(kind, "__total__") and isinstance(value, dict):
        known = dict(kind.__annotations__)
        wanted = {name for name, each in known.items() if "NotRequired" not in str(each)}
        of_requests = set(RequestOptions.__annotations__)
        if odd := (set(value) - set(known)) | ((wanted - set(value)) - of_requests):
            return f"{place} must have, or must not have, {sorted(odd)}"
        return next(
            filter(None, (_misfit(known[one], value[one], names, f"{place}.{one}") for one in value)), ""
        )
    fits = {
        int: lambda text: re.fullmatch("-?[0-9]+", text), bool: lambda text: text in {"true", "false"},
        str: lambda _: True,
    }  # fmt: skip
    if isinstance(value, str) and (
        value in inner if origin is Literal else kind in fits and fits[kind](value)
    ):
        return ""
    return f"{place} is {value!r}, which is no {kind}"


def _snake(name: str, module: str) -> str:
    begins = "".join(part.capitalize() for part in module.split("_"))
    return re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name.removeprefix(begins))


def page(sent: Body, found: list[Body]) -> Body:
    """A page of a list, the newest first."""
    rows = list(reversed(found))
    if after := sent.get("starting_after"):
        rows = rows[[row["id"] for row in rows].index(after) + 1 :]
    limit = int(sent.get("limit", 10))
    return {"object": "list", "url": "/", "data": rows[:limit], "has_more": len(rows) > limit}


def nested(pairs: list[tuple[str, str]]) -> Body:
    """What was sent as a form, as the documents it stands for."""
    found: Body = {}
    for name, value in pairs:
        *way, last = _PART.findall(name)
        here = found
        for part in way:
            here = here.setdefault(part, {})
        here[last] = value
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {name: _listed(each) for name, each in value.items()}
    return list(inner.values()) if inner and all(name.isdigit() for name in inner) else inner


@asynccontextmanager
async def stripe_server() -> AsyncIterator[Stripe]:
    """Serve one account."""
    stripe = Stripe()

    async def serve(request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        stripe.asked.append(asked)
        when = stripe.cut(len(stripe.asked), asked)
        if when == "before":
            assert request.transport is not None
            request.transport.abort()
        assert request.headers["Authorization"] == f"Bearer {KEY}" or when
        body = (await request.read()).decode()
        sent = nested([*request.query.items(), *parse_qsl(body, keep_blank_values=True)])
        status, answer = _answered(stripe, request, sent) if when != "before" else (500, {})
        if when == "after":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(answer, status=status, headers={"Request-Id": f"req_{len(stripe.asked)}"})

    app = web.Application()
    app.router.add_route("*", "/{way:.*}", serve)
    async with TestServer(app) as server:
        stripe.url = str(server.make_url("")).rstrip("/")
        yield stripe


def _answered(stripe: Stripe, request: web.Request, sent: Body) -> tuple[int, Body]:
    key, whole = request.headers.get("Idempotency-Key"), json.dumps([request.path, sent], sort_keys=True)
    if key in stripe.answered:
        first, status, answer = stripe.answered[key]
        if first == whole:
            return status, answer
        return 400, error_of("idempotency_error", "Keys may only be used with the same parameters.")
    refused = stripe.refuse(f"{request.method} {request.path}")
    try:
        if refused is not None:
            raise refused
        status, answer = 200, json.loads(json.dumps(stripe.handle(request.method, request.path, sent)))
    except Refused as error:
        status, answer = error.status, error_of(error.kind, str(error))
    if key is not None and status not in {401, 409, 429}:
        stripe.answered[key] = whole, status, answer
    return status, answer


def error_of(kind: str, message: str) -> Body:
    return {"error": {"type": kind, "message": message}}


@contextmanager
def cutting(stripe: Stripe, number: int, when: str) -> Iterator[None]:
    """Lose the answer of one request from now on, and let none behind it through."""
    first = len(stripe.asked)
    stripe.cut = lambda at, _: "" if at - first < number else when if at - first == number else "before"
    yield
    stripe.cut = lambda _number, _asked: ""
