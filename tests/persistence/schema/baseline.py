"""A database at the baseline, and a schema as pg_dump writes it: so both ways to today's are compared.

`v0114.sql.xz` is a dump of it, as the release before had made it, without partitions of months.
"""

from __future__ import annotations

import lzma
import re
import subprocess
from pathlib import Path

from tests.conftest import postgres_bin
from tests.connections import connected
from tests.databases import own_database

BASELINE = lzma.decompress((Path(__file__).parent / "v0114.sql.xz").read_bytes())


def bring_to_baseline(url: str) -> None:
    """Make an empty database one of the baseline."""
    with connected(url) as connection:
        connection.execute(BASELINE)


def described(postgres: str, url: str) -> list[str]:
    """A schema, line by line, restored once: PostgreSQL leaves out parentheses then that mean nothing."""
    with own_database(postgres, f"again_{url.rpartition('/')[2]}") as again, connected(again) as there:
        there.execute("\n".join(_dumped(url)).encode())
        there.commit()
        return _dumped(again)


def _dumped(url: str) -> list[str]:
    words = postgres_bin() / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", url
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    # A column that had another name keeps that in its NOT NULL.
    lines = (re.sub(r" CONSTRAINT \w+ NOT NULL", " NOT NULL", line) for line in said)
    # Whose rights are noted is by the name of the database.
    left = ("--", "\\", "COMMENT ON COLUMN public.alembic_version.")
    return [line for line in lines if line and not line.startswith(left)]
