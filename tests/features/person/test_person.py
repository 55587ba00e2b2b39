"""All data of a user is written out whole, and taken out so that nothing names them and no sum moves."""

from __future__ import annotations

import contextlib
import json
import subprocess
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import typer
from msgspec import Raw
from msgspec.structs import replace
from psycopg import sql
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from gateway.core.accounts.budgets import owner_of
from gateway.core.accounts.call_facts import NONE, CallFacts, told_of, write_facts
from gateway.core.accounts.outbox import WindowKey
from gateway.core.times import ms_of
from gateway.errors import Conflict, NotFound
from gateway.features.person.command import add_person
from persistence import engine as engines
from persistence.keeper.verification import BudgetUses
from persistence.ledger.writer import LedgerWriter
from persistence.person import (
    KEPT,
    NOT_WORDS,
    KeptPerson,
    connect,
    count_mentions,
    delete_person,
    find_person,
    read_person,
)
from tests.admin.configuration.world import apply
from tests.admin.conftest import Api
from tests.connections import connected
from tests.persistence.scenario import batch_of, settle_in
from tests.persistence.schema.baseline import postgres_bin
from tests.waiting import HUNG_S

# Ids may have any printable characters: JSON escapes some of them, paths others. `PART` alone is in no other word.
PART, OTHER = "ada-7f31c2", "bob-9@example.com"
ADA = f'{PART} "ö"/x@example.com'
# A corrected use of an event, with a part of another model: its row has all that a row says of itself.
FACTS = CallFacts(
    model="m", status=200, counts=(7, 0, 0, 0, 5, 0, 0, 0, 0, 0), total=12, currency="USD", reason="late",
    corrects="0b9b6c53-1d5b-4c4e-9d2b-6f7a8b9c0d1e", used_ms=1_767_225_600_000,
    beside=(("adv", 2, (3, 0, 0, 0, 1, 0, 0, 0, 0, 0)),),
)  # fmt: skip
PATH = quote(ADA, safe="")
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
    own = await api.call("PUT", f"budgets/{budget['id']}/overrides/{PATH}", {"amount": 1, "reason": NAME})
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
    return [word for word in (PART, NAME, SESSION) if word in text]


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
    assert named_in(file.read_text()) == [PART, NAME, SESSION]
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
    assert named_in(whole) == [PART, NAME, SESSION]
    done = CliRunner().invoke(
        program(), ["person", "delete", ADA, "--yes", "--json", "--database-url", admin_database]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["token_ledger"], said["mentions"]) == (10, {})
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


async def name_everywhere(api: Api, url: str, person: KeptPerson) -> int:
    """Name the user in every field of every write that can; return the budget of each user."""
    owner = {"organization_id": person.organization}
    [(tenant_id, tenant, organization)] = api.rows(
        "SELECT t.id, t.name, o.name FROM tenant AS t JOIN organization AS o ON o.id = t.organization_id"
    )
    await api.make("webhooks", url="https://hooks.example.com/all", **owner)
    group = await api.make("groups", **owner, name="Team", kind="user", members=[OTHER, ADA])
    changed = await api.patch(f"groups/{group['id']}", {"members": [ADA, OTHER]})
    assert changed.status == 200
    for method, path in (
        ("DELETE", f"groups/{group['id']}/members"),
        ("PUT", f"groups/{group['id']}/members"),
    ):
        assert (await api.call(method, f"{path}/{PATH}")).status in {200, 204}
    [each] = (await api.get("budgets?name=each")).json["items"]
    place = f"budgets/{each['id']}/overrides/{PATH}"
    assert (await api.delete(place)).status in {200, 204}
    own = await api.call("PUT", place, {"amount": 3}, headers={"Idempotency-Key": "an override"})
    assert own.status == 200
    mine = {**owner, "unit": "tokens", "amount": 9, "interval": "day", "user": ADA, "name": f"of {ADA}"}
    made = await api.post("budgets", mine, "a budget")
    assert (await api.patch(f"budgets/{made.json['id']}", {"amount": 8})).status == 200
    assert (await api.delete(f"budgets/{made.json['id']}")).status == 204
    asked = {
        "budget_id": each["id"],
        "amount": 3,
        "until": "2999-02-01T00:00:00Z",
        "reason": f"for {NAME}",
        "who": ADA,
    }
    request = await api.make("raise-requests", **asked)
    assert (await api.post(f"raise-requests/{request['id']}/approve")).status == 200
    assert (await api.get("webhook-deliveries")).json["items"], "a message names the user"
    await api.make("users", **owner, external_id=OTHER + ".org", name="Bob")
    await apply(api, {
        "users": [{"organization": organization, "external_id": ADA, "limits": {"concurrency": 4}}],
        "groups": [{"organization": organization, "name": "Filed", "kind": "user", "members": [ADA, OTHER]}],
        "budgets": [{"organization": organization, "name": "Filed", "unit": "tokens", "amount": 5, "interval": "day",
                     "each": "user", "overrides": [{"who": ADA, "amount": 7}]}],
        "api-keys": [{"tenant": {"organization": organization, "name": tenant}, "name": "Filed", "user": ADA}],
    })  # fmt: skip
    event = {
        "specversion": "1.0", "type": "use", "source": "importer", "id": "1", "subject": f"tenant:{tenant_id}",
        "data": {"service": "chat", "usage": {"output": 7}, "user": ADA},
    }  # fmt: skip
    assert (await api.post("events", event)).json["accepted"] == 1
    [(token,)] = api.rows("SELECT id FROM admin_token WHERE name = %s", NAME)
    with connected(url) as connection:
        for table, values in written_elsewhere(person, each["id"], token).items():
            insert(connection, table, values)
        shared = await api.make("admin-tokens", name="sign-in", role="admin", **owner)
        signed = {"issuer": "https://id.example.com", "identity": ADA, "person": ADA}
        boss = {"issuer": "https://id.example.com", "identity": "b", "person": "boss@example.com"}
        by_sign_in = {
            "actor": f"token:{shared['id']}",
            "admin_token_id": shared["id"],
            **owner,
            "resource": "groups",
        }
        insert(connection, "audit_log", {**by_sign_in, **signed, "action": "delete", "resource_id": "9"})
        after = {"action": "put-member", "resource_id": "9", "after": json.dumps({"member": ADA})}
        insert(connection, "audit_log", {**by_sign_in, **boss, **after})
    return int(each["id"])


# Columns that have the id then. One that a test finds besides is to be taken out, too.
NAMING = {
    (table, column)
    for table, columns in {
        "admin_token": "subject", "agent_sign_in": "identity person", "api_key": "user", "app_user": "external_id",
        "audit_log": "after before identity person", "budget": "name user", "budget_override": "name",
        "budget_raise": "name", "budget_use": "name", "caller_group": "members", "console_session": "identity person",
        "control_write": "account payload", "dead_letter": "resolved_identity resolved_person",
        "idempotency_key": "response", "lost_event": "detail", "quarantine": "released_identity released_person",
        "raise_request": "who", "signed_in_user": "name", "webhook_delivery": "payload",
    }.items()
    for column in columns.split()
}  # fmt: skip


def written_elsewhere(person: KeptPerson, budget: int, token: int) -> dict[str, dict[str, Any]]:
    """Return rows, by table, that keepers, the console and sign-ins write and that name the user."""
    signed = {"issuer": "https://id.example.com", "identity": ADA, "person": ADA}
    decided = {"at": "now", "by": f"token:{token}", "reason": "checked", **signed}
    account = {"budget_id": budget, "start": "2026-11-01", "value": owner_of(ADA)}
    return {
        "budget_use": {**account, "name": ADA, "used": 5},
        "budget_told": {**account, "part": "0.5"},
        "signed_in_user": {"organization_id": person.organization, "name": ADA, "claims": "[]"},
        "console_session": {"digest": "d", "expires_at": "2999-01-01", **signed, "token_digest": "shared",
                            "organization_id": person.organization},
        "agent_sign_in": {"seed": "s", "user_code": "u", "agent": "a", "site": "s", "token_id": token,
                          "expires_at": "2999-01-01", **signed},
        "dead_letter": {"partition": 0, "entry_id": "1-1", "raw": b"", "reason": "unreadable",
                        "resolution": "resolved"} | {f"resolved_{name}": value for name, value in decided.items()},
        "quarantine": {"account": "tenant:1", "partition": 0, "organization_id": person.organization, "kind": "gap",
                       "entry_id": "1-1", "epoch": 1, "stored_seq": 1, "found_seq": 3, "reason": "a gap",
                       "resolution": "accepted"} | {f"released_{name}": value for name, value in decided.items()},
        "lost_event": {"account": "tenant:1", "partition": 0, "epoch": 1, "first_seq": 2, "last_seq": 2,
                       "detail": json.dumps({"by": f"token:{token}", "person": ADA})},
    }  # fmt: skip


def insert(connection: psycopg.Connection, table: str, values: dict[str, Any]) -> None:
    names, places = map(sql.Identifier, values), [sql.Placeholder()] * len(values)
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})")
    connection.execute(
        statement.format(sql.Identifier(table), sql.SQL(", ").join(names), sql.SQL(", ").join(places)),
        [*values.values()],
    )


async def test_person_delete_command_leaves_the_id_of_the_user_in_no_column_of_text_or_json(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    """Numbers of rows stay, and so do entries that nobody could store, which are bytes."""
    budget = await name_everywhere(api, admin_database, person)
    assert columns_with(admin_database) == NAMING
    for (key,) in api.rows("SELECT id FROM api_key WHERE revoked_at IS NULL"):
        assert (await api.post(f"api-keys/{key}/revoke")).status in {200, 202}
    await end(api, person)
    [(of_tag,)] = api.rows(
        "INSERT INTO budget (organization_id, name, unit, amount, interval, each)"
        " VALUES (%s, 'Owners', 'tokens', 9, 'day', 'tag:owner') RETURNING id", person.organization,
    )  # fmt: skip
    tagged = {"budget_id": of_tag, "start": "2026-11-01", "value": owner_of(ADA), "name": ADA, "used": 6}
    with connected(admin_database) as connection:
        insert(connection, "budget_use", tagged)
    with connect(admin_database) as connection:
        delete_person(connection, find_person(connection, ADA, None))
    assert columns_with(admin_database) == set()
    nobody = f"deleted-{person.id}"
    assert api.rows("SELECT value, name, used FROM budget_use ORDER BY used") == [
        (nobody, nobody, 5),
        (nobody, nobody, 6),
    ]
    assert api.rows("SELECT value, part FROM budget_told") == [(nobody, Decimal("0.5"))]
    listed = "SELECT action, person, after FROM audit_log WHERE resource = 'groups' AND after ? 'member' ORDER BY id"
    assert api.rows(listed) == [
        ("remove-member", None, {"member": nobody}), ("put-member", None, {"member": nobody}),
        ("put-member", "boss@example.com", {"member": nobody}),
    ]  # fmt: skip
    assert api.rows("SELECT after -> 'members' FROM audit_log WHERE resource = 'groups' AND action = 'create' ORDER BY id") == [
        ([OTHER, nobody],), ([nobody, OTHER],),
    ]  # fmt: skip
    assert api.rows("SELECT name, members FROM caller_group ORDER BY id") == [
        ("Team", [OTHER]),
        ("Filed", [OTHER]),
    ]
    engine = engines.create(admin_database)
    window = WindowKey(budget, ms_of(datetime(2026, 11, 1, tzinfo=UTC)))
    stored = await BudgetUses(engine).stored(0, [int(str(person.organization))], [window], {budget})
    await engine.dispose()
    assert stored.used == {}, "no account in Redis has it: a comparison would find it missing"


async def test_person_export_command_has_the_use_of_budgets_and_of_groups_the_membership_alone(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    await name_everywhere(api, admin_database, person)
    with connect(admin_database) as connection:
        rows = list(read_person(connection, person))
    assert OTHER not in json.dumps(rows)
    of = {table: [row["row"] for row in rows if row["table"] == table] for table in KEPT}
    assert [(row["name"], row["members"]) for row in of["caller_group"]] == [
        ("Team", [ADA]),
        ("Filed", [ADA]),
    ]
    assert [row["used"] for row in of["budget_use"]] == [5]
    changes = [
        (row["action"], (row["after"] or {}).get("members"))
        for row in of["audit_log"]
        if row["resource"] == "groups"
    ]
    assert changes == [
        ("create", [ADA]), ("change", [ADA]), ("remove-member", None), ("put-member", None), ("create", [ADA]),
        ("delete", None), ("put-member", None),
    ]  # fmt: skip


def columns_with(url: str) -> set[tuple[str, str]]:
    """Return the columns of text or JSON, as table and column, that have the user's id."""
    with connected(url) as connection:
        tables = connection.execute(
            "SELECT c.relname, array_agg(a.attname::text) FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_type AS e ON e.oid = t.typelem"
            " WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped"
            " AND c.relnamespace = 'public'::regnamespace AND (t.typname IN ('json', 'jsonb') OR t.typcategory = 'S'"
            " OR e.typcategory = 'S' OR e.typname IN ('json', 'jsonb')) GROUP BY 1"
        ).fetchall()
        found = set()
        for table, columns in tables:
            has = [
                sql.SQL("bool_or(strpos({}::text, {}) > 0)").format(sql.Identifier(name), PART)
                for name in columns
            ]
            statement = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(has), sql.Identifier(table))
            [answer] = connection.execute(statement).fetchall()
            found |= {(table, name) for name, is_there in zip(columns, answer, strict=True) if is_there}
        return found


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


# Tables that are of no organization.
NOBODYS = {
    "alembic_version",
    "business_model",
    "partition_state",
    "service",
    "token_plan",
    "token_plan_price",
}
# Rows that never change, of others too: their columns are counted.
FIXED = {
    "token_ledger.feature_version", "token_ledger.metadata",
    "use_event.actor", "use_event.event_id", "use_event.source", "use_event.type",
}  # fmt: skip


@pytest.mark.parametrize("text", [ADA, f"asked by {ADA}, today"])
async def test_person_delete_command_cleans_or_counts_each_column_of_text_or_json_that_names_the_user(
    api: Api, admin_database: str, person: KeptPerson, text: str
) -> None:
    await name_everywhere(api, admin_database, person)
    for (key,) in api.rows("SELECT id FROM api_key WHERE revoked_at IS NULL"):
        assert (await api.post(f"api-keys/{key}/revoke")).status in {200, 202}
    await end(api, person)
    api.rows("DELETE FROM usage_name WHERE kind NOT LIKE 'tag:%%' RETURNING 1")  # sums are by these
    written = write_everywhere(admin_database, person, text)
    tagged = {
        ("api_key", "tags"),
        ("budget", "tags"),
        ("call", "tags"),
        ("usage_tag", "tags"),
        ("usage_name", "name"),
    }
    reasons = {
        ("budget", "raise_reason"),
        ("budget_override", "reason"),
        ("raise_request", "reason"),
        ("webhook", "url"),
    }
    assert tagged | reasons <= written
    assert len(written) > 100
    with connect(admin_database) as connection:
        gone = find_person(connection, ADA, None)
        delete_person(connection, gone)
        connection.commit()
        left = count_mentions(connection, gone)
    assert left.keys() == FIXED
    assert left["use_event.source"] == 1
    found = {f"{table}.{name}" for table, name in columns_with(admin_database) if table not in NOBODYS}
    assert found == FIXED
    nobody = text.replace(ADA, f"deleted-{person.id}")
    assert api.rows("SELECT DISTINCT tags ->> 'note' FROM api_key") == [(nobody,)]


def write_everywhere(url: str, person: KeptPerson, text: str) -> set[tuple[str, str]]:
    """Have each column of text or JSON of the organization say a text, if it may; return those that do. Nothing is in use then."""
    written = set()
    with connected(url) as connection:
        connection.execute("SET session_replication_role = replica")
        for table, columns in connection.execute(
            "SELECT c.relname, jsonb_object_agg(a.attname, t.typname) FROM pg_attribute AS a"
            " JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_type AS t ON t.oid = a.atttypid"
            " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped"
            " AND c.relnamespace = 'public'::regnamespace GROUP BY 1"
        ).fetchall():
            kinds = {"text": [text], "jsonb": [Jsonb({"note": text}), Jsonb([text])]}
            texts = [
                (name, value)
                for name, kind in columns.items()
                if NOT_WORDS.isdisjoint({name, f"{table}.{name}"})
                for value in kinds.get(kind, [])
            ]
            ends = [(name, "now") for name in ("deleted_at", "revoked_at") if name in columns]
            rows = (
                sql.SQL("organization_id = {}").format(person.organization)
                if "organization_id" in columns
                else sql.SQL("true")
            )
            for name, value in [*ends, *texts]:
                statement = sql.SQL(
                    "UPDATE {0} SET {1} = %s WHERE {2} AND strpos(coalesce({1}::text, ''), {3}) = 0"
                )
                update = statement.format(sql.Identifier(table), sql.Identifier(name), rows, PART)
                with contextlib.suppress(psycopg.IntegrityError, psycopg.DataError), connection.transaction():
                    if connection.execute(update, [value]).rowcount and name in dict(texts):
                        written.add((table, name))
    return written


async def deleted_as(api: Api, url: str, person: KeptPerson, name: str) -> None:
    """Call the user by another id, and delete them."""
    api.rows("UPDATE app_user SET external_id = %s WHERE id = %s RETURNING 1", name, person.id)
    api.rows("""UPDATE api_key SET "user" = %s WHERE "user" IS NOT NULL RETURNING 1""", name)
    await end(api, person)
    with connect(url) as connection:
        delete_person(connection, find_person(connection, name, str(person.organization)))


@pytest.mark.parametrize("name", ["credit-additions", "u-7", ADA])
async def test_person_delete_command_keeps_idempotency_keys_that_are_not_of_the_user(
    api: Api, admin_database: str, person: KeptPerson, name: str
) -> None:
    """A credit that was added once is not added again: not of another organization, nor by a word that a path has."""
    other = await api.make("organizations", name="Other")
    for organization, key, remark in (
        (other["id"], "u-7", name),
        (other["id"], "again", name),
        (person.organization, "theirs", "paid"),
    ):
        said = {"organization_id": organization, "credits_added": 5, "remark": remark}
        assert (await api.post("credit-additions", said, key)).status in {201, 202}
    await api.post("users", {"organization_id": other["id"], "external_id": name}, "another user")
    [(token,)] = api.rows("SELECT id FROM admin_token WHERE name = %s", NAME)
    own = {"organization_id": person.organization, "external_id": name}
    signed = f"token:{token}\thttps://id.example.com\t{name}"
    for actor, key, response in (("builtin:admin", "own", own), (signed, "signed", {})):
        api.rows(
            "INSERT INTO idempotency_key (actor, key, method, path, body_digest, response, expires_at)"
            " VALUES (%s, %s, 'POST', '/', '', %s, '2999-01-01') RETURNING 1", actor, key, Jsonb(response),
        )  # fmt: skip
    before = {key for (key,) in api.rows("SELECT key FROM idempotency_key")}
    await deleted_as(api, admin_database, person, name)
    assert {key for (key,) in api.rows("SELECT key FROM idempotency_key")} == before - {"own", "signed"}


async def test_person_delete_command_keeps_messages_with_a_field_called_like_the_id(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    await name_everywhere(api, admin_database, person)
    for (key,) in api.rows("SELECT id FROM api_key WHERE revoked_at IS NULL"):
        assert (await api.post(f"api-keys/{key}/revoke")).status in {200, 202}
    messages = "SELECT id FROM webhook_delivery ORDER BY id"
    before = api.rows(messages)
    await deleted_as(api, admin_database, person, "organization_id")
    assert set(before) <= set(api.rows(messages))


async def test_person_delete_command_leaves_words_of_the_product_that_equal_the_id(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    route = "/v1/chat/completions"
    api.rows(
        "UPDATE call SET route = %s, reason = %s, service_tier = %s, unpriced = %s, exchange_rate = %s, session = NULL"
        " RETURNING 1", *[route] * 5,
    )  # fmt: skip
    api.rows("UPDATE call SET tags = %s RETURNING 1", Jsonb({route: f"asked by {route}"}))
    await deleted_as(api, admin_database, person, route)
    assert api.rows("SELECT DISTINCT route, reason, service_tier, unpriced, exchange_rate FROM call") == [
        (route,) * 5
    ]
    assert api.rows("SELECT DISTINCT tags FROM call WHERE tags IS NOT NULL") == [
        ({route: f"asked by deleted-{person.id}"},)
    ]


@pytest.mark.parametrize("name", ["{}", "[]", ": 0", "12345678901234567890", ": null", "nada@example.com"])
async def test_person_delete_command_leaves_json_valid_whatever_the_id_is(
    api: Api, admin_database: str, person: KeptPerson, name: str
) -> None:
    tags: dict[str, Any] = {
        "a": "of\nada@example.com",
        "b": None,
        "c": 0,
        "d": {},
        "e": [],
        "f": 12345678901234567890,
    }
    api.rows("UPDATE call SET tags = %s RETURNING 1", Jsonb(tags))
    await deleted_as(api, admin_database, person, name)
    assert api.rows("SELECT DISTINCT tags FROM call WHERE tags IS NOT NULL") == [(tags,)]


@pytest.mark.parametrize("place", ["api-keys", "webhooks", "tenants"])
async def test_person_delete_command_is_refused_while_another_row_in_use_has_the_id_as_a_text(
    api: Api, admin_database: str, person: KeptPerson, place: str
) -> None:
    await api.patch(f"organizations/{person.organization}", {"tags": ["owner"]})
    [(tenant,)] = api.rows("SELECT id FROM tenant")
    column, change, away = {
        "api-keys": ("api_key.tags", {"tags": {"owner": ADA}}, {"tags": {}}),
        "webhooks": ("webhook.url", {}, {}),
        "tenants": ("tenant.name", {"name": ADA}, {"name": "Other"}),
    }[place]
    if place == "webhooks":
        row = await api.make(
            "webhooks", url="https://hooks.example.com/ada", organization_id=person.organization
        )
        api.rows("UPDATE webhook SET url = %s RETURNING 1", ADA)
    elif place == "api-keys":
        row = await api.make("api-keys", tenant_id=tenant, name=f"of {ADA}", **change)
    else:
        row = {"id": tenant}
        assert (await api.patch(f"tenants/{tenant}", change)).status in {200, 202}
    await end(api, person)
    with connect(admin_database) as connection:
        gone = find_person(connection, ADA, None)
        with pytest.raises(Conflict, match=column):
            delete_person(connection, gone)
        connection.rollback()
        assert find_person(connection, ADA, None) == gone
        connection.rollback()
        if place == "webhooks":
            assert (await api.delete(f"webhooks/{row['id']}")).status == 204
        else:
            assert (await api.patch(f"{place}/{row['id']}", away)).status in {200, 202}
            api.rows("UPDATE control_write SET state = 'done' RETURNING 1")
        delete_person(connection, gone)
        connection.commit()
        left = count_mentions(connection, gone)
    assert left == ({"api_key.name": 1} if place == "api-keys" else {}), (
        "a name in use that has more than the id"
    )


async def test_person_delete_command_counts_a_short_id_that_may_be_the_word_of_another_thing(
    api: Api, admin_database: str, person: KeptPerson
) -> None:
    """A user is called 42: an amount, a tag and a reason may say 42 too."""
    api.rows("UPDATE app_user SET external_id = '42' WHERE id = %s RETURNING 1", person.id)
    api.rows("""UPDATE api_key SET "user" = '42' WHERE "user" IS NOT NULL RETURNING 1""")
    api.rows('UPDATE call SET tags = \'{"team": "42"}\' WHERE user_id <> %s RETURNING 1', person.id)
    api.rows("UPDATE budget_override SET name = '42', value = %s, reason = '42' RETURNING 1", owner_of("42"))
    api.rows("UPDATE raise_request SET reason = '42', who = NULL, requested_by = 'token:0' RETURNING 1")
    await end(api, person)
    with connect(admin_database) as connection:
        gone = find_person(connection, "42", None)
        delete_person(connection, gone)
        connection.commit()
        left = count_mentions(connection, gone)
    assert {"call.tags": 10, "raise_request.reason": 1}.items() <= left.items()
    assert (
        not {"app_user.external_id", "api_key.user", "budget_override.name", "budget_override.reason"}
        & left.keys()
    )
    assert api.rows("SELECT DISTINCT tags ->> 'team' FROM call WHERE tags IS NOT NULL") == [("42",)]
