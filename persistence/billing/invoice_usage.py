"""The usage file of an invoice, as CSV: the charges of each line, and every use with its request.

The amounts of a line add up to the line, and all of them to the invoice. An invoice covers the movements from
its first day on up to a sequence number of each account, stored when it is finalized, less those that earlier
final invoices cover. A draft covers what it would if it became final now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.billing.charges import ONE_DAY, OVERAGE, USAGE, SupplyCharge
from gateway.core.billing.invoice import INFORMATION
from gateway.core.billing.price_book import FALLBACK, KINDS
from gateway.core.billing.subscription import midnight
from gateway.core.model import INTEGER_MAX
from gateway.core.text import HIDDEN, csv
from gateway.core.times import rfc3339
from gateway.errors import NotFound
from persistence import engine as engines
from persistence.billing.invoice_boxes import Box, Cover, boxes
from persistence.billing.invoice_lines import NumberedLine, NumberedLines, number_lines

# PostgreSQL writes the uses of an invoice as CSV: one slice of an account's movements at a time.
#
# The server joins, multiplies and formats; its output is passed on unchanged. No cell is a formula, as in
# `gateway/core/text.py`.

NO_SERVICE = 0
PRICES = tuple(f"{kind}_price" for kind in KINDS)
COLUMNS = (
    "line", "kind", "description", "timestamp", "period_start", "period_end", "quantity", "unit_price",
    "amount", "currency", "tenant_id", "tenant", "api_key_id", "api_key", "user_id", "user", "user_name",
    "project_id", "content_id", "feature_version", "service_id", "service", "service_name", "model",
    "response_model", "service_tier", "price_id", *KINDS, *PRICES, "request_price", "tools", "tools_price",
    "cost", "balance_after", "seq", "request_id", "corrects", "reason", "event_source", "event_id", "used_at",
    "charge_id",
)  # fmt: skip
_FREE_TEXTS = ("tenant", "api_key", "user", "user_name", "feature_version", "reason", "event_source")

# In PostgreSQL's regular expressions; its texts contain neither NUL nor lone surrogates.
_HIDDEN = HIDDEN.replace("\x00", "\x01").replace("\ud800-\udfff", "")
_BLANK = "".join(char if char == "-" else f"\\U{ord(char):08x}" for char in _HIDDEN)
_FORMULA = rf"^(\t|\r|\n|[\s{_BLANK}]*[-=+@\uff1d\uff0b\uff0d\uff20])"
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]+)?$"


def _safe(text: str) -> str:
    """Return SQL for a text that no spreadsheet takes for a formula; most texts are left unchanged."""
    first = f'({text} COLLATE "C")'
    plain = f"({first} >= 'a' AND {first} < '{{') OR ({first} >= 'A' AND {first} < '[') OR"
    plain += f" ({first} >= '0' AND {first} < ':')"
    hidden = f"{text} ~ '{_FORMULA}' AND {text} !~ '{_NUMBER}'"
    flat = f"translate({text}, E'\\r\\n', '  ')"
    return f"CASE WHEN {plain} THEN {flat} WHEN {hidden} THEN '''' || {flat} ELSE {flat} END"


def _instant(moment: str) -> str:
    return (
        f"to_char({moment} AT TIME ZONE 'UTC', CASE WHEN {moment} = date_trunc('second', {moment})"
        """ THEN 'YYYY-MM-DD"T"HH24:MI:SS"Z"' ELSE 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"' END)"""
    )


def _day(day: str) -> str:
    return f"""(to_char({day}, 'YYYY-MM-DD') COLLATE "C")"""


def _price(kind: str) -> str:
    """Return SQL for the price of a million tokens of a kind, by the call's context size and service tier."""
    chain, at = [], kind
    while at:
        chain.append(f"CASE WHEN x.prices ? '{at}' THEN (x.prices->>'{at}')::numeric ELSE p.{at} END")
        at = FALLBACK.get(at, "")
    own = f"coalesce({', '.join(chain)}, 0)"
    return f"CASE WHEN c.{kind} > 0 THEN trim_scale({own} * {_TIER}) END"


# A service tier is a factor, or a price table of its own with its own context tiers. Hours are a factor.
_TIER = (
    "coalesce((CASE WHEN q.said IS NULL THEN p.service_tiers->>c.service_tier END)::numeric, 1)"
    " * coalesce(c.hour_factor::numeric, 1)"
)
_CALL = """
  LEFT JOIN call AS c ON c.request_id = l.request_id AND l.corrects IS NULL AND l.place = 1
   AND c.created_at >= %(first)s AND c.created_at <= %(last)s
  LEFT JOIN price AS p ON p.id = c.price_id
  LEFT JOIN LATERAL (
      SELECT p.service_tiers->c.service_tier AS said
       WHERE jsonb_typeof(p.service_tiers->c.service_tier) = 'object') AS q ON true
  LEFT JOIN LATERAL (
      SELECT t.prices
        FROM jsonb_array_elements(
                 CASE WHEN q.said IS NULL THEN p.context_tiers ELSE q.said->'context_tiers' END) AS t (prices)
       WHERE (t.prices->>'above')::bigint < c.input + c.cache_read + c.cache_write + c.cache_write_1h
       ORDER BY (t.prices->>'above')::bigint DESC LIMIT 1) AS z ON true
  LEFT JOIN LATERAL (
      SELECT coalesce(q.said, '{}') || coalesce(z.prices, '{}') AS prices) AS x ON p.id IS NOT NULL"""
_NAMES = """
  LEFT JOIN tenant AS t ON t.id = l.tenant_id
  LEFT JOIN app_user AS u ON u.id = l.user_id
  LEFT JOIN api_key AS k ON k.id = l.api_key_id
  LEFT JOIN service AS s ON s.id = l.service_id
  LEFT JOIN use_event AS e ON e.request_id = l.request_id AND l.corrects IS NULL"""
_CELLS = {
    "line": "l.line",
    "kind": "l.kind",
    "timestamp": _instant("l.at"),
    "quantity": "trim_scale(l.quantity)",
    "unit_price": "trim_scale(l.unit_price)",
    "amount": "trim_scale(l.amount)",
    "currency": "CASE WHEN l.amount IS NOT NULL THEN %(currency)s END",
    "tenant_id": "l.tenant_id",
    "tenant": _safe("t.name"),
    "api_key_id": "nullif(l.api_key_id, 0)",
    "api_key": _safe("k.name"),
    "user_id": "l.user_id",
    "user": _safe("u.external_id"),
    "user_name": _safe("u.name"),
    "project_id": "coalesce(l.project_id, c.project_id)",
    "content_id": "coalesce(l.content_id, c.content_id)",
    "feature_version": _safe("coalesce(l.feature_version, c.feature_version)"),
    "service_id": "l.service_id",
    "service": _safe("s.key"),
    "service_name": _safe("s.name"),
    "model": _safe("coalesce(c.model, l.model)"),
    "response_model": _safe("c.response_model"),
    "service_tier": _safe("c.service_tier"),
    "price_id": "c.price_id",
    **{kind: f"c.{kind}" for kind in KINDS},
    **{f"{kind}_price": _price(kind) for kind in KINDS},
    "request_price": f"trim_scale(p.request * {_TIER})",
    "tools": "c.tools",
    "tools_price": "CASE WHEN c.tools IS NOT NULL THEN p.tools END",
    "cost": "trim_scale(c.cost * 0.000000001)",
    "balance_after": "l.balance_after",
    "seq": "l.seq",
    "request_id": "l.request_id",
    "corrects": "l.corrects",
    "reason": _safe("l.reason"),
    "event_source": _safe("e.source"),
    "event_id": _safe("e.event_id"),
    "used_at": _instant("e.used_at"),
}
_SELECT = "SELECT " + ", ".join(f'{_CELLS.get(name, "NULL")} AS "{name}"' for name in COLUMNS)
_QUOTED = ", ".join(
    f'"{name}"' for name in (*_FREE_TEXTS, "service_name", "model", "response_model", "event_id")
)
COPY = f"COPY ({{select}}) TO STDOUT (FORMAT csv, FORCE_QUOTE ({_QUOTED}))"

_OF_BOX = "l.seq > %(after)s AND l.seq <= %(upto)s AND l.{at} >= %(since)s AND l.{at} < %(until)s"
# The reason of a correction: no caller can mark its call as one. The reason in a call's metadata is the
# caller's own.
_SAYS = (
    "l.seq, l.request_id, l.tenant_id, l.api_key_id, l.user_id, l.content_id, l.project_id,"
    " l.feature_version, l.metadata->>'model' AS model, l.metadata->>'corrects' AS corrects,"
    " CASE WHEN l.metadata->>'corrects' IS NOT NULL THEN l.metadata->>'reason' END AS reason"
)
# The day of supply of units that were reported on another day: as text, which sorts in the same order.
_SUPPLIED = (
    """CASE WHEN l.metadata->>'supplied_on' IS NOT NULL THEN least(l.metadata->>'supplied_on',"""
    """ to_char(l."timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD')) COLLATE "C" END"""
)
_OF_UNITS = f"""l.seq > %(after)s AND l.seq <= %(upto)s AND l."timestamp" >= %(since)s
   AND coalesce({_SUPPLIED} >= {_day("%(since)s AT TIME ZONE 'UTC'")}, true)
   AND coalesce({_SUPPLIED} < {_day("%(until)s AT TIME ZONE 'UTC'")}, l."timestamp" < %(until)s)"""
_TOKENS = f"""
SELECT 'tokens' AS kind, n.line, l.created_at AS at, l.service_id, 1 AS place,
       CASE l.direction WHEN 'OUT' THEN l.amount ELSE -l.amount END::numeric AS quantity,
       NULL::numeric AS unit_price, NULL::numeric AS amount, l.total_remaining AS balance_after, {_SAYS}
  FROM token_ledger AS l
  LEFT JOIN unnest(%(cycles)s::bigint[], %(cycle_lines)s::integer[]) AS n (cycle, line) ON n.cycle = l.cycle
 WHERE l.tenant_id = %(owner)s AND {_OF_BOX.format(at="created_at")}
   AND l.transaction_type IN ('consume', 'adjust') AND l.request_id IS NOT NULL"""
_CREDITS = f"""
SELECT 'credits' AS kind, %(credits_line)s::integer AS line, l."timestamp" AS at, l.feature_id AS service_id,
       1 AS place, l.credits_used::numeric AS quantity, NULL::numeric AS unit_price, NULL::numeric AS amount,
       l.balance_after, {_SAYS}
  FROM credit_transaction AS l
 WHERE l.organization_id = %(owner)s AND {_OF_BOX.format(at='"timestamp"')}"""
# For use at cost the quantity is money. Older rows get the price of their day, if that day had only one. A
# movement without a line here, such as a correction that a credit note gave back, has no amount.
_UNITS = f"""
SELECT CASE WHEN l.in_money THEN 'money' ELSE 'units' END AS kind, n.line, l.at, l.service_id, l.place,
       l.quantity, l.unit_price,
       CASE WHEN n.line IS NOT NULL
            THEN l.quantity * coalesce(l.unit_price, CASE WHEN l.in_money THEN 1 END) END AS amount,
       NULL::bigint AS balance_after, l.seq, l.request_id, l.tenant_id, l.api_key_id, l.user_id, l.content_id,
       l.project_id, l.feature_version, l.model, l.corrects, l.reason
  FROM (
    SELECT l."timestamp" AS at, l.feature_id AS service_id, coalesce(w.place, 1) AS place, l.in_money,
           CASE WHEN l.in_money THEN l.usage_amount * 0.000000001
                ELSE coalesce((w.part->>0)::numeric, l.usage_amount) END AS quantity,
           CASE WHEN NOT l.in_money
                THEN coalesce((w.part->>1)::numeric, CASE WHEN w.part IS NULL
                              THEN (l.unit_prices #>> '{{}}')::numeric END, f.unit_price)
           END AS unit_price, {_SUPPLIED} AS supplied, {_SAYS}
      FROM feature_usage AS l
      LEFT JOIN LATERAL jsonb_array_elements(
          CASE WHEN jsonb_typeof(l.unit_prices) = 'array' THEN l.unit_prices END)
          WITH ORDINALITY AS w (part, place) ON true
      LEFT JOIN (SELECT tenant_id, day, service_id, min(unit_price) AS unit_price FROM usage_tier
                  WHERE organization_id = %(owner)s GROUP BY 1, 2, 3 HAVING count(*) = 1) AS f
        ON l.unit_prices IS NULL AND f.tenant_id = l.tenant_id AND f.service_id = coalesce(l.feature_id, 0)
       AND f.day = (l."timestamp" AT TIME ZONE 'UTC')::date
     WHERE l.organization_id = %(owner)s AND {_OF_UNITS}) AS l
  LEFT JOIN unnest(%(services)s::bigint[], %(prices)s::numeric[], %(first_days)s::date[],
                   %(last_days)s::date[], %(lines)s::integer[])
    AS n (service_id, unit_price, first_day, last_day, line)
    ON n.service_id = coalesce(l.service_id, 0)
   AND n.unit_price = CASE WHEN l.in_money THEN 0.000000001 ELSE l.unit_price END
   AND CASE WHEN l.supplied IS NULL THEN (l.at AT TIME ZONE 'UTC')::date BETWEEN n.first_day AND n.last_day
            ELSE l.supplied BETWEEN {_day("n.first_day")} AND {_day("n.last_day")} END"""
_AT = '"timestamp"'
_LEDGERS = {
    "tokens": (_TOKENS, "token_ledger", "tenant_id", "created_at", _OF_BOX.format(at="created_at")),
    "credits": (_CREDITS, "credit_transaction", "organization_id", _AT, _OF_BOX.format(at=_AT)),
    "units": (_UNITS, "feature_usage", "organization_id", _AT, _OF_UNITS),
}


def rows_of(account: str) -> str:
    """Return SQL for the CSV rows of a slice of movements; `account` is tokens, credits or units."""
    source = _LEDGERS[account][0]
    return COPY.format(select=f"{_SELECT} FROM ({source}) AS l {_CALL} {_NAMES} ORDER BY l.seq, l.place")


def slice_of(account: str) -> str:
    """Return SQL for the next slice of an account's movements: its last seq, first and last time of use.

    `account` is tokens, credits or units.
    """
    _, ledger, owner, at, of_box = _LEDGERS[account]
    return f"""
SELECT max(l.seq), least(min(l.at), min(e.used_at)), greatest(max(l.at), max(e.used_at))
  FROM (SELECT l.seq, l.{at} AS at, l.request_id FROM {ledger} AS l
         WHERE l.{owner} = %(owner)s AND {of_box} ORDER BY l.seq LIMIT %(rows)s) AS l
  LEFT JOIN use_event AS e ON e.request_id = l.request_id"""


SUMS = f"SELECT line, sum(amount) FROM ({_UNITS}) AS l WHERE line IS NOT NULL GROUP BY 1"


# CSV rows for charges that are no requests: fees, tokens beyond a plan, credits, tax.
#
# Requests with units have rows of their own. Rounding differences are a row, so that a line's rows add up to
# the line.

ROUNDING = "rounding"

_CHARGED_TENANTS = text("SELECT id, name FROM tenant WHERE organization_id = :organization")
_SERVICES = text("SELECT id, key, name FROM service WHERE id = ANY(cast(:ids AS bigint[]))")
# Uses between the previous final invoices and this one that moved no quota or units, so have no ledger row.
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


def usage_charge_rows(connection: Connection, invoice: Any, placed: NumberedLines) -> list[Row]:
    """Return the CSV rows of an invoice's tax, rounding and late tokens, and of charges other than units."""
    here = {"organization": invoice.organization_id}
    tenants = {row.id: row.name for row in connection.execute(_CHARGED_TENANTS, here)}
    ids = sorted({charge.service_id for charge, _ in placed.charges if charge.service_id})
    services = {row.id: row for row in connection.execute(_SERVICES, {"ids": ids})}
    of_line: dict[int, list[SupplyCharge]] = defaultdict(list)
    for charge, position in placed.charges:
        if position is not None:
            of_line[position].append(charge)
    is_regular = invoice.corrects_id is None and invoice.source is None
    rows: list[Row] = []
    for line in placed.lines:
        charges = of_line[line.position]
        rows += [
            _charge(invoice, line, charge, tenants, services.get(charge.service_id))
            for charge in charges
            if charge.kind != USAGE or not is_regular
        ]
        rest = line.amount - sum((charge.amount for charge in charges), Decimal(0))
        if rest:
            kind = ROUNDING if charges else line.kind
            rows.append(_row(invoice, line, kind, rest))
    late = {**here, "id": invoice.id, "final": invoice.finalized_at}
    if is_regular:
        rows += [_late(row) for row in connection.execute(_LATE, late)]
    return rows


def remaining_usage_charges(
    invoice: Any, placed: NumberedLines, summed: Mapping[int, Decimal]
) -> Iterator[Row]:
    """Yield a CSV row for each part of a line that no row of use explains, as old ledger rows have no price.

    `summed` are the amounts of the rows of use, by line.
    """
    due: dict[int, Decimal] = defaultdict(Decimal)
    for charge, position in placed.charges:
        if charge.kind == USAGE and position is not None:
            due[position] += charge.amount
    for line in placed.lines:
        unexplained = due[line.position] - summed.get(line.position, Decimal(0))
        if unexplained:
            yield _row(invoice, line, USAGE, unexplained)


def _row(invoice: Any, line: NumberedLine, kind: str, amount: Decimal) -> Row:
    return _cells(
        line=line.position, kind=kind, description=line.description, quantity=1,
        unit_price=_plain(amount), amount=_plain(amount), currency=invoice.currency,
    )  # fmt: skip


def _charge(
    invoice: Any, line: NumberedLine, charge: SupplyCharge, tenants: Mapping[int, str], service: Any
) -> Row:
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


ROWS_A_SLICE = 20_000
# A service, a price, the first and the last day, a line.
Span = tuple[int, Decimal, date, date, int]
SPAN_PARTS = 5
_ENDLESS = datetime(9999, 12, 30, tzinfo=UTC)

_INVOICE = text("""
SELECT i.*, least(i.period_start,
                  (SELECT min(u.day) FROM usage_daily AS u WHERE u.organization_id = i.organization_id),
                  (SELECT min(u.supplied_on) FROM usage_told AS u
                    WHERE u.organization_id = i.organization_id)) AS first_day
  FROM invoice AS i WHERE i.id = :id""")
_FINAL = text("""
SELECT id, period_end, covers, finalized_at, voided_at FROM invoice
 WHERE organization_id = :organization AND corrects_id IS NULL AND finalized_at IS NOT NULL AND id <> :id
   AND covers IS NOT NULL AND (finalized_at, number)
       < (coalesce(cast(:finalized_at AS timestamptz), 'infinity'), coalesce(cast(:number AS text), ''))
 ORDER BY finalized_at, number""")
_TENANTS = text("SELECT id FROM tenant WHERE organization_id = :organization ORDER BY id")

Values = dict[str, Any]


class InvoiceUsage:
    """Writes the usage files of invoices, in pieces."""

    def __init__(self, engine: AsyncEngine, *, rows_a_slice: int = ROWS_A_SLICE) -> None:
        self._engine = engine
        self._rows_a_slice = rows_a_slice

    async def csv(self, invoice_id: int, today: date) -> AsyncIterator[bytes]:
        """Yield the usage of an invoice as CSV, all of one moment.

        Raise `NotFound` if the invoice does not exist. It is read over a separate connection, because its
        reader may be slow.
        """
        async with engines.apart(self._engine) as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            # Each slice is a statement of its own: to compile one takes longer than to run it.
            await connection.execute(text("SET LOCAL jit = off"))
            invoice = (await connection.execute(_INVOICE, {"id": invoice_id})).first()
            if invoice is None:
                raise NotFound
            found = await connection.run_sync(number_lines, invoice, today)
            told = await connection.run_sync(usage_charge_rows, invoice, found)
            yield csv(COLUMNS, told, head=True)
            if invoice.corrects_id is not None or invoice.source is not None:
                return
            accounts = await connection.run_sync(_accounts, invoice)
            driver: Any = (await connection.get_raw_connection()).driver_connection
            summed: dict[int, Decimal] = defaultdict(Decimal)
            values = _values(invoice, found)
            for kind, owner, of_account in accounts:
                lines = dict(_cycles(found, owner))  # of a tenant's cycles that went beyond its plan
                lines_of_cycles = {"owner": owner, "cycles": list(lines), "cycle_lines": list(lines.values())}
                for box in of_account:
                    here = values | lines_of_cycles | box._asdict()
                    async for piece in self._rows(driver, kind, here, summed):
                        yield piece
            rest = list(remaining_usage_charges(invoice, found, summed))
            if rest:
                yield csv(COLUMNS, rest)

    async def _rows(
        self, driver: psycopg.AsyncConnection[Any], kind: str, here: Values, summed: dict[int, Decimal]
    ) -> AsyncIterator[bytes]:
        """Yield the CSV rows of the movements selected by `here`, slice by slice.

        `kind` is tokens, credits or units; the amounts of units are added to `summed` by line.
        """
        while True:
            wanted = here | {"rows": self._rows_a_slice}
            found = await (await driver.execute(slice_of(kind), wanted)).fetchone()
            assert found is not None, "it adds up"
            upto, first, last = found
            if upto is None:
                return
            one = here | {"upto": upto, "first": first, "last": last}
            async with driver.cursor() as cursor, cursor.copy(rows_of(kind), one) as copied:
                async for piece in copied:
                    yield bytes(piece).replace(b"\n", b"\r\n")
            if kind == "units":
                async for line, amount in await driver.execute(SUMS, one):
                    summed[line] += amount
            here = here | {"after": upto}


def _accounts(connection: Connection, invoice: Any) -> list[tuple[str, int, Sequence[Box]]]:
    """Return the accounts of an invoice, each with the boxes that no other invoice covers."""
    here = {
        "organization": invoice.organization_id, "id": invoice.id, "finalized_at": invoice.finalized_at,
        "number": invoice.number,
    }  # fmt: skip
    final = connection.execute(_FINAL, here).all()
    owners = [("tokens", tenant) for tenant in connection.execute(_TENANTS, here).scalars()]
    owners += [("credits", invoice.organization_id), ("units", invoice.organization_id)]
    found: list[tuple[str, int, Sequence[Box]]] = []
    for kind, owner in owners:
        others = [_cover(each, kind, owner) for each in final]
        found.append((kind, owner, boxes(others, _mine(invoice, kind, owner))))
    return found


def _mine(invoice: Any, kind: str, owner: int) -> Cover:
    if invoice.covers is None:
        since, until = midnight(invoice.first_day), midnight(invoice.period_end)
        return Cover(invoice.id, since, until, INTEGER_MAX, invoice.finalized_at or _ENDLESS)
    return _cover(invoice, kind, owner)


def _cover(invoice: Any, kind: str, owner: int) -> Cover:
    """Return what an invoice covers of an account, by time and by movements."""
    covers: Mapping[str, Any] = invoice.covers
    seqs = {
        "tokens": covers["tenants"].get(str(owner), 0),
        "credits": covers["credits"],
        "units": covers["spend"],
    }
    since, until = midnight(date.fromisoformat(covers["since"])), midnight(invoice.period_end)
    return Cover(invoice.id, since, until, int(seqs[kind]), invoice.finalized_at, invoice.voided_at)


def _values(invoice: Any, found: NumberedLines) -> Values:
    """Return SQL parameters that assign uses to the lines of an invoice.

    They are the line of each service, price and span of days, and the line for credits.
    """
    spans = _spans(found)
    services, prices, first, last, lines = ([span[at] for span in spans] for at in range(SPAN_PARTS))
    credits_line = [line.position for line in found.lines if line.kind == INFORMATION]
    return {
        "currency": invoice.currency, "services": services, "prices": prices, "first_days": first,
        "last_days": last, "lines": lines, "credits_line": credits_line[0] if credits_line else None,
    }  # fmt: skip


def _spans(found: NumberedLines) -> list[Span]:
    """Return the spans of days whose units of one service, at one price, are on one line of an invoice.

    A month has several lines if the tax rate changed within it.
    """
    of_month: dict[tuple[int, Decimal, date], dict[date, int]] = {}
    for charge, line in found.charges:
        if charge.kind == USAGE and line is not None:
            place = (charge.service_id or 0, charge.unit_price, charge.day.replace(day=1))
            of_month.setdefault(place, {})[charge.day] = line
    spans: list[Span] = []
    for (service_id, price, month), lines in of_month.items():
        first, line = month, lines[min(lines)]
        for day in sorted(lines):
            if lines[day] != line:
                spans.append((service_id, price, first, day - ONE_DAY, line))
                first, line = day, lines[day]
        until = (month + timedelta(days=31)).replace(day=1) - ONE_DAY
        spans.append((service_id, price, first, until, line))
    return spans


def _cycles(lines: NumberedLines, tenant_id: int) -> Iterator[tuple[int, int]]:
    for charge, line in lines.charges:
        if charge.kind == OVERAGE and charge.tenant_id == tenant_id and line and charge.place is not None:
            yield charge.place, line
