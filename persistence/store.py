"""PostgreSQL as the Admin API uses it: reads, and writes of one transaction each.

A serialization failure or deadlock is tried again; what the database refuses is told as the
refusal it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, date, datetime
from functools import partial
from typing import TypeVar
from uuid import UUID, uuid4

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import (
    Actor,
    Claim,
    Command,
    Committed,
    ConsoleSession,
    Page,
    Query,
    Replay,
    Row,
)
from gateway.core.accounts.usage import UsageQuery
from gateway.errors import Conflict, StoreUnavailable, TollkeeperError, Unprocessable
from persistence import engine as engines
from persistence import listing, subject
from persistence.billing import invoice_source, invoices, plans, quotas, subscriptions
from persistence.billing.invoice_usage import InvoiceUsage
from persistence.bounded import answered
from persistence.complaint import columns, origin
from persistence.resources import (
    additions,
    admin_tokens,
    app_users,
    audit,
    console_sessions,
    dead_letters,
    idempotency,
    keys,
    ledgers,
    offers,
    organizations,
    prices,
    quarantine,
    reconciliation_results,
    services,
    tenants,
    usage,
    webhooks,
)
from persistence.subject import Change, Subject
from persistence.tables.operations import control_write

T = TypeVar("T")

KEEPER = Actor("keeper", "admin")
TRIES_MAX = 4
TRY_AGAIN = frozenset({"40001", "40P01"})

SUBJECTS: dict[str, Subject] = {
    "organizations": organizations.SUBJECT,
    "tenants": tenants.SUBJECT,
    "users": app_users.SUBJECT,
    "api-keys": keys.SUBJECT,
    "admin-tokens": admin_tokens.SUBJECT,
    "token-plans": plans.SUBJECT,
    "tenant-quotas": quotas.SUBJECT,
    "token-ledger": ledgers.TOKEN_LEDGER,
    "calls": ledgers.CALLS,
    "business-models": services.BUSINESS_MODELS,
    "services": services.SERVICES,
    "organization-services": offers.ORGANIZATION_SERVICES,
    "subscription-plans": offers.SUBSCRIPTION_PLANS,
    "organization-subscriptions": subscriptions.SUBJECT,
    "credit-additions": additions.SUBJECT,
    "prices": prices.SUBJECT,
    "invoices": invoices.SUBJECT,
    "invoice-heads": invoice_source.HEADS,
    "webhooks": webhooks.WEBHOOKS,
    "webhook-deliveries": webhooks.WEBHOOK_DELIVERIES,
    "quarantine": quarantine.SUBJECT,
    "dead-letters": dead_letters.SUBJECT,
    "credit-transactions": ledgers.CREDIT_TRANSACTIONS,
    "feature-usage": ledgers.FEATURE_USAGE,
    "audit-log": audit.SUBJECT,
    "console-sessions": console_sessions.SUBJECT,
    "reconciliation": reconciliation_results.SUBJECT,
}


def _now() -> datetime:
    return datetime.now(UTC)


class Store:
    """The Admin API's port to PostgreSQL; `partition_of` places an organization in the counters."""

    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        clock: Callable[[], datetime] = _now,
        *,
        private_addresses: bool = False,
    ) -> None:
        self._engine = engine
        self._partition_of = partition_of
        self._clock = clock
        self._private_addresses = private_addresses

    async def get(self, resource: str, row_id: int) -> Row:
        """Read one row; `NotFound` if there is none."""
        row = await self._run(lambda connection: subject.fetch(connection, SUBJECTS[resource], row_id))
        return self._placed(resource, row)

    async def page(self, resource: str, query: Query) -> Page:
        """Read rows in the resource's stable order."""
        found = await self._run(lambda connection: listing.page(connection, SUBJECTS[resource], query))
        return Page(tuple(self._placed(resource, row) for row in found.rows), found.next_after)

    async def count(self, resource: str, query: Query, most: int, within_ms: int) -> int | None:
        """Count rows, one more than `most` at most; None where that takes longer than `within_ms`."""
        return await self._run(
            lambda connection: listing.count(connection, SUBJECTS[resource], query, most, within_ms)
        )

    async def write(self, command: Command) -> Committed | Replay:
        """Do one write: rows, control writes, audit and idempotency key, or none of them."""
        return await self._run(lambda connection: self._write(connection, command))

    async def refuse_other(self, claim: Claim) -> None:
        """Raise `Conflict` where the claim's key stands for another request."""
        await self._run(lambda connection: idempotency.refuse_other(connection, claim))

    async def finish(self, claim: Claim, status: int, body: Row) -> None:
        """Keep the answer that was given under a claim."""
        await self._run(lambda connection: idempotency.keep(connection, claim, body, status))

    async def refusal(self, intents: Sequence[str]) -> str | None:
        """Say why the counters refused one of these control writes; None if they did not."""
        return await self._run(lambda connection: _refusal(connection, intents))

    async def subscriptions_due(self, today: date, count: int) -> Sequence[int]:
        """Subscriptions that begin, change or end today or should have before."""
        return await self._run(lambda connection: subscriptions.due(connection, today, count))

    async def advance_subscription(self, subscription_id: int) -> None:
        """Bring one to where it stands today."""
        wanted = ("organization-subscriptions", "advance", KEEPER, str(uuid4()))
        await self.write(Command(*wanted, lambda row: row, subscription_id))

    async def prices_of(self, model: str, currency: str, at: datetime) -> Sequence[Row]:
        """Read the prices a model may have had at a time."""
        return await self._run(lambda connection: prices.candidates(connection, model, currency, at))

    async def used(self, asked: UsageQuery) -> Sequence[Row]:
        """Add up calls; at most `rows_max` rows."""
        return await self._run(lambda connection: usage.used(connection, asked))

    def usage(self, invoice_id: int) -> AsyncIterator[Sequence[Row]]:
        """Read every use that an invoice bills, in batches; `NotFound` if there is no such invoice."""
        return InvoiceUsage(self._engine).rows(invoice_id)

    async def staff_token(self, digest: str) -> Actor | None:
        """Find a named admin token that is neither expired nor revoked."""
        return await self._run(lambda connection: admin_tokens.find(connection, digest))

    async def console_session(self, digest: str) -> ConsoleSession | None:
        """Find a session of the console that is not over."""
        return await self._run(lambda connection: console_sessions.find(connection, digest))

    def _write(self, connection: Connection, command: Command) -> Committed | Replay:
        if command.claim is not None:
            first = idempotency.claim(connection, command.claim)
            if first is not None:
                return first
        found = SUBJECTS[command.resource]
        change = Change(
            connection, command, found, self._partition_of, self._clock(),
            private_addresses=self._private_addresses,
        )  # fmt: skip
        row = found.verbs[command.verb](change)
        audit.record(change, row)
        if command.claim is not None:
            idempotency.keep(connection, command.claim, command.render(row))
        # An action on a tenant answers with its quota.
        answers = "tenant-quotas" if "tokens_held" in row else command.resource
        return Committed(self._placed(answers, row), tuple(change.intents))

    def _placed(self, resource: str, row: Row) -> Row:
        if not SUBJECTS[resource].partitioned:
            return row
        return {**row, "partition": self._partition_of(subject.id_in(row, "organization_id"))}

    async def _run(self, work: Callable[[Connection], T]) -> T:
        return await answered(self._tried(work), partial(engines.alive, self._engine))

    async def _tried(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(1, TRIES_MAX + 1):
            try:
                async with self._engine.begin() as connection:
                    return await connection.run_sync(work)
            except (SQLAlchemyError, OSError) as error:
                if attempt == TRIES_MAX or _sqlstate(error) not in TRY_AGAIN:
                    raise _translated(error) from error
        raise AssertionError


def _refusal(connection: Connection, intents: Sequence[str]) -> str | None:
    row = connection.execute(
        select(control_write.c.verb, control_write.c.result)
        .where(control_write.c.id.in_([UUID(text) for text in intents]), control_write.c.state == "refused")
        .order_by(control_write.c.position)
        .limit(1)
    ).first()
    if row is None:
        return None
    reason = str(row.result.get("reason") or "") if isinstance(row.result, dict) else ""
    return f"The counters refused {row.verb}: {reason.rstrip('.') or 'no reason was given'}."


def _sqlstate(error: BaseException) -> str:
    found = origin(error)
    return (found.sqlstate or "") if found is not None else ""


def _translated(error: Exception) -> Exception:
    """Tell a database error as what it means to the caller; one that means nothing to it stays."""
    state = _sqlstate(error)
    named = f" ({found})" if (found := columns(error)) else ""
    refusals: dict[str, Callable[[], TollkeeperError]] = {
        "23505": lambda: Conflict(f"There is one already{named}."),
        "23503": lambda: Conflict(f"Something still refers to this{named}, or what it names is gone."),
        "23001": lambda: Conflict(f"Something still refers to this{named}."),
        "23514": lambda: Unprocessable("A value is out of range."),
        "22003": lambda: Unprocessable("A number is out of range."),
        "22021": lambda: Unprocessable("A text holds characters that cannot be stored."),
        "57014": lambda: StoreUnavailable("PostgreSQL took too long."),
    }
    if state in refusals:
        return refusals[state]()
    unreachable = state[:2] in {"", "08", "53", "57"} or state in TRY_AGAIN
    if isinstance(error, (DBAPIError, PoolTimeout, OSError)) and unreachable:
        return StoreUnavailable()
    return error
