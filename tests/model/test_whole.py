"""The whole system against a small model of the domain, over random histories, checked after each step.

The same histories on each run, others at night; a failure prints its seed. The long form draws them for a
while: `python -m tests.model --seconds 900`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import ValkeyServer
from tests.model.system import KEYS, PLANS, System
from tests.search import another, histories, is_night

SEED = 20_261
EXAMPLES = 6 if is_night() else 3
STEPS_MAX = 24

PRICED = [key for key in KEYS if key != "m-sub"]
AT = st.integers(0, 9)
WHICH = st.integers(0, 1)
FEW = st.integers(1, 9)
TOKENS = st.integers(0, 150)
OWN_PRICE = st.none() | st.integers(0, 40)
POLICY = st.sampled_from(["block", "carry", "bill"])
STEP = st.one_of(
    st.tuples(st.just("reserve"), WHICH, st.sampled_from(KEYS), st.integers(1, 150), FEW),
    st.tuples(st.just("reserve"), WHICH, st.sampled_from(KEYS), st.integers(1, 150), FEW),
    st.tuples(st.just("settle"), AT, TOKENS, TOKENS, FEW, st.booleans()),
    st.tuples(st.just("settle"), AT, TOKENS, TOKENS, FEW, st.booleans()),
    st.tuples(st.just("extend"), AT, st.integers(1, 200), TOKENS),
    st.tuples(st.just("die"), AT),
    st.tuples(st.just("fail"), AT),
    st.tuples(st.just("give"), st.integers(-300, 900), st.booleans(), st.sampled_from([50, 100])),
    st.tuples(st.just("expire"), AT),
    st.tuples(
        st.just("quota"),
        WHICH,
        st.sampled_from(["recharge", "adjust", "reset", "block", "unblock"]),
        st.integers(-200, 400).filter(bool),
    ),
    st.tuples(st.just("move"), st.integers(0, len(PLANS) - 1)),
    st.tuples(st.just("edit_plan"), st.integers(0, len(PLANS) - 1), st.integers(0, 600), POLICY),
    st.tuples(st.just("reprice"), st.sampled_from(PRICED), st.integers(1, 60)),
    st.tuples(st.just("negotiate"), st.sampled_from(["m-unit", "m-both", "m-once"]), OWN_PRICE),
    st.tuples(st.just("bound"), st.integers(0, 200), st.none() | st.integers(0, 60_000)),
    st.tuples(st.just("open"), st.sampled_from(["all", "listed"])),
    st.tuples(st.just("subscribe"), st.none() | WHICH),
    st.tuples(st.just("next_cycle"), WHICH),
    st.tuples(st.just("deliver_again"), AT),
    st.tuples(st.just("keep"), st.sampled_from(["", "", "two", "killed"])),
    st.tuples(st.just("restart_redis")),
    st.tuples(st.just("lose_redis")),
)  # fmt: skip
HISTORY = st.lists(STEP, min_size=8, max_size=STEPS_MAX)


async def live(server: ValkeyServer, database: str, history: list[tuple[Any, ...]], salt: int) -> None:
    """One history, from an empty world to a last whole pass; the model is asked after each step."""
    system = System(server, database)
    chance = random.Random(salt)
    await system.begin()
    try:
        for name, *values in history:
            system.patience = chance.random() * 0.02
            do: Callable[..., Coroutine[Any, Any, None]] = getattr(system, name)
            await do(*values)
            await system.check(whole=name == "keep")
        for _ in range(2):
            await system.keep("")
        await system.check(whole=True)
    finally:
        await system.end()


def run(server: ValkeyServer, database: str, number: int, many: int, *, shrink: bool = True) -> None:
    """So many histories of one seed."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @seed(number)
    @settings(
        max_examples=histories(many), deadline=None, database=None, print_blob=False, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(history=HISTORY, salt=st.integers(0, 2**32))
    def play(history: list[tuple[Any, ...]], salt: int) -> None:
        asyncio.run(live(server, database, history, salt))

    try:
        play()
    except BaseException as error:
        error.add_note(f"SEED={number}")
        raise


def test_the_whole_system_does_what_the_model_says(
    own_valkey: Callable[..., ValkeyServer], shared: str
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    run(server, shared, another(SEED), EXAMPLES)
