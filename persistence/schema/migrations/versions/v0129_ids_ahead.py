"""Ids go on above all that the counters know, behind a database that was set back."""

from alembic import op

revision = "0129"
down_revision = "0128"
alters = ()
runs_from = "0100"
version = "1.1.0"

_STATEMENTS = """
CREATE FUNCTION move_ids_past(known bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    home CONSTANT text := :home;
    ids regclass;
BEGIN
    IF known IS NULL OR known NOT BETWEEN 0 AND 9007199254740991 / 2 THEN
        RAISE EXCEPTION 'ids are moved past a known one' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR ids IN SELECT oid::regclass FROM pg_class
                WHERE relkind = 'S' AND relnamespace = to_regnamespace(quote_ident(home)) ORDER BY oid LOOP
        PERFORM setval(ids, greatest(nextval(ids), known) + 1000000);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    """Add the function, which older programs do not call."""
    home = op.get_bind().exec_driver_sql("SELECT quote_literal(current_schema())").scalar_one()
    op.execute(_STATEMENTS.replace(":home", home))
