"""What lines of an invoice are charged for that is no request: fees, tokens beyond a plan, credits, tax.

Requests of units have rows of their own. What rounding took or gave is a row, so that a line's rows add up to
the line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge import USAGE, Charge
from gateway.core.moments import rfc3339
from persistence.billing.placed import Placed, PlacedLine
from persistence.billing.usage_sql import COLUMNS

ROUNDING = "rounding"

_TENANTS = text("SELECT id, name FROM tenant WHERE organization_id = :organization")
_SERVICES = text("SELECT id, key, name FROM service WHERE id = ANY(cast(:ids AS bigint[]))")
# Between the finals before and this one; what moved no quota or units has no row in a ledger.
_LATE = text("""
WITH span AS (
    SELECT coalesce((SELECT max(finalized_at) FROM invoice
                      WHERE organization_id = :organization AND covers IS NOT NULL AND id <> :id
                        AND finalized_at < coalesce(cast(:final AS timestamptz), 'infinity')
                        AND (voided_at IS NULL
                             OR voided_at > coalesce(cast(:final AS timestamptz), 'infinity'))),
                    '-infinity') AS since, coalesce(cast(:final AS timestamptz), 'infinity') AS until
)
SELECT l.*, t.name AS tenant, s.key AS service, s.name AS service_name FROM (
SELECT 'late_tokens' AS kind, e.created_at AS at, e.late_tokens::numeric AS quantity, e.tenant_id,
       e.service_id, e.request_id, NULL AS corrects, NULL AS reason, e.source, e.event_id, e.used_at
  FROM use_event AS e, span
 WHERE e.organization_id = :organization AND e.late_tokens > 0
   AND e.created_at > since AND e.created_at <= until
 UNION ALL
SELECT w.kind, a.created_at, w.quantity, a.tenant_id, a.service_id, NULL, a.request_id::text,
       a.reason, NULL, NULL, a.used_at
  FROM amendment AS a, span,
       LATERAL (VALUES
           ('late_tokens', CASE a.direction WHEN 'OUT' THEN a.late_tokens ELSE -a.late_tokens END::numeric),
           ('credits_back', CASE a.direction WHEN 'IN' THEN -a.credits ELSE 0 END))
         AS w (kind, quantity)
 WHERE a.organization_id = :organization AND w.quantity <> 0
   AND a.created_at > since AND a.created_at <= until
) AS l
  JOIN tenant AS t ON t.id = l.tenant_id LEFT JOIN service AS s ON s.id = l.service_id
 ORDER BY l.at, l.request_id, l.corrects""")


def rows(connection: Connection, invoice: Any, placed: Placed) -> list[Row]:
    """Charges but those of units, tax, what was rounded, and late tokens."""
    here = {"organization": invoice.organization_id}
    tenants = {row.id: row.name for row in connection.execute(_TENANTS, here)}
    ids = sorted({charge.service_id for charge, _ in placed.charges if charge.service_id})
    services = {row.id: row for row in connection.execute(_SERVICES, {"ids": ids})}
    of_line: dict[int, list[Charge]] = defaultdict(list)
    for charge, position in placed.charges:
        if position is not None:
            of_line[position].append(charge)
    found: list[Row] = []
    for line in placed.lines:
        charges = of_line[line.position]
        found += [
            _charge(invoice, line, each, tenants, services.get(each.service_id))
            for each in charges
            if each.kind != USAGE or invoice.corrects_id is not None
        ]
        rest = line.amount - sum((charge.amount for charge in charges), Decimal(0))
        if rest:
            kind = ROUNDING if charges else line.kind
            found.append(_row(invoice, line, kind, rest))
    late = {**here, "id": invoice.id, "final": invoice.finalized_at}
    if invoice.corrects_id is None and invoice.source is None:
        found += [_late(row) for row in connection.execute(_LATE, late)]
    return found


def rest(invoice: Any, placed: Placed, summed: Mapping[int, Decimal]) -> Iterator[Row]:
    """What lines of units are charged for that no row of a use explains: rows from before said no price."""
    due: dict[int, Decimal] = defaultdict(Decimal)
    for charge, position in placed.charges:
        if charge.kind == USAGE and position is not None:
            due[position] += charge.amount
    for line in placed.lines:
        unexplained = due[line.position] - summed.get(line.position, Decimal(0))
        if unexplained:
            yield _row(invoice, line, USAGE, unexplained)


def _row(invoice: Any, line: PlacedLine, kind: str, amount: Decimal) -> Row:
    return _cells(
        line=line.position, kind=kind, description=line.description, quantity=1,
        unit_price=_plain(amount), amount=_plain(amount), currency=invoice.currency,
    )  # fmt: skip


def _charge(invoice: Any, line: PlacedLine, charge: Charge, tenants: Mapping[int, str], service: Any) -> Row:
    return _cells(
        line=line.position, kind=charge.kind, description=line.description,
        period_start=rfc3339(charge.start), period_end=rfc3339(charge.end), quantity=_plain(charge.quantity),
        unit_price=_plain(charge.unit_price), amount=_plain(charge.amount), currency=invoice.currency,
        tenant_id=charge.tenant_id, tenant=tenants.get(charge.tenant_id or 0), charge_id=charge.id or None,
        service_id=charge.service_id or None, service=service.key if service else None,
        service_name=service.name if service else None,
    )  # fmt: skip


def _late(row: Any) -> Row:
    moments = {"timestamp": rfc3339(row.at), "used_at": rfc3339(row.used_at)}
    same = (
        "kind", "tenant_id", "tenant", "service_id", "service", "service_name", "request_id", "corrects",
        "reason",
    )  # fmt: skip
    told = {name: getattr(row, name) for name in same}
    return _cells(
        **told, **moments, quantity=_plain(row.quantity), event_source=row.source, event_id=row.event_id
    )


def _cells(**told: object) -> Row:
    return dict.fromkeys(COLUMNS) | told


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
