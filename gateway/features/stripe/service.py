"""Hands final documents over to Stripe: an invoice is drafted, filled, compared to the cent and finalized.

Each step looks for existing objects. Objects from earlier attempts are found by their metadata, even if no
answer came or Stripe has forgotten the request's key.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from time import time as wall_clock
from typing import Any, Literal

import stripe

from gateway import extras
from gateway.core.billing.money import MINOR_DIGITS, MINOR_DIGITS_USUAL
from gateway.errors import AdminRefusal, CollectorUnavailable, Conflict, Unauthorized
from gateway.features.stripe.handover import (
    ATTEMPT_S_MAX,
    CANCELED,
    DONE,
    ERROR_CHARS_MAX,
    FAILED,
    WAITING,
    CheckoutPayment,
    CollectionStatus,
    HandoverOutcome,
    HandoverStep,
    PayableLine,
    PaymentReturn,
    folded,
)
from gateway.features.stripe.handover import (
    LINES_MAX as LINES_AT_ONCE,
)

# Stripe by its own library: one client, every request in bounded time, every failure an `HandoverOutcome`.
#
# The library promises no secrecy of its messages, so stored ones are bounded and masked here.

REQUEST_S_MAX = 20.0
PAGE = 100
# The smallest purchase of credits, in Stripe's smallest units.
LEAST = 500
PAGES_MAX = 20
# The metadata field on each created object with the key of its hand-over.
MARK = "tollkeeper_handover"
_KEY = re.compile(r"\b(?:sk|rk|whsec|pk)_[\w*]+")

Params = dict[str, Any]
Object = Mapping[str, Any]


class Unfinished(Exception):
    """The object at Stripe is not as it should be, and a person must intervene."""


class StripeApi:
    """Stripe's API for one account, with the current key.

    `connector` makes the connections if they go through a proxy.
    """

    def __init__(
        self, api_key: Callable[[], str], base_url: str = "", connector: object | None = None
    ) -> None:
        self._http = stripe.AIOHTTPClient(timeout=REQUEST_S_MAX, connector=connector)
        stripe.set_app_info("Tollkeeper", version=extras.version())
        self._now, self._base_url, self._api_key = api_key, base_url.rstrip("/"), api_key()
        self._client = self._with(self._api_key)
        # Errors of a broken connection, which the library raises unchanged.
        self.broken_off = (self._http.aiohttp.ClientError, TimeoutError, OSError)

    @property
    def v1(self) -> Any:
        """Stripe's client, with the current key."""
        if (api_key := self._now()) != self._api_key:
            self._api_key, self._client = api_key, self._with(api_key)
        return self._client.v1

    def _with(self, api_key: str) -> stripe.StripeClient:
        return stripe.StripeClient(
            api_key,
            base_addresses={"api": self._base_url} if self._base_url else None,
            http_client=self._http,
            # Attempts are counted and retried by the queue of hand-overs.
            max_network_retries=0,
        )

    async def settled(self, attempt: Awaitable[HandoverOutcome]) -> HandoverOutcome:
        """Return the outcome of an attempt. Errors become outcomes, and are not raised."""
        try:
            return await attempt
        except Unfinished as error:
            return HandoverOutcome(FAILED, hide_keys(str(error)), anew=True)
        except stripe.APIConnectionError as error:
            return HandoverOutcome(WAITING, hide_keys(f"Stripe does not answer: {_cause(error)}"))
        except stripe.StripeError as error:
            return _outcome_of(error)
        except self.broken_off as error:
            return HandoverOutcome(WAITING, hide_keys(f"Stripe does not answer: {type(error).__name__}"))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.close_async()


def once(handover: HandoverStep, step: str) -> Params:
    """Return request parameters with an idempotency key, so that a step of a hand-over is done once."""
    return {"idempotency_key": f"tollkeeper-{handover.key}-{handover.version}-{step}"}


def marks(handover: HandoverStep) -> dict[str, str]:
    """Return the metadata by which the objects that a hand-over creates at Stripe are found again."""
    return {MARK: handover.key, "tollkeeper_number": handover.paper.number}


async def find_made(handover: HandoverStep, page: Callable[[Params], Awaitable[Any]]) -> Object | None:
    """Return the object at Stripe that this hand-over created in an earlier try, or None.

    `page` reads a page of the list of such objects.
    """
    async for item in every(page):
        if (item.get("metadata") or {}).get(MARK) == handover.key:
            return item
    return None


async def existing(request: Awaitable[Any]) -> Object | None:
    """Return the object that a request finds, or None if Stripe has deleted it."""
    try:
        answer: Object = (await request).to_dict()
    except stripe.InvalidRequestError as error:
        if error.http_status == 404:
            return None
        raise
    return None if answer.get("deleted") else answer


async def every(page: Callable[[Params], Awaitable[Any]]) -> AsyncIterator[Object]:
    """Yield all objects of a list, page by page; `Unfinished` beyond `PAGES_MAX` pages."""
    asked: Params = {"limit": PAGE}
    for _ in range(PAGES_MAX):
        page_ = (await page(asked)).to_dict()
        for item in page_["data"]:
            yield item
        if not page_["has_more"]:
            return
        asked = {"limit": PAGE, "starting_after": page_["data"][-1]["id"]}
    raise Unfinished(f"Stripe lists more than {PAGES_MAX * PAGE} of the customer's; it is not looked further")


def _outcome_of(error: Any) -> HandoverOutcome:
    """Return the outcome of an error answer: access errors and a busy account lead to a retry."""
    status = error.http_status or 0
    if status == 401:
        return HandoverOutcome(WAITING, "Stripe does not know TOLLKEEPER_STRIPE_API_KEY (401)")
    named = f" ({error.request_id})" if error.request_id else ""
    message = hide_keys(f"Stripe answers {status}: {error.user_message or error.code or 'nothing'}{named}")
    if status in {409, 429}:
        return HandoverOutcome(WAITING, message)
    if isinstance(error, stripe.IdempotencyError) or status == 403 or status >= 500 or not status:
        return HandoverOutcome(WAITING, message, anew=True)
    return HandoverOutcome(FAILED, message, anew=True)


def _cause(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


def hide_keys(text: str) -> str:
    """Return a text of Stripe's for storage: shortened, and without keys."""
    return _KEY.sub("(hidden)", " ".join(text.split()))[:ERROR_CHARS_MAX]


# Money as Stripe counts it: whole numbers of its own smallest unit of a currency.
#
# https://docs.stripe.com/currencies: sixteen currencies have no decimals, some of them two by ISO 4217. Two
# that have none by it are counted in hundredths, and those with three end in a zero.

_WITHOUT_DECIMALS = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
_IN_HUNDREDTHS = frozenset(("ISK", "UGX"))


class Unspeakable(ValueError):
    """An amount that Stripe cannot represent."""


def to_stripe(amount: Decimal, currency: str) -> int:
    """Return an amount in Stripe's units; `Unspeakable` if Stripe cannot represent it."""
    number = amount.scaleb(_digits(currency))
    step = 100 if currency in _IN_HUNDREDTHS else 1
    if _digits(currency) == 3:
        step = 10
    if number % step:
        raise Unspeakable(f"Stripe has no amounts such as {currency} {amount.normalize():f}")
    return int(number)


def from_stripe(number: int, currency: str) -> Decimal:
    """Return the amount for a number in Stripe's units."""
    return Decimal(number).scaleb(-_digits(currency))


def _digits(currency: str) -> int:
    if currency in _WITHOUT_DECIMALS:
        return 0
    return 2 if currency in _IN_HUNDREDTHS else MINOR_DIGITS.get(currency, MINOR_DIGITS_USUAL)


Collection = Literal["charge_automatically", "send_invoice"]
# Objects of a hand-over are not older than the hand-over, except for differences between clocks.
SINCE = timedelta(days=1)
DESCRIPTION_CHARS_MAX = 500
POSITION = "tollkeeper_line"

# Stores the id of the document at Stripe as soon as it is known.
Note = Callable[[str], Awaitable[None]]


class StripeInvoices:
    """Hands documents over to Stripe."""

    def __init__(
        self,
        api: StripeApi,
        collection: Collection,
        now: Callable[[], datetime],
        *,
        lines_at_once: int = LINES_AT_ONCE,
    ) -> None:
        self._api = api
        self._collection = collection
        self._now = now
        self._lines_at_once = lines_at_once

    async def hand_over(self, handover: HandoverStep, note: Note) -> HandoverOutcome:
        """Make one attempt, and return its outcome. Faults of Stripe are not raised."""
        try:
            async with asyncio.timeout(ATTEMPT_S_MAX):
                return await self._api.settled(self._hand_document(handover, note))
        except TimeoutError:
            return HandoverOutcome(WAITING, f"not done within {ATTEMPT_S_MAX:g} seconds")

    async def _hand_document(self, handover: HandoverStep, note: Note) -> HandoverOutcome:
        """Hand a document to Stripe, or report why nothing has to be done."""
        try:
            if handover.kind == "invoice":
                return await self._invoice(handover, note)
            if handover.kind == "credit_note":
                return await self._credit_note(handover)
            if handover.about is None:
                return HandoverOutcome(CANCELED, "what it is about was never handed over")
            if handover.kind == "void" and handover.paper.kind == "credit_note":
                return await self._void_note(handover, handover.about)
            return await self._end_invoice(handover, handover.about)
        except Unspeakable as error:
            raise Unfinished(str(error)) from error

    async def _invoice(self, handover: HandoverStep, note: Note) -> HandoverOutcome:
        """Create an invoice at Stripe, compare and finalize it; continue where an earlier try ended."""
        paper = handover.paper
        there = await self._existing_invoice(handover)
        if paper.status == "void" and (there is None or there["status"] == "draft"):
            if there is not None:
                await self._api.v1.invoices.delete_async(there["id"])
            return HandoverOutcome(CANCELED, "made void before it was handed over")
        is_new = there is None
        if there is None:
            asked = self._draft(handover)
            there = (await self._api.v1.invoices.create_async(asked, once(handover, "create"))).to_dict()
        await note(there["id"])
        if there["status"] == "draft":
            there = await self._add_missing_lines(
                handover, there, set() if is_new else await self._positions(there)
            )
        _compare(handover, there)
        if there["status"] == "void":
            raise Unfinished(f"somebody made {there['id']} void at Stripe")
        if there["status"] == "draft":
            advance = {"auto_advance": True}
            final = self._api.v1.invoices.finalize_invoice_async
            there = (await final(there["id"], advance, once(handover, "finalize"))).to_dict()
        return HandoverOutcome(DONE, remote_id=there["id"], url=there.get("hosted_invoice_url"))

    async def _existing_invoice(self, handover: HandoverStep) -> Object | None:
        """Return the invoice that this hand-over created before, in its current state."""
        if handover.remote_id is not None:
            there = await existing(self._api.v1.invoices.retrieve_async(handover.remote_id))
            if there is not None:
                return there
            # Somebody deleted the draft: search for it, and create it again.
        since = int((handover.created_at - SINCE).timestamp())
        query = {"customer": handover.customer, "created": {"gte": since}}
        return await find_made(handover, lambda page: self._api.v1.invoices.list_async(query | page))

    def _draft(self, handover: HandoverStep) -> Params:
        """Return the parameters of Stripe's draft for an invoice."""
        paper = handover.paper
        last = paper.period_end - timedelta(days=1)
        asked: Params = {
            "customer": handover.customer,
            "currency": paper.currency.lower(),
            "number": paper.number,
            "description": f"{paper.period_start} to {last}",
            # Stripe would finalize a draft within an hour, before it is complete.
            "auto_advance": False,
            "automatic_tax": {"enabled": False},
            "collection_method": self._collection,
            # No discount and no pending item that our document does not have.
            "discounts": "",
            "pending_invoice_items_behavior": "exclude",
            "effective_at": int(paper.finalized_at.timestamp()),
            "metadata": marks(handover),
        }
        if self._collection == "send_invoice":
            asked |= self._due(handover)
        return asked

    def _due(self, handover: HandoverStep) -> Params:
        """Return the due date as Stripe's parameters; Stripe accepts no day in the past."""
        day = handover.paper.due_date
        if day is None:
            return {"days_until_due": 0}
        end = datetime.combine(day, time(23, 59, 59), UTC)
        return {"due_date": int(end.timestamp())} if end > self._now() else {"days_until_due": 0}

    async def _positions(self, there: Object) -> set[str]:
        """Return the positions of the lines that the draft `there` at Stripe has already."""
        lines = partial(self._api.v1.invoices.line_items.list_async, there["id"])
        return {(line.get("metadata") or {}).get(POSITION, "") async for line in every(lines)}

    async def _add_missing_lines(self, handover: HandoverStep, there: Object, has: set[str]) -> Object:
        """Add the lines that the draft `there` at Stripe lacks (`has` are present), and return the draft."""
        currency = handover.paper.currency
        lines = [line for line in folded(handover.paper.lines) if str(line.position) not in has]
        for at in range(0, len(lines), self._lines_at_once):
            some = [_line(line, currency) for line in lines[at : at + self._lines_at_once]]
            step = once(handover, f"lines-{some[0]['metadata'][POSITION]}")
            there = (
                await self._api.v1.invoices.add_lines_async(there["id"], {"lines": some}, step)
            ).to_dict()
        if not lines:  # another keeper may have added them since the draft was read
            there = (await self._api.v1.invoices.retrieve_async(there["id"])).to_dict()
        return there

    async def _credit_note(self, handover: HandoverStep) -> HandoverOutcome:
        """Create a credit note at Stripe, or add to the balance if its invoice is not there."""
        currency, amount = handover.paper.currency, -handover.paper.total
        if handover.about is None:
            return await self._credit_balance(handover, -to_stripe(amount, currency))
        there = await find_made(
            handover, lambda page: self._api.v1.credit_notes.list_async({"invoice": handover.about} | page)
        )
        if there is None:
            if handover.paper.status == "void":
                return HandoverOutcome(CANCELED, "made void before it was handed over")
            invoice = (await self._api.v1.invoices.retrieve_async(handover.about)).to_dict()
            asked = _note(handover, to_stripe(amount, currency), int(invoice["amount_remaining"]))
            there = (await self._api.v1.credit_notes.create_async(asked, once(handover, "create"))).to_dict()
        credited = from_stripe(int(there.get("post_payment_amount") or 0), currency)
        return HandoverOutcome(DONE, remote_id=there["id"], url=there.get("pdf"), credited=credited)

    async def _credit_balance(self, handover: HandoverStep, amount: int) -> HandoverOutcome:
        """Credit an amount to the customer's balance at Stripe, which the next invoice uses.

        A refund that concerns several invoices cannot be a credit note of one.
        """
        if handover.paper.status == "void" and handover.kind == "credit_note":
            return HandoverOutcome(CANCELED, "made void before it was handed over")
        moves = self._api.v1.customers.balance_transactions
        there = await find_made(handover, partial(moves.list_async, handover.customer))
        if there is None:
            asked = {
                "amount": amount, "currency": handover.paper.currency.lower(),
                "description": f"Credit note {handover.paper.number}", "metadata": marks(handover),
            }  # fmt: skip
            done = await moves.create_async(handover.customer, asked, once(handover, "create"))
            there = done.to_dict()
        return HandoverOutcome(DONE, remote_id=there["id"])

    async def _void_note(self, handover: HandoverStep, about: str) -> HandoverOutcome:
        """Void a credit note at Stripe, or take back the credit that stands for it."""
        if about.startswith("cbtxn_"):
            return await self._credit_balance(
                handover, to_stripe(-handover.paper.total, handover.paper.currency)
            )
        there = (await self._api.v1.credit_notes.retrieve_async(about)).to_dict()
        if there["status"] != "void":
            await self._api.v1.credit_notes.void_credit_note_async(about, {}, once(handover, "void"))
        return HandoverOutcome(DONE, remote_id=about)

    async def _end_invoice(self, handover: HandoverStep, about: str) -> HandoverOutcome:
        """End an invoice at Stripe as it ended here: void, paid elsewhere, or uncollectible."""
        there = (await self._api.v1.invoices.retrieve_async(about)).to_dict()
        invoices, key = self._api.v1.invoices, once(handover, handover.kind)
        stands = "deleted" if there.get("deleted") else there["status"]
        if handover.kind == "void" and stands == "draft":
            await invoices.delete_async(about)
        elif handover.kind == "void" and stands in {"open", "uncollectible"}:
            await invoices.void_invoice_async(about, {}, key)
        elif handover.kind == "paid" and stands in {"open", "uncollectible"}:
            await invoices.pay_async(about, {"paid_out_of_band": True}, key)
        elif handover.kind == "uncollectible" and stands == "open":
            await invoices.mark_uncollectible_async(about, {}, key)
        elif stands == "paid" and handover.kind == "void":
            raise Unfinished(f"{about} is paid at Stripe: give the money back there, or record it here")
        return HandoverOutcome(DONE, remote_id=about)


def _compare(handover: HandoverStep, there: Object) -> None:
    """Raise `Unfinished` if the invoice `there` at Stripe is of another amount than the document."""
    paper = handover.paper
    total = from_stripe(int(there["total"]), paper.currency)
    if there["currency"].upper() != paper.currency or total != paper.total:
        amount = f"{there['currency'].upper()} {total.normalize():f}"
        wanted = f"{paper.currency} {paper.total.normalize():f}"
        raise Unfinished(f"{there['id']} comes to {amount} instead of {wanted}")


def _line(line: PayableLine, currency: str) -> Params:
    """Return the parameters of Stripe's item for a line of an invoice."""
    asked = {
        "amount": to_stripe(line.amount, currency),
        "description": line.description[:DESCRIPTION_CHARS_MAX],
        "discountable": False,
        "metadata": {POSITION: str(line.position)},
    }
    if line.start is None or line.end is None:
        return asked
    # Both are within it: it ends with the last second of its last day.
    end = datetime.combine(line.end, time(), UTC) - timedelta(seconds=1)
    start = datetime.combine(line.start, time(), UTC)
    return asked | {"period": {"start": int(start.timestamp()), "end": int(end.timestamp())}}


def _note(handover: HandoverStep, amount: int, remaining: int) -> Params:
    """Return the parameters of a credit note. A part that was paid already goes to the customer's balance."""
    asked: Params = {
        "invoice": handover.about,
        "amount": amount,
        "memo": f"Credit note {handover.paper.number}",
        "metadata": marks(handover),
    }
    paid = amount - max(0, min(amount, remaining))
    return asked | ({"credit_amount": paid} if paid else {})


# Stripe's events about invoices and money. Stripe's own library verifies their signature first.

TOLERANCE_S = 300
# An invoice's id may be appended.
NAME_CHARS_MAX = 255
# Objects by which money is returned.
_RETURNS = frozenset({"charge", "refund", "dispute"})
_PAID = frozenset({"checkout.session.completed", "checkout.session.async_payment_succeeded"})
# An id of an organization is a bigint.
OWNER_DIGITS_MAX = 18
_RETURNED = ("charge.refund", "refund.", "charge.dispute.")


class StripeEvents:
    """Reads Stripe's webhook events, and verifies them by the current signing secret."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        tolerance_s: int = TOLERANCE_S,
        clock: Callable[[], float] = wall_clock,
    ) -> None:
        self._secret, self._clock = secret, clock
        self._tolerance_s = tolerance_s

    def read(self, body: bytes, signature: str) -> CollectionStatus | PaymentReturn | CheckoutPayment | None:
        """Return the report in an event, or None if it is about no invoice, purchase or returned money.

        `Unauthorized` if the signature is not Stripe's, or its time differs by more than the tolerance.
        """
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._secret(), self._tolerance_s)
            if _signed_at(signature) > self._clock() + self._tolerance_s:
                raise Unauthorized("The signature is of the future.")
        except (stripe.SignatureVerificationError, UnicodeDecodeError) as error:
            raise Unauthorized("The signature is not Stripe's, or it is too old.") from error
        try:
            event = json.loads(body)
            about = event["data"]["object"]["object"]
            if about in _RETURNS:
                return _returned(event)
            if about == "checkout.session":
                return _bought(event)
            return _collected(event) if about == "invoice" else None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise AdminRefusal("The body is no event of Stripe's.") from error


def _signed_at(signature: str) -> int:
    """Return the time of a verified signature in seconds. The library checks only that it is not too old."""
    return int(next(part[2:] for part in signature.split(",") if part.startswith("t=")))


def _collected(event: Any) -> CollectionStatus | None:
    invoice, name, kind = event["data"]["object"], str(event["id"]), str(event["type"])
    if not invoice.get("id") or not kind.startswith("invoice.") or len(name) > NAME_CHARS_MAX:
        return None
    return CollectionStatus(
        name, kind, str(invoice["id"]), mark_of(invoice), str(invoice["currency"]).upper(),
        settled_of(invoice), given_up=kind == "invoice.marked_uncollectible", void=kind == "invoice.voided",
    )  # fmt: skip


def _returned(event: Any) -> PaymentReturn | None:
    """Return the report on a returned payment, or None if the event is about no payment of an invoice."""
    payment, name, kind = event["data"]["object"].get("payment_intent"), str(event["id"]), str(event["type"])
    if not payment or not kind.startswith(_RETURNED) or len(name) > NAME_CHARS_MAX:
        return None
    return PaymentReturn(name, kind, str(payment))


def _bought(event: Any) -> CheckoutPayment | None:
    """Return the paid purchase in an event, or None if it is not ours or not paid yet."""
    session, kind = event["data"]["object"], str(event["type"])
    marks = session.get("metadata") or {}
    key, owner = str(marks.get(PURCHASE, "")), str(marks.get(OWNER, ""))
    is_paid = session["payment_status"] == "paid" and kind in _PAID
    if not is_paid or not key or not (owner.isascii() and owner.isdigit()) or len(owner) > OWNER_DIGITS_MAX:
        return None
    currency = str(session["currency"]).upper()
    amount = from_stripe(int(session["amount_total"]), currency)
    return CheckoutPayment(key, int(owner), str(session["id"])[:NAME_CHARS_MAX], amount, currency)


def mark_of(invoice: Mapping[str, Any]) -> str:
    """Return the key of the hand-over that created an invoice, empty without one."""
    return str((invoice.get("metadata") or {}).get(MARK, ""))


def settled_of(invoice: Mapping[str, Any]) -> Decimal | None:
    """Return the paid part of an invoice, or None if nothing was paid."""
    if invoice["status"] != "paid" and int(invoice["amount_paid"]) <= 0:
        return None
    # The total without the rest to pay and without credit notes before payment, however it was paid.
    less = int(invoice["amount_remaining"]) + int(invoice["pre_payment_credit_notes_amount"])
    return from_stripe(int(invoice["total"]) - less, str(invoice["currency"]).upper())


# Money that was returned to customers at Stripe, by refunds and disputes: the total of each invoice so far.
#
# A message of Stripe's names its payment, and a payment may be of several invoices. So Stripe is asked
# what each of them stands at: messages may come twice, late and in any order.

# States in which the money was not returned, or came back.
_NOT_GIVEN = frozenset({"failed", "canceled"})
_WON = frozenset({"won", "prevented", "warning_closed", "warning_needs_response", "warning_under_review"})


class StripeReturns:
    """Looks up the invoices of returned payments."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api

    async def look_up(self, payment_return: PaymentReturn) -> Sequence[CollectionStatus]:
        """Return each status of a payment's invoices; `CollectorUnavailable` if Stripe does not answer."""
        try:
            invoices = dict.fromkeys(
                [payment["invoice"] async for payment in self._list_payments(_by(payment_return.payment))]
            )
            return [await self._stands(payment_return, invoice) for invoice in invoices]
        except (stripe.StripeError, Unfinished, *self._api.broken_off) as error:
            why = hide_keys(str(error) or type(error).__name__)
            raise CollectorUnavailable(f"Stripe does not say which invoice it is about: {why}") from error

    async def _stands(self, payment_return: PaymentReturn, invoice_id: str) -> CollectionStatus:
        """Return how much of an invoice is paid at Stripe, and how much was given back."""
        invoice = (await self._api.v1.invoices.retrieve_async(invoice_id)).to_dict()
        currency = str(invoice["currency"]).upper()
        back = 0
        async for each in self._list_payments({"invoice": invoice_id, "status": "paid"}):
            payment = each["payment"].get("payment_intent")
            if payment is not None:
                back += await self._share(payment, invoice_id)
        name = f"{payment_return.name}:{invoice_id}"
        return CollectionStatus(
            name, payment_return.kind, invoice_id, mark_of(invoice), currency, settled_of(invoice),
            given_back=from_stripe(back, currency),
        )  # fmt: skip

    async def _share(self, payment: str, invoice_id: str) -> int:
        """Return an invoice's share of a payment's refund; the refund fills invoices one after the other."""
        left = await self._given_back(payment)
        async for payment_ in self._list_payments(_by(payment)):
            part = min(left, int(payment_["amount_paid"] or 0))
            if payment_["invoice"] == invoice_id:
                return part
            left -= part
        return 0

    async def _given_back(self, payment: str) -> int:
        """Return the sum of a payment's refunds and lost disputes, in Stripe's units."""
        query = {"payment_intent": payment}
        refunds = self._api.v1.refunds.list_async
        disputes = self._api.v1.disputes.list_async
        given = [
            int(refund["amount"])
            async for refund in every(lambda page: refunds(query | page))
            if refund["status"] not in _NOT_GIVEN
        ]
        given += [
            int(dispute["amount"])
            async for dispute in every(lambda page: disputes(query | page))
            if dispute["status"] not in _WON
        ]
        return sum(given)

    def _list_payments(self, query: Params) -> AsyncIterator[Object]:
        listed = self._api.v1.invoice_payments.list_async
        return every(lambda page: listed(query | page))


def _by(payment: str) -> Params:
    return {"payment": {"type": "payment_intent", "payment_intent": payment}, "status": "paid"}


# Credits that customers buy: Checkout has the page where they pay.

# Metadata of a session: the purchase and its organization.
PURCHASE, OWNER = "tollkeeper_checkout", "tollkeeper_organization"


class StripeCheckout:
    """Creates the page where a purchase is paid. `most` is the largest purchase, before tax."""

    def __init__(self, api: StripeApi, most: int, console_url: str) -> None:
        self._api, self._return_url = api, f"{console_url}/account"
        self.most = Decimal(most)

    def least(self, currency: str) -> Decimal:
        """Return the smallest purchase in a currency, before tax."""
        return from_stripe(LEAST, currency)

    async def page(self, bought: Mapping[str, Any], customer: str | None) -> str:
        """Return the URL of the page where a purchase is paid, the same URL for repeated calls."""
        currency, key = str(bought["currency"]), str(bought["key"])
        try:
            amount = to_stripe(Decimal(str(bought["amount"])), currency)
        except Unspeakable as error:
            raise Conflict(str(error)) from error
        marks = {PURCHASE: key, OWNER: str(bought["organization_id"])}
        asked: Params = {
            "mode": "payment",
            "line_items": [{
                "quantity": 1,
                "price_data": {
                    "currency": currency.lower(), "product_data": {"name": f"{bought['credits']:,} credits"},
                    "unit_amount": amount,
                },
            }],
            "metadata": marks,
            "payment_intent_data": {"metadata": marks},
            "success_url": f"{self._return_url}?done=bought",
            "cancel_url": self._return_url,
        }  # fmt: skip
        if customer is not None:
            asked["customer"] = customer
        once = {"idempotency_key": f"tollkeeper-checkout-{key}"}
        try:
            made = (await self._api.v1.checkout.sessions.create_async(asked, once)).to_dict()
        except (stripe.StripeError, *self._api.broken_off) as error:
            why = hide_keys(str(error) or type(error).__name__)
            raise CollectorUnavailable(f"Stripe makes no page to pay: {why}") from error
        return str(made["url"])
