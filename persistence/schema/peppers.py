"""Under which peppers the credentials are that somebody may still use."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from gateway.errors import SchemaUnavailable
from persistence.complaint import complaint
from persistence.engine import CONNECT, plain_url

_IN_USE = """
SELECT pepper, count(*) FILTER (WHERE is_key), count(*) FILTER (WHERE NOT is_key) FROM (
  SELECT pepper, true AS is_key FROM api_key
   WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
  UNION ALL
  SELECT pepper, false FROM admin_token
   WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS live
 GROUP BY pepper ORDER BY pepper"""


@dataclass(frozen=True, slots=True)
class Peppered:
    """How many credentials are under a pepper, by its id; None of those made before ids were kept."""

    pepper: str | None
    keys: int
    tokens: int

    def __str__(self) -> str:
        """How many, in words."""
        of = ((self.keys, "API key"), (self.tokens, "admin token"))
        return " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in of if count)


def in_use(url: str) -> list[Peppered]:
    """Ask a database of the newest schema; `SchemaUnavailable`."""
    try:
        with psycopg.connect(plain_url(url), **CONNECT) as connection:
            return [Peppered(*row) for row in connection.execute(_IN_USE).fetchall()]
    except psycopg.Error as error:
        raise SchemaUnavailable(complaint(error)) from error
