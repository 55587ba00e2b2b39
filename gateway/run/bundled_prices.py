"""The bundled price list, in US dollars; `deploy/bundled_prices.py` makes its file from `genai-prices`.

It is read only on demand: a gateway does not need it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.core.billing.price_book import BASE_CURRENCY, BUNDLED
from gateway.core.billing.price_changes import UNDATED, Row, missing

LIST = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The library with its version, rows for `POST prices`, and a line for each omitted price."""

    library: str
    rows: list[Row]
    left_out: list[str]


def read_bundle() -> Bundle:
    document = json.loads(LIST.read_bytes())
    rows: list[Row] = []
    for row in document["rows"]:
        since = datetime.fromisoformat(row["effective_from"]) if "effective_from" in row else UNDATED
        rows.append({"currency": BASE_CURRENCY, "source": BUNDLED, **row, "effective_from": since})
    return Bundle(document["library"], rows, document["left_out"])


def missing_here(url: str) -> str:
    """Return what to say of the list's prices that this database lacks; "" if it has all, or no list yet.

    Raise `SchemaUnavailable` if PostgreSQL does not answer in time.
    """
    from persistence.examining import bundled_prices  # noqa: PLC0415  # heavy to load

    kept = bundled_prices(url)
    return missing(read_bundle().rows, kept, datetime.now(UTC)) if kept else ""
