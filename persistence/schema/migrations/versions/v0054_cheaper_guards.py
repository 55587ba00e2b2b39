"""Guards of charges and lines cost less: a row is compared as it is, the lines of a statement at once."""

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE OR REPLACE FUNCTION keep_charge() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    placed charge;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.invoice_id IS NULL AND NEW.invoice_id IS NOT NULL THEN
        placed := OLD;
        placed.invoice_id := NEW.invoice_id;
        placed.line := NEW.line;
        IF placed *= NEW THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'charge % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION keep_invoice_lines() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    closed text;
BEGIN
    SELECT min(number) INTO closed FROM invoice
     WHERE id IN (SELECT invoice_id FROM touched) AND status <> 'draft';
    IF closed IS NOT NULL THEN
        RAISE EXCEPTION 'invoice % is closed: % of its lines refused', closed, TG_OP
              USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER immutable ON invoice_line;
CREATE TRIGGER immutable BEFORE UPDATE ON invoice_line FOR EACH ROW EXECUTE FUNCTION keep_invoice_line();
CREATE TRIGGER immutable_insert AFTER INSERT ON invoice_line REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION keep_invoice_lines();
CREATE TRIGGER immutable_delete AFTER DELETE ON invoice_line REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION keep_invoice_lines();"""


def upgrade() -> None:
    """Exchange the guards."""
    op.get_bind().exec_driver_sql(_STATEMENTS, execution_options={"no_parameters": True})
