"""A replay of budgets over the stored calls of an organization: which facts it reads, and what it assumes.

Calls come from a cursor of PostgreSQL in the order of their time, with the columns that the budgets need, or before
those from an archive. Calls of other organizations are never read, nor with `tenant_id` those of other tenants.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from heapq import merge
from itertools import starmap
from operator import attrgetter
from typing import Any, Final

from psycopg import DatabaseError
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.pool import NullPool

from gateway.calls.rating import cost_of
from gateway.core.accounts import groups
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_amounts import read_budget, render_amount
from gateway.core.accounts.budgets import MONEY, OF_GROUP, SESSION, USER, Budget, override_owner
from gateway.core.accounts.replay.calls import CallUsage, StoredCall
from gateway.core.accounts.replay.fold import BudgetFold, BudgetOutcome, Replayed
from gateway.core.accounts.tags import tag_in
from gateway.core.billing.price_book import KINDS, PriceBook, unpriced_names
from gateway.core.times import ceil_ms, floor_ms, moment_of, ms_of, rfc3339
from persistence.address import CONNECT, dialect_url
from persistence.resources.prices import read_book
from persistence.tables import caller_group, kept_since, organization

# Rows that a cursor fetches at a time, and models whose prices are kept.
FETCHED_ROWS: Final = 2_000
BOOKS_MAX: Final = 1_000
# What a replay may assume of the past; the last two with a day behind them.
GROUPS_NOW, SUBSTITUTES_ACCEPT, STEPS_AS_SENT = "groups_now", "substitutes_accept", "steps_as_sent"
TRACES_BY_FORM = "traces_by_form"
TAGS_SINCE, CALLS_SINCE = "tags_since:", "calls_since:"
# Columns of a call. If it used anything, one is above 0.
USED_BY: Final = ("units", "tokens", "cost")
# The facts of a call before those of its usage.
PLAIN_FACTS: Final = StoredCall._fields.index("usage")
# A row of the query below.
_Facts = tuple[Any, ...]
# Returns the archived calls of an organization from a time up to before another one, by column, in order.
ArchivedCalls = Callable[[int, datetime, datetime], Iterator[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Budgets to replay over the calls of an organization, or of one tenant of it, in a period."""

    organization_id: int
    tenant_id: int | None
    since: datetime
    until: datetime
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class ReplayAnswer:
    """What budgets would have done, in which currency, and what that assumes."""

    currency: str
    assumes: tuple[str, ...]
    replayed: Replayed


def budget_of(values: Row, place: int, since: datetime) -> Budget:
    """Return the budget of checked values of a new one, with its `overrides`; `place` is that in the replay."""
    given: Any = values.get("overrides") or ()
    own = {
        override_owner(override["who"]): (override["amount"], _until_ms(override["until"]))
        for override in given
    }
    return read_budget(
        {**values, "id": place + 1, "created_at": since, "raised_until": None, "overrides": own}
    )


def replay_over(url: str, asked: ReplayRequest, archived: ArchivedCalls | None = None) -> ReplayAnswer:
    """Replay budgets over the calls in the database at `url`, which is only read."""
    engine = create_engine(dialect_url(url), poolclass=NullPool, hide_parameters=True, connect_args=CONNECT)
    with engine.connect() as connection:
        begin_reading(connection)
        return replay(connection, asked, archived)


def begin_reading(connection: Connection) -> None:
    """Begin a transaction that only reads, and ends within a second of its process, whatever its statement does."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    connection.execute(text("SET LOCAL client_connection_check_interval = '1s'"))


def replay(
    connection: Connection, asked: ReplayRequest, archived: ArchivedCalls | None = None
) -> ReplayAnswer:
    """Replay budgets over stored calls, within a transaction that only reads."""
    facts = _FactsNeeded(connection, asked)
    folded = BudgetFold(asked.budgets, floor_ms(asked.since), ceil_ms(asked.until), facts.price)
    stored = facts.stored(_stored_calls(connection, asked, facts))
    if archived is not None:
        facts.has_earlier = True
        before = archived(asked.organization_id, asked.since, asked.until)
        stored = merge(facts.archived_calls(connection, before), stored, key=attrgetter("at_ms"))
    for past in stored:
        folded.add(past)
    return ReplayAnswer(facts.currency, tuple(facts.assumes()), folded.result())


class _FactsNeeded:
    """The facts of calls that the budgets of a replay depend on."""

    def __init__(self, connection: Connection, asked: ReplayRequest) -> None:
        budgets = asked.budgets
        self._asked, self._is_as_sent, self.had_traces, self.has_earlier = asked, False, False, False
        self.steps = any(budget.steps for budget in budgets)
        self.usage = self.steps or bool(connection.exec_driver_sql(*_has_substituted(asked)).scalar())
        self.tags = {name for budget in budgets for name, _ in budget.tags} | {
            tag_in(budget.each) for budget in budgets
        } - {""}
        self.session = self.steps or any(budget.each == SESSION for budget in budgets)
        self.model = self.usage or any(budget.model for budget in budgets)
        named = {budget.group_id for budget in budgets} - {0}
        named |= {
            int(name.removeprefix(OF_GROUP))
            for budget in budgets
            for name in budget.overrides
            if name.startswith(OF_GROUP)
        }
        self.groups = _GroupsNow(connection, named) if named else None
        self.has_more = bool(self.tags or self.groups or self.usage)
        self.user = any(budget.each == USER or budget.user for budget in budgets)
        self.user = self.user or (self.groups is not None and self.groups.of_users)
        row = connection.execute(
            select(organization.c.currency, organization.c.tags_since).where(
                organization.c.id == asked.organization_id
            )
        ).one()
        self.currency: str = row.currency
        self._tags_since = {
            name: since for name, since in (row.tags_since or {}).items() if name in self.tags
        }
        self._kept_since = connection.scalar(select(kept_since.c.since).where(kept_since.c.ledger == "call"))
        self._books, self._connection = dict[str, PriceBook](), connection

    def assumes(self) -> Iterator[str]:
        """Yield what a replay with these facts assumes of the past."""
        if self.groups is not None:
            yield GROUPS_NOW
        tagged = max(map(datetime.fromisoformat, self._tags_since.values()), default=self._asked.since)
        if tagged > self._asked.since:
            yield f"{TAGS_SINCE}{tagged.astimezone(UTC):%Y-%m-%d}"
        since = None if self.has_earlier else self._kept_since
        if since is not None and since > self._asked.since:
            yield f"{CALLS_SINCE}{since.astimezone(UTC):%Y-%m-%d}"
        if self.steps:
            yield SUBSTITUTES_ACCEPT
        if self._is_as_sent:
            yield STEPS_AS_SENT
        if self.had_traces:
            yield TRACES_BY_FORM

    def price(self, stored: StoredCall, model: str) -> int | None:
        """Return the cost of a call as another model, in nano-units; None where that has no price."""
        book = self._books.get(model)
        if book is None:
            if len(self._books) >= BOOKS_MAX:
                self._books.clear()
            book = self._books[model] = read_book(self._connection, {model}, self._asked.since)
        vector = book.vector(model, self.currency, stored.at_ms)
        counts, tools, tier = stored.usage
        if vector is None or unpriced_names(vector, tools, counts, tier):
            return None
        return cost_of(vector, counts, tools, tier)

    def stored(self, rows: Iterable[_Facts]) -> Iterator[StoredCall]:
        """Return calls from rows of the journal: the fields of a call in order, then what its usage is made of."""
        return starmap(self._call if self.has_more else StoredCall, rows)

    def archived_calls(
        self, connection: Connection, rows: Iterator[Mapping[str, Any]]
    ) -> Iterator[StoredCall]:
        """Yield calls from rows of an archive by column; the names of users are looked up."""
        names = dict[int, str]()
        for row in rows:
            if row["refused"] or self._asked.tenant_id not in {None, row["tenant_id"]}:
                continue
            user_id = row["user_id"]
            if self.user and user_id is not None and user_id not in names:
                name = connection.execute(_USER, {"id": user_id}).scalar()
                names[user_id] = name or ""
            yield self._call(
                floor_ms(row["created_at"]), (row["cost"] or 0) if row["currency"] == self.currency else 0,
                row["tokens"], row["tenant_id"], row["api_key_id"], row["service_id"] or 0,
                names.get(user_id, ""), row["project_id"], row.get("model_asked") or row["model"] or "",
                row["response_model"] or "", row["session"] or "", int(any(row[name] for name in USED_BY)),
                row.get("tags"), row.get("groups"),
                *[row[kind] for kind in KINDS], row["tools"], row["service_tier"] or "",
                row.get("model_asked") and row["model"],
            )  # fmt: skip

    def _call(self, *row: Any) -> StoredCall:
        """Return the stored call of a row, with the facts that the replay needs."""
        *plain, tags, named = row[:PLAIN_FACTS]
        stored = StoredCall(*plain)
        if self.tags and tags:
            stored = stored._replace(tags=tuple(tags.items()))
        if len(row) > PLAIN_FACTS:
            *counts, tools, tier, sent_as = row[PLAIN_FACTS:]
            stored = stored._replace(usage=CallUsage(tuple(counts), tools or {}, tier))
            if sent_as:
                stored = self._as_asked(stored, sent_as)
            self.had_traces = self.had_traces or stored.session_is_trace
        return stored if self.groups is None else self.groups.put(stored, named or ())

    def _as_asked(self, stored: StoredCall, sent_as: str) -> StoredCall:
        """Return a call that a step sent as another model as it was asked for, at that price; without one, as it was sent."""
        cost = self.price(stored, stored.model)
        if cost is None:
            self._is_as_sent = True
            return stored._replace(model=sent_as)
        return stored._replace(cost=cost, response_model="")


class _GroupsNow:
    """The groups that budgets of a replay name, with their members of now.

    By a claim of a token, only the journal says who was a member.
    """

    def __init__(self, connection: Connection, ids: set[int]) -> None:
        columns = caller_group.c
        rows = connection.execute(
            select(columns.id, columns.kind, columns.members, columns.claim).where(
                columns.id.in_(ids), columns.deleted_at.is_(None)
            )
        ).all()
        self._claimed = frozenset(row.id for row in rows if row.claim is not None)
        self._members: Mapping[tuple[str, str], list[int]] = defaultdict(list)
        for row in rows:
            for member in row.members:
                self._members[row.kind, str(member)].append(row.id)
        self.of_users = any(row.kind == groups.USER for row in rows)

    def put(self, stored: StoredCall, journal: Sequence[int]) -> StoredCall:
        """Return a call with the ids of its groups among these."""
        ids = {group for group in journal if group in self._claimed}
        for kind, value in (
            (groups.USER, stored.user), (groups.TENANT, stored.tenant_id),
            (groups.API_KEY, stored.api_key_id), (groups.PROJECT, stored.project_id),
        ):  # fmt: skip
            ids.update(self._members.get((kind, str(value)), ()))
        return stored._replace(groups=tuple(sorted(ids)))


_USER = text("SELECT external_id FROM app_user WHERE id = :id")


def _stored_calls(connection: Connection, asked: ReplayRequest, needed: _FactsNeeded) -> Iterator[_Facts]:
    """Yield the rows of the journal's calls that were not refused, in the order of their time."""
    # PostgreSQL would else prefer the first rows early: those of all organizations in order.
    connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
    statement, values = _query(asked, needed)
    driver: Any = connection.connection.driver_connection
    with driver.cursor(name="replay") as cursor:
        cursor.itersize = FETCHED_ROWS
        cursor.execute(statement, values)
        try:
            yield from cursor
        except DatabaseError as error:
            if error.sqlstate is None and "memory" in str(error):  # libpq's own, not the server's
                raise MemoryError from error
            raise


def _query(asked: ReplayRequest, needed: _FactsNeeded) -> tuple[bytes, Mapping[str, object]]:
    """Return the statement whose columns are the fields of a stored call, and its values."""
    columns = [
        "floor(extract(epoch FROM c.created_at) * 1000)::bigint",
        "CASE WHEN c.currency = %(currency)s THEN coalesce(c.cost, 0) ELSE 0 END",
        "c.tokens, c.tenant_id, c.api_key_id, coalesce(c.service_id, 0)",
        "coalesce(p.external_id, '')" if needed.user else "''",
        "c.project_id",
        "coalesce(c.model_asked, c.model, ''), coalesce(c.response_model, '')" if needed.model else "'', ''",
        "coalesce(c.session, '')" if needed.session else "''",
        f"(greatest({', '.join(f'c.{name}' for name in USED_BY)}) > 0)::int",
    ]
    if needed.has_more:
        columns += ["c.tags" if needed.tags else "NULL", "c.groups" if needed.groups else "NULL"]
    if needed.usage:
        columns += [f"c.{kind}" for kind in KINDS] + ["c.tools", "coalesce(c.service_tier, '')"]
        columns += ["CASE WHEN c.model_asked IS NOT NULL THEN c.model END"]
    users = "LEFT JOIN app_user AS p ON p.id = c.user_id" if needed.user else ""
    replayed, values = _replayed(asked)
    statement = (
        f"SELECT {', '.join(columns)} FROM call AS c {users} WHERE {replayed} ORDER BY c.created_at, c.id"
    )
    return statement.encode(), {**values, "currency": needed.currency}


def _replayed(asked: ReplayRequest) -> tuple[str, dict[str, object]]:
    """Return the condition of the calls of a replay, and its values."""
    team = "AND c.tenant_id = %(tenant)s" if asked.tenant_id is not None else ""
    period = "c.created_at >= %(since)s AND c.created_at < %(until)s AND NOT c.refused"
    return f"c.organization_id = %(organization)s {team} AND {period}", {
        "organization": asked.organization_id, "tenant": asked.tenant_id, "since": asked.since, "until": asked.until,
    }  # fmt: skip


def _has_substituted(asked: ReplayRequest) -> tuple[str, dict[str, object]]:
    """Return the query for whether a step sent one of the calls as another model, and its values."""
    replayed, values = _replayed(asked)
    return f"SELECT EXISTS (SELECT FROM call AS c WHERE {replayed} AND c.model_asked IS NOT NULL)", values


def render(answer: ReplayAnswer) -> Row:
    """Return an answer as JSON values: amounts as text or whole numbers, times by RFC 3339."""
    replayed = answer.replayed
    return {
        "calls": replayed.calls,
        **_render_counts(replayed),
        "assumes": [*answer.assumes],
        "items": list(map(_render_item, replayed.items)),
    }


def _render_item(item: BudgetOutcome) -> Row:
    """Return what a budget did in a replay, as JSON."""
    amount = partial(render_amount, item.unit)
    return {
        "name": item.name,
        **_render_counts(item),
        "first_refusal_at": None if item.first_refusal_ms is None else rfc3339(moment_of(item.first_refusal_ms)),
        "owners": [
            {
                "who": owner.who, "refused": owner.refused,
                "first_refusal_at": rfc3339(moment_of(owner.first_refusal_ms)),
                "used_max": amount(owner.used_max),
            }
            for owner in item.owners
        ],
        "owners_more": item.owners_more,
        "by_day": [
            {"day": f"{day.day}", "used": amount(day.used), "refused": day.refused} for day in item.by_day
        ],
        "least_amount": amount(item.least_amount),
        "suggestions": item.suggestions
        and {part: amount(least) for part, least in item.suggestions.items()},
    }  # fmt: skip


def _render_counts(counts: Replayed | BudgetOutcome) -> Row:
    return {
        "refused": counts.refused, "refused_cost": render_amount(MONEY, counts.refused_cost),
        "substituted": counts.substituted, "saved": render_amount(MONEY, counts.saved),
    }  # fmt: skip


def _until_ms(until: str | None) -> int:
    """Return the end of an override; 0 means never, so the epoch itself is a millisecond later."""
    return 0 if until is None else max(ms_of(datetime.fromisoformat(until)), 1)
