"""Every table of the database, by its name. Columns carry the public field names."""

from persistence.tables import billing, ledgers, operations, people
from persistence.tables.columns import metadata

__all__ = ["billing", "ledgers", "metadata", "operations", "people"]
