"""The keeper's loops that bill: what the calendar, charges, the schedule and payments ask for in time.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from gateway.background.isolation import Isolation
from gateway.background.timed.calendar import Calendar
from gateway.background.timed.charging import Charging
from gateway.background.timed.checkpoints import Checkpoints, MonthEnds
from gateway.background.timed.closing import AccountClosing
from gateway.background.timed.dunning import Dunning
from gateway.background.timed.invoicing import Invoicing
from gateway.background.timed.rating import Rating
from gateway.background.timed.top_ups import TopUps
from gateway.core.billing.dunning import DunningSchedule
from gateway.settings.settings import Settings
from persistence.schedule import Schedule
from persistence.store import Store

Loops = dict[str, Callable[[], Awaitable[None]]]


def billing_loops(
    settings: Settings, store: Store, checkpoints: Checkpoints, log: Callable[..., None], isolation: Isolation
) -> Loops:
    """Each loop by its name."""
    now = partial(datetime.now, UTC)
    schedule = DunningSchedule.read(settings.dunning_reminder_days, settings.dunning_block_days)
    return {
        "calendar": Calendar(store, now, isolation=isolation).run,
        "charging": Charging(store, log).run,
        "checkpoints": MonthEnds(checkpoints, now, isolation=isolation).run,
        "dunning": Dunning(store, schedule, isolation=isolation).run,
        "rating": Rating(store, isolation=isolation).run,
        "top-ups": TopUps(store, isolation=isolation).run,
    }


def invoicing_loops(
    settings: Settings, due: Schedule, closing: AccountClosing, log: Callable[..., None]
) -> Loops:
    """Invoices on schedule, where a person wants them."""
    if settings.invoice_schedule == "off":
        return {}
    final, at_once = settings.invoice_schedule == "finalize", settings.invoices_at_once
    return {"invoicing": Invoicing(due, closing, log, finalize=final, at_once=at_once).run}
