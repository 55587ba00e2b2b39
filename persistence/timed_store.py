"""What the keeper's clock asks of the store: whatever is due, and the writes that do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TypeVar
from uuid import uuid4

from sqlalchemy import Connection

from gateway.core.accounts.administration import Actor, Command, Committed, Replay
from gateway.core.billing.document import Letterhead
from gateway.core.billing.due import Left
from gateway.core.billing.dunning import DunningSchedule
from gateway.core.billing.handover import COLLECTOR, Collected
from gateway.errors import NotFound
from persistence.billing import (
    charges,
    charging,
    dunning,
    open_credit,
    payments,
    plan_prices,
    scheduled,
    subscriptions,
    top_up_orders,
    top_ups,
)
from persistence.subject import Change

T = TypeVar("T")

KEEPER = Actor("keeper", "admin")


class TimedStore(ABC):
    """The clock's side of the store."""

    _clock: Callable[[], datetime]
    _letterhead: Letterhead
    _partition_of: Callable[[int], int]

    @abstractmethod
    async def write(self, command: Command) -> Committed | Replay:
        """Do one write."""

    @abstractmethod
    def _change(self, connection: Connection, command: Command) -> Change:
        """A write under way."""

    @abstractmethod
    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Do something in a transaction."""

    async def plans_due(self, today: date, count: int) -> Sequence[int]:
        """Subscription plans with a price for all whose day has come."""
        return await self._run(lambda connection: plan_prices.due(connection, today, count))

    async def advance_plan(self, plan_id: int) -> None:
        """Have such prices of one take effect."""
        await self.write(
            Command("subscription-plans", "advance", KEEPER, str(uuid4()), lambda row: row, plan_id)
        )

    async def subscriptions_due(self, today: date, count: int) -> Sequence[int]:
        """Subscriptions that begin, change or end today or should have before."""
        return await self._run(lambda connection: subscriptions.due(connection, today, count))

    async def advance_subscription(self, subscription_id: int) -> None:
        """Bring one to where it stands today."""
        wanted = ("organization-subscriptions", "advance", KEEPER, str(uuid4()))
        await self.write(Command(*wanted, lambda row: row, subscription_id))

    async def to_charge(self, after: int, count: int) -> Sequence[int]:
        """Organizations with something that is known and not charged, those with a higher id than `after`."""
        today = self._clock().astimezone(UTC).date()
        return await self._run(lambda connection: charging.due(connection, today, after, count))

    async def charge(self, organization_id: int) -> None:
        """Charge what is known of an organization."""
        today, partition = self._clock().astimezone(UTC).date(), self._partition_of(organization_id)
        await self._run(lambda connection: charging.charge(connection, organization_id, partition, today))

    async def charge_free(self, organization_ids: Sequence[int]) -> Sequence[int]:
        """Charge what is known of some of one partition; answers those that somebody else charges now."""
        today, partition = self._clock().astimezone(UTC).date(), self._partition_of(organization_ids[0])
        return await self._run(
            lambda connection: charging.charge_free(connection, organization_ids, partition, today)
        )

    def partition(self, organization_id: int) -> int:
        """Where the counters have an organization."""
        return self._partition_of(organization_id)

    async def invoice_due(
        self,
        organization_ids: Sequence[int],
        now: datetime,
        grace_hours: int,
        *,
        finalize: bool,
        wait: bool = False,
    ) -> tuple[dict[int, Left], Collection[int]]:
        """Make the months and fees in advance of these organizations that are due, in one transaction.

        Answers whose was left and why, and whom somebody else charges or invoices now: to `wait` for those is
        for one at a time.
        """
        request_id = str(uuid4())

        def work(connection: Connection) -> scheduled.Batch:
            def change_of(verb: str, row_id: int) -> Change:
                command = Command("invoices", verb, KEEPER, request_id, lambda row: row, row_id)
                return self._change(connection, command)

            of = (self._letterhead, self._partition_of, change_of)
            batch = scheduled.Batch(connection, now, grace_hours, finalize, *of)
            scheduled.make(batch, organization_ids, wait=wait)
            return batch

        made = await self._run(work)
        return made.left, made.busy

    async def rate(self, price_id: int) -> None:
        """Rate the next of them again."""
        await self.write(Command("prices", "rate", KEEPER, str(uuid4()), lambda row: {}, price_id))

    async def credit_due(self, after: int, count: int) -> Sequence[int]:
        """Organizations with open credit and something that is past due, those behind `after`, by id."""
        today = self._clock().astimezone(UTC).date()
        return await self._run(lambda connection: open_credit.due(connection, today, after, count))

    async def apply_credit(self, organization_id: int) -> None:
        """Apply the open credit of one to what is past due."""
        command = Command("invoices", "apply", KEEPER, str(uuid4()), lambda row: row)

        def apply(connection: Connection) -> None:
            charges.hold(connection, organization_id)
            payments.apply_open(self._change(connection, command), organization_id)

        await self._run(apply)

    async def fall_overdue(self, count: int) -> int:
        """Let invoices whose day is over be overdue; answers how many were."""
        today = self._clock().astimezone(UTC).date()
        return await self._run(lambda connection: payments.fall_overdue(connection, today, count))

    async def dunning_due(self, schedule: DunningSchedule, after: int, count: int) -> Sequence[int]:
        """Organizations whose unpaid invoices may ask for a step, those with a higher id than `after`."""
        today = self._clock().astimezone(UTC).date()
        return await self._run(lambda connection: dunning.due(connection, schedule, today, after, count))

    async def advance_dunning(self, organization_id: int, schedule: DunningSchedule) -> None:
        """Take the steps of one that are due."""
        wanted = ("dunning-steps", "advance", KEEPER, str(uuid4()))
        values = {"organization_id": organization_id, "schedule": schedule}
        await self.write(Command(*wanted, lambda row: {}, values=values))

    async def collected(self, told: Collected) -> bool:
        """Take what was told of an invoice that was handed over, once; False where it is none."""
        wanted = ("handover-events", "take", COLLECTOR, str(uuid4()))
        with suppress(NotFound):
            await self.write(Command(*wanted, lambda row: {}, values={"told": told}))
            return True
        return False

    async def top_ups_due(self, after: int, count: int) -> Sequence[tuple[int, int]]:
        """Additions that are to have an own invoice, behind one of them, with their organizations."""
        return await self._run(lambda connection: top_ups.due(connection, after, count))

    async def top_ups_ordered(self, after: int, count: int) -> Sequence[int]:
        """Orders of credits that are no additions yet, behind one of them."""
        return await self._run(lambda connection: top_up_orders.due(connection, after, count))

    async def make_ordered(self, order_id: int) -> None:
        """Make the addition of an order."""
        wanted = ("credit-additions", "create-ordered", KEEPER, str(uuid4()))
        await self.write(Command(*wanted, lambda row: {}, values={"order_id": order_id}))

    async def bill_top_up(self, addition_id: int, organization_id: int) -> None:
        """Make an addition's own invoice, final at once."""
        of = {"organization_id": organization_id, "source": "credit_addition", "source_id": addition_id}
        await self.write(
            Command(
                "invoices", "top-up", KEEPER, str(uuid4()), lambda row: {}, values=of
            )  # nobody is answered
        )
