"""The history of a document as a list of steps; features add steps of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.admin.console.home import ConsoleShell


class TimelineEntry(NamedTuple):
    """A step in the history of an invoice: time, event, resulting state, and a page with details."""

    at: datetime
    what: str
    state: str = ""
    href: str = ""


# A feature's steps in the history of an invoice, by the invoice's id.
InvoiceHistory = Callable[["ConsoleShell", int], Awaitable[Sequence[TimelineEntry]]]


def moment(value: object) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
