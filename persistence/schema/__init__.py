"""The schema: its migrations, partitions, rights and backups."""
