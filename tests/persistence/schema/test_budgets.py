"""The tables of budgets: what they refuse, and that a name is free again once its budget is deleted."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from tests.connections import connected
from tests.persistence.scenario import insert_budget, settle_in

FIELDS = {"name": "a", "unit": "money", "amount": "0.000000001", "interval": "month"}


def add(connection: psycopg.Connection[tuple[object, ...]], **over: object) -> int:
    values = FIELDS | {"organization_id": 1} | over
    return insert_budget(connection, **values)  # type: ignore[arg-type]  # some are wrong on purpose


@pytest.mark.parametrize(
    "over",
    [
        {"amount": "0.0000000001"},
        {"amount": "1000000000000000.01"},
        {"amount": "-1"},
        {"amount": "NaN"},
        {"amount": "1.5", "unit": "tokens"},
        {"amount": 2**53, "unit": "requests"},
        {"unit": "credits"},
        {"each": "group"},
        {"interval": "minute"},
        {"mode": "warn"},
        {"on_exhausted": "wait"},
        {"anchor_day": 32},
        {"user": ""},
        {"model": ""},
        {"project_id": -1},
        {"thresholds": "0.5"},
        {"raised_to": "20"},
        {"raised_until": "2031-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_what_no_budget_is_is_refused(migrated: str, over: dict[str, object]) -> None:
    settle_in(migrated, 10)
    with connected(migrated, autocommit=True) as connection:
        organization = _organization(connection)
        with pytest.raises(errors.CheckViolation):
            add(connection, organization_id=organization, **over)


def test_what_is_of_nothing_is_refused(migrated: str) -> None:
    settle_in(migrated, 10)
    with connected(migrated, autocommit=True) as connection:
        organization = _organization(connection)
        for name in ("organization_id", "tenant_id", "api_key_id", "service_id"):
            with pytest.raises(errors.ForeignKeyViolation):
                add(connection, **{"organization_id": organization, name: 2**53 - 1})


def test_an_amount_of_money_is_kept_to_the_last_nano_unit(migrated: str) -> None:
    settle_in(migrated, 10)
    with connected(migrated, autocommit=True) as connection:
        add(connection, organization_id=_organization(connection), amount="999999999999999.999999999")
        told = connection.execute("SELECT amount::text, thresholds FROM budget").fetchone()
    assert told == ("999999999999999.999999999", [0.5, 0.8, 1])


def test_a_name_is_one_budgets_until_it_is_deleted(migrated: str) -> None:
    settle_in(migrated, 10)
    with connected(migrated, autocommit=True) as connection:
        organization = _organization(connection)
        add(connection, organization_id=organization)
        with pytest.raises(errors.UniqueViolation):
            add(connection, organization_id=organization)
        connection.execute("UPDATE budget SET deleted_at = now()")
        add(connection, organization_id=organization)


def _organization(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute("SELECT min(id) FROM organization").fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
