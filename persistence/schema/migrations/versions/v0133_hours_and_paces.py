"""Prices change by the hour, calls say by which hour they were charged, and paces are of times apart."""

from alembic import op

revision = "0133"
down_revision = "0132"
alters = ("budget_told", "call", "price")
runs_from = "0100"
version = "1.1.0"


def upgrade() -> None:
    """Add the columns; older programs set no hours, and charge each call what its price says outside of them."""
    op.execute(
        "ALTER TABLE price ADD hours jsonb CHECK (jsonb_typeof(hours) = 'array'),"
        " ADD hours_at text DEFAULT 'begin' NOT NULL CHECK (hours_at IN ('begin', 'end'));"
        "ALTER TABLE call ADD priced_at timestamptz, ADD hour_factor text;"
        "ALTER TABLE budget_told ADD came_at timestamptz[] DEFAULT '{}' NOT NULL, ADD looked_used numeric"
    )
