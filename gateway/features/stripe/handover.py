"""Hand-overs of documents to another system that collects their payments, and the outcomes.

Each hand-over is done once. An attempt looks first for existing objects, so it may be killed at any point and
repeated by another keeper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from gateway.core.accounts.administration import Actor
from gateway.core.circuit_breaker import RetryPolicy

Kind = Literal["invoice", "credit_note", "void", "paid", "uncollectible"]
State = Literal["waiting", "done", "failed", "canceled"]
KINDS: tuple[Kind, ...] = ("invoice", "credit_note", "void", "paid", "uncollectible")
STATES: tuple[State, ...] = ("waiting", "done", "failed", "canceled")
WAITING, DONE, FAILED, CANCELED = STATES

# The actor that records payments at Stripe.
COLLECTOR = Actor("stripe", "billing")
LINES_MAX = 250
# About two days in all. After that a person must intervene.
RETRIES = RetryPolicy(attempts_max=16, first_s=10.0, factor=3.0, longest_s=6 * 3600.0)
ERROR_CHARS_MAX = 500
# The lease is longer than an attempt, so that no other keeper begins the same step meanwhile.
ATTEMPT_S_MAX = 120.0
LEASE_S = 180.0


@dataclass(frozen=True, slots=True)
class PayableLine:
    """A line of a document, in units of the currency, from its first day to the day after its last."""

    position: int
    description: str
    amount: Decimal
    kind: str = ""
    start: date | None = None
    end: date | None = None


@dataclass(frozen=True, slots=True)
class FinalDocument:
    """A final document: an invoice, or a credit note with negative amounts."""

    number: str
    kind: str
    status: str
    currency: str
    total: Decimal
    finalized_at: datetime
    period_start: date
    period_end: date
    due_date: date | None = None
    lines: tuple[PayableLine, ...] = ()


@dataclass(frozen=True, slots=True)
class HandoverStep:
    """One due step of a hand-over, with the number of this `attempt`.

    `key` identifies the hand-over for ever, and `version` its current run. `remote_id` is the object that it
    created at Stripe before. `about` is the document at Stripe that it changes or refunds. Both may be None.
    """

    id: int
    key: str
    version: int
    attempt: int
    kind: Kind
    customer: str
    created_at: datetime
    paper: FinalDocument
    remote_id: str | None = None
    about: str | None = None


@dataclass(frozen=True, slots=True)
class HandoverOutcome:
    """The outcome of an attempt.

    `anew` begins another version, because Stripe answers a repeated request key always alike. `credited` is
    the part of a credit note that went to the customer's balance, because it was paid already.
    """

    state: State
    error: str | None = None
    anew: bool = False
    remote_id: str | None = None
    url: str | None = None
    credited: Decimal = Decimal(0)


def folded(lines: Sequence[PayableLine], most: int = LINES_MAX) -> tuple[PayableLine, ...]:
    """Return at most `most` lines with the same total; lines without an amount are left out.

    Above `most`, lines of one description are merged, then lines of one kind.
    """
    told = [line for line in lines if line.amount] or list(lines)
    if len(told) > most:
        told = _sum_by_name(told, (line.description for line in told))
    if len(told) > most:
        told = _sum_by_name(told, (line.kind for line in told))
    return tuple(told)


def _sum_by_name(lines: Sequence[PayableLine], names: Iterable[str]) -> list[PayableLine]:
    """Return the lines added up by name, each at the position of its first one."""
    payable_lines: dict[str, PayableLine] = {}
    for line, name in zip(lines, names, strict=True):
        first = payable_lines.get(name)
        amount = line.amount if first is None else first.amount + line.amount
        position = line.position if first is None else first.position
        payable_lines[name] = PayableLine(position, name, amount, line.kind)
    return list(payable_lines.values())


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """A report of Stripe about a document's money, in units of the currency.

    `name` is the id of the report, which is processed once. `settled` is everything paid so far, `given_back`
    everything returned so far; None if the report does not say. `given_up` and `void` are what somebody did
    with the document at Stripe.
    """

    name: str
    kind: str
    remote_id: str
    key: str
    currency: str
    settled: Decimal | None
    given_up: bool = False
    void: bool = False
    given_back: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PaymentReturn:
    """A report that money of a payment was returned, or came back. Its documents have to be looked up."""

    name: str
    kind: str
    payment: str


@dataclass(frozen=True, slots=True)
class CheckoutPayment:
    """A report that a purchase was paid, with its Checkout session and amount."""

    key: str
    organization_id: int
    session: str
    amount: Decimal
    currency: str
