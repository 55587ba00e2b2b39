"""Budgets of money count any amount."""

from functools import partial

from alembic import op
from sqlalchemy import Connection

revision = "0125"
down_revision = "0124"
alters = ("budget", "budget_told", "budget_use")
runs_from = "0100"
version = "1.1.0"

# The columns whose type changes, and the other ones outside of the key.
_WIDER = {
    "budget_use": (("used", "reset"), ("name", "moved_at")),
    "budget_told": (
        ("before_used", "seen_used"), ("part", "exceeded", "foreseen", "before_at", "seen_at", "level"),
    ),
}  # fmt: skip
# Another type of a column writes the whole table again, and keeps its writers waiting. So a copy with the new types is
# made, that a trigger has follow its table, and takes its place. Rows written meanwhile are the trigger's; FOR KEY
# SHARE keeps a row that is being deleted out of the copy.
_FOLLOW = """
SET LOCAL lock_timeout = 2000;
CREATE TABLE {table}_copy (LIKE {table} INCLUDING ALL EXCLUDING INDEXES, PRIMARY KEY (budget_id, start, value))
    WITH (autovacuum_enabled = off);
ALTER TABLE {table}_copy {types};
CREATE FUNCTION {table}_copied() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND (OLD.budget_id, OLD.start, OLD.value) <> (NEW.budget_id, NEW.start, NEW.value) THEN
        DELETE FROM {table}_copy WHERE (budget_id, start, value) = (OLD.budget_id, OLD.start, OLD.value);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {table}_copy VALUES (NEW.*) ON CONFLICT (budget_id, start, value) DO UPDATE SET {sets};
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER copied AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_copied();
"""
# Less than deadlock_timeout: in a deadlock the copy gives way.
_PIECE = """
SET LOCAL lock_timeout = 500;
INSERT INTO {table}_copy SELECT * FROM {table} WHERE ctid >= '({block},0)' AND ctid < '({end},0)' FOR KEY SHARE
    ON CONFLICT DO NOTHING;
"""
_PIECE_BLOCKS = 200
# Blocks are those of one file: where the table has another file by then, all are read again. A comment says that each
# row has been copied; from then on the trigger alone is enough, also behind a dump and its restore.
_COPIED = "SELECT obj_description('{table}_copy'::regclass) IS NOT NULL"
_FILE = """
SELECT pg_relation_filenode('{table}'), pg_relation_size('{table}') / current_setting('block_size')::bigint"""
_REPLACE = """
DROP TABLE {table};
DROP FUNCTION {table}_copied();
ALTER TABLE {table}_copy RENAME TO {table};
ALTER INDEX {table}_copy_pkey RENAME TO {table}_pkey;
ALTER TABLE {table} RESET (autovacuum_enabled);
COMMENT ON TABLE {table} IS NULL;
"""
_AMOUNT = """
ALTER TABLE budget DROP CONSTRAINT budget_{0}_check, ADD CONSTRAINT budget_{0}_check CHECK (
    {0} BETWEEN 0 AND CASE unit WHEN 'money' THEN 1000000000000000 ELSE 9007199254740991 END
    AND {0} = trunc({0}, CASE unit WHEN 'money' THEN 9 ELSE 0 END))"""


def prepare(connection: Connection) -> None:
    """Copy the tables in pieces, each a transaction of its own; the next run continues what a killed one began."""
    run = partial(connection.exec_driver_sql, execution_options={"no_parameters": True})
    for table, (wider, others) in _WIDER.items():
        if run(f"SELECT to_regclass('{table}_copy') IS NULL").scalar_one():
            types = ", ".join(f"ALTER {column} TYPE numeric" for column in wider)
            sets = ", ".join(f"{column} = excluded.{column}" for column in (*wider, *others))
            schema = run("SELECT quote_ident(current_schema())").scalar_one()
            run(_FOLLOW.format(table=table, types=types, sets=sets, schema=schema))
        while not run(_COPIED.format(table=table)).scalar_one():
            file, size = run(_FILE.format(table=table)).one()
            for block in range(0, size + 1, _PIECE_BLOCKS):
                run(_PIECE.format(table=table, block=block, end=block + _PIECE_BLOCKS))
            if run(_FILE.format(table=table)).one()[0] == file:
                run(f"ANALYZE {table}_copy; COMMENT ON TABLE {table}_copy IS 'copied'")


def upgrade() -> None:
    """Change the columns of amounts and of use to types of any size, those of use by the copies of `prepare`."""
    prepare(op.get_bind())
    for amount in ("amount", "raised_to"):
        op.execute(_AMOUNT.format(amount))
    op.execute("DROP VIEW invariant_budgets")  # 0142 makes it again
    for table in _WIDER:
        op.execute(_REPLACE.format(table=table))
