"""A call that is amended: what was charged for it, and when that was used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text

from gateway.core.calls.tariff import is_in_money
from gateway.core.model import Service
from gateway.errors import Conflict, Unprocessable
from persistence.billing.events import service_of
from persistence.keeper.request_rows import SINCE_BEGAN, times_of
from persistence.subject import Change
from persistence.tables import amendment

_CALL = f"""
SELECT organization_id, tenant_id, service_id, created_at, tokens, credits, content_id, project_id,
       (SELECT t.updated_at FROM tenant AS t WHERE t.id = call.tenant_id) AS tenant_changed_at
  FROM call WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND NOT refused
   FOR UPDATE"""  # noqa: S608  # our own words
# Of the quota: what it moved, when, and in which cycle; an event of one that was over moved none.
_TOKENS = f"""
SELECT coalesce(sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), 0)::bigint AS moved,
       min(created_at) AS at, max(cycle) AS cycle,
       coalesce((SELECT late_tokens FROM use_event WHERE request_id = %(request)s), 0) AS late,
       (SELECT used_at FROM use_event WHERE request_id = %(request)s) AS told_of
  FROM token_ledger
 WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN}
   AND transaction_type IN ('consume', 'adjust')"""  # noqa: S608  # our own words
_UNITS = f"""
SELECT coalesce(sum(usage_amount), 0)::bigint AS units, coalesce(sum(spend), 0)::bigint AS spend,
       coalesce(bool_or(in_money), false) AS in_money, min("timestamp") AS at,
       jsonb_agg(unit_prices ORDER BY "timestamp") -> 0 AS prices
  FROM feature_usage
 WHERE request_id = %(request)s AND "timestamp" >= {SINCE_BEGAN}"""  # noqa: S608  # our own words
# Since when all ledgers have their rows: what moved before may be in an archive.
_SINCE = text("""
SELECT max(since) FROM kept_since
 WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage')""")
_DONE = select(amendment.c.id)
_KEY = text("SELECT key FROM service WHERE id = :service")


@dataclass(frozen=True, slots=True)
class Amended:
    """A call, what moved for it, and its service where it is known; `sign` is 1 of what is taken back."""

    call: Any
    tokens: Any
    units: Any
    service: Service | None
    sign: int

    @property
    def used_at(self) -> datetime:
        """When it was used: an event says it, of a call the ledger does."""
        at: datetime = self.tokens.told_of or self.tokens.at or self.call.created_at
        return at

    @property
    def counted_at(self) -> datetime | None:
        """When the tokens of an event came into the ledger."""
        at: datetime | None = self.tokens.at if self.tokens.told_of else None
        return at

    @property
    def in_money(self) -> bool:
        """Whether its units are billionths of the currency."""
        service = self.service
        return bool(self.units.in_money or (not self.units.units and service and is_in_money(service)))


def amended_call(change: Change) -> Amended:
    """The call, held until the end of the transaction."""
    values, connection = change.command.values, change.connection
    request_id = UUID(str(values["request_id"]))
    request = {"request": request_id, **times_of([str(request_id)])}
    call = connection.exec_driver_sql(_CALL, request).first()
    if call is None or values.get("organization_id") not in {None, call.organization_id}:
        whose = " of this organization" if values.get("organization_id") else ""
        raise Unprocessable(errors=(("request_id", f"is the id of no call{whose} that was charged"),))
    before = connection.execute(_DONE.where(amendment.c.request_id == request_id)).scalar()
    if before is not None:
        raise Conflict(f"This call was amended already, by amendment {before}: a call is amended once.")
    key = connection.execute(_KEY, {"service": call.service_id}).scalar()
    service = None if key is None else service_of(connection, call.organization_id, key)
    tokens = connection.exec_driver_sql(_TOKENS, request).one()
    units = connection.exec_driver_sql(_UNITS, request).one()
    # Last, because a month may be archived while it is read.
    since = connection.execute(_SINCE).scalar()
    if since is not None and (tokens.at or units.at or call.created_at) < since:
        raise Unprocessable(errors=(("request_id", "is of a month that is archived: it cannot be amended"),))
    return Amended(call, tokens, units, service, -1 if values.get("direction") == "OUT" else 1)
