"""PostgreSQL as the Admin API uses it: reads, and writes of one transaction each.

A serialization failure or deadlock is tried again; what the database refuses is told as the
refusal it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
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
from gateway.core.billing.document import NO_LETTERHEAD, Letterhead
from gateway.core.billing.finance import Asked
from persistence import engine as engines
from persistence import listing, subject
from persistence.billing import (
    amendments,
    charging,
    dunning,
    events,
    finance_reports,
    invoice_source,
    invoices,
    kept_documents,
    payments,
    plans,
    quotas,
    reratings,
    subscriptions,
    tax_rates,
    unbilled,
)
from persistence.billing.invoice_usage import InvoiceUsage
from persistence.bounded import answered
from persistence.refusals import TRY_AGAIN, of_writes, sqlstate, translated
from persistence.resources import (
    additions,
    admin_tokens,
    app_users,
    audit,
    budgets,
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
from persistence.timed_store import TimedStore

T = TypeVar("T")

TRIES_MAX = 4

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
    "prices": reratings.PRICES,
    "reratings": reratings.SUBJECT,
    "budgets": budgets.SUBJECT,
    "budget-accounts": budgets.ACCOUNTS,
    "charges": charging.SUBJECT,
    "events": events.SUBJECT,
    "amendments": amendments.SUBJECT,
    "invoices": invoices.SUBJECT,
    "invoice-heads": invoice_source.HEADS,
    "payments": payments.SUBJECT,
    "tax-rates": tax_rates.SUBJECT,
    "dunning-steps": dunning.SUBJECT,
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


class Store(TimedStore):
    """The Admin API's port to PostgreSQL; `partition_of` places an organization in the counters."""

    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        clock: Callable[[], datetime] = _now,
        *,
        private_addresses: bool = False,
        mail_allowed: bool = False,
        letterhead: Letterhead = NO_LETTERHEAD,
    ) -> None:
        self._engine = engine
        self._partition_of = partition_of
        self._clock = clock
        self._private_addresses = private_addresses
        self._mail_allowed = mail_allowed
        self._letterhead = letterhead

    def within(self, organization_id: int | None) -> Store:
        """The same for whom there is nothing but an organization's own, and what is everybody's."""
        assert organization_id is None
        return self

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
        return await self._run(lambda connection: of_writes(connection, intents))

    async def prices_of(self, model: str, currency: str, at: datetime) -> Sequence[Row]:
        """Read the prices a model may have had at a time."""
        return await self._run(lambda connection: prices.candidates(connection, model, currency, at))

    async def prices_left(self, count: int) -> Sequence[int]:
        """Prices that are about more calls than were rated again yet."""
        return await self._run(lambda connection: reratings.left(connection, count))

    async def used(self, asked: UsageQuery) -> Sequence[Row]:
        """Add up calls; at most `rows_max` rows."""
        return await self._run(lambda connection: usage.used(connection, asked))

    async def unbilled(self, organization_id: int) -> Sequence[Row]:
        """Read what an organization owes and no invoice has, by kind."""
        today = self._clock().astimezone(UTC).date()
        return await self._run(lambda connection: unbilled.read(connection, organization_id, today))

    async def document(self, invoice_id: int, kind: str, status: str, made: bytes = b"") -> bytes | None:
        """Read a document as it was made the first time; what is `made` is kept where nobody was first."""
        which = (invoice_id, kind, status)
        return await self._run(lambda connection: kept_documents.read(connection, *which, made))

    async def report(self, name: str, asked: Asked, skip: int, rows_max: int) -> Sequence[Row]:
        """Read some rows of a report for finance, in its order."""
        return await self._run(
            lambda connection: finance_reports.read(connection, name, asked, skip, rows_max)
        )

    def entries(self, asked: Asked) -> AsyncIterator[Sequence[Row]]:
        """Read the legs of all entries of a time, in batches."""
        return finance_reports.entries(self._engine, asked)

    def usage(self, invoice_id: int) -> AsyncIterator[bytes]:
        """Write what an invoice is made of as CSV, in pieces; `NotFound` if there is no such invoice."""
        return InvoiceUsage(self._engine).csv(invoice_id)

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
            private_addresses=self._private_addresses, mail_allowed=self._mail_allowed,
            letterhead=self._letterhead,
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
                if attempt == TRIES_MAX or sqlstate(error) not in TRY_AGAIN:
                    raise translated(error) from error
        raise AssertionError
