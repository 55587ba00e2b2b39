"""What became of a document, a step at a time: features tell steps of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.admin.console.home import ConsoleShell


class TimelineEntry(NamedTuple):
    """One step of an invoice's life: when, what, the state it brought, and the page that tells more."""

    at: datetime
    what: str
    state: str = ""
    href: str = ""


# A feature's part of an invoice's life, by the invoice's id.
InvoiceHistory = Callable[["ConsoleShell", int], Awaitable[Sequence[TimelineEntry]]]


def moment(value: object) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
