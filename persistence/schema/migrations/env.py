"""Alembic's environment: migrations run in the transaction that `schema.migrate` opened and locked."""

from alembic import context

from persistence.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
