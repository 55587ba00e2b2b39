"""Subscriptions the calendar has something for, carried out as any other change of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Command
from persistence.billing import subscriptions
from persistence.store import Store
from persistence.tables.billing import organization_subscription

KEEPER = Actor("keeper", "admin")


class Terms:
    """Beginnings, changes and ends of subscriptions."""

    def __init__(self, engine: AsyncEngine, store: Store) -> None:
        self._engine = engine
        self._store = store

    async def due(self, today: date, count: int) -> Sequence[int]:
        """Subscriptions that begin, change or end today or should have before."""
        here = organization_subscription.c
        wanted = select(here.id).where(subscriptions.due(today)).order_by(here.id).limit(count)
        async with self._engine.connect() as connection:
            return list((await connection.execute(wanted)).scalars())

    async def advance(self, subscription_id: int) -> None:
        """Bring one to where it stands today."""
        command = Command(
            "organization-subscriptions", "advance", KEEPER, str(uuid4()), lambda row: row, subscription_id
        )
        await self._store.write(command)
