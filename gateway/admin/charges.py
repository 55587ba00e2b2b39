"""What an organization owes and no invoice has, as a part of it."""

from __future__ import annotations

from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Page, Query, Row


async def unbilled(ports: AdminPorts, row: Row, _: Query) -> Page:
    """All of it on one page: a row for each kind of charge."""
    return Page(tuple(await ports.store.unbilled(int(str(row["id"])))), None)
