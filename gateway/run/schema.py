"""Brings the schema and its users up to date, for `migrate` and `up`; loads PostgreSQL's libraries late."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gateway.errors import SchemaUnavailable, StartError
from gateway.ops import hints


def migrate(
    url: str, told: Callable[[str], object] = lambda _: None, *, end_older: bool = False, wait_s: float = 0.0
) -> str:
    """Migrate the schema to this version; return the version. `told` gets messages about the progress.

    If keepers of an older version still run after `wait_s` seconds, raise StartError. With `end_older`
    migrate at once: such keepers then stop by themselves.
    """
    from persistence.schema import standing  # noqa: PLC0415  # only two commands need it

    if standing.is_current(url):
        return standing.NEEDED
    from persistence.schema.migrate import upgrade  # noqa: PLC0415  # heavy, and little is to do as a rule

    try:
        return upgrade(url, told, end_older=end_older, wait_s=wait_s)
    except SchemaUnavailable as error:
        hint = hints.postgresql_hint(error.message, error.sqlstate)
        raise StartError(f"{error.message}; {hint}") from error


def load() -> None:
    """Load the code that checks the schema's version, while PostgreSQL starts."""
    with suppress(ImportError):  # its first use reports that
        from persistence.schema import standing  # noqa: F401, PLC0415  # only two commands need it


def admit_writer(url: str, password: str) -> str:
    """Set a password for the keeper's user of the embedded PostgreSQL; return the user's database URL."""
    from persistence.schema import standing  # noqa: PLC0415  # one command needs it

    return standing.admit_writer(url, password)
