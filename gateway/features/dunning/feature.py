"""Dunning: customers with unpaid invoices are reminded, and in the end their calls are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from gateway.features.dunning.settings import DunningSettings
from gateway.features.record import Feature, lazy, load

if TYPE_CHECKING:
    from gateway.background.loops import Loop
    from gateway.run.keeper_parts import KeeperParts, Work
    from persistence.dunning import DunningSchedule
    from persistence.store import Store


def dunning_loop(
    store: Store, clock: Callable[[], datetime], schedule: DunningSchedule, page: int = 200
) -> Loop:
    """Return the loop that runs due dunning steps, such as reminders, for `page` organizations at once."""
    from gateway.background.loops import Loop, run_each  # of keepers alone
    from gateway.errors import Conflict
    from persistence.dunning import due
    from persistence.entity import keeper_command

    async def find(after: int, count: int) -> Sequence[int]:
        today = clock().astimezone(UTC).date()
        return await store.run(lambda connection: due(connection, schedule, today, after, count))

    async def act(organization_id: int) -> None:
        await store.write(
            keeper_command("dunning-steps", "advance", organization_id=organization_id, schedule=schedule)
        )

    return Loop("dunning", 5.0, (run_each(find, act, count=page, place=int, leaves=(Conflict,)),))


def _work(parts: KeeperParts) -> Work:
    from gateway.run.keeper_parts import Work  # of keepers alone
    from persistence.dunning import DunningSchedule, blocked_tenants

    settings = parts.settings
    terms = settings.select(DunningSettings)
    schedule = DunningSchedule.read(terms.dunning_reminder_days, terms.dunning_block_days)
    loop = dunning_loop(parts.store, partial(datetime.now, UTC), schedule)
    return Work(loops=(loop,), gauges=(partial(blocked_tenants, parts.engine),))


FEATURE = Feature(
    name="dunning",
    tables=("dunning_step",),
    settings=DunningSettings,
    metrics=(
        ("tenants_blocked_unpaid", "gauge", "Tenants that are blocked since an invoice is not paid.", ()),
    ),
    resources=lazy("gateway.features.dunning.resources:RESOURCES"),
    subjects=lambda: {"dunning-steps": load("persistence.dunning:SUBJECT")},
    screens=(
        {
            "heading": "Billing", "name": "dunning-steps", "title": "Dunning", "one": "step",
            "columns": (
                "created_at", "organization_id", "invoice_id", "action", "days", "tenant_id", "reason",
            ),
            "empty": "No reminder or block yet.", "spans_time": True,
            "next_step": ("See the invoices", "/invoices"),
        },
    ),
    is_on=lambda settings: settings.select(DunningSettings) != DunningSettings(),
    events=lazy("gateway.features.dunning.events:EVENTS"),
    work=_work,
)  # fmt: skip
