"""The matrix in its short, seeded form: most rows with our programs in this process, some of each kind with
real ones (`REAL`). A night plays all of them with real ones. One deployment is shared by most.
"""

from __future__ import annotations

import asyncio

import pytest
from _pytest.mark import ParameterSet

from tests.faults import matrix
from tests.faults.matrix import ROWS
from tests.faults.scene import Row
from tests.faults.world import MissingError, World
from tests.search import is_night

SEED = 7
# Of processes, Redis, PostgreSQL, and traffic.
REAL = ("gateway_crashes", "valkey_killed", "postgres_full", "upstream_resets")
# Another row has its fault at once with its own, it is long, or it needs a process, or one's clock.
# `test_histories.py` has kills of a flusher.
NIGHTLY = (
    "flusher_crashes", "fallback", "sigterm", "soak", "primary_removed", "ids_behind_a_backup",
    "month_archived", "budgets_at_a_change_of_clocks", "calls_of_a_day",
)  # fmt: skip
LASTING = "lasting_redis_paused_5"


class Shared:
    """A world that is made when it is first needed; anew for another kind, and where a row left it broken."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.kind = (False, False)

    def get(self, row: Row, *, staged: bool) -> World:
        if self.kind != (row.clustered, staged):
            self.drop()
        if self.world is None:
            self.world = matrix.world_of(row, SEED, staged=staged).open()
            self.kind = (row.clustered, staged)
        return self.world

    def drop(self) -> None:
        if self.world is not None:
            self.world.close()
        self.world = None


def names(*, real: bool) -> list[str | ParameterSet]:
    """The rows that have a short form and are played so, those of one world together."""
    found: list[str | ParameterSet] = []
    for name, one in sorted(ROWS.items(), key=lambda row: row[1].clustered):
        is_late = name in NIGHTLY or (name.startswith("lasting_") and name != LASTING)
        if not one.only_long and (name in REAL or is_late) == real:
            found.append(pytest.param(name, marks=pytest.mark.nightly) if is_late else name)
    return found


def play(name: str, shared: Shared, *, real: bool) -> None:
    """Play a row on the world that is shared, or on one of its own; what is broken fails the test."""
    row, staged = ROWS[name], not (real or is_night())
    world = matrix.world_of(row, SEED, staged=staged).open() if row.alone else shared.get(row, staged=staged)
    try:
        figures = world.run(asyncio.wait_for(matrix.play(row, world, long=False, seed=SEED), row.limit_s))
        assert not figures.broken, matrix.told(world, figures)
    except MissingError as missing:
        pytest.skip(str(missing))
    except BaseException:
        shared.drop()
        raise
    finally:
        if row.alone:
            world.close()
