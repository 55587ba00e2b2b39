"""Rows that explain calls, of any time, with nobody behind them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg


def told(connection: psycopg.Connection[Any], request: str, used_at: datetime, **more: object) -> None:
    """Have an event be that call, of a moment."""
    _insert(
        connection,
        "use_event",
        {
            "source": "here", "event_id": request, "type": "use", "organization_id": 1, "tenant_id": 1,
            "service_id": 1, "request_id": request, "used_at": used_at, "actor": "a test", **more,
        },
    )  # fmt: skip


def rerated(connection: psycopg.Connection[Any], reason: str, created_at: datetime) -> None:
    """Have a call be rated again then."""
    _insert(
        connection,
        "rerating",
        {
            "price_id": 1, "request_id": uuid4(), "organization_id": 1, "tenant_id": 1, "service_id": 1,
            "cost_before": 1, "cost_after": 2, "charged": 1, "currency": "USD", "reason": reason,
            "actor": "a test", "created_at": created_at,
        },
    )  # fmt: skip


def _insert(connection: psycopg.Connection[Any], table: str, row: dict[str, object]) -> None:
    connection.execute("SET LOCAL session_replication_role = replica")
    places = ", ".join(["%s"] * len(row))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})".encode(), list(row.values())
    )
