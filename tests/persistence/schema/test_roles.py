"""The writer of a database of ours is let in by a password of its own."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence.schema import migrate
from persistence.schema.roles import admit_writer
from tests.persistence.scenario import rows_of


def test_the_writer_is_let_in_by_the_owner(database: str) -> None:
    migrate.upgrade(database)
    url = admit_writer(database, "a:b/c@d")
    assert conninfo_to_dict(url)["password"] == "a:b/c@d"
    assert rows_of(url, "SELECT current_user || '' = current_database() || '_writer'") == [(True,)]
    with psycopg.connect(database) as admin:
        kept = admin.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = current_database() || '_writer'"
        )
        assert str(kept.fetchone()).startswith("('SCRAM-SHA-256$")
