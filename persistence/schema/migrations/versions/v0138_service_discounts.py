"""Organizations have discounts on services."""

from alembic import op

revision = "0138"
down_revision = "0137"
alters = ("organization", "organization_service", "service")
runs_from = "0100"
version = "1.1.0"

_TABLES = """
ALTER TABLE organization_service ADD discount numeric CHECK (discount BETWEEN 0 AND 1);
CREATE TABLE service_discount (
    organization_id bigint NOT NULL REFERENCES organization(id),
    service_id bigint NOT NULL REFERENCES service(id),
    month date NOT NULL CHECK (EXTRACT(day FROM month) = 1),
    rate numeric NOT NULL CHECK (rate BETWEEN 0 AND 1),
    is_due boolean DEFAULT true NOT NULL,
    PRIMARY KEY (organization_id, service_id, month)
);
"""


def upgrade() -> None:
    """Add the rates; older programs set none, and charge none while they run."""
    op.execute(_TABLES)
