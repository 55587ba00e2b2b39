"""Every table of the database, by its name. Columns carry the public field names."""

from persistence.tables import (
    billing,
    budgets,
    corrections,
    dunning,
    handovers,
    ledgers,
    operations,
    people,
    sign_ins,
    usage_feed,
)
from persistence.tables.columns import metadata

__all__ = [
    "billing", "budgets", "corrections", "dunning", "handovers", "ledgers", "metadata", "operations",
    "people", "sign_ins", "usage_feed",
]  # fmt: skip
