"""The schema and its users, as `migrate` and `up` bring them up to date: PostgreSQL's libraries come late."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gateway.errors import SchemaUnavailable, StartError
from gateway.ops import hints


def migrate(
    url: str, told: Callable[[str], object] = lambda _: None, *, end_older: bool = False, wait_s: float = 0.0
) -> str:
    """Migrate the schema to the present version, and return this version.

    Keepers that the schema no longer serves are refused after `wait_s`, or ended by it (`end_older`).
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
    with suppress(ImportError):  # its first user says so
        from persistence.schema import standing  # noqa: F401, PLC0415  # only two commands need it


def admit_writer(url: str, password: str) -> str:
    """Set a password for the keeper's user of our own PostgreSQL; return the database's URL for this user."""
    from persistence.schema import standing  # noqa: PLC0415  # one command needs it

    return standing.admit_writer(url, password)
