"""Loops whose passes find nothing that the agenda does not say: else a keeper would never make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.loops import Isolation, Loop
from persistence.keeper.agenda import QUESTIONS, AgendaReader


def on_agenda(
    loop: Loop,
    engine: AsyncEngine,
    now: Callable[[], datetime],
    since: Callable[[bool], datetime] | None = None,
) -> Loop:
    """The same loop, which fails where it does something that is not on the agenda."""
    if loop.name not in QUESTIONS:
        return loop
    agenda = AgendaReader(engine, since or (lambda _: datetime.min.replace(tzinfo=UTC)), now)

    async def step(isolation: Isolation, _name: str) -> int:
        due = await agenda.read()
        done = await loop.turn(isolation)
        assert not done or loop.name in due, f"{loop.name} did {done}; the agenda had {sorted(due)}"
        return done

    return replace(loop, steps=(step,))
