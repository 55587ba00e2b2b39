"""Rows are counted as far as they are shown, and no list waits for its count."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import Text, cast, create_engine, func

from gateway.core.accounts.administration import Query
from persistence import entity
from persistence.entity import Entity
from persistence.resources import people
from persistence.tables import tenant

ALL = Query({}, None, None, None, 1)
SLOW = Entity(tenant, conditions={"slow": lambda seconds: cast(func.pg_sleep(seconds), Text) == ""})


@pytest.fixture
def named(cloned: str) -> str:
    with psycopg.connect(cloned, autocommit=True) as connection:
        connection.execute("insert into organization (name) values ('o')")
        connection.execute(
            "insert into tenant (organization_id, name, deleted_at) select max(organization.id), 't' || n,"
            " case when n = 7 then now() end from organization, generate_series(1, 7) as n group by n"
        )
    return cloned.replace("postgresql://", "postgresql+psycopg://")


def test_what_is_counted_is_what_is_listed(named: str) -> None:
    with create_engine(named).begin() as connection:
        assert entity.count_rows(connection, people.TENANT_SUBJECT, ALL, 6, 10_000) == 6
        assert entity.count_rows(connection, people.TENANT_SUBJECT, ALL, 4, 10_000) == 5
        narrowed = Query({"search": "t3"}, None, None, None, 1)
        assert entity.count_rows(connection, people.TENANT_SUBJECT, narrowed, 5, 10_000) == 1


def test_a_count_that_takes_too_long_is_given_up_and_its_transaction_goes_on(named: str) -> None:
    with create_engine(named).begin() as connection:
        slow = Query({"slow": 3600}, None, None, None, 1)
        assert entity.count_rows(connection, SLOW, slow, 5, 10) is None
        assert len(entity.page_of_rows(connection, people.TENANT_SUBJECT, ALL).rows) == 1
