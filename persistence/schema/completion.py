"""What a schema lacks behind its migrations: indexes and validated constraints, each by a statement of its own.

Nothing is noted: the steps are derived from `tables.sql` and the catalogue, so a killed run is completed by the next
one, from any version. Programs need none of these to be right, so they start without. Unique indexes are the
migrations' own.

An index of a partitioned table begins invalid and empty, in the transaction of the migrations, so that new partitions
have it from then on. Then each partition's own is made `CONCURRENTLY`, and attached; the last one makes it valid.
"""

from __future__ import annotations

import re
from pathlib import Path

# The indexes of today's schema: name, table, and the rest of the statement.
_INDEX = re.compile(r"^CREATE INDEX (\w+)\s+ON (\w+) ([^;]+);", re.MULTILINE)
_TABLES = (Path(__file__).parent / "tables.sql").read_text(encoding="utf-8")
INDEXES = dict(
    zip(
        ("names", "tables", "rests"),
        map(list, zip(*_INDEX.findall(re.sub(r"\n +", " ", _TABLES)), strict=True)),
        strict=True,
    )
)

# About how many rows the table t has: its density when it was last analyzed, or a usual one, times its size.
ROWS = """(CASE WHEN t.relpages > 0 AND t.reltuples >= 0 THEN t.reltuples / t.relpages ELSE 30 END
    * pg_relation_size(t.oid) / current_setting('block_size')::integer)::bigint"""
# Partitions go from the oldest on: those that are dropped meanwhile have their index already. If the only ones without
# were dropped, nothing would make the index valid: it is made again.
STEPS = f"""
WITH wanted AS (
    SELECT t.oid, t.relkind, w.name, format('%%s %%s', t.oid::regclass, w.rest) AS rest
      FROM unnest(%(names)s::text[], %(tables)s::text[], %(rests)s::text[]) AS w (name, on_table, rest)
      JOIN pg_class AS t ON t.oid = to_regclass(quote_ident(w.on_table))
), open AS MATERIALIZED (
    SELECT i.indexrelid, i.indrelid, c.relkind, c.relname
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
     WHERE c.relnamespace = current_schema()::regnamespace AND NOT i.indisvalid AND NOT i.indisunique
), known AS MATERIALIZED (
    SELECT i.indexrelid, i.indrelid, i.indisvalid, c.relkind, h.inhparent,
           substring(pg_get_indexdef(i.indexrelid) FROM ' USING .*') AS rest
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
      LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid
     WHERE NOT i.indisunique AND i.indrelid IN (
           SELECT indrelid FROM open UNION SELECT t.inhrelid FROM open JOIN pg_inherits AS t ON t.inhparent = open.indrelid)
), parts AS (
    SELECT p.indexrelid, p.rest, t.oid, t.relkind, t.relname, c.indexrelid AS own, c.inhparent, c.indisvalid
      FROM known AS p JOIN pg_inherits AS h ON h.inhparent = p.indrelid JOIN pg_class AS t ON t.oid = h.inhrelid
      LEFT JOIN known AS c ON c.indrelid = t.oid AND c.rest = p.rest AND (c.inhparent IS NULL OR c.inhparent = p.indexrelid)
     WHERE p.relkind = 'I' AND NOT p.indisvalid
)
SELECT within, statement, coalesce((SELECT {ROWS} FROM pg_class AS t WHERE t.oid = steps.oid), 0) AS rows FROM (
    SELECT relkind = 'p' AS within, 4 AS rank, rest AS what, CASE relkind
           WHEN 'p' THEN format('CREATE INDEX %%I ON ONLY ', name) ELSE format('CREATE INDEX CONCURRENTLY %%I ON ', name) END || rest AS statement,
           oid
      FROM wanted WHERE to_regclass(quote_ident(name)) IS NULL
    UNION ALL
    SELECT false, 1, '', format('DROP INDEX CONCURRENTLY %%s', indexrelid::regclass), NULL FROM open
     WHERE relkind = 'i' AND (relname IN (SELECT name FROM wanted) OR indexrelid IN (SELECT own FROM parts))
    UNION ALL
    SELECT relkind = 'p', 2, relname, format('ALTER INDEX %%s ATTACH PARTITION %%s', indexrelid::regclass, min(own)::regclass), NULL
      FROM parts WHERE indisvalid OR relkind = 'p'
     GROUP BY indexrelid, oid, relkind, relname HAVING count(own) > 0 AND count(inhparent) = 0
    UNION ALL
    SELECT relkind = 'p', 3, relname, format('CREATE INDEX %%s %%s%%s', CASE relkind WHEN 'p' THEN 'ON ONLY' ELSE 'CONCURRENTLY ON' END,
           oid::regclass, rest), oid
      FROM parts WHERE own IS NULL
    UNION ALL
    SELECT true, 1, '', format('DROP INDEX %%s', pg_partition_root(indexrelid)), NULL FROM parts
     GROUP BY indexrelid HAVING bool_and(coalesce(indisvalid AND inhparent IS NOT NULL, false))
    UNION ALL
    SELECT false, CASE t.relkind WHEN 'p' THEN 6 ELSE 5 END, relname, format('ALTER TABLE %%s VALIDATE CONSTRAINT %%I', t.oid::regclass, conname), t.oid
      FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
     WHERE connamespace = current_schema()::regnamespace AND NOT convalidated AND contype IN ('c', 'f')
) AS steps ORDER BY rank, what, statement"""
