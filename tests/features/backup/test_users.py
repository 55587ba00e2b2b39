"""Users of least rights after a restore under another name, and after a rename: each may do what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import StartError
from gateway.features.backup.storage import Folder
from gateway.features.backup.taking import back_up, restore
from persistence import engine as engines
from persistence.schema import migrate, privileges
from tests.conftest import ValkeyServer, free_port
from tests.connections import connected, leave
from tests.databases import own_database
from tests.deploy.deployment import ADMIN_TOKEN, answers
from tests.deploy.processes import Admin, Process
from tests.features.backup.test_taking import NOW
from tests.persistence.april import at, opened
from tests.persistence.scenario import rows_of
from tests.persistence.test_worked_example import test_the_worked_example as worked_example
from tests.waiting import HUNG_S, wait_until

MONEY = ("token_ledger", "credit_posting", "tenant_quota", "budget", "budget_use", "invoice", "invoice_line")


def snapshot(url: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of money; whether an invoice is overdue goes by today's date."""
    row = "(to_jsonb(t) - 'payment_status')::text"
    return {table: rows_of(url, f"SELECT {row} FROM {table} AS t ORDER BY 1") for table in MONEY}


async def test_keeper_starts_on_a_restored_database_and_again_after_that_database_is_renamed(
    postgres: str, database: str, own_valkey: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    name = database.rpartition("/")[2]
    again, renamed = f"{name}_again", f"{name}_renamed"
    with connected(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}_owner LOGIN CREATEROLE".encode())
        admin.execute(f"ALTER DATABASE {name} OWNER TO {name}_owner".encode())

    def url(user: str, database_name: str) -> str:
        return f"{database.replace('postgres@', f'{name}_{user}@').rpartition('/')[0]}/{database_name}"

    migrate.upgrade(url("owner", name), pytest.fail)
    with connected(url("owner", name), autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name}_keeper LOGIN IN ROLE {name}_writer".encode())
        owner.execute(f"CREATE ROLE {name}_person LOGIN IN ROLE {name}_reader".encode())
    async with opened(url("owner", name), at(3, 25)) as april:
        await worked_example(april)
    before = snapshot(url("person", name))
    assert before["token_ledger"]
    assert before["invoice"]
    backup, _ = await asyncio.to_thread(back_up, url("owner", name), Folder(tmp_path), NOW)

    with own_database(postgres, again):
        with connected(postgres, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {again} OWNER TO {name}_owner".encode())
        assert (await asyncio.to_thread(restore, url("owner", again), backup, ids_ahead=0))[1] == []
        pool = engines.create(url("keeper", again))
        with pytest.raises(
            StartError, match=f"{name}_keeper may not do what a keeper does .*: run tollkeeper"
        ):
            await privileges.refuse_unfit(pool)
        await pool.dispose()
        migrate.upgrade(url("owner", again), pytest.fail)
        port = free_port()
        environ = {
            "TOLLKEEPER_REDIS_URL": own_valkey("--appendonly", "yes").url,
            "TOLLKEEPER_DATABASE_URL": url("keeper", again), "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN,
            "TOLLKEEPER_KEY_PEPPER": "a-pepper-of-tests-only", "TOLLKEEPER_DATA_DIR": str(tmp_path / "data"),
        }  # fmt: skip
        keeper = Process(tmp_path, "keeper", ["keeper", "--admin-port", str(port)], environ)
        try:
            await asyncio.to_thread(wait_until, lambda: answers(port) or not keeper.running, HUNG_S)
            assert keeper.running, keeper.said
            found = await asyncio.to_thread(Admin(port, ADMIN_TOKEN).ask, "POST", "/reconciliation")
            assert (found["drift_tokens"], found["drift_credits"]) == (0, 0)
        finally:
            assert keeper.stop() == 0
        assert snapshot(url("person", again)) == before

        leave(url("person", again))
        with connected(postgres, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {again} RENAME TO {renamed}".encode())
        migrate.upgrade(url("owner", renamed), pytest.fail)
        assert privileges.privileges(url("keeper", renamed)).lacking == ()
        assert snapshot(url("person", renamed)) == before
        held = f"SELECT count(*) FROM pg_class WHERE strpos(relacl::text, '{again}') > 0"
        assert rows_of(url("owner", renamed), held) == [(0,)]  # a database that has this name next is another
        leave(url("person", renamed))
        with connected(postgres, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {renamed} RENAME TO {again}".encode())
