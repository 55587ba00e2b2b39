"""The PostgreSQL door: tables, migrations, the ledger writer, one file a subject."""
