"""The watcher keeps what it saw last, and nothing it could not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.background.verifying.gauges import Gauges


class Sight:
    """Something to look at."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.hidden = False

    async def __call__(self) -> Mapping[str, Any]:
        if self.hidden:
            raise OSError
        return self.facts


async def test_everything_is_seen_and_rows_of_several_looks_stand_together() -> None:
    one, other = Sight(ends=[["redis", 1]], used=5), Sight(ends=[["postgresql", 2]])
    gauges = Gauges((one, other))
    assert gauges.latest == {}
    await gauges.refresh()
    assert gauges.latest == {"ends": [["redis", 1], ["postgresql", 2]], "used": 5}


async def test_what_cannot_be_seen_is_left_out_instead_of_being_old() -> None:
    one, other = Sight(used=5), Sight(dead=0)
    gauges = Gauges((one, other))
    await gauges.refresh()
    one.hidden = True
    await gauges.refresh()
    assert gauges.latest == {"dead": 0}
    one.hidden = False
    await gauges.refresh()
    assert gauges.latest == {"used": 5, "dead": 0}
