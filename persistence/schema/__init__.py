"""The schema: today's version, migrations, partitions and grants."""
