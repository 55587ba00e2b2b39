"""The keeper's loops over rows that are due in PostgreSQL.

Part of the composition root. Each write is a command of the Admin API, made by the keeper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeVar

from gateway.background.loops import Agenda, Due, Isolation, Loop, batches, call, run_each
from gateway.background.timed.invoicing import AccountCloser, Invoicing
from gateway.core.times import clock_of, ms_of
from gateway.counters.admission.empty_accounts import StoredEmptyAccount
from gateway.counters.keeper.verification import KeeperCounters
from gateway.errors import Conflict, CountersUnavailable, Unprocessable
from gateway.settings.settings import Settings
from persistence.billing import charges, payments, reratings, subscriptions, top_ups
from persistence.engine import Connection
from persistence.entity import keeper_command
from persistence.keeper.definitions import ClockReports
from persistence.keeper.news import EmptyUpstreamAccount, Notices
from persistence.keeper.sweeps import Sweeps
from persistence.ledger.checkpoints import Checkpoints
from persistence.schedule import Schedule
from persistence.store import Store

Loops = dict[str, Callable[[], Awaitable[None]]]
T = TypeVar("T")
Clock = Callable[[], datetime]

HOUR_S = 3_600.0
SUBSCRIPTIONS_MAX = 500
# Charging many organizations costs PostgreSQL little more than one, so those of a partition are charged
# together, in one transaction. The flush of their partition waits for it.
ORGANIZATIONS_A_BATCH = 25
PRICES_A_PASS = 20
# Tenants of each zone that are defined again in one pass.
TENANTS_OF_A_ZONE = 1_000
# Events that occurred while no keeper ran are reported up to this age.
LOOK_BACK = timedelta(hours=1)
# Entries of a month's last minutes are usually stored by this time after its end.
STORED_BY = timedelta(hours=1)


def billing_loops(
    store: Store, clock: Clock, page: int = 200, agenda: Agenda | None = None
) -> dict[str, Loop]:
    """Return the billing loops by name; a read returns up to `page` organizations, additions or invoices.

    A loop with an `agenda` waits until the agenda has work for it.
    """

    def today() -> date:
        return clock().astimezone(UTC).date()

    def sql(find: Callable[[Connection, int, int], Sequence[T]]) -> Due[T]:
        """Return a function that reads up to a number of rows, with ids above a given one, by `find`."""
        return lambda after, count: store.run(lambda connection: find(connection, after, count))

    def write(resource: str, verb: str) -> Callable[[int], Awaitable[object]]:
        return lambda row_id: store.write(keeper_command(resource, verb, row_id))

    def apply_credit(connection: Connection, organization_id: int) -> None:
        charges.hold(connection, organization_id)
        payments.apply_open(store.change(connection, keeper_command("invoices", "apply")), organization_id)

    async def fall_overdue() -> int:
        fallen = 0
        while now := await store.run(lambda connection: payments.fall_overdue(connection, today(), page)):
            fallen += now
        return fallen

    async def make_ordered(order_id: int) -> None:
        await store.write(keeper_command("credit-additions", "create-ordered", order_id=order_id))

    async def bill_top_up(top_up: top_ups.TopUp) -> None:
        of = {"organization_id": top_up.organization_id, "source_id": top_up.addition_id}
        await store.write(keeper_command("invoices", "top-up", None, source="credit_addition", **of))

    async def rate_again(price_id: int) -> None:
        command = keeper_command("prices", "rate", price_id)
        await store.run(lambda connection: reratings.rate(store.change(connection, command)))

    async def correct_invoices(one: tuple[int, int]) -> None:
        price_id, organization_id = one
        of = {"price_id": price_id, "organization_id": organization_id}
        await store.write(keeper_command("invoices", "correct", None, **of))

    not_now = (Conflict, Unprocessable)

    loops = (
        Loop("calendar", 1.0, (
            run_each(
                sql(lambda connection, _, count: subscriptions.plan_prices_due(connection, today(), count)),
                write("subscription-plans", "advance"), count=SUBSCRIPTIONS_MAX,
            ),
            run_each(
                sql(lambda connection, _, count: subscriptions.due(connection, today(), count)),
                write("organization-subscriptions", "advance"), count=SUBSCRIPTIONS_MAX,
            ),
        ), agenda=agenda),
        Loop("charging", HOUR_S, (
            batches(
                sql(lambda connection, *page: charges.charges_due(connection, today(), *page)),
                partial(charge, store, today), count=page, place=int,
                split=partial(_split_by_partition, store.partition),
            ),
        )),
        # Open credit first: an organization that owes nothing because of it is not overdue.
        Loop("payments", 5.0, (
            run_each(
                sql(lambda connection, *page: payments.open_credit_due(connection, today(), *page)),
                lambda one: store.run(lambda connection: apply_credit(connection, one)),
                count=page, place=int,
            ),
            call(fall_overdue),
        )),
        Loop("rating", 5.0, (
            run_each(
                sql(lambda connection, _, count: reratings.open_reratings(connection, count)),
                rate_again, count=PRICES_A_PASS,
            ),
            run_each(
                sql(lambda connection, _, count: reratings.open_bills(connection, count)),
                correct_invoices, count=page, leaves=not_now, name="price {0[0]}, organization {0[1]}".format,
            ),
        ), again=True),
        Loop("top-ups", 1.0, (
            run_each(
                sql(top_ups.top_up_orders_due), make_ordered, count=page, place=int, leaves=not_now,
                name="order {}".format,
            ),
            run_each(
                sql(top_ups.due), bill_top_up, count=page, place=lambda one: one.addition_id, leaves=not_now,
                name=lambda one: f"addition {one.addition_id}",
            ),
        ), agenda=agenda),
    )  # fmt: skip
    return {loop.name: loop for loop in loops}


async def charge(store: Store, today: Callable[[], date], organization_ids: Sequence[int]) -> None:
    """Charge the due amounts of organizations of one partition together.

    Organizations that another transaction has locked are charged one by one after that.
    """
    day, partition = today(), store.partition(organization_ids[0])
    busy = await store.run(
        lambda connection: charges.charge_free(connection, organization_ids, partition, day)
    )
    for organization_id in busy:
        await store.run(
            partial(charges.charge_known, organization_id=organization_id, partition=partition, today=day)
        )


def month_ends(checkpoints: Checkpoints, clock: Clock, page: int = 100) -> Loop:
    """Return the loop that stores the sums of all accounts for a month, once the month is over.

    With these sums, comparisons and final invoices read only the open month, however old an account is. The
    loop visits all accounts once a month and after a start, and again after an hour if some were skipped.
    """
    closed_before: date | None = None

    async def close(isolation: Isolation, loop: str) -> int:
        """Store the sums of the month that is over; return their number."""
        nonlocal closed_before
        open_month, visited, made = (clock() - STORED_BY).date().replace(day=1), 0, 0
        if open_month == closed_before:
            return 0

        async def due(after: int, count: int) -> Sequence[int]:
            nonlocal visited
            some = await checkpoints.after(after, count)
            visited += len(some)
            return some

        async def close_some(some: Sequence[int]) -> None:
            nonlocal made
            made += await checkpoints.close_months(some, open_month)

        closed = await batches(due, close_some, count=page, place=int)(isolation, loop)
        closed_before = open_month if closed == visited else None
        return made

    return Loop("checkpoints", HOUR_S, (close,))


def sweeper(sweeps: Sweeps, counters: KeeperCounters, agenda: Agenda | None = None) -> Loop:
    """Return the loop that starts the due cycles of tenants without calls, for invoices on time.

    A due reset also runs in every Lua script that touches the tenant. The counters in Redis decide whether it
    is due.
    """
    away = (CountersUnavailable,)
    sweep = run_each(
        lambda _, count: sweeps.due(count), lambda cycle: counters.sweep(*cycle), count=1_000, leaves=away,
        name=lambda cycle: f"tenant {cycle[0]}",
    )  # fmt: skip
    return Loop("sweeper", 1.0, (sweep,), quiet=away, agenda=agenda)


def clock_changes(clock_reports: ClockReports, clock: Clock) -> Loop:
    """Return the loop that sends time zones' changes of local time to Redis, two of each zone in advance."""

    async def tell(zone: str) -> None:
        await clock_reports.tell(zone, clock_of(zone, ms_of(clock())), TENANTS_OF_A_ZONE)

    return Loop("clock changes", 10.0, (run_each(lambda _, __: clock_reports.zones(), tell),))


def news_loops(notices: Notices, clock: Clock, agenda: Agenda | None = None) -> Sequence[Loop]:
    """Return the loops for events, each second, and forecasts of use, each minute.

    A loop takes at most a tenth of the time. Events that occur while no subscriber wants them are not
    reported later.
    """
    since = clock() - LOOK_BACK

    async def look() -> None:
        nonlocal since
        now = clock()
        if agenda is None or agenda.has("news"):
            await notices.notice(since, now)
        since = now

    return (
        Loop("news", 1.0, (call(look),), rest=9.0),
        Loop("forecasts", 60.0, (call(lambda: notices.foresee(clock())),), rest=9.0),
    )


def empty_accounts_loop(
    notices: Notices, read: Callable[[], Awaitable[Mapping[str, StoredEmptyAccount]]]
) -> Loop:
    """Return the loop that reports accounts of upstreams that are out of money, once until they answer again."""
    known = set[EmptyUpstreamAccount]()  # those that are reported

    async def look() -> None:
        nonlocal known
        stored = (await read()).items()
        empty = {
            EmptyUpstreamAccount(digest, answer.upstream, answer.status, answer.since_ms)
            for digest, answer in stored
        }
        if empty - known:
            await notices.tell_empty(sorted(empty - known))
        known = empty

    return Loop("empty accounts", 5.0, (call(look),), quiet=(CountersUnavailable,))


def invoicing_loops(
    settings: Settings, due: Schedule, closing: AccountCloser, log: Callable[..., None]
) -> Sequence[Loop]:
    if settings.invoice_schedule == "off":
        return ()
    final, at_once = settings.invoice_schedule == "finalize", settings.invoices_at_once
    invoicing = Invoicing(due, closing, log, finalize=final, at_once=at_once)
    return (Loop("invoicing", 60.0, (call(invoicing.turn),)),)


def _split_by_partition(partition_of: Callable[[int], int], page: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the organizations of a page in batches, each of one partition."""
    shares = defaultdict[int, list[int]](list)
    for organization_id in page:
        shares[partition_of(organization_id)].append(organization_id)
    for share in shares.values():
        for at in range(0, len(share), ORGANIZATIONS_A_BATCH):
            yield share[at : at + ORGANIZATIONS_A_BATCH]
