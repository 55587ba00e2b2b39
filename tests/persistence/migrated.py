"""Migrated databases: one for the session, emptied before each test; or a clone of its own.

`migrated` keeps the schema and what is always there; `cloned` is for tests that change the schema.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from functools import cache

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.schema import migrate
from tests import servers
from tests.databases import give_back, make_database, own_database, take_engine
from tests.persistence.emptying import clear
from tests.tree import ROOT

ALWAYS_THERE = ("business_model",)
# Services that a migration made; more are of a test.
KEYS_ALWAYS_THERE = ("chat", "completions", "responses", "embeddings", "messages", "gemini")
# What is only added to, by month.
LEDGERS = ("token_ledger", "credit_posting", "credit_transaction", "feature_usage")
# What has partitions, and what has one a month.
PARTITIONED = (*LEDGERS, "call", "usage_rollup", "audit_log")
SPANS_BY_MONTH = ("hour", "day", "team_hour", "team_day")
BY_MONTH = (*LEDGERS, "call", "audit_log", *(f"usage_rollup_{span}" for span in SPANS_BY_MONTH))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    return template_of(postgres)


@pytest.fixture(scope="session")
def shared(postgres: str) -> str:
    return _shared(postgres)


@pytest.fixture
def migrated(shared: str) -> str:
    empty(shared)
    return shared


@pytest.fixture
async def pool(migrated: str, one_loop: None) -> AsyncIterator[AsyncEngine]:
    engine = take_engine(migrated)
    yield engine
    await give_back(migrated, engine)


@pytest.fixture
def cloned(postgres: str, template: str) -> Iterator[str]:
    with own_database(postgres, f"m{os.getpid()}_{next(_numbers)}", template) as url:
        yield url


def empty(url: str) -> None:
    """Delete every row but those always there."""
    clear(url, {*ALWAYS_THERE, "service"}, _services)


def _services(connection: psycopg.Connection) -> None:
    connection.execute("DELETE FROM service WHERE key <> ALL (%s)", [list(KEYS_ALWAYS_THERE)])


# Two folders of tests use these fixtures; the databases are made once a process all the same.
@cache
def template_of(postgres: str) -> str:
    """Return the name of a migrated database of this server that nobody writes to."""
    if postgres == servers.kept(servers.key_of(ROOT)):
        return servers.TEMPLATE
    name = f"template_{os.getpid()}"
    migrate.upgrade(make_database(postgres, name))
    return name


@cache
def _shared(postgres: str) -> str:
    return make_database(postgres, f"shared_{os.getpid()}", template_of(postgres))
