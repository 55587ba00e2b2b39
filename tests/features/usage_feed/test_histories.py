"""Random histories of calls that are amended, rated again and told from outside, with a usage feed beside.

Whatever fails between, both sides come to the same: what the billing service took is added up event by event,
what there is by the journal's rows.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from tests.features.usage_feed.fed import Fed, fed
from tests.features.usage_feed.usage_servers import Failure
from tests.persistence.april import April
from tests.persistence.billing.drawn import some
from tests.persistence.billing.histories import FIRST, live
from tests.persistence.billing.test_every_history import CHANGES, EveryHistory

# Few, so that some are added up.
WAITING_MAX = 8
BATCH = 3
FEED = st.tuples(
    st.just("feed"),
    st.tuples(st.sampled_from(["send", "down", "lost", "poison", "dies", "retry"]), st.integers(1, 4)),
)
# What makes calls, and what changes them later.
CALLS = st.one_of(
    st.tuples(st.just("cost_call"), st.tuples(st.integers(0, 900_000), st.integers(0, 90_000))),
    st.tuples(st.just("cost_event"), st.tuples(st.integers(0, 300), st.integers(0, 900_000))),
    st.tuples(st.just("price"), st.tuples(st.integers(-20, 200), st.integers(0, 10**10))),
    st.tuples(st.just("unit_call"), st.integers(1, 3_000)),
    st.tuples(st.just("credit_call"), st.integers(1, 900)),
    st.tuples(st.just("call"), st.integers(1, 9_000)),
    CHANGES,
    CHANGES,
)
MET: list[tuple[str, Any]] = [
    ("cost_call", (900_000, 10_000)), ("cost_event", (3, 7_001)), ("unit_call", 2_500), ("credit_call", 500),
    ("call", 8_999), ("feed", ("lost", 2)), ("price", (5, 10**9 + 7)), ("feed", ("poison", 1)),
    ("change_call", ("units", 0, 70, "IN")), ("change_call", ("tokens", 0, 33, "OUT")), ("feed", ("dies", 1)),
    ("change_call", ("credits", 0, 50, "IN")), ("feed", ("retry", 1)),
    ("cost_call", (1, 1)), ("cost_call", (3, 2)), ("cost_call", (7, 0)), ("unit_call", 1), ("unit_call", 2),
    ("cost_call", (11, 0)), ("unit_call", 3), ("cost_call", (17, 0)), ("cost_call", (19, 1)),
    ("feed", ("down", 1)), ("change_call", ("amount", 0, 10, "IN")),
]  # fmt: skip


class FedHistory(EveryHistory):
    """One organization through years, whose use is told as it goes."""

    feed: Fed

    def __init__(self, april: April, stack: AsyncExitStack, *, lago: bool) -> None:
        super().__init__(april)
        self.stack, self.lago = stack, lago

    async def begin(self) -> None:
        self.feed = await self.stack.enter_async_context(
            fed(self.april.url, lago=self.lago, waiting_max=WAITING_MAX)
        )
        await super().begin()

    async def step(self, what: str, how: Any) -> None:
        if what == "feed":
            await self._feed(*how)
        else:
            await super().step(what, how)

    async def end(self) -> None:
        await super().end()
        await self._feed("retry", 1)
        await self._feed("send", 1)
        assert self.feed.out() == []
        self.feed.agree()

    async def _feed(self, what: str, number: int) -> None:
        feed, billing = self.feed, self.feed.billing
        feed.pass_time()
        if what == "dies":
            await feed.dies()
        elif what == "retry":
            await self.april.do("usage-feeds", "retry", feed.feed("id")[0])
        else:
            first = billing.requests
            if what in {"down", "lost"}:
                failure = Failure(503, after=what == "lost")
                billing.fail = lambda request: failure if request >= first + number else None
            elif what == "poison":
                billing.poison = {f"{digit}:" for digit in "05af"}
            await feed.drain(batch=BATCH)
            billing.fail, billing.poison = lambda _: None, set()


def test_usage_events_of_every_kind_of_correction_add_up_to_the_recorded_use(migrated: str) -> None:
    history = asyncio.run(_live(migrated, MET, lago=True))
    kinds = {each["kind"] for each in history.feed.billing.events.values()}
    assert kinds >= {"use", "amended", "rerated", "folded"}
    assert history.feed.billing.repeated > 0


@some(1)
@given(steps=st.lists(st.one_of(CALLS, CALLS, FEED), min_size=12, max_size=20), lago=st.booleans())
def test_usage_events_after_random_calls_and_crashes_add_up_to_the_recorded_use(
    migrated: str, *, steps: list[tuple[str, Any]], lago: bool
) -> None:
    asyncio.run(_live(migrated, steps, lago=lago))


async def _live(url: str, steps: list[tuple[str, Any]], *, lago: bool) -> FedHistory:
    made: list[FedHistory] = []

    def of(april: April) -> FedHistory:
        made.append(FedHistory(april, stack, lago=lago))
        return made[0]

    async with AsyncExitStack() as stack:
        await live(cast("Any", of), url, [("subscribe", FIRST | {"renews": True}), *steps])
    return made[0]
