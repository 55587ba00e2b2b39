"""The bundled price list, in US dollars; `deploy/bundled_prices.py` makes its file from `genai-prices`.

It is read only on demand: a gateway does not need it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.core.billing.price_book import BASE_CURRENCY, BUNDLED

Row = Mapping[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
        since = datetime.fromisoformat(row["effective_from"]) if "effective_from" in row else EPOCH
        rows.append({"currency": BASE_CURRENCY, "source": BUNDLED, **row, "effective_from": since})
    return Bundle(document["library"], rows, document["left_out"])
