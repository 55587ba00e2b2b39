"""PostgreSQL is set back under a running Tollkeeper: lost keys are refused, and new customers start clean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.journey.stack import Body, Stack
from tests.stage import staged
from tests.waiting import wait_until


class Database:
    """A stage's database and its copy, which is brought back while nobody is connected."""

    def __init__(self, admin: psycopg.Connection[tuple[object, ...]], url: str) -> None:
        self._admin, self._name = admin, url.rpartition("/")[2]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._run("ALTER DATABASE {} ALLOW_CONNECTIONS false")
        self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'")
        yield

    def _run(self, statement: str) -> None:
        self._admin.execute(statement.format(self._name).encode())

    def copy(self) -> None:
        with self._alone():
            wait_until(self._copied)
        self._run("ALTER DATABASE {} ALLOW_CONNECTIONS true")

    def _copied(self) -> bool:
        try:
            self._run("CREATE DATABASE older_{0} TEMPLATE {0}")
        except psycopg.errors.ObjectInUse:  # somebody is on the way out
            return False
        return True

    def set_back(self) -> None:
        with self._alone():
            self._run("DROP DATABASE {} WITH (FORCE)")
        self._run("ALTER DATABASE older_{0} RENAME TO {0}")


def customer(stage: Stack, name: str) -> tuple[list[int], str]:
    """Create an organization with a tenant, a budget and a key; return their ids, and the key."""
    wait_until(lambda: stage.admin("GET", "/organizations")[0] == 200)  # PostgreSQL was away
    organization = stage.make("organizations", name=name)["id"]
    plan = stage.make("token-plans", name=f"plan of {organization}", total_amount=1_000)["id"]
    tenant = stage.make("tenants", name="team", organization_id=organization, plan_id=plan)["id"]
    of: Body = {"unit": "tokens", "amount": 1_000, "interval": "month", "name": "all"}
    budget = stage.make("budgets", organization_id=organization, **of)["id"]
    key = stage.make("api-keys", tenant_id=tenant)
    return [organization, tenant, budget, key["id"]], key["key"]


def used(stage: Stack, budget: int) -> int:
    status, body = stage.admin("GET", f"/budgets/{budget}")
    assert status == 200, body
    return int(body["used"])


def test_a_lost_key_is_refused_and_a_new_customer_begins_with_nothing(postgres: str) -> None:
    with staged(postgres) as stage, psycopg.connect(postgres, autocommit=True) as admin:
        database = Database(admin, stage.database_url)
        _, surviving = customer(stage, "surviving")
        database.copy()
        lost, lost_key = customer(stage, "lost")
        assert stage.chat(lost_key, "30,40").status_code == 200
        wait_until(lambda: used(stage, lost[2]) == 70)
        database.set_back()
        new, new_key = customer(stage, "new")
        assert not {*new}.intersection(lost)
        wait_until(lambda: stage.chat(lost_key).status_code == 401)
        assert used(stage, new[2]) == 0
        wait_until(lambda: stage.chat(new_key, "3,4").status_code == 200)  # once rows are compared
        wait_until(lambda: used(stage, new[2]) == 7)
        assert stage.chat(surviving).status_code == 200
