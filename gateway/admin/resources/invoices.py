"""Invoices and credit notes: what is to be paid."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainSerializer, model_validator

from gateway.admin.resources.resource import Action, Document, Filter, Resource
from gateway.admin.resources.values import Day, Id, In, Instant, Money, Out, Paid, show_decimal
from gateway.core.model import INTEGER_MAX

STATUSES = ("draft", "finalized", "void")
KINDS = ("invoice", "credit_note")
LINES_MAX = 1_000

UnitPrice = Annotated[Paid, PlainSerializer(show_decimal, when_used="json")]


class InvoiceCreate(In):
    """A draft over whole UTC days that no other invoice of the organization has."""

    organization_id: Id
    period_start: Day = Field(description="The first day.")
    period_end: Day = Field(description="The day after the last.")


class CreditLine(In):
    """A line of the invoice, and how much of it is given back."""

    position: Annotated[int, Field(strict=True, ge=1, le=INTEGER_MAX)]
    amount: Money | None = Field(default=None, description="Before tax; left out, what is left of the line.")


class CreditNote(In):
    """What to give back of an invoice."""

    lines: Annotated[list[CreditLine], Field(min_length=1, max_length=LINES_MAX)] | None = Field(
        default=None, description="Some lines, or parts of them; left out, all that is left."
    )

    @model_validator(mode="after")
    def each_once(self) -> CreditNote:
        """A line may be named once."""
        positions = [line.position for line in self.lines or ()]
        if len(set(positions)) < len(positions):
            raise ValueError("a line is named twice")
        return self


class InvoiceLine(Out):
    """One line; `quantity` counts days or periods, tokens, credits or units."""

    position: int
    kind: str = Field(
        description="subscription, overage, credits_purchased, credits_consumed (information), usage or tax."
    )
    description: str
    service_id: Id | None
    tenant_id: Id | None
    quantity: int
    unit_price: UnitPrice
    amount: Paid
    corrects_position: int | None = Field(description="Of a credit note: the invoice's line it gives back.")


class Invoice(Out):
    """What an organization owes for a period, or (a credit note) gets back of an invoice."""

    id: Id
    organization_id: Id
    kind: str
    corrects_id: Id | None = Field(description="The invoice a credit note gives back.")
    number: str | None = Field(description="Given when it is finalized, without gaps in a year.")
    status: str
    customer: str | None
    currency: str
    period_start: Day
    period_end: Day = Field(description="The day after the last.")
    subtotal: Paid
    tax: Paid
    total_amount: Paid
    lines: list[InvoiceLine]
    created_at: Instant
    finalized_at: Instant | None
    voided_at: Instant | None


RESOURCES = (
    Resource(
        name="invoices",
        description="What organizations owe for a period, and credit notes.",
        out=Invoice,
        named_by="number",
        create=InvoiceCreate,
        deletable=True,
        filters={
            "organization_id": Filter(),
            "status": Filter("text", STATUSES),
            "kind": Filter("text", KINDS),
            "corrects_id": Filter(),
            "number": Filter("text"),
        },
        actions=(
            Action("recompute", "Make a draft's lines again from what is settled now"),
            Action("finalize", "Give it its number; nothing changes it from then on", settles=True),
            Action("void", "Take a finalized one back; what it billed may be billed again"),
            Action(
                "credit-note",
                "Make a draft that gives a finalized one back, or part of it; answers with the draft",
                CreditNote,
            ),
        ),
        documents=(
            Document(".pdf", "application/pdf", "An invoice on paper"),
            Document(".csv", "text/csv", "The lines of an invoice"),
            Document("/usage.csv", "text/csv", "Every use that an invoice bills, with its request id"),
        ),
    ),
)
