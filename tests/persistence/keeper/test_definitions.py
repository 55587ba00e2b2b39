"""Definitions of many organizations, which are read together: each table once, and the same as one by one."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.budgets import PersonalOverride, PersonalRaise, owner_of
from gateway.core.accounts.groups import KINDS, NO_GROUPS, OWN, GroupTerms, row_of
from gateway.core.times import ms_of
from persistence.keeper import definitions
from tests.connections import Connection, connected
from tests.persistence.scenario import insert_budget, settle_in
from tests.search import another

NAMES = [f"user {number}" for number in range(6)]
# Tables of which one organization may have most rows.
SKEWED = ("budget_override", "budget_raise", "caller_group", "app_user", "usage_tier")


def _rows_read(plan: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield each table that a plan reads with the number of rows that it looked at, in all loops."""
    if "Relation Name" in plan:
        removed = sum(count for name, count in plan.items() if name.startswith("Rows Removed by"))
        yield plan["Relation Name"], plan["Actual Loops"] * (plan["Actual Rows"] + removed)
    for part in plan.get("Plans", ()):
        yield from _rows_read(part)


async def _read_of(pool: AsyncEngine, statement: TextClause, ids: Sequence[int]) -> dict[str, float]:
    explained = text(f"EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) {statement.text}")
    async with pool.connect() as connection:
        [plan] = (await connection.execute(explained, {"ids": ids})).scalar_one()
    read = defaultdict[str, float](float)
    for table, count in _rows_read(plan["Plan"]):
        read[table] += count
    return read


async def test_rows_of_a_large_organization_are_read_once_for_all_organizations(
    migrated: str, pool: AsyncEngine
) -> None:
    accounts = settle_in(migrated, *([None] * 40))
    ids, big, count = [account.organization_id for account in accounts], accounts[0].organization_id, 2_000
    with connected(migrated, autocommit=True) as connection:
        budgets = [insert_budget(connection, id_, each="user") for id_ in ids for _ in range(2)]
        values = {"budget": budgets[0], "big": big, "n": count, "tenant": accounts[0].tenant_id}
        filled = """
INSERT INTO budget_override (budget_id, value, name, amount)
SELECT %(budget)s, n, n, 7 FROM generate_series(1, %(n)s) AS n;
INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)
SELECT %(budget)s, n, n, 7, now() + interval '1 day', 'x' FROM generate_series(1, %(n)s) AS n;
INSERT INTO caller_group (organization_id, name, kind, members)
SELECT %(big)s, n, 'user', '["ada"]' FROM generate_series(1, 400) AS n;
INSERT INTO app_user (organization_id, external_id, models)
SELECT %(big)s, n, '["m"]' FROM generate_series(1, %(n)s) AS n;
INSERT INTO usage_tier (tenant_id, organization_id, service_id, day, unit_price, first_unit, quantity)
SELECT %(tenant)s, %(big)s, s.id, (now() AT TIME ZONE 'UTC')::date, n, 1, 1
  FROM (SELECT min(id) AS id FROM service) AS s, generate_series(1, %(n)s) AS n;
ANALYZE"""
        for statement in filled.split(";"):
            connection.execute(statement.encode(), values if "%" in statement else None)
        rows = {
            table: sum(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]) for table in SKEWED
        }
    for statement in (definitions._BUDGETS, definitions._GROUPS, definitions._ORGANIZATIONS):
        read = await _read_of(pool, statement, ids)
        assert read, "the plan names the tables"
        more = {table: read[table] for table in SKEWED if read[table] > rows[table]}
        assert not more, f"{more} of {rows}: read again for each organization"


@dataclass
class DrawnOrganization:
    """An organization with drawn budgets, groups and users, and what a keeper must read of them."""

    id: int
    connection: Connection
    draw: random.Random
    now: datetime
    overrides: dict[int, dict[str, PersonalOverride]] = field(default_factory=dict)
    raises: dict[int, dict[str, PersonalRaise]] = field(default_factory=dict)
    groups: set[int] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    table: list[bytes] = field(default_factory=list)
    claims: dict[str, tuple[int, ...]] = field(default_factory=dict)
    models: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def put_budget(self) -> None:
        is_gone = self.draw.random() < 0.2
        deleted_at = self.now if is_gone else None
        budget = insert_budget(self.connection, self.id, each="user", unit="tokens", deleted_at=deleted_at)
        overrides, raises = dict[str, PersonalOverride](), dict[str, PersonalRaise]()
        for name in self.draw.sample(NAMES, self.draw.randint(0, len(NAMES))):
            amount, until = self.draw.choice([None, 0, 5]), self.draw.choice([None, *self._ends()])
            self.connection.execute(
                "INSERT INTO budget_override (budget_id, value, name, amount, until)"
                " VALUES (%s, %s, %s, %s, %s)", (budget, owner_of(name), name, amount, until),
            )  # fmt: skip
            if until is None or until > self.now:
                overrides[owner_of(name)] = PersonalOverride(amount, ms_of(until))
        for name in self.draw.sample(NAMES, self.draw.randint(0, 2)):
            raised_to, until = self.draw.randint(1, 9), self.draw.choice(self._ends())
            self.connection.execute(
                "INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)"
                " VALUES (%s, %s, %s, %s, %s, 'x')", (budget, owner_of(name), name, raised_to, until),
            )  # fmt: skip
            if until > self.now:
                raises[owner_of(name)] = PersonalRaise(raised_to, ms_of(until))
        if not is_gone:
            self.overrides[budget], self.raises[budget] = overrides, raises

    def put_groups(self) -> None:
        signed_in = self.draw.sample(NAMES, self.draw.randint(0, 2))
        for name in signed_in:
            self.connection.execute(
                "INSERT INTO signed_in_user VALUES (%s, %s, %s)", (self.id, name, '["team", "other"]')
            )
        for number in range(self.draw.randint(0, 3)):
            kind, is_gone = self.draw.choice(KINDS), self.draw.random() < 0.2
            members = self.draw.sample(NAMES if kind == "user" else ["1", "2", "3"], self.draw.randint(0, 3))
            claim = self.draw.choice([None, "team"]) if kind == "user" else None
            [(group,)] = self.connection.execute(
                "INSERT INTO caller_group (organization_id, name, kind, members, claim, deleted_at)"
                " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
                (self.id, f"g{number}", kind, json.dumps(members), claim, self.now if is_gone else None),
            ).fetchall()  # fmt: skip
            if not is_gone:
                rows = [(kind, member) for member in members]
                rows += [(OWN, name) for name in signed_in if claim]
                self.groups.add(group)
                self.table += [row_of(each, member, group) for each, member in rows]
                self.kinds |= {each for each, _ in rows}
                self.claims |= {claim: (*self.claims.get(claim, ()), group)} if claim else {}

    def put_users(self) -> None:
        for name in self.draw.sample(NAMES, self.draw.randint(0, 3)):
            models, is_gone = self.draw.choice([None, ["m"], ["m", "n"]]), self.draw.random() < 0.2
            self.connection.execute(
                "INSERT INTO app_user (organization_id, external_id, models, deleted_at) VALUES (%s, %s, %s, %s)",
                (self.id, name, None if models is None else json.dumps(models), self.now if is_gone else None),
            )  # fmt: skip
            if models is not None and not is_gone:
                self.models[name] = tuple(models)

    @property
    def group_terms(self) -> GroupTerms:
        if not self.groups:
            return NO_GROUPS
        return GroupTerms(tuple(sorted(self.kinds)), b"".join(sorted(self.table)), self.claims)

    def _ends(self) -> list[datetime]:
        return [self.now - timedelta(1), self.now + timedelta(1)]


async def test_batch_of_definitions_equals_definitions_of_each_budget_and_group(
    migrated: str, pool: AsyncEngine
) -> None:
    draw, now = random.Random(another(11)), datetime.now(UTC).replace(microsecond=0)
    accounts = settle_in(migrated, *([None] * 8))
    drawn = dict[int, DrawnOrganization]()
    with connected(migrated, autocommit=True) as connection:
        for account in accounts:
            made = DrawnOrganization(account.organization_id, connection, draw, now)
            for _ in range(draw.randint(0, 3)):
                made.put_budget()
            made.put_groups()
            made.put_users()
            drawn[made.id] = made
    asked = draw.sample([*drawn], 6)
    absent = max(drawn) + 1_000
    async with pool.connect() as one:
        read = await definitions.organizations(one, [*asked, absent])
    found = {organization.definition.organization_id: organization.definition.terms for organization in read}
    assert [*found] == sorted(asked)
    for id_, terms in found.items():
        assert {budget.id: budget.overrides for budget in terms.budgets} == drawn[id_].overrides
        assert {budget.id: budget.raises for budget in terms.budgets} == drawn[id_].raises
        assert terms.groups == drawn[id_].group_terms
        assert terms.models.users == drawn[id_].models
