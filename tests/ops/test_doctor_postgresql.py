"""What doctor, `migrate` and a keeper say of a database that they cannot use, and whether it mends it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from zlib import crc32

import psycopg
import pytest
from sqlalchemy import make_url

from gateway.core.calls.routes import ModelRule, ModelTarget, UpstreamFacts, UpstreamTarget
from gateway.errors import StartError
from gateway.ops import doctor, hints
from gateway.run import schema
from gateway.run.bundled_prices import read_bundle
from gateway.settings.settings import load
from persistence import engine as engines
from persistence.resources.prices import PriceTable
from persistence.schema import migrate, privileges
from tests.databases import own_database
from tests.faults.proxy import Proxy, Trap, Way
from tests.persistence.ledger.test_writer_failures import pair
from tests.persistence.test_replica import Standby
from tests.tree import ROOT
from tests.waiting import HUNG_S

__all__ = ["pair"]


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)


async def said_of(url: str) -> str:
    """What doctor finds wrong with it; empty where it is well."""
    settings = load({}).with_values(database_url=url)
    found = [one async for one in doctor._postgresql(settings, "keeper")]
    return "\n".join(one.says for one in found if one.well is False)


# How a database, or its user, is made unfit; what doctor says; what mends it. {0} is the database's name.
UNFIT = {
    "read-only database": (
        ["ALTER DATABASE {0} SET default_transaction_read_only = on"],
        "ALTER DATABASE {0} RESET default_transaction_read_only",
    ),
    "read-only user": (
        ["ALTER ROLE {0}_u SET default_transaction_read_only = on"],
        "ALTER ROLE {0}_u SET default_transaction_read_only = off",
    ),
    "no connection left for the user": (["ALTER ROLE {0}_u CONNECTION LIMIT 0"], "CONNECTION LIMIT"),
    "no connection left for the database": (["ALTER DATABASE {0} CONNECTION LIMIT 0"], "CONNECTION LIMIT"),
    "closed database": (["ALTER DATABASE {0} ALLOW_CONNECTIONS false"], "ALLOW_CONNECTIONS true"),
    "no login": (["ALTER ROLE {0}_u NOLOGIN"], "LOGIN"),
    "no right to connect": (["REVOKE CONNECT ON DATABASE {0} FROM PUBLIC"], "GRANT CONNECT ON DATABASE"),
    "no right on the schema": (
        ["REVOKE USAGE ON SCHEMA public FROM PUBLIC, {0}_writer"],
        "run tollkeeper migrate",
    ),
    "not in the role": (["REVOKE {0}_writer FROM {0}_u"], "who is in the role <database>_writer"),
    "no schema": (["DROP TABLE alembic_version"], "run tollkeeper migrate"),
}  # fmt: skip
MENDED = {
    "not in the role": 'GRANT "{0}_writer" TO "{0}_u"',
    "no connection left for the user": "ALTER ROLE {0}_u CONNECTION LIMIT -1",
    "no connection left for the database": "ALTER DATABASE {0} CONNECTION LIMIT -1",
    "closed database": "ALTER DATABASE {0} ALLOW_CONNECTIONS true",
    "no login": "ALTER ROLE {0}_u LOGIN",
    "no right to connect": "GRANT CONNECT ON DATABASE {0} TO PUBLIC",
    "no right on the schema": "",
    "no schema": "",
}


@pytest.fixture(scope="module")
def template(postgres: str) -> Iterator[str]:
    """The name of a migrated database, to make others like it."""
    with own_database(postgres, "doctors_template") as url:
        migrate.upgrade(url)
        yield "doctors_template"


@pytest.fixture
def keepers(postgres: str, template: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A migrated database's name, and its URL for a keeper's user of least rights."""
    name = f"doctors_{crc32(request.node.name.encode())}"
    with own_database(postgres, name, template) as database:
        yield from keeper_of(database, name)


def keeper_of(database: str, name: str) -> Iterator[tuple[str, str]]:
    migrate.upgrade(database)
    execute(database, f"CREATE ROLE {name}_u LOGIN IN ROLE {name}_writer")
    yield name, database.replace("postgres@", f"{name}_u@")
    execute(database.replace(f"/{name}", "/postgres"), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("case", UNFIT)
async def test_a_database_of_no_use_is_named_with_what_mends_it(
    case: str, keepers: tuple[str, str], postgres: str
) -> None:
    name, url = keepers
    here = postgres.rsplit("/", 1)[0] + f"/{name}"
    assert await said_of(url) == ""
    made, mends = UNFIT[case]
    for statement in made:
        execute(here if "SCHEMA" in statement or "TABLE" in statement else postgres, statement.format(name))
    said = await said_of(url)
    assert mends.format(name) in said, said
    if mended := MENDED.get(case, mends).format(name):
        execute(postgres, mended)
        assert await said_of(url) == ""


async def test_an_upstream_of_unknown_context_is_named_where_holds_bind_calls(
    keepers: tuple[str, str],
) -> None:
    """Its calls without a maximum are sent with one, which it may refuse."""
    _, url = keepers
    targets = {
        "own": None, "known": UpstreamFacts(context=2_048), "listed": UpstreamFacts(listed=True),
        "bounded": UpstreamFacts(output_max=9), "other": UpstreamFacts(maximum="max_tokens"),
    }  # fmt: skip
    upstreams = [UpstreamTarget(name, "http://127.0.0.1:1", facts=facts) for name, facts in targets.items()]
    rules = [ModelRule(name, False, (ModelTarget(name, ""),)) for name in targets]
    settings = load({})
    settings = settings.with_values(
        database_url=url, upstreams=(*settings.upstreams, *upstreams), models=tuple(rules)
    )

    async def told() -> list[str]:
        found = [one async for one in doctor._postgresql(settings, "keeper")]
        assert not [one for one in found if one.well is False]
        return [one.subject for one in found if "without a maximum" in one.says]

    assert await told() == []
    execute(url, "INSERT INTO token_plan (name, admission) VALUES ('s', 'strict')")
    assert await told() == ["upstream own", "upstream other"]


async def test_doctor_counts_listed_prices_that_a_database_lacks_and_dates_a_rise(
    keepers: tuple[str, str],
) -> None:
    """Of a database as an earlier release filled it: a model is missing, and a rise at a seller."""
    _, url = keepers

    async def said() -> list[tuple[bool | None, str]]:
        settings = load({}).with_values(database_url=url)
        found = [one async for one in doctor._postgresql(settings, "keeper")]
        return [(one.well, one.says) for one in found if one.subject == "prices"]

    assert await said() == [], "no keeper has put the list in yet"
    lacks = {("gpt-6.2-astra", 11, 17), ("gemini-4-argon", 12, 1)}
    rows = [
        row for row in read_bundle().rows
        if row["provider"] not in {"openai", "google-vertex"}
        or (row["model"], row["effective_from"].month, row["effective_from"].day) not in lacks
    ]  # fmt: skip
    assert len(read_bundle().rows) - len(rows) == 2
    engine = engines.create(url)
    await PriceTable(engine).put_in_bundled(rows)
    await engine.dispose()
    message = "the bundled list has 2 prices that are not here, 1 of them dearer since 2026-12-01"
    expected = [(None, f"{message}: tollkeeper prices diff")]
    assert await said() == expected
    own = "INSERT INTO price (provider, model, match, currency, effective_from, source, input, hours_at)"
    execute(url, f"{own} VALUES ('openai', 'gpt-6.2-astra', 'exact', 'USD', now(), 'operator', 8, 'begin')")
    assert await said() == expected, "a price of the operator's own is none of the list's"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_of_another_encoding_is_refused_in_a_sentence(postgres: str, encoding: str) -> None:
    name = f"odd_{encoding.lower()}"
    made = f"CREATE DATABASE {name} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING "
    url = postgres.rsplit("/", 1)[0] + f"/{name}"
    mends = f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"
    execute(postgres, f"{made}'{encoding}'")
    try:
        with pytest.raises(StartError) as refused:
            schema.migrate(url)
        assert mends in refused.value.message
        assert f"encoding {encoding}, UTF8 is needed" in await said_of(url)
        with pytest.raises(StartError, match="UTF8 is needed"):
            await privileges.refuse_unfit(engines.create(url))
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)", mends)
        schema.migrate(url)
        assert await said_of(url) == ""
    finally:
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_look_at_postgresql_writes_nothing(keepers: tuple[str, str], postgres: str) -> None:
    name, url = keepers
    execute(postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    settings = load({}).with_values(database_url=url, key_pepper="0123456789abcdef")
    found = [one async for one in doctor._postgresql(settings, "all")]
    assert [one.says.partition(" (")[0] for one in found if one.well is False] == [
        f"{url}: PostgreSQL: the server lets this user read only"
    ]


async def test_a_server_that_reads_only_says_so_to_a_keeper_that_runs(
    keepers: tuple[str, str], postgres: str
) -> None:
    name, url = keepers
    execute(postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine = engines.create(url)
    assert await engines.write_trouble(engine) == engines.READS_ONLY
    with pytest.raises(StartError, match="lets this user read only"):
        await privileges.refuse_unfit(engine)
    await engine.dispose()


@pytest.mark.parametrize(
    ("said", "sqlstate", "mends"),
    [
        ("53300 zu viele Verbindungen für Rolle »k«", "53300", "CONNECTION LIMIT"),
        ('FATAL:  too many connections for role "keeper"', "", "CONNECTION LIMIT"),
        ('FATAL:  role "keeper" does not exist', "", "create the user"),
        ("42501 keine Berechtigung", "42501", "migrate needs the owner"),
        ("57P01 terminating connection", "57P01", "wait until PostgreSQL has started again"),
        ("FATAL:  the database system is starting up", "", "wait: it starts"),
    ],
)
def test_a_code_says_more_than_words(said: str, sqlstate: str, mends: str) -> None:
    assert mends in hints.postgresql_hint(said, sqlstate)


@pytest.mark.nightly
async def test_a_standby_is_named_until_it_is_promoted(pair: tuple[str, Standby]) -> None:
    primary, standby = pair
    url = standby.url(primary)
    assert "the server is a standby" in await said_of(url)
    with pytest.raises(StartError, match="is a standby"):
        schema.migrate(url)
    with pytest.raises(StartError, match="is a standby"):
        await privileges.refuse_unfit(engines.create(url))
    both = f"postgresql://postgres@127.0.0.1:{standby.port},{primary.rpartition('@')[2]}"
    assert "target_session_attrs=read-write" in await said_of(both)
    assert await said_of(f"{both}?target_session_attrs=read-write") == ""
    execute(url, "SELECT pg_promote()")
    assert await said_of(url) == ""


@pytest.mark.nightly
async def test_doctor_ends_while_postgresql_is_silent_in_the_middle(
    keepers: tuple[str, str], valkey: str
) -> None:
    """No statement, thread or name that is waited for keeps the command; half a minute of limits."""
    address = make_url(keepers[1])
    proxy = Proxy(address.port or 0)
    await proxy.start()
    silent = Trap(
        Way.TO_SERVER, b"FROM quarantine", cuts=False, then=lambda: setattr(proxy, "black_hole", True)
    )
    proxy.set_trap(silent)
    through = address.set(port=proxy.port).render_as_string(hide_password=False)
    words = "doctor", "--for", "keeper", "--redis-url", valkey, "--database-url", through
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words, cwd=ROOT, env=environ, stdout=subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(program.communicate(), HUNG_S)
    await proxy.stop()
    assert program.returncode == 1
    assert "WRONG rows: gives no answer within 10 s" in said.decode()
    assert silent.sprung.is_set()
