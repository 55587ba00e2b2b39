"""Events of unpaid invoices: reminders and blocks."""

from gateway.core.alerts.events.event import Data, Event
from gateway.core.alerts.words import plain

_FIELDS = (
    "invoice_id organization_id organization:text number:text currency:text total_amount:money"
    " amount_due:money due_date:date? days_overdue:count block_date:date?"
)
_MADE = "persistence/dunning.py"


def _block(data: Data) -> str:
    return f" Calls are refused from {block} on." if (block := plain(data.get("block_date"))) else ""


EVENTS = (
    Event(
        name="invoice.reminder",
        title="Please pay invoice {number}",
        sentence=(
            "{amount_due} {currency} of invoice {number} of {organization} was due on {due_date} "
            "and is unpaid.{block}"
        ),
        fields=_FIELDS,
        when="an unpaid invoice is [reminded of](../dunning.md)",
        once="an invoice and day of the schedule",
        produced_by=_MADE,
        words={"block": _block},
    ),
    Event(
        name="invoice.blocked",
        title="Blocked: {organization}",
        sentence="Calls of {organization} are refused from now on: invoice {number} is not paid.",
        fields=_FIELDS,
        when="tenants are blocked since an invoice is not paid",
        once="a change",
        produced_by=_MADE,
    ),
    Event(
        name="invoice.unblocked",
        title="No longer blocked: {organization}",
        sentence="Calls of {organization} are no longer refused for unpaid invoices.",
        fields=_FIELDS,
        when="tenants that were blocked for unpaid invoices are let go again",
        once="a change",
        produced_by=_MADE,
    ),
)
