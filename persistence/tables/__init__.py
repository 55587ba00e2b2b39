"""Every table of the database, by its name. Columns carry the public field names."""

from persistence.tables import billing, budgets, ledgers, operations, people
from persistence.tables.columns import metadata

__all__ = ["billing", "budgets", "ledgers", "metadata", "operations", "people"]
