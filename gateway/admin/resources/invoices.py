"""Resources of invoices and credit notes, with their payments and applied credit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, model_validator

from gateway.admin.resources.resource import Action, DocumentEndpoint, Resource, answer_of, filters
from gateway.admin.resources.values import (
    Currency,
    Day,
    Exactly,
    Fraction,
    Id,
    In,
    Instant,
    Money,
    Out,
    Paid,
    Rate,
    Text,
    optional,
    show_decimal,
)
from gateway.core.accounts.administration import BILLING, RowScope, access
from gateway.core.billing.charges import KINDS as CHARGE_NAMES
from gateway.core.billing.document import CATEGORIES, Contact, PostalAddress
from gateway.core.billing.invoice import INFORMATION
from gateway.core.billing.payments import APPLY_REASONS, PAYMENT_STATUSES
from gateway.core.model import INTEGER_MAX

STATUSES = ("draft", "finalized", "void")
KINDS = ("invoice", "credit_note")
LINES_MAX = 1_000

Source = Literal["subscription_segment", "credit_addition", "credit_debt"]
UnitPrice = Annotated[Paid, PlainSerializer(show_decimal, when_used="json")]


class InvoiceCreate(In):
    """A draft for whole UTC days that no other invoice of the organization covers, or a one-off invoice."""

    organization_id: Id
    period_start: Day | None = optional("The first day; required without `source`.")
    period_end: Day | None = optional("The day after the last; with `period_start`.")
    source: Source | None = optional(
        "A one-off invoice: what this alone owes and no invoice has, as `charges` name it. It "
        "needs no period, and no other invoice makes way for it."
    )
    source_id: Id | None = optional("Of one row of the source only.")


class CreditLine(In):
    """A line of an invoice, and the amount to refund."""

    position: Annotated[int, Field(strict=True, ge=1, le=INTEGER_MAX)]
    amount: Money | None = optional("Before tax; left out, what is left of the line.")


class CreditNote(In):
    """The lines of an invoice to refund."""

    lines: Annotated[list[CreditLine], Field(min_length=1, max_length=LINES_MAX)] | None = optional(
        "Some lines, or parts of them; left out, all that is left."
    )

    @model_validator(mode="after")
    def each_once(self) -> CreditNote:
        positions = [line.position for line in self.lines or ()]
        if len(set(positions)) < len(positions):
            raise ValueError("a line is named twice")
        return self


class PaymentMade(In):
    """A payment received for an invoice, and the payer's reference."""

    amount: Money = Field(description="In the invoice's currency; at most what is left to pay.")
    reference: Text = Field(
        description="Reference of the payer's bank or provider; the same one is recorded once."
    )


class CreditApplied(In):
    """The amount of a credit note to apply to an invoice."""

    invoice_id: Id = Field(description="A final one of the same organization and currency.")
    amount: Money = Field(description="At most the note's open credit, and the rest to pay.")


class Refund(In):
    """A payment made for a credit note's credit, and its reference."""

    amount: Money = Field(description="In the note's currency; at most its open credit.")
    reference: Text = Field(description="Your bank's reference; the same one is recorded once.")


class PaymentReversed(In):
    """The reversal of a payment, and its reference."""

    reference: Text = Field(description="The refund's own reference; the same one is recorded once.")
    amount: Money | None = optional("Default: the rest of the payment.")


class WriteOff(In):
    """Why a payment is no longer expected."""

    reason: Text | None = optional("For the audit log.")


class Payment(Out):
    """Money received for an invoice, or (negative) paid for a credit note; or its reversal."""

    id: Id
    organization_id: Id
    invoice_id: Id
    amount: Paid
    currency: str
    reference: str
    corrects_id: Id | None = Field(description="The payment it gives back, or a part of.")
    amount_left: Paid = Field(description="What of it was not given back; of a refund below zero.")
    created_at: Instant


class NoteApplication(Out):
    """Credit of a note applied to an invoice, or (negative) the reversal."""

    id: Id
    organization_id: Id
    note_id: Id
    invoice_id: Id
    amount: Paid
    currency: str
    reason: str = Field(
        description="own: of the invoice that the note corrects; oldest: by itself, of the oldest that was "
        "due; asked: by a person; void: taken back, since one of both is void."
    )
    actor: str = Field(description="Who did it, or did what it came of.")
    created_at: Instant


class InvoiceLine(Out):
    """A line of an invoice; `quantity` counts days or periods, tokens, credits or units."""

    position: int
    kind: str = Field(description=f"{', '.join(CHARGE_NAMES)}, {INFORMATION} (information) or tax.")
    description: str
    service_id: Id | None
    service: str | None = Field(description="Its name then.")
    tenant_id: Id | None
    tenant: str | None = Field(description="Its name then.")
    quantity: int
    unit_price: UnitPrice
    amount: Paid
    corrects_position: int | None = Field(description="Of a credit note: the invoice's line it gives back.")
    tax_rate: Fraction | None = Field(
        description="Of its tax, a fraction; null of lines from before it was kept."
    )
    tax_category: str | None = Field(description=f"{', '.join(CATEGORIES)}; null where nobody said.")
    tax_reason: str | None = Field(description="Why it is not taxed.")
    period_start: Day | None = Field(
        description="The first day that it bills; null of taxes, and of lines from before it was kept."
    )
    period_end: Day | None = Field(description="The day behind the last one.")


class Party(Out):
    """The seller or buyer, as of the time at which the document became final."""

    name: str
    address: list[str] = Field(description="As it is set on paper.")
    country: str | None
    tax_number: str | None
    postal: PostalAddress | None = Field(default=None, description="The address, where its parts are known.")
    contact: Contact | None = None
    endpoint_id: str | None = Field(default=None, description="Where electronic invoices go.")
    buyer_reference: str | None = Field(default=None, description="What a buyer wants to be named.")


class InvoiceCorrection(Out):
    """An invoice that a credit note corrects."""

    number: str
    date: Day


class TaxConversion(Out):
    """The tax of an invoice in the seller's accounting currency, and the rate of the conversion."""

    currency: str
    amount: Paid
    rate: Exactly = Field(description="How much of `currency` a unit of the invoice's currency is.")
    published_on: Day
    source: str


class Invoice(Out):
    """The amount that an organization owes for a period, or (a credit note) gets back."""

    id: Id
    organization_id: Id
    kind: str
    corrects_id: Id | None = Field(description="The invoice a credit note gives back.")
    number: str | None = Field(description="Given when it is finalized, without gaps in a year.")
    status: str
    payment_status: str | None = Field(
        description="Of a finalized invoice: open, paid, overdue (its due date is over) or uncollectible."
    )
    due_date: Day | None = Field(description="The last day it may be paid on.")
    customer: str | None
    currency: str
    period_start: Day
    period_end: Day = Field(description="The day after the last.")
    source: str | None = Field(description="Of a one-off invoice: what alone it bills.")
    source_id: Id | None
    subtotal: Paid
    tax: Paid
    total_amount: Paid
    amount_paid: Paid | None = Field(
        description="Money that came in for it; of a note, below zero, what was paid back."
    )
    amount_applied: Paid | None = Field(
        description="Credit of notes that was applied to it; of a note, below zero, what of it was applied."
    )
    amount_due: Paid | None = Field(
        description="The total less both: what is left to pay; of a note, below zero, its open credit."
    )
    amount_prepaid: Paid | None = Field(
        description="Credit that was applied to it as it became final: its PDF and XML say so."
    )
    lines: list[InvoiceLine]
    created_at: Instant
    finalized_at: Instant | None
    voided_at: Instant | None
    uncollectible_at: Instant | None
    seller: Party | None = Field(description="As copied when it became final; null of older ones.")
    buyer: Party | None = Field(description="As copied; a draft has what would be.")
    notes: list[str] = Field(description="Below the total.")
    iban: str | None = Field(description="Where it is to be paid to.")
    accounting_tax: TaxConversion | None = Field(
        description="Its tax in the seller's accounting currency; null where none is wanted."
    )
    corrects: list[InvoiceCorrection] = Field(
        description="The invoices that a credit note gives something back on."
    )


class AccountingRateCreate(In):
    """A rate to the seller's accounting currency. It never changes: a later row replaces it."""

    currency: Currency = Field(description="What invoices are in.")
    accounting_currency: Currency = Field(description="What the seller keeps its accounts of tax in.")
    rate: Rate = Field(description="How much of `accounting_currency` a unit of `currency` is.")
    published_on: Day = Field(description="The day of the rate at its source, as invoices say it.")
    source: Text = Field(description="Who published it, and where, as invoices say it.")
    effective_from: Day = Field(description="The first UTC day it is for, by when invoices become final.")
    effective_to: Day | None = optional("The last such day, of 31 at most; left out, the first.")


AccountingRate = answer_of(
    AccountingRateCreate, "What taxes are converted by where invoices become final on these days."
)

RESOURCES = (
    Resource(
        name="accounting-rates",
        access=access(BILLING, reach=RowScope.SHARED),
        named_by="currency",
        description="Rates to the seller's accounting currency, in which invoices say their tax too. A rate "
        "is never changed: a later row takes its place.",
        out=AccountingRate,
        create=AccountingRateCreate,
        filters=filters("currency:text accounting_currency:text"),
    ),
    Resource(
        name="invoices",
        access=access(
            BILLING,
            ours=(
                "create",
                "delete",
                "recompute",
                "finalize",
                "void",
                "credit-note",
                "payments",
                "apply",
                "refund",
                "uncollectible",
            ),
        ),
        description="What organizations owe for a period, and credit notes.",
        out=Invoice,
        named_by="number",
        create=InvoiceCreate,
        deletable=True,
        filters=filters(
            "organization_id payment_status status kind number:text corrects_id source:text source_id",
            status=STATUSES,
            payment_status=PAYMENT_STATUSES,
            kind=KINDS,
        ),
        actions=(
            Action("recompute", "Make a draft's lines again from what is settled now"),
            Action("finalize", "Give it its number; nothing changes it from then on", settles=True),
            Action("void", "Take a finalized one back; what it billed may be billed again"),
            Action(
                "credit-note",
                "Make a draft that gives a finalized one back, or part of it; answers with the draft",
                CreditNote,
            ),
            Action("payments", "Record money that came in for it, or a part of it", PaymentMade),
            Action("apply", "Apply credit of a final note to an invoice that is due", CreditApplied),
            Action("refund", "Record money that was paid back of a final note's credit", Refund),
            Action("uncollectible", "Give up what is left to pay; a payment is taken all the same", WriteOff),
        ),
        documents=(
            DocumentEndpoint(".csv", "text/csv", "The lines of an invoice"),
            DocumentEndpoint(
                "/usage.csv", "text/csv", "Every use that an invoice bills, with its request id"
            ),
        ),
    ),
    Resource(
        name="payments",
        access=access(BILLING, ours=("reverse",)),
        description="Money that came in for invoices, or was paid back.",
        out=Payment,
        named_by="reference",
        refers={"corrects_id": "payments"},
        filters=filters("organization_id invoice_id reference:text corrects_id"),
        actions=(
            Action(
                "reverse",
                "Give it back, or a part of it: an invoice is to be paid again, a note has credit again",
                PaymentReversed,
            ),
        ),
    ),
    Resource(
        name="note-applications",
        access=access(),
        description="Credit of notes that was applied to invoices.",
        out=NoteApplication,
        named_by="id",
        refers={"note_id": "invoices"},
        filters=filters("organization_id note_id invoice_id reason", reason=APPLY_REASONS),
    ),
)
