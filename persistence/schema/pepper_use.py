"""Which peppers are in use, by the digests that are stored."""

from __future__ import annotations

from dataclasses import dataclass

from persistence.examining import looked_at

_IN_USE = """
SELECT pepper, count(*) FILTER (WHERE is_key), count(*) FILTER (WHERE NOT is_key) FROM (
  SELECT pepper, true AS is_key FROM api_key
   WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
  UNION ALL
  SELECT pepper, false FROM admin_token
   WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS live
 GROUP BY pepper ORDER BY pepper"""


@dataclass(frozen=True, slots=True)
class PepperUse:
    """The number of credentials hashed with a pepper, by the pepper's id (None: older than ids)."""

    pepper: str | None
    keys: int
    tokens: int

    def __str__(self) -> str:
        counts = ((self.keys, "API key"), (self.tokens, "admin token"))
        return " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts if count)


def in_use(url: str) -> list[PepperUse]:
    """Return the peppers in use in a database of the newest schema; raise `SchemaUnavailable`."""
    with looked_at(url) as connection:
        return [PepperUse(*row) for row in connection.execute(_IN_USE).fetchall()]
