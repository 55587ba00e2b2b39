"""Every table of the database, by its name. Columns carry the public field names."""

from persistence.tables import (
    billing,
    budgets,
    corrections,
    dunning,
    feeds,
    handovers,
    ledgers,
    operations,
    people,
)
from persistence.tables.columns import metadata

__all__ = [
    "billing", "budgets", "corrections", "dunning", "feeds", "handovers", "ledgers", "metadata",
    "operations", "people",
]  # fmt: skip
