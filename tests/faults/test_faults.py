"""The matrix in its short, seeded form: each row on real processes, one deployment shared by most."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults import matrix
from tests.faults.matrix import ROWS
from tests.faults.scene import Row
from tests.faults.world import MissingError, World

SEED = 7


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


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    one = Shared()
    yield one
    one.drop()


@pytest.mark.parametrize("name", [name for name, one in ROWS.items() if not one.only_long])
def test_row(name: str, shared: Shared) -> None:
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
