"""Windows of budgets that roll or begin at first use, carry-over, and steps."""

from alembic import op

revision = "0140"
down_revision = "0139"
alters = ("budget",)
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the columns; older programs make calendar budgets alone, and no others while one runs."""
    op.execute(
        """
ALTER TABLE budget
    ALTER "interval" DROP NOT NULL,
    ADD "window" text DEFAULT 'calendar' NOT NULL CHECK ("window" IN ('calendar', 'rolling', 'first_use')),
    ADD length text CHECK (length ~ '^[1-9][0-9]{0,5}[mhd]$'),
    ADD carry jsonb CHECK (jsonb_typeof(carry) = 'object'),
    ADD steps jsonb DEFAULT '[]' NOT NULL CHECK (jsonb_typeof(steps) = 'array'),
    ADD CONSTRAINT budget_window_length_check CHECK (
        ("window" = 'calendar') = ("interval" IS NOT NULL) AND ("window" = 'calendar') = (length IS NULL)),
    ADD CONSTRAINT budget_carry_interval_check CHECK (
        carry IS NULL OR ("interval" IS NOT NULL AND "interval" <> 'total'));
"""
    )
