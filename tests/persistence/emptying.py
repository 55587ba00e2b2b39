"""Empty a migrated database in milliseconds: only what holds anything, which is few of its tables.

What was emptied has no page left, so rows of the next test stand where they stood in a database that is new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import psycopg
from psycopg.sql import SQL, Identifier

from persistence.tables import metadata
from tests.connections import kept

# Whatever holds a row, or held one: what has no page never did. Partitions by their own name.
_HELD = """
SELECT relname FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND pg_relation_size(oid) > 0
   AND coalesce(pg_partition_root(oid), oid)::regclass::text = ANY(%s)"""

Work = Callable[[psycopg.Connection], object]


def clear(url: str, always_there: Collection[str], afterwards: Work = lambda _: None) -> None:
    """Delete every row but what is always there, and do `afterwards` in the same transaction."""
    # To have triggers rest, a session forgets whatever it has planned; no other session does.
    connection = kept(url, "emptying")
    kept(url).execute("DISCARD SEQUENCES")  # ids that its session has ahead
    names = [one.name for one in metadata.sorted_tables if one.name not in always_there]
    held = [Identifier(name) for (name,) in connection.execute(_HELD, [names])]
    with connection.transaction():
        # Ledgers refuse deletes: a superuser may have the triggers rest meanwhile.
        connection.execute("SET LOCAL session_replication_role = replica")
        for table in held:
            connection.execute(SQL("DELETE FROM {}").format(table))
        afterwards(connection)
    if held:
        connection.execute(SQL("VACUUM (INDEX_CLEANUP ON) {}").format(SQL(", ").join(held)))
