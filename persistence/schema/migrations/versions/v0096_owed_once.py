"""A token of a cycle is owed once, whatever plan leaves and comes back within it."""

from pathlib import Path

from alembic import op

revision = "0096"
down_revision = "0095"
runs_from = "0069"
alters = ("plan_end",)
branch_labels = None
depends_on = None

# Nullable: a keeper of before goes on without them, and what it noted is read without them.
_STATEMENTS = """
ALTER TABLE plan_end ADD COLUMN paid_until DATE, ADD COLUMN began BIGINT,
    ADD COLUMN regained BIGINT CONSTRAINT plan_end_regained_check CHECK (regained > counted);
CREATE OR REPLACE FUNCTION keep_plan_end() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    known TEXT[] := ARRAY['used', 'began', 'debt', 'quantity', 'amount', 'charges', 'regained'];
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.carries AND OLD.debt_counted IS NULL THEN
        known := known || ARRAY['debt_write_id', 'debt_ends_at', 'debt_counted'];
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.charges >= OLD.charges AND (NEW.quantity IS NOT NULL OR OLD.quantity IS NULL)
       AND (OLD.regained IS NULL OR NEW.regained >= OLD.regained)
       AND (to_jsonb(NEW) - known) = (to_jsonb(OLD) - known) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the end of plan % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;"""
_VIEW = "CREATE OR REPLACE VIEW invariant_owed AS"
_OF_CYCLES = "FROM plan_end WHERE amount > 0 GROUP BY organization_id, anchor_date, paid_from"
_OF_TOKENS = (
    "FROM plan_end WHERE amount > 0 GROUP BY organization_id, tenant_id, began, paid_from, cycle_ends_at"
)


def upgrade() -> None:
    """Columns, and an invariant: what was given as one allotment comes to the fee of a plan at most."""
    supplied = (Path(__file__).parents[1] / "v0060" / "supplied.sql").read_text(encoding="utf-8")
    view = _VIEW + supplied.split(_VIEW)[1]
    for statement in (_STATEMENTS, view.replace(_OF_CYCLES, _OF_TOKENS)):
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
