"""All data of a user is written out whole, and taken out so that nothing names them and no sum moves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from msgspec import Raw
from msgspec.structs import replace
from typer.testing import CliRunner

from gateway.core.accounts.call_facts import NONE, CallFacts, told_of, write_facts
from gateway.errors import Conflict, NotFound
from gateway.features.person.command import add_person
from persistence.ledger.writer import LedgerWriter
from persistence.person import KEPT, KeptPerson, connect, delete_person, find_person, read_person
from tests.admin.conftest import Api
from tests.connections import connected
from tests.persistence.scenario import batch_of, settle_in
from tests.persistence.schema.baseline import postgres_bin
from tests.waiting import HUNG_S

ADA, OTHER = "ada-7f31c2@example.com", "bob-9@example.com"
# A corrected use of an event, with a part of another model: its row has all that a row says of itself.
FACTS = CallFacts(
    model="m", status=200, counts=(7, 0, 0, 0, 5, 0, 0, 0, 0, 0), total=12, currency="USD", reason="late",
    corrects="0b9b6c53-1d5b-4c4e-9d2b-6f7a8b9c0d1e", used_ms=1_767_225_600_000,
    beside=(("adv", 2, (3, 0, 0, 0, 1, 0, 0, 0, 0, 0)),),
)  # fmt: skip
NAME, SAID, SESSION = "Ada Sentinel-55e1", "sentinel-2b7f-metadata", "sentinel-9911-session"
SUMS = """
SELECT 'token_ledger', tenant_id, count(*), sum(amount) FROM token_ledger GROUP BY 1, 2
 UNION ALL SELECT 'call', tenant_id, count(*), sum(tokens) + sum(cost) FROM call GROUP BY 1, 2
 UNION ALL SELECT 'rollup', tenant_id, sum(requests), sum(tokens) FROM usage_rollup_day GROUP BY 1, 2
 ORDER BY 1, 2"""


@pytest.fixture
async def person(api: Api, admin_database: str) -> KeptPerson:
    """A user with calls, metadata, a key and an admin token; another one made calls, too."""
    [account] = settle_in(admin_database, 10**9)
    account.reset()
    for number in range(20):
        user = ADA if number % 2 else OTHER
        facts = replace(
            FACTS, cost=number, session=SESSION if number % 2 else "s",
            metadata=Raw(json.dumps({"note": SAID}).encode()),
            tags={"feature": SESSION, "team": "red"} if number % 2 else {"team": "red"},
        )  # fmt: skip
        account.consume(12, user=user, metadata=write_facts(facts))
    writer = LedgerWriter(admin_database)
    await writer.write(batch_of(account))
    writer.close()
    with connect(admin_database) as connection:
        found = find_person(connection, ADA, None)
    await api.patch(f"users/{found.id}", {"name": NAME, "limits": {"concurrency": 3}})
    key = await api.make("api-keys", tenant_id=account.tenant_id, name=f"laptop of {NAME}", user=ADA)
    token = await api.make(
        "admin-tokens", name=NAME, role="readonly", organization_id=found.organization, user_id=found.id,
        issuer="https://id.example.com", subject=ADA,
    )  # fmt: skip
    each = {"organization_id": found.organization, "unit": "tokens", "interval": "day", "each": "user"}
    budget = await api.make("budgets", **each, name="each", amount=1)
    own = await api.call("PUT", f"budgets/{budget['id']}/overrides/{ADA}", {"amount": 1, "reason": NAME})
    assert own.status == 200
    said = {"amount": 2, "until": "2999-01-31T00:00:00Z", "reason": "release", "who": ADA}
    assert (await api.post(f"budgets/{budget['id']}/raise", said)).status == 200
    await api.make("raise-requests", **said, budget_id=budget["id"])
    api.rows("UPDATE control_write SET state = 'done' RETURNING 1")
    for action in (f"api-keys/{key['id']}/revoke", f"admin-tokens/{token['id']}/revoke"):
        assert (await api.post(action)).status in {200, 202}
    return found


def program() -> typer.Typer:
    made = typer.Typer()
    add_person(made)
    made.command()(dumped)  # one command alone would be the program itself
    return made


async def end(api: Api, person: KeptPerson) -> None:
    """Delete the user, and have all writes applied."""
    assert (await api.delete(f"users/{person.id}")).status in {200, 202, 204}
    api.rows("UPDATE control_write SET state = 'done' RETURNING 1")


def dumped(url: str) -> str:
    words = [str(postgres_bin() / "pg_dump"), "--data-only", url]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=HUNG_S).stdout


def named_in(text: str) -> list[str]:
    """Which of the words that name her a text has."""
    return [word for word in (ADA, NAME, SESSION) if word in text]


async def test_person_export_command_writes_every_row_of_the_user_without_secrets(
    api: Api, admin_database: str, person: KeptPerson, tmp_path: Path
) -> None:
    file = tmp_path / "ada.jsonl"
    words = ["person", "export", ADA, "--to", str(file), "--database-url", admin_database]
    done = CliRunner().invoke(program(), words)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["table"]] = counts.get(row["table"], 0) + 1
    assert (
        counts.items()
        >= {
            "app_user": 1, "api_key": 1, "admin_token": 1, "budget_override": 1, "budget_raise": 1,
            "raise_request": 1, "call": 10, "token_ledger": 10,
        }.items()
    )  # fmt: skip
    assert named_in(file.read_text()) == [ADA, NAME, SESSION]
    assert SAID in file.read_text()
    assert OTHER not in file.read_text()
    digests = [
        row[0] for table in ("api_key", "admin_token") for row in api.rows(f"SELECT digest FROM {table}")
    ]
    assert not [each for each in digests if each in file.read_text()]


async def test_person_delete_command_removes_every_name_of_the_user_and_keeps_ledger_sums(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    await end(api, person)
    before, whole = api.rows(SUMS), dumped(admin_database)
    assert named_in(whole) == [ADA, NAME, SESSION]
    done = CliRunner().invoke(
        program(), ["person", "delete", ADA, "--yes", "--json", "--database-url", admin_database]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["token_ledger"] == 10
    after = dumped(admin_database)
    assert named_in(after) == []
    # Metadata of others stays.
    assert (whole.count(SAID), after.count(SAID)) == (20, 10)
    assert api.rows(SUMS) == before
    assert api.rows(f"SELECT count(*) FROM call WHERE user_id = {person.id}") == [(10,)]
    told = json.loads(told_of(replace(FACTS, metadata=NONE)))
    assert {"corrects", "reason", "other_models", "supplied_on", "used_at"} < told.keys()
    assert api.rows(f"SELECT DISTINCT metadata FROM token_ledger WHERE user_id = {person.id}") == [(told,)]
    with (
        connected(admin_database) as connection,
        pytest.raises(psycopg.Error, match=r"append|added"),
    ):
        connection.execute("UPDATE token_ledger SET metadata = NULL")
    assert api.rows("SELECT action, resource_id FROM audit_log WHERE actor = 'person delete'") == [
        ("forget", str(person.id)),
    ]
    with connect(admin_database) as connection, pytest.raises(NotFound):
        find_person(connection, ADA, None)


async def test_person_delete_command_is_refused_while_the_user_is_in_use(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    with connect(admin_database) as connection:
        with pytest.raises(Conflict, match="not deleted"):
            delete_person(connection, person)
        await end(api, person)
        gone = find_person(connection, ADA, str(person.organization))
        for change, said in (
            ("UPDATE api_key SET revoked_at = NULL", "API key"),
            ("UPDATE admin_token SET revoked_at = NULL", "admin token"),
            ("UPDATE control_write SET state = 'pending' WHERE account LIKE 'user:%%'", "on its way"),
        ):
            connection.execute(change.encode())
            with pytest.raises(Conflict, match=said):
                delete_person(connection, gone)
            connection.rollback()


async def test_person_delete_command_on_a_signed_ledger_requires_the_signed_option(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    await end(api, person)
    with connect(admin_database) as connection:
        gone: Any = find_person(connection, ADA, None)
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'ledger_head'"
            " AND is_nullable = 'NO' AND column_default IS NULL"
        ).fetchall()
        sample = {"bigint": "1", "bytea": "'\\x00'", "text": "'x'", "timestamp with time zone": "now()"}
        names, values = ", ".join(name for name, _ in columns), ", ".join(sample[kind] for _, kind in columns)
        connection.execute(f"INSERT INTO ledger_head ({names}) VALUES ({values})".encode())
        with pytest.raises(Conflict, match="--signed"):
            delete_person(connection, gone)
        assert delete_person(connection, gone, signed=True)["token_ledger"] == 10


def test_person_commands_cover_every_table_with_a_user_column(admin_database: str) -> None:
    """A new column that names a user has its table here, or a reason."""
    counted = {"usage_outbox"}  # by the user's id alone, until it is sent
    with connected(admin_database) as connection:
        found = connection.execute(
            "SELECT DISTINCT c.relname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " WHERE a.attname IN ('user', 'user_id') AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " AND c.relnamespace = 'public'::regnamespace"
        ).fetchall()
    assert {name for (name,) in found if not name.startswith("usage_rollup")} <= {*KEPT, *counted}


async def test_person_command_needs_the_organization_name_when_two_organizations_share_the_user_id(
    api: Api, admin_database: str
) -> None:
    first, second = [await api.make("organizations", name=name) for name in ("One", "Two")]
    for each in (first, second):
        await api.make("users", organization_id=each["id"], external_id="x")
    with connect(admin_database) as connection:
        with pytest.raises(Conflict, match="name the organization"):
            find_person(connection, "x", None)
        found = find_person(connection, "x", "Two")
        assert found.organization == second["id"]
        assert next(read_person(connection, found))["table"] == "app_user"
