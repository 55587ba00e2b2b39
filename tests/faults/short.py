"""The matrix in its short, seeded form: each row on real processes, one deployment a file shared by most.

`test_rows_each.py` plays one row of each kind, the other `test_rows_*.py` a part of the rest each; no row is
in two of them.
"""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

from tests.faults import matrix, rows_history, rows_lasting, rows_processes, rows_redis
from tests.faults.matrix import PARTS, ROWS
from tests.faults.scene import Row
from tests.faults.world import MissingError, World

SEED = 7
PROCESSES: tuple[ModuleType, ...] = (rows_processes,)
REDIS: tuple[ModuleType, ...] = (rows_redis, rows_history)
OTHERS = tuple(part for part in PARTS if part not in (*PROCESSES, *REDIS, rows_lasting))

# One row of each kind, which each change is held to; the others are of `make verify`.
EACH = (
    "commit_reply_lost", "postgres_full", "scripts_flushed", "clients_leave", "upstream_resets",
    "primary_empty",
)  # fmt: skip


class Shared:
    """A world that is made when it is first needed; anew for another kind, and where a row left it broken."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.clustered = False

    def get(self, row: Row) -> World:
        if self.clustered != row.clustered:
            self.drop()
        if self.world is None:
            self.world, self.clustered = matrix.world_of(row, SEED).open(), row.clustered
        return self.world

    def drop(self) -> None:
        if self.world is not None:
            self.world.close()
        self.world = None


# Rows whose mechanism another row has at once with theirs, or which are long.
NIGHTLY = ("fallback", "sigterm", "soak")


def names(parts: tuple[ModuleType, ...]) -> list[str | ParameterSet]:
    """The rows of some parts that have a short form, without those of `EACH`."""
    told = {part.__name__ for part in parts}
    return [
        pytest.param(name, marks=pytest.mark.nightly) if name in NIGHTLY else name
        for name, one in ROWS.items()
        if one.play.__module__ in told and not one.only_long and name not in EACH
    ]  # fmt: skip


def play(name: str, shared: Shared) -> None:
    """Play a row on the world that is shared, or on one of its own; what is broken fails the test."""
    row = ROWS[name]
    world = matrix.world_of(row, SEED).open() if row.alone else shared.get(row)
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
