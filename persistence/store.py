"""The Admin API's access to PostgreSQL: reads, and writes of one transaction each.

Serialization failures and deadlocks are retried. Other database errors become errors of the API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.administration import (
    CREATE,
    OWNER,
    Command,
    CommittedWrite,
    Page,
    Query,
    Realm,
    Row,
    StoredReply,
)
from gateway.core.accounts.usage import UsageQuery
from gateway.core.billing.document import NO_LETTERHEAD, Letterhead, UnseenLetters
from gateway.core.billing.finance import LegPlace, ReportPeriod
from gateway.core.capabilities import CAPABILITIES, WAITS
from gateway.core.integrity.recovery import NewestWrite
from gateway.errors import CapabilityNeeded, Conflict, CountersUnavailable, NotFound, Unprocessable
from persistence import engine as engines
from persistence import entity, ids
from persistence.apply_transaction import ApplyTransaction
from persistence.billing import charges, finance, invoice_documents
from persistence.billing.invoice_usage import InvoiceUsage
from persistence.engine import Replica, answered
from persistence.entity import DEFAULT_RULES, EntityWrite, WriteBatch, WriteRules
from persistence.error_mapping import TRY_AGAIN, of_writes, sqlstate, translate_error
from persistence.font_coverage import FontCoverage
from persistence.registry import SUBJECTS
from persistence.resources import (
    admin_tokens,
    api_keys,
    audit,
    budgets,
    idempotency,
    prices,
    sessions,
    substitutions,
    usage,
    webhooks,
)
from persistence.tenant_boundary import CAPABLE_OF, confined, enter
from persistence.trials import Trials

T = TypeVar("T")
P = ParamSpec("P")

TRIES_MAX = LOOKS_MAX = 4
_BEGIN = text("SELECT")
# No organization has this id.
NOBODYS = 0
_now = partial(datetime.now, UTC)


async def _no_write() -> NewestWrite | None:
    return None


async def unlisted(capability: str) -> str:
    """Return why a capability cannot be used where the running programs are not known."""
    return f"{CAPABILITIES[capability].what} wait: nobody knows here which programs run."


def _make_transactional(
    work: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, T]]:
    """Return a method of the store that runs this function in a transaction of its own."""

    async def run_work(store: Store, /, *given: P.args, **named: P.kwargs) -> T:
        return await store.run(lambda connection: work(connection, *given, **named))

    return run_work


class Store:
    """The Admin API's access to PostgreSQL; `partition_of` returns an organization's partition.

    Work restricted to an organization uses the pool `organizations`, if there is one. `newest_write` returns
    the newest control write that the counters know: a database without it was set back (`ids.py`).
    `wait_reason` returns why a capability of `capabilities.py` cannot be used yet, "" if it can.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        clock: Callable[[], datetime] = _now,
        *,
        rules: WriteRules = DEFAULT_RULES,
        letterhead: Letterhead = NO_LETTERHEAD,
        replica: Replica | None = None,
        glyphs: FontCoverage | None = None,
        organizations: AsyncEngine | None = None,
        newest_write: Callable[[], Awaitable[NewestWrite | None]] = _no_write,
        wait_reason: Callable[[str], Awaitable[str]] = unlisted,
    ) -> None:
        self._engine = engine
        self._organizations = organizations or engine
        self._trials = Trials(engine)
        self.partition = partition_of
        self._clock = clock
        self._rules = rules
        self.letterhead = replace(letterhead, missing_glyphs=None if glyphs is None else glyphs.known)
        self._glyphs = glyphs
        self._within: Realm | None = None
        self.replica = replica
        self._newest_write = newest_write
        self._wait_reason = wait_reason

    def within(self, realm: Realm | None) -> Store:
        """Return a store with only the rows that a realm (organization or tenant) may see; None means all."""
        if realm is None:
            return self
        own = copy(self)
        own._engine, own._within = self._organizations, realm  # noqa: SLF001  # of its own copy
        return own

    async def get(self, resource: str, row_id: int) -> Row:
        """Return one row by its id; raise `NotFound` if there is none."""
        found = SUBJECTS[resource].within(self._within)
        row = await self.run(lambda connection: entity.fetch(connection, found, row_id))
        return self._as_caller_sees(resource, row)

    async def page(self, resource: str, query: Query) -> Page:
        subject = SUBJECTS[resource].within(self._within)
        found = await self._read(lambda connection: entity.page_of_rows(connection, subject, query))
        return Page(tuple(self._as_caller_sees(resource, row) for row in found.rows), found.next_after)

    async def count(self, resource: str, query: Query, most: int, within_ms: int) -> int | None:
        """Count rows, at most `most` + 1; return None if that takes longer than `within_ms` milliseconds."""
        subject = SUBJECTS[resource].within(self._within)
        return await self._read(
            lambda connection: entity.count_rows(connection, subject, query, most, within_ms)
        )

    async def write(self, command: Command) -> CommittedWrite | StoredReply:
        """Run one write in one transaction: rows, control writes, audit entry and idempotency key."""

        async def written(connection: AsyncConnection) -> CommittedWrite | StoredReply:
            now = self._clock()  # no later than what the database says in this transaction
            creates = command.verb == CREATE and SUBJECTS[command.resource].table.name in ids.KNOWN_TO_REDIS
            await self._keep_ids_ahead(connection, creates=creates)
            return await connection.run_sync(self._write, command, now)

        done = await self._answered(written)
        await self._wrote()
        return done

    async def check_replay(self, commands: Sequence[Command]) -> Sequence[Row]:
        """Return the values of the budgets of a replay, as the writes in `commands` would store them.

        Raise `Unprocessable` with the errors of all, each with the place of its budget.
        """
        return await self.run(lambda connection: self._check_replay(connection, commands))

    def _check_replay(self, connection: Connection, commands: Sequence[Command]) -> Sequence[Row]:
        """Check the budgets of a replay as if they were created; return their values."""
        errors, checked = list[tuple[str, str]](), list[Row]()
        for place, command in enumerate(commands):
            change = self.change(connection, command)
            try:
                enter(change)
                entity.require(change)
                wrong = budgets.wrong_replayed(change)
            except Unprocessable as refused:
                wrong = list(refused.errors)
            # The organization is that of the replay, for all of its budgets.
            errors += [(name if name == OWNER else f"budgets.{place}.{name}", fault) for name, fault in wrong]
            checked.append(change.command.values)
        if errors:
            raise Unprocessable(errors=tuple(dict.fromkeys(errors)))
        return checked

    async def applying(self, work: Callable[[ApplyTransaction], Awaitable[T]], *, keep: bool) -> T:
        """Run the work in one transaction, and commit it if `keep`, else roll it back.

        A trial run that is rolled back blocks nobody: `TrialEnded` is raised if another session waits for it.
        """

        async def done_here(connection: AsyncConnection) -> T:
            if keep:
                await self._keep_ids_ahead(connection, creates=True)
            session = ApplyTransaction(connection, self._within, self.change)
            if keep:
                return await work(session)
            return await self._trials.run(connection, lambda: work(session))

        done = await self._answered(done_here, keep=keep)
        await self._wrote()
        return done

    refuse_other = _make_transactional(idempotency.refuse_other)
    finish = _make_transactional(idempotency.keep_first_answer)
    refusal = _make_transactional(of_writes)
    price_of = _make_transactional(prices.find_price)

    async def used(self, asked: UsageQuery) -> Sequence[Row]:
        """Sum the calls of a usage query; at most `rows_max` rows."""
        mine = self._readable(asked)
        return await self._read(lambda connection: usage.read_use(connection, mine))

    async def substitutions(self, asked: UsageQuery, budget_id: int | None = None) -> Sequence[Row]:
        """Return what steps of budgets, or of one, saved by the models that answered and were asked for."""
        mine = self._readable(asked)
        return await self._read(lambda connection: substitutions.substitutions(connection, mine, budget_id))

    async def tags_since(self, asked: UsageQuery) -> Mapping[str, str]:
        """Return since when calls have each tag of a usage query."""
        mine = self._readable(asked)
        return await self._read(lambda connection: usage.tags_since(connection, mine))

    def _readable(self, asked: UsageQuery) -> UsageQuery:
        """Return a usage query of those calls alone that its reader may see."""
        if self._within is not None:
            named, own = asked.filters.get("organization_id"), self._within.organization_id
            owner = NOBODYS if named not in {None, own} else own
            asked = replace(asked, filters={**asked.filters, "organization_id": owner})
            if (team := self._within.tenant_id) is not None:
                if asked.filters.get("tenant_id") not in {None, team}:
                    team = NOBODYS
                asked = replace(asked, filters={**asked.filters, "tenant_id": team})
            if (key := self._within.api_key_id) is not None:
                asked = replace(asked, filters={**asked.filters, "api_key_id": key})
        return asked

    async def unbilled(self, organization_id: int) -> Sequence[Row]:
        """Return the charges of an organization that no invoice contains, by kind."""
        if self._within not in {None, Realm(organization_id)}:
            raise NotFound
        today = self._today()
        return await self.run(lambda connection: charges.read_unbilled(connection, organization_id, today))

    async def waiting(self, organization_id: int, until: date | None = None) -> Sequence[Row]:
        """Return the charges that an invoice up to `until` (default: today) would leave to a later one."""
        if self._within not in {None, Realm(organization_id)}:
            raise NotFound
        today = self._today()
        upto = until or today + timedelta(days=1)
        return await self.run(
            lambda connection: charges.read_waiting(connection, organization_id, upto, today)
        )

    async def document(self, invoice_id: int, kind: str, status: str, made: bytes = b"") -> bytes | None:
        """Return the stored document of an invoice; if `made` is given and none is stored, store `made`."""
        if self._within is not None:
            await self.get("invoice-heads", invoice_id)
        place = (invoice_id, kind, status)
        return await self.run(lambda connection: invoice_documents.read_document(connection, *place, made))

    async def report(self, name: str, asked: ReportPeriod, after: int, rows_max: int) -> Sequence[Row]:
        """Return some rows of a finance report, without the first `after` rows."""
        period = replace(asked, organization_id=self._owner(asked.organization_id))
        return await self._read(
            lambda connection: finance.read_report(connection, name, period, after, rows_max)
        )

    async def ledger(self, asked: ReportPeriod, after: LegPlace, rows_max: int) -> Sequence[Row]:
        """Return some legs of the journal entries of a period, in order, beyond the position `after`."""
        period = replace(asked, organization_id=self._owner(asked.organization_id))
        return await self._read(lambda connection: finance.ledger(connection, period, after, rows_max))

    async def entries(self, asked: ReportPeriod) -> AsyncIterator[Sequence[Row]]:
        period = replace(asked, organization_id=self._owner(asked.organization_id))
        async for batch in finance.entries(await self._reading(), period):
            yield batch

    async def usage(self, invoice_id: int) -> AsyncIterator[bytes]:
        """Yield the usage of an invoice as pieces of CSV; raise `NotFound` if there is no such invoice."""
        if self._within is not None:
            await self.get("invoice-heads", invoice_id)
        async for piece in InvoiceUsage(await self._reading()).csv(invoice_id, self._today()):
            yield piece

    # Who may come in, and who is signed in.

    staff_token = _make_transactional(admin_tokens.find_admin_token)
    key_holder = _make_transactional(api_keys.find_key_holder)
    mail_consent = _make_transactional(webhooks.consent_by)
    consent_to_mail = _make_transactional(webhooks.consent)
    has_ended_token = _make_transactional(admin_tokens.admin_token_has_ended)
    use_sign_in = _make_transactional(sessions.use_sign_in)
    console_session = _make_transactional(sessions.find_session)
    ask_of_session = _make_transactional(sessions.ask_session)
    keep_renewal = _make_transactional(sessions.keep_renewal)

    async def _keep_ids_ahead(self, connection: AsyncConnection, *, creates: bool) -> None:
        """Begin a transaction of writes; the counters are asked once its server has answered.

        Raise `Conflict` if they have never answered, and the transaction creates rows that they know by ids.
        """
        await connection.execute(_BEGIN)
        try:
            known = await self._newest_write()
        except CountersUnavailable as error:
            if creates:
                raise Conflict(ids.UNKNOWN) from error
            return
        await connection.run_sync(ids.keep_ahead, known)

    def _write(self, connection: Connection, command: Command, now: datetime) -> CommittedWrite | StoredReply:
        """Run a command in the transaction, with its idempotency and audit; return its row and intents."""
        if command.claim is not None:
            first = idempotency.claim_idempotency(connection, command.claim)
            if first is not None:
                return first
        change = self.change(connection, command, now=now)
        row = confined(change)
        audit.record_audit(change, row)
        if command.claim is not None:
            idempotency.keep_first_answer(connection, command.claim, command.render(row))
        # The answer to an action on a tenant contains the tenant's quota.
        answers = "tenant-quotas" if "tokens_held" in row else command.resource
        return CommittedWrite(self._as_caller_sees(answers, row), tuple(change.intents))

    def _today(self) -> date:
        return self._clock().astimezone(UTC).date()

    def change(
        self, connection: Connection, command: Command, batch: WriteBatch | None = None,
        now: datetime | None = None,
    ) -> EntityWrite:  # fmt: skip
        return EntityWrite(
            connection, command, SUBJECTS[command.resource], self.partition, now or self._clock(),
            self._rules, letterhead=self.letterhead, batch=batch,
        )  # fmt: skip

    def _owner(self, named: object) -> Any:
        """Return the id of the organization whose figures may be read: `named`, or the caller's own if None.

        For another organization than the caller's, it is an id that nobody has.
        """
        if self._within is None:
            return named
        # What an organization owes is no tenant's.
        own = NOBODYS if self._within.tenant_id is not None else self._within.organization_id
        return own if named in {None, own} else NOBODYS

    def _as_caller_sees(self, resource: str, row: Row) -> Row:
        if self._within is not None:
            row = SUBJECTS[resource].told(row, self._within.organization_id)
        if not SUBJECTS[resource].partitioned:
            return row
        return {**row, "partition": self.partition(entity.id_in(row, "organization_id"))}

    async def dispose(self) -> None:
        await self._engine.dispose()
        if self.replica is not None:
            await self.replica.engine.dispose()

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Run a read on the replica if there is one; the data may be a moment old, except our own writes."""
        if self.replica is None:
            return await self.run(work)
        return await self.replica.read(work, lambda: self.run(work))

    async def _reading(self) -> AsyncEngine:
        """Return the engine for a long read, which stays on one server: the replica's if it serves."""
        if self.replica is not None and await self.replica.serves():
            return self.replica.engine
        return self._engine

    async def _wrote(self) -> None:
        if self.replica is not None:
            await self.replica.wrote()

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await self._answered(lambda connection: connection.run_sync(work))

    async def _answered(self, work: Callable[[AsyncConnection], Awaitable[T]], *, keep: bool = True) -> T:
        return await answered(self._run_with_retries(work, keep=keep), partial(engines.alive, self._engine))

    async def _run_with_retries(self, work: Callable[[AsyncConnection], Awaitable[T]], *, keep: bool) -> T:
        """Run `work` in a transaction, again after a conflict; without `keep` it is rolled back."""
        tries = looks = 0
        capable_of = frozenset[str]()
        while True:
            try:
                async with self._engine.connect() as connection, connection.begin() as transaction:
                    if capable_of:
                        await connection.execution_options(**{CAPABLE_OF: capable_of})
                    found = await work(connection)
                    if not keep:
                        await transaction.rollback()
                    return found
            except UnseenLetters as unseen:
                # Missing letters are looked up without a connection; then the work is run again.
                if self._glyphs is None or (looks := looks + 1) > LOOKS_MAX:
                    raise
                await self._glyphs.look(unseen.texts)
            except CapabilityNeeded as needed:
                if why := await self._wait_reason(needed.name):
                    public = WAITS.format(CAPABILITIES[needed.name].what)
                    raise Conflict(why if self._within is None else public) from None
                capable_of |= {needed.name}
            except (SQLAlchemyError, OSError) as error:
                if (tries := tries + 1) == TRIES_MAX or sqlstate(error) not in TRY_AGAIN:
                    raise translate_error(error) from error
