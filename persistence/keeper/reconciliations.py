"""Accounts as PostgreSQL has them, for comparison with the counters; and what comparing found.

Everything is read in one snapshot. `deep` also counts and adds up every movement, of months that are over by
their checkpoints; without it an account's last row is taken at its word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.integrity.reconciliation import Item, Kind, LedgerAccount, Owner
from gateway.core.integrity.verified import AccountHead
from gateway.core.model import INTEGER_MAX
from persistence.engine import apart
from persistence.keeper.budget_uses import BudgetUses
from persistence.ledger.checkpoints import closed, disproved, sums
from persistence.ledger.invariants import violations
from persistence.refusals import QUERY_CANCELED, sqlstate, translating

_WITHIN = text("SELECT set_config('statement_timeout', :ms, true)")
# What no checkpoint has yet.
_OPEN = {"since": "c.last_seq", "until": str(INTEGER_MAX), "month": "o.spend_month"}

_OWNERS = """
SELECT o.id, coalesce(array_agg(t.id ORDER BY t.id) FILTER (WHERE t.id IS NOT NULL), '{{}}') AS tenants
  FROM (SELECT id FROM organization WHERE {where} ORDER BY id LIMIT :n) AS o
  LEFT JOIN tenant AS t ON t.organization_id = o.id
 GROUP BY o.id ORDER BY o.id"""
_EVERY = text(_OWNERS.format(where="id > :after"))
_THESE = text(_OWNERS.format(where="id = ANY(cast(:ids AS bigint[]))"))
_ANYBODY = text("SELECT id FROM organization ORDER BY random() LIMIT 1")

_TENANTS = text("""
SELECT 'tenant:' || k.id AS account, q.last_seq, q.tokens_remaining AS head, found.seq IS NOT NULL AS found,
       found.total_remaining + coalesce(d.difference, 0) AS at_seq, last.total_remaining AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN tenant_quota AS q ON q.tenant_id = k.id
  LEFT JOIN token_ledger AS found ON found.tenant_id = k.id AND found.seq = k.seq
  LEFT JOIN LATERAL (SELECT total_remaining FROM token_ledger WHERE tenant_id = k.id AND seq <= q.last_seq
                      ORDER BY seq DESC LIMIT 1) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'tenant:' || k.id AND d.seq = k.seq""")
# An unlimited account has no balance: what counts are the movements since it became limited. A drift on
# file shows in the row after it; until there is one, only the counters show it.
_TENANT_SUMS = text(f"""
SELECT 'tenant:' || k.id AS account, c.movements + s.movements AS rows,
       u.last IS NOT DISTINCT FROM u.unlimited AS unlimited,
       (s.amount + CASE WHEN s.since_seq IS NULL THEN c.amount ELSE 0 END)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d WHERE d.account = 'tenant:' || k.id
                    AND d.seq >= coalesce(u.unlimited, 0) AND d.seq < u.last), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
 CROSS JOIN LATERAL ({closed("tenant", "")}) AS c
 CROSS JOIN LATERAL ({sums("tenant", **_OPEN)}) AS s
 CROSS JOIN LATERAL (SELECT coalesce(s.since_seq, c.since_seq) AS unlimited,
                            greatest(s.last_seq, nullif(c.last_seq, 0)) AS last) AS u""")  # noqa: S608  # our own words
_CREDITS = text("""
SELECT 'credits:' || k.id AS account, o.credit_last_seq AS last_seq, o.credit_balance AS head,
       found.seq IS NOT NULL AS found, found.balance_after + coalesce(d.difference, 0) AS at_seq,
       coalesce(last.balance_after, 0) AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN organization AS o ON o.id = k.id
  LEFT JOIN LATERAL (
      SELECT seq, balance_after FROM credit_transaction WHERE organization_id = k.id AND seq = k.seq
      UNION ALL
      SELECT seq, balance_after FROM credit_posting WHERE organization_id = k.id AND seq = k.seq
  ) AS found ON true
  LEFT JOIN LATERAL (
      (SELECT seq, balance_after FROM credit_transaction
        WHERE organization_id = k.id AND seq <= o.credit_last_seq ORDER BY seq DESC LIMIT 1)
      UNION ALL
      (SELECT seq, balance_after FROM credit_posting
        WHERE organization_id = k.id AND seq <= o.credit_last_seq ORDER BY seq DESC LIMIT 1)
      ORDER BY seq DESC LIMIT 1
  ) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'credits:' || k.id AND d.seq = k.seq""")
_CREDIT_SUMS = text(f"""
SELECT 'credits:' || k.id AS account, c.movements + s.movements AS rows, false AS unlimited,
       (c.amount + s.amount)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d
                  WHERE d.account = 'credits:' || k.id AND d.seq < o.credit_last_seq), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
  JOIN organization AS o ON o.id = k.id
 CROSS JOIN LATERAL ({closed("credits", "")}) AS c
 CROSS JOIN LATERAL ({sums("credits", **_OPEN)}) AS s""")  # noqa: S608  # our own words
_SPENDS = text("""
SELECT 'spend:' || k.id AS account, o.spend_last_seq AS last_seq, o.spent AS head,
       found.seq IS NOT NULL AS found, found.spent_after + coalesce(d.difference, 0) AS at_seq,
       coalesce(last.spent_after, 0) AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN organization AS o ON o.id = k.id
  LEFT JOIN feature_usage AS found ON found.organization_id = k.id AND found.seq = k.seq
  LEFT JOIN LATERAL (SELECT spent_after FROM feature_usage WHERE organization_id = k.id
                        AND seq <= o.spend_last_seq ORDER BY seq DESC LIMIT 1) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'spend:' || k.id AND d.seq = k.seq""")
# Spend begins at zero with every month, whatever drift is on file behind the last movement before.
_SPEND_SUMS = text(f"""
SELECT 'spend:' || k.id AS account, c.movements + s.movements AS rows, false AS unlimited,
       (c.amount + s.amount)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d WHERE d.account = 'spend:' || k.id
                    AND d.seq >= b.since_seq + (b.since_seq > 0)::integer
                    AND d.seq < o.spend_last_seq), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
  JOIN organization AS o ON o.id = k.id
 CROSS JOIN LATERAL ({closed("spend", "o.spend_month")}) AS c
 CROSS JOIN LATERAL ({sums("spend", **_OPEN)}) AS s
 CROSS JOIN LATERAL (SELECT least(c.since_seq, s.since_seq) AS since_seq) AS b""")  # noqa: S608  # our own words
_LISTED = text("SELECT account, count(*) AS n FROM listed_gap GROUP BY account")
_STOPPED = text("SELECT account, reason FROM quarantine WHERE released_at IS NULL")
_UNRESOLVED = text("""
SELECT o.id, 'entry ' || d.entry_id || ' could not be stored: ' || d.reason AS why
  FROM unnest(cast(:ids AS bigint[])) AS o (id)
 CROSS JOIN LATERAL (
       SELECT entry_id, reason FROM dead_letter WHERE resolved_at IS NULL
          AND (organization_id = o.id OR tenant_id IN (SELECT id FROM tenant WHERE organization_id = o.id))
        LIMIT 10) AS d""")
_DUE = text("""
SELECT q.tenant_id, t.organization_id FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
 WHERE t.organization_id = ANY(cast(:ids AS bigint[])) AND q.next_reset_at <= now() ORDER BY 1""")

# Query of heads, query of sums, whose ids.
_READS = {
    "tenant": (_TENANTS, _TENANT_SUMS),
    "credits": (_CREDITS, _CREDIT_SUMS),
    "spend": (_SPENDS, _SPEND_SUMS),
}


class Accounts(BudgetUses):
    """Every account, read only."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        # Behind whom the next sample begins; None before the first.
        self._after: int | None = None

    async def owners(self, after: int, count: int) -> list[Owner]:
        """Organizations by id, with their tenants."""
        return await self._owners(_EVERY, {"after": after, "n": count})

    async def some_owners(self, count: int) -> list[Owner]:
        """The organizations whose turn it is, with their tenants: all come before one comes again.

        The first is picked at random, so that somebody who begins again and again looks at others too.
        """
        if self._after is None:
            async with translating(self._engine.connect()) as connection:
                self._after = int(await connection.scalar(_ANYBODY) or 0)
        found = await self.owners(self._after, count)
        if len(found) < count:
            begun = await self.owners(0, count - len(found))
            found += [one for one in begun if one.organization_id <= self._after]
        if found:
            self._after = found[-1].organization_id
        return found

    async def owners_of(self, organization_ids: Sequence[int]) -> Sequence[Owner]:
        """These organizations with their tenants."""
        found = await self._owners(_THESE, {"ids": list(organization_ids), "n": len(organization_ids)})
        there = {owner.organization_id for owner in found}
        return [*found, *(Owner(each, ()) for each in organization_ids if each not in there)]

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> dict[str, LedgerAccount]:
        """The accounts named, each with its balance at the seq given for it."""
        found: dict[str, LedgerAccount] = {}
        async with translating(self._engine.connect()) as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            listed = {row.account: row.n for row in await connection.execute(_LISTED)}
            stopped = {row.account: row.reason for row in await connection.execute(_STOPPED)}
            for kind in _READS:
                mine = {name: seq for name, seq in seqs.items() if name.startswith(f"{kind}:")}
                for one in await _read(connection, kind, mine, deep=deep):
                    missing = listed.get(one.account, 0)
                    # What is missing cannot be added up: the last row is taken at its word then.
                    summed = one.last_row if missing else one.summed
                    found[one.account] = replace(
                        one, listed=missing, summed=summed, stopped=stopped.get(one.account, "")
                    )
        return found

    async def disproved(self, owners: Sequence[Owner], count: int) -> Sequence[Item]:
        """Of the checkpoints of these owners' accounts, so many at random: those that say something false."""
        async with translating(self._engine.connect()) as connection:
            accounts = [account for owner in owners for account in owner.accounts]
            return await disproved(connection, accounts, count)

    async def contradictions(self, *, within_s: float) -> Sequence[Item] | None:
        """What rows say against each other; None where that takes longer.

        It may take minutes, so loops keep all their connections.
        """
        async with translating(apart(self._engine)) as connection:
            try:
                async with connection.begin_nested():
                    await connection.execute(_WITHIN, {"ms": str(max(1, round(within_s * 1_000)))})
                    found = await violations(connection)
            except DBAPIError as error:
                if sqlstate(error) != QUERY_CANCELED:
                    raise
                return None
        return [
            Item(one.account, Kind.CONTRADICTION, 0, one.seq or 0, f"{one.invariant}: {one.detail}")
            for one in found
        ]

    async def unresolved(self, organization_ids: Sequence[int]) -> Mapping[int, Sequence[str]]:
        """Why not all that happened to an organization is in its ledgers, of those of which it is not."""
        found = defaultdict[int, list[str]](list)
        async with translating(self._engine.connect()) as connection:
            for row in await connection.execute(_UNRESOLVED, {"ids": list(organization_ids)}):
                found[row.id].append(row.why)
        return found

    async def due(self, organization_ids: Sequence[int]) -> Sequence[tuple[int, int]]:
        """Tenants of organizations whose reset has come, each with its organization."""
        async with translating(self._engine.connect()) as connection:
            rows = await connection.execute(_DUE, {"ids": list(organization_ids)})
            return [(row.tenant_id, row.organization_id) for row in rows]

    async def _owners(self, query: Any, values: Mapping[str, Any]) -> list[Owner]:
        async with translating(self._engine.connect()) as connection:
            return [Owner(row.id, tuple(row.tenants)) for row in await connection.execute(query, values)]


async def _read(
    connection: AsyncConnection, kind: str, seqs: Mapping[str, int], *, deep: bool
) -> list[LedgerAccount]:
    if not seqs:
        return []
    heads, sums = _READS[kind]
    values = {"ids": [int(name.partition(":")[2]) for name in seqs], "seqs": list(seqs.values())}
    added: dict[str, Any] = {}
    if deep:
        added = {row.account: row for row in await connection.execute(sums, {"ids": values["ids"]})}
    return [_account(row, added.get(row.account)) for row in await connection.execute(heads, values)]


def _account(row: Any, added: Any) -> LedgerAccount:
    summed = row.last_row
    if added is not None:
        summed = None if added.unlimited and row.last_row is None else added.summed + added.drift
    return LedgerAccount(
        account=row.account,
        head=AccountHead(row.last_seq, row.head),
        found=row.found,
        at_seq=row.at_seq,
        rows=row.last_seq if added is None else added.rows,
        listed=0,
        last_row=row.last_row,
        summed=summed,
    )
