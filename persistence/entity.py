"""The kinds of row of the Admin API: how each is read, filtered, ordered and changed.

Everything here runs on one connection, in a transaction that the store opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import pairwise
from json import dumps
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    false,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy import (
    delete as delete_from,
)
from sqlalchemy.exc import DBAPIError

from gateway.core.accounts.administration import (
    KEEPER,
    OWNER,
    TENANT,
    Command,
    Intent,
    Page,
    Place,
    Query,
    Realm,
    Row,
)
from gateway.core.accounts.tags import tag_in
from gateway.core.billing.document import NO_LETTERHEAD, Letterhead
from gateway.core.billing.stand_ins import NO_STAND_INS, StandIns
from gateway.core.model import INTEGER_MAX
from gateway.errors import AccountsOpen, Conflict, NotFound, NotStoredYet, Unprocessable
from persistence.error_mapping import QUERY_CANCELED
from persistence.tables import (
    accounting_rate,
    api_key,
    budget,
    business_model,
    call,
    exchange_rate,
    invoice,
    organization,
    price,
    service,
    subscription_plan,
    tenant,
    token_plan,
    webhook,
)

# The owner of a row: the path from each table to its organization.
#
# A caller of one organization sees and changes its own rows and reads shared ones. Rows of others are not
# found, whether by id, in a body or by a filter. The same holds for a caller of one tenant: it sees no row of
# a table that leads to no tenant.

# For rows without an organization: the column that names a row that has one.
THROUGH = {"tenant_id": tenant, "webhook_id": webhook, "budget_id": budget, "invoice_id": invoice}
# Tables whose rows all organizations use.
EVERYBODYS = frozenset(
    {token_plan, subscription_plan, service, business_model, price, exchange_rate, accounting_rate}
)


def owned(table: Table, realm: Realm) -> ColumnElement[bool]:
    """Return the SQL condition for rows that a realm may see; false for a table without owners.

    A realm is an organization, or one of its tenants or API keys.
    """
    if realm.tenant_id is not None:
        if table is tenant:
            return (tenant.c.id == realm.tenant_id) & (tenant.c[OWNER] == realm.organization_id)
        if table is call:
            # All columns that the index of its owners begins with.
            key = () if realm.api_key_id is None else (call.c.api_key_id == realm.api_key_id,)
            return and_(call.c[OWNER] == realm.organization_id, call.c[TENANT] == realm.tenant_id, *key)
        if realm.api_key_id is not None and table not in EVERYBODYS:
            return _key_condition(table, realm.api_key_id)
        if TENANT in table.c:
            return table.c[TENANT] == realm.tenant_id
        return false() if table is organization else _led(table, realm)
    if table is organization:
        return organization.c.id == realm.organization_id
    if OWNER in table.c:
        return table.c[OWNER] == realm.organization_id
    return _led(table, realm)


def _key_condition(table: Table, key_id: int) -> ColumnElement[bool]:
    """Return the SQL condition for rows of an API key; among keys, also for the key that replaces it."""
    if table is api_key:
        successor = api_key.alias()
        place = select(successor.c.replaced_by_id).where(successor.c.id == key_id).scalar_subquery()
        return (api_key.c.id == key_id) | (api_key.c.id == place)
    return table.c["api_key_id"] == key_id if "api_key_id" in table.c else false()


def _led(table: Table, realm: Realm) -> ColumnElement[bool]:
    for name, owner in THROUGH.items():
        if name in table.c:
            return table.c[name].in_(select(owner.c["id"]).where(owned(owner, realm)))
    return true() if table in EVERYBODYS else false()


def owners(table: Table, condition: ColumnElement[bool]) -> Select[tuple[int | None]] | None:
    """Return a query for the organizations that own the rows in `condition`; None if the table has no owners."""
    if table is organization or OWNER in table.c:
        return select(organization.c.id if table is organization else table.c[OWNER]).where(condition)
    for name, owner in THROUGH.items():
        if name in table.c:
            return owners(owner, owner.c["id"].in_(select(table.c[name]).where(condition)))
    return None


# Written intents reported back for the inline push; the pusher finds the rest by itself.
INTENTS_REPORTED_MAX = 100
# Their positions follow the order of the list.
_INSERT_WRITES = text("""
INSERT INTO control_write (id, partition, account, verb, payload)
SELECT id, partition, account, verb, payload
  FROM ROWS FROM (jsonb_to_recordset(cast(:rows AS jsonb))
       AS (id uuid, partition smallint, account text, verb text, payload jsonb)) WITH ORDINALITY
       AS w (id, partition, account, verb, payload, place) ORDER BY place""")

# Control writes that move accounts of an organization, and are not in the ledger yet.
_MOVES = text("""
SELECT 1 FROM control_write WHERE state IN ('pending', 'applied') AND verb <> 'define'
   AND account IN (SELECT 'organization:' || cast(:id AS bigint)
                    UNION ALL SELECT 'tenant:' || id FROM tenant WHERE organization_id = :id) LIMIT 1""")

# The flusher's lock of a partition.
_LOCK_FLUSH = text("SELECT pg_advisory_xact_lock(7800, :partition)")

Condition = Callable[[Any], ColumnElement[bool]]


@dataclass(slots=True)
class WriteBatch:
    """Many writes of one transaction: their control writes, referred rows that are locked, and row counts."""

    writes: list[Row] = field(default_factory=list)
    held: set[tuple[str, object]] = field(default_factory=set)
    counts: dict[object, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WriteRules:
    """Settings that decide what a write may do."""

    private_addresses: bool = False  # webhooks may go to them
    mail_allowed: bool = False
    mail_asks: bool = True  # an address is asked for its consent
    stand_ins: StandIns = NO_STAND_INS  # models whose price stands in for others'


DEFAULT_RULES: Final = WriteRules()


@dataclass(slots=True)
class EntityWrite:
    """One write in progress: the command, the row before it, and the control writes for the counters."""

    connection: Connection
    command: Command
    subject: Entity
    partition_of: Callable[[int], int]
    now: datetime
    rules: WriteRules
    letterhead: Letterhead = NO_LETTERHEAD
    before: Row | None = None
    intents: list[Intent] = field(default_factory=list)
    batch: WriteBatch | None = None

    @property
    def today(self) -> date:
        return self.now.astimezone(UTC).date()

    @property
    def by_staff(self) -> bool:
        return self.command.actor.organization_id is None or self.command.actor.is_ours

    @property
    def row_id(self) -> int:
        assert self.command.id is not None
        return self.command.id

    @property
    def within(self) -> int | None:
        """The id of the organization that the caller may write in; None for staff, who may write in all."""
        return self.command.actor.organization_id

    @property
    def realm(self) -> Realm | None:
        """The organization, or the tenant of it, that the caller may write in; None (staff) for all."""
        return self.command.actor.realm

    @property
    def by_team(self) -> bool:
        """Whether the write is made with a token of one tenant."""
        return self.command.actor.tenant_id is not None

    def require_closed(self, organization_id: int, tenant_id: int | None = None) -> None:
        """Raise `AccountsOpen` unless the accounts of an organization, or its tenant, are closed.

        A guard calls it before it compares stored money: use of a moment ago is in the counters alone. The
        caller of the store closes the accounts, and writes again. Raise `NotStoredYet` for a sale that was
        stored meanwhile; the guard's lock of the organization has others wait.
        """
        if Realm(organization_id, tenant_id) not in self.command.closed:
            raise AccountsOpen(organization_id, tenant_id)
        if self.connection.execute(_MOVES, {"id": organization_id}).first() is not None:
            raise NotStoredYet

    def fetch(self, row_id: int | None = None) -> Row:
        """Return a row of the entity by its id, by default the command's row."""
        selected_id = self.row_id if row_id is None else row_id
        return fetch(self.connection, self.subject.within(self.realm), selected_id)

    def intend(
        self, accounts: Sequence[str], verb: str, payload: Row, *, organization_id: int | None
    ) -> list[UUID]:
        """Store a control write (a change of the counters in Redis) for each account; return their ids.

        It applies in the organization's partition, or in every partition if `organization_id` is None.
        """
        partition = self.partition_of(organization_id) if organization_id is not None else None
        rows = [write_of(partition, account, verb, payload) for account in accounts]
        self.intend_all(rows)
        return [UUID(str(row["id"])) for row in rows]

    def intend_all(self, rows: Sequence[Row]) -> None:
        """Store control writes (changes of the counters in Redis) in this order.

        They are also noted in `intents`, for the caller to wait for: the first one of each account comes
        before the others.
        """
        if self.batch is not None:
            self.batch.writes += rows
            return
        insert_writes(self.connection, rows)
        known = {intent.account for intent in self.intents}
        firsts = {str(row["account"]): row for row in reversed(rows) if row["account"] not in known}
        others = [row for row in rows if firsts.get(str(row["account"])) is not row]
        room = INTENTS_REPORTED_MAX - len(self.intents)
        told = [*reversed(firsts.values()), *others][: max(0, room)]
        self.intents += [Intent(str(row["id"]), str(row["account"])) for row in told]

    def count(self, what: object, read: Callable[[], int]) -> int:
        """Return how many rows of the kind `what` exist before one more is created.

        `read` counts them; in a batch it is called once for each kind, and the batch adds its own rows.
        """
        if self.batch is None:
            return read()
        count = self.batch.counts[what] if what in self.batch.counts else read()
        self.batch.counts[what] = count + 1
        return count

    def define(self, account: str, organization_id: object) -> None:
        self.intend([account], "define", {}, organization_id=int(str(organization_id)))

    def hold_flushes(self, partition: object) -> None:
        hold_flushes(self.connection, partition)


Verb = Callable[[EntityWrite], Row]


# The parameter for the id of the command's row, in queries for rows that refer to it.
THIS: BindParameter[int] = bindparam("this")


def keeper_command(resource: str, verb: str, row_id: int | None = None, **values: object) -> Command:
    """Return a command whose actor is the keeper; it has the effect of the same command by a person."""
    return Command(resource, verb, KEEPER, str(uuid4()), lambda row: row, row_id, values)


def write_of(
    partition: int | None, account: str, verb: str, payload: Row, write_id: object = None
) -> dict[str, object]:
    """Return the row of a control write (a change of the counters in Redis); None creates a `write_id`."""
    return {
        "id": write_id or uuid4(), "partition": partition, "account": account, "verb": verb,
        "payload": dict(payload),
    }  # fmt: skip


def insert_writes(connection: Connection, rows: Sequence[Row]) -> None:
    """Store control writes in this order by one statement."""
    if rows:
        connection.execute(_INSERT_WRITES, {"rows": dumps(rows, default=str)})


def hold_flushes(connection: Connection, partition: object) -> None:
    """Wait for flushes of the ledger into a partition, and block further ones until the transaction ends."""
    connection.execute(_LOCK_FLUSH, {"partition": partition})


def _nothing(*_: object) -> None:
    """Ignore the change: most kinds of row need no further step."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A kind of row: rows of `table` that are not deleted, or the query `source` with public field names.

    `time` and `order` are columns of the table; those of `order` together identify a row. A filter compares
    the column of its name, or a value in `tags`, unless `conditions` has a condition for it. `partitioned` rows carry their
    organization's partition.

    `refers` are fields with ids of other tables; `referenced` are queries for rows that forbid a delete, by
    the error message. `check_values` runs before a row is written and `check_row` after. `define` stores
    control writes; on a change it runs only if one of the `defining` fields changes. `told` reduces a row to
    what a caller of one organization may see. `veiled` are filters that, for such a caller, find only rows
    where the given column names its organization. `implied` selects, for a filter, other columns' values of
    its rows: they improve PostgreSQL's estimates. `of_owner` are verbs that a token of one tenant is refused
    for other rows of its organization: for any other verb there are no such rows. `parts` are lists of a
    row's parts in other tables that configuration files have: queries with the row's id as `row_id`.
    """

    table: Table
    source: Select[Any] | None = None
    time: str = "created_at"
    order: tuple[str, ...] = ("id",)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    partitioned: bool = False
    refers: Mapping[str, Table] = field(default_factory=dict)
    referenced: Mapping[str, Select[Any]] = field(default_factory=dict)
    check_values: Callable[[EntityWrite], None] = _nothing
    check_row: Callable[[EntityWrite, Row], None] = _nothing
    define: Callable[[EntityWrite, Row], None] = _nothing
    told: Callable[[Row, int], Row] = lambda row, _: row
    veiled: Mapping[str, ColumnElement[Any]] = field(default_factory=dict)
    defining: frozenset[str] = frozenset()
    implied: Mapping[str, Callable[[Any], Select[*tuple[Any, ...]]]] = field(default_factory=dict)
    of_owner: frozenset[str] = frozenset()
    parts: Mapping[str, Select[*tuple[Any, ...]]] = field(default_factory=dict)

    @property
    def rows(self) -> Select[Any]:
        return live(self.table, self.table) if self.source is None else self.source

    def within(self, realm: Realm | None) -> Entity:
        """Return this entity with only the rows that a realm (organization, tenant) may see; None is all."""
        if realm is None:
            return self
        own = realm.organization_id
        veiled = {name: self._of_own(name, one == own) for name, one in self.veiled.items()}
        source = self.rows.where(owned(self.table, realm))
        return replace(self, source=source, conditions={**self.conditions, **veiled})

    def _of_own(self, name: str, is_own: ColumnElement[bool]) -> Condition:
        return lambda value: is_own & self.condition(name, value)

    def condition(self, name: str, value: object) -> ColumnElement[bool]:
        if tag := tag_in(name):
            return func.coalesce(self.table.c.tags[tag].astext, "") == value
        return self.conditions[name](value) if name in self.conditions else self.table.c[name] == value


def live(table: Table, *selected: Any) -> Select[Any]:
    """Return a query for the rows of a table that are not deleted, with these columns or the id."""
    statement = select(*selected or (table.c.id,))
    return statement.where(table.c.deleted_at.is_(None)) if "deleted_at" in table.c else statement


def id_in(values: Row, name: str) -> int:
    return int(str(values[name]))


def day_in(values: Row, name: str) -> date:
    day = values[name]
    assert isinstance(day, date)
    return day


def json_of(*columns: Any) -> ColumnElement[Any]:
    named = ((literal(column.name, Text), column) for column in columns)
    return func.jsonb_build_object(*(part for pair in named for part in pair))


def fetch(connection: Connection, subject: Entity, row_id: int) -> Row:
    """Return one row by its id; raise `NotFound` if there is none."""
    row = connection.execute(subject.rows.where(subject.table.c.id == row_id)).mappings().first()
    if row is None:
        raise NotFound
    return dict(row)


def lock(change: EntityWrite) -> Row:
    """Lock the command's row until the transaction ends; keep it as `change.before` and return it."""
    # The bare row first: a source with outer joins cannot be locked.
    here = change.subject.table.c.id
    change.connection.execute(select(here).where(here == change.row_id).with_for_update())
    change.before = change.fetch()
    return change.before


def require(change: EntityWrite) -> None:
    """Lock the rows that the command's values refer to; raise `Unprocessable` if some are missing."""
    missing = []
    held = change.batch.held if change.batch is not None else set()
    for name, table in change.subject.refers.items():
        wanted = change.command.values.get(name)
        if wanted is None or (table.name, wanted) in held:
            continue
        statement = live(table).where(table.c.id == wanted)
        if (realm := change.realm) is not None:
            # A tenant's rows do not include its organization, which still owns all that the tenant creates.
            statement = statement.where(
                owned(table, Realm(realm.organization_id) if table is organization else realm)
            )
        if change.connection.execute(statement.with_for_update(read=True)).first() is None:
            missing.append((name, f"there is no {table.name.replace('_', ' ')} {wanted}"))
        held.add((table.name, wanted))
    if missing:
        raise Unprocessable(errors=tuple(missing))


def refuse_while_referenced(change: EntityWrite) -> None:
    """Raise `Conflict` while any row refers to the command's row."""
    for sentence, references in change.subject.referenced.items():
        if change.connection.execute(references.limit(1), {THIS.key: change.row_id}).first() is not None:
            raise Conflict(sentence)


def add(change: EntityWrite, **more: object) -> int:
    """Insert a row with the command's values and those in `more`; return the new row's id."""
    table = change.subject.table
    values = fit_columns(table, {**change.command.values, **more})
    row_id = change.connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
    if change.batch is not None:
        change.batch.held.add((table.name, row_id))
    return int(row_id)


def alter(change: EntityWrite, values: Row) -> None:
    """Update the command's row; without values nothing is written."""
    if not values:
        return
    table = change.subject.table
    touched = {"updated_at": func.now()} if "updated_at" in table.c else {}
    change.connection.execute(
        update(table).where(table.c.id == change.row_id).values({**fit_columns(table, values), **touched})
    )


def fit_columns(table: Table, values: Row) -> dict[str, Any]:
    """Convert values of the API to values of columns: limits without the null ones, others by column name."""
    columns: dict[str, Any] = {}
    for name, value in values.items():
        if name in {"limits", "user_limits"}:
            limits = value if isinstance(value, dict) else {}
            columns[name] = {kind: limit for kind, limit in limits.items() if limit is not None}
        elif name == "counts_tokens" and "counts_none" in table.c:
            columns |= {name: value is True, "counts_none": value is False}
        else:
            columns[table.c[name].name] = value
    return columns


# Rows of a subject for lists: the page after a cursor, and the number of rows.
def page_of_rows(connection: Connection, subject: Entity, query: Query) -> Page:
    """Return a page of an entity's rows, and the place of its last row if more follow."""
    found = _matching(connection, subject, query)
    columns = [subject.table.c[name] for name in subject.order]
    if query.after is not None:
        here, there = tuple_(*columns), tuple_(*_literals(query.after, columns))
        found = found.where(here < there if query.descending else here > there)
    found = found.order_by(*(column.desc() if query.descending else column for column in columns))
    rows = [dict(row) for row in connection.execute(found.limit(query.limit + 1)).mappings()]
    more, rows = len(rows) > query.limit, rows[: query.limit]
    last: Any = tuple(_part(rows[-1][name]) for name in subject.order) if more else None
    return Page(tuple(rows), last)


def _part(value: Any) -> Any:
    """Convert a value to its form in a cursor: a time becomes text."""
    return value.isoformat() if isinstance(value, datetime) else value


def _literals(after: Place, columns: Sequence[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """Convert a cursor to values of these columns; raise `Unprocessable` if it does not fit the columns."""
    try:
        found = [
            datetime.fromisoformat(str(part)) if column.type.python_type is datetime else part
            for part, column in zip(after, columns, strict=True)
        ]
    except ValueError:
        found = []
    if [type(part) for part in found] != [column.type.python_type for column in columns]:
        raise Unprocessable(errors=(("cursor", "is not a cursor of this list"),))
    return [literal(part, column.type) for part, column in zip(found, columns, strict=True)]


def count_rows(
    connection: Connection, subject: Entity, query: Query, most: int, within_ms: int
) -> int | None:
    """Count rows, at most `most` + 1; return None if that takes longer than `within_ms` milliseconds."""
    some = _matching(connection, subject, query).with_only_columns(literal(1), maintain_column_froms=True)
    counted = select(func.count()).select_from(some.limit(most + 1).subquery())
    try:
        with connection.begin_nested():
            connection.execute(text(f"SET LOCAL statement_timeout = {within_ms:d}"))
            return int(connection.execute(counted).scalar_one())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != QUERY_CANCELED:
            raise
        return None


def _matching(connection: Connection, subject: Entity, query: Query) -> Select[Any]:
    """Return a query for the rows that match a list's filters and time span."""
    statement = subject.rows.where(*(subject.condition(name, value) for name, value in query.filters.items()))
    for name in subject.implied.keys() & query.filters.keys():
        known = connection.execute(subject.implied[name](query.filters[name])).mappings().first()
        statement = statement.where(
            *(subject.table.c[each] == value for each, value in (known or {}).items())
        )
    if query.since is not None:
        statement = statement.where(subject.table.c[subject.time] >= query.since)
    if query.until is not None:
        statement = statement.where(subject.table.c[subject.time] < query.until)
    return statement


# Search of rows by the words of their names.

# Words of a search that are used; further words are ignored.
WORDS_MAX = 12

_BETWEEN_WORDS = re.compile(r"[\s!-/:-@\[-`{-~]+")


def named(table: Table) -> Condition:
    """Return a filter that finds names by the first letters of their words, and a row by its id."""

    def condition(value: Any) -> ColumnElement[bool]:
        found: ColumnElement[bool] = func.name_words(table.c.name).op("@@")(func.name_query(_words(value)))
        if value.isascii() and value.isdigit() and int(value) <= INTEGER_MAX:
            return found | (table.c.id == int(value))
        return found

    return condition


def _words(wanted: str) -> str:
    """Return the words to search for, without those that are the beginning of another word.

    Each word costs an index look-up; only the first `WORDS_MAX` are used.
    """
    words = {word.lower(): word for word in _BETWEEN_WORDS.split(wanted)}
    told = [word for word, following in pairwise([*sorted(words), ""]) if not following.startswith(word)]
    return " ".join(words[word] for word in told[:WORDS_MAX]) or wanted


# The verbs create, change, delete and revoke for rows that need only be stored and defined again.
def create(change: EntityWrite) -> Row:
    subject = change.subject
    subject.check_values(change)
    require(change)
    row = change.fetch(add(change))
    subject.define(change, row)
    subject.check_row(change, row)
    return row


def change_row(change: EntityWrite) -> Row:
    """Change a row after all checks, and define it for the counters if needed."""
    subject = change.subject
    subject.check_values(change)
    lock(change)
    require(change)
    alter(change, change.command.values)
    row = change.fetch()
    if subject.defining & change.command.values.keys():
        subject.define(change, row)
    subject.check_row(change, row)
    return row


def forget(change: EntityWrite) -> Row:
    """Delete an unreferenced row, or only mark it as deleted in tables whose rows the ledgers refer to."""
    row, table = lock(change), change.subject.table
    refuse_while_referenced(change)
    if "deleted_at" in table.c:
        alter(change, {"deleted_at": func.now()})
    else:
        change.connection.execute(delete_from(table).where(table.c.id == change.row_id))
    return row


def delete(change: EntityWrite) -> Row:
    row = forget(change)
    change.subject.define(change, row)
    return row


def revoke(change: EntityWrite) -> Row:
    """Revoke a credential for ever; repeated calls keep the first time."""
    lock(change)
    alter(change, {"revoked_at": func.coalesce(change.subject.table.c.revoked_at, func.now())})
    row = change.fetch()
    change.subject.define(change, row)
    return row


VERBS = {"create": create, "change": change_row, "delete": delete}
