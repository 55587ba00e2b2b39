"""The matrix: every row there is, and how one is played."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults import (
    rows_cluster,
    rows_fallback,
    rows_history,
    rows_lasting,
    rows_postgres,
    rows_processes,
    rows_redis,
    rows_traffic,
)
from tests.faults.audit import Figures
from tests.faults.clustered import ClusteredWorld
from tests.faults.scene import NAMED, Row, Scene
from tests.faults.staged import StagedClusteredWorld, StagedWorld
from tests.faults.world import World

LOG_TAIL = 1_500
OTHER_DATA = '"redis data was replaced"'
PARTS = (
    rows_processes, rows_redis, rows_history, rows_cluster, rows_postgres, rows_traffic, rows_fallback,
    rows_lasting,
)  # fmt: skip
# Every row by its name, part by part.
ROWS: dict[str, Row] = {
    one.name: one for part in PARTS for one in NAMED.values() if one.play.__module__ == part.__name__
}

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def world_of(row: Row, seed: int, *, staged: bool = False) -> World:
    """A world that a row can be played on, of programs in this process where it is staged; not open yet."""
    kinds: tuple[type[World], type[World]] = (World, ClusteredWorld)
    if staged:
        kinds = (StagedWorld, StagedClusteredWorld)
    return kinds[row.clustered](seed, gateways=row.gateways, keepers=row.keepers)


async def play(row: Row, world: World, *, long: bool, seed: int, say: Say = _silent) -> Figures:
    """Play one row on a world; what it found."""
    world.upstream.forget()
    before = _alarms(world)
    figures = await row.play(Scene(world, long, seed, say))
    if row.play.__module__ != rows_history.__name__ and _alarms(world) != before:
        figures.broken.append("data that nobody exchanged was taken for other data")
    if any("not charged" in one for one in figures.broken) or figures.doubled:
        sums = f"lost {figures.lost}, doubled {figures.doubled}, over-granted {figures.over_granted}"
        figures.broken.insert(0, sums)
    return figures


def _alarms(world: World) -> int:
    """How often a process said that Redis has other data."""
    return sum(log.read_text().count(OTHER_DATA) for log in world.logs() if log.exists())


def told(world: World, figures: Figures) -> str:
    """Why a row failed, with the ends of the processes' logs."""
    return "\n".join([str(figures), *figures.broken[:20], ends(world)])


def ends(world: World) -> str:
    """The ends of the processes' logs."""
    logs = [one for one in world.logs() if one.exists()]
    return "\n".join(f"--- {log.name}\n{log.read_text()[-LOG_TAIL:]}" for log in logs)
