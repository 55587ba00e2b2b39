"""Events of invoices and their payment."""

from gateway.core.alerts.events.event import Event

_MADE = "persistence/keeper/news.py"
_STATUS_FIELDS = (
    "invoice_id organization_id organization:text number:text currency:text total_amount:money"
    " payment_status:text due_date:date?"
)


def _event_of_status(status: str, sentence: str) -> Event:
    return Event(
        name=f"invoice.{status}",
        title=f"Invoice {{number}} is {status}",
        sentence=sentence,
        fields=_STATUS_FIELDS,
        when=f"an invoice's `payment_status` changed to `{status}`",
        once="a change",
        produced_by=_MADE,
    )


EVENTS = (
    Event(
        name="invoice.finalized",
        title="Invoice {number} is final",
        sentence="Invoice {number} of {organization} is final: {total_amount} {currency}.",
        fields=(
            "invoice_id organization_id organization:text kind:text number:text currency:text"
            " total_amount:money"
        ),
        when="an invoice or credit note got its number",
        once="an invoice",
        produced_by=_MADE,
    ),
    _event_of_status("paid", "Nothing is left to pay of invoice {number} of {organization}."),
    _event_of_status("overdue", "Invoice {number} of {organization} was due on {due_date} and is unpaid."),
    _event_of_status("uncollectible", "Invoice {number} of {organization} is marked as uncollectible."),
)
