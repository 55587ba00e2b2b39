"""How PostgreSQL writes the uses behind an invoice as CSV: a slice of an account's movements at a time.

The server joins, multiplies and writes; what comes is passed on as it is. No cell is a formula, as in
`gateway/core/spreadsheet.py`.
"""

from __future__ import annotations

from gateway.core.billing.vector import FALLBACK, KINDS
from gateway.core.visible import HIDDEN

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

# As PostgreSQL's expressions write them; a text of its has neither a zero nor half a surrogate.
_HIDDEN = HIDDEN.replace("\x00", "\x01").replace("\ud800-\udfff", "")
_BLANK = "".join(char if char == "-" else f"\\U{ord(char):08x}" for char in _HIDDEN)
_FORMULA = rf"^(\t|\r|\n|[\s{_BLANK}]*[-=+@\uff1d\uff0b\uff0d\uff20])"
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]+)?$"


def _safe(text: str) -> str:
    """A text that no spreadsheet computes; one that begins with a letter or a digit is none, and most do."""
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
    """What a million tokens of a kind cost a call that has some: of its context and service tier."""
    chain, at = [], kind
    while at:
        chain.append(f"CASE WHEN x.prices ? '{at}' THEN (x.prices->>'{at}')::numeric ELSE p.{at} END")
        at = FALLBACK.get(at, "")
    own = f"coalesce({', '.join(chain)}, 0)"
    return f"CASE WHEN c.{kind} > 0 THEN trim_scale({own} * {_TIER}) END"


_TIER = "coalesce((p.service_tiers->>c.service_tier)::numeric, 1)"
_CALL = """
  LEFT JOIN call AS c ON c.request_id = l.request_id AND l.corrects IS NULL AND l.place = 1
   AND c.created_at >= %(first)s AND c.created_at <= %(last)s
  LEFT JOIN price AS p ON p.id = c.price_id
  LEFT JOIN LATERAL (
      SELECT t.prices FROM jsonb_array_elements(p.context_tiers) AS t (prices)
       WHERE (t.prices->>'above')::bigint < c.input + c.cache_read + c.cache_write + c.cache_write_1h
       ORDER BY (t.prices->>'above')::bigint DESC LIMIT 1) AS x ON p.context_tiers IS NOT NULL"""
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
# Why something was corrected, by whoever did it: no caller can say that it corrects something. What a call
# says as its reason is its caller's own.
_SAYS = (
    "l.seq, l.request_id, l.tenant_id, l.api_key_id, l.user_id, l.content_id, l.project_id,"
    " l.feature_version, l.metadata->>'model' AS model, l.metadata->>'corrects' AS corrects,"
    " CASE WHEN l.metadata->>'corrects' IS NOT NULL THEN l.metadata->>'reason' END AS reason"
)
# The day that units were supplied on, where they were told of another one: as a text, which sorts alike.
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
   AND l.transaction_type IN ('consume', 'adjust') AND l.request_id IS NOT NULL"""  # noqa: S608  # our own words
_CREDITS = f"""
SELECT 'credits' AS kind, %(credits_line)s::integer AS line, l."timestamp" AS at, l.feature_id AS service_id,
       1 AS place, l.credits_used::numeric AS quantity, NULL::numeric AS unit_price, NULL::numeric AS amount,
       l.balance_after, {_SAYS}
  FROM credit_transaction AS l
 WHERE l.organization_id = %(owner)s AND {_OF_BOX.format(at='"timestamp"')}"""  # noqa: S608  # our own words
# Of use at cost the quantity is money. Rows from before have the price of their day, where that had one.
_UNITS = f"""
SELECT CASE WHEN l.in_money THEN 'money' ELSE 'units' END AS kind, n.line, l.at, l.service_id, l.place,
       l.quantity, l.unit_price,
       l.quantity * coalesce(l.unit_price, CASE WHEN l.in_money THEN 1 END) AS amount,
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
            ELSE l.supplied BETWEEN {_day("n.first_day")} AND {_day("n.last_day")} END"""  # noqa: S608  # our own words
_AT = '"timestamp"'
_LEDGERS = {
    "tokens": (_TOKENS, "token_ledger", "tenant_id", "created_at", _OF_BOX.format(at="created_at")),
    "credits": (_CREDITS, "credit_transaction", "organization_id", _AT, _OF_BOX.format(at=_AT)),
    "units": (_UNITS, "feature_usage", "organization_id", _AT, _OF_UNITS),
}


def rows_of(account: str) -> str:
    """The CSV of a slice of an account: `tokens` of a tenant, `credits` or `units` of an organization."""
    source = _LEDGERS[account][0]
    return COPY.format(select=f"{_SELECT} FROM ({source}) AS l {_CALL} {_NAMES} ORDER BY l.seq, l.place")


def slice_of(account: str) -> str:
    """The last seq of the next rows of a box, and when the first and the last of their calls were."""
    _, ledger, owner, at, of_box = _LEDGERS[account]
    return f"""
SELECT max(l.seq), least(min(l.at), min(e.used_at)), greatest(max(l.at), max(e.used_at))
  FROM (SELECT l.seq, l.{at} AS at, l.request_id FROM {ledger} AS l
         WHERE l.{owner} = %(owner)s AND {of_box} ORDER BY l.seq LIMIT %(rows)s) AS l
  LEFT JOIN use_event AS e ON e.request_id = l.request_id"""  # noqa: S608  # our own words


SUMS = f"SELECT line, sum(amount) FROM ({_UNITS}) AS l WHERE line IS NOT NULL GROUP BY 1"  # noqa: S608  # our own words
