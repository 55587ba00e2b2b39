"""Today's schema, whole, and its migrations; partitions, rights and backups."""
