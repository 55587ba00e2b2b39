"""Caches that share bytes: what makes room, and how much a cached value takes."""

import gc
import tracemalloc
from collections.abc import Callable, Sized

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_budgets import BudgetCache, OrganizationBudgets
from gateway.core.lru import CachePool, LruCache, LruEntry
from gateway.core.model import Caller
from gateway.counters.redis.calls import Frames
from tests.builders import CHAT

PUTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 20)), max_size=60)
COUNTED = 1_000


@given(PUTS)
def test_caches_hold_no_more_together_than_their_pool_has(puts: list[tuple[str, int, int]]) -> None:
    pool = CachePool(100)
    caches = {name: LruCache[int, LruEntry](most) for name, most in (("a", 90), ("b", 30))}
    for name, cache in caches.items():
        pool.join(name, cache)
    for name, key, size in puts:
        before = {other: (len(cache), cache.held, cache.share) for other, cache in caches.items()}
        caches[name].put(key, LruEntry(), size)
        assert key in caches[name].known, "the newest stays"
        assert pool.held == sum(cache.held for cache in caches.values()) <= pool.most
        assert dict(pool.sizes()) == {other: cache.held for other, cache in caches.items()}
        for other, cache in caches.items():
            count, held, share = before[other]
            if other != name and held <= share:
                assert len(cache) == count, "what is within its share goes for no other cache"


def test_a_cache_that_takes_the_place_of_another_counts_alone() -> None:
    pool, before, after = CachePool(100), LruCache[int, LruEntry](50), LruCache[int, LruEntry](50)
    pool.join("heads", before)
    before.put(1, LruEntry(), 40)
    pool.join("heads", after)
    before.put(2, LruEntry(), 5)
    after.put(1, LruEntry(), 7)
    assert (pool.held, pool.sizes()) == (7, [("heads", 7)])


def _frames(count: int) -> Frames:
    frames, caller = Frames(), Caller(1, 2, 3, 4)
    for number in range(count):
        names = tuple(f"{at:016x}:{number:024x}" for at in range(2))
        frames.frame_of(caller, f"user-{number:06}", CHAT, names)
    return frames


def _budgets(count: int) -> BudgetCache:
    budgets = [Budget(2, "b", "tokens", 1, "month", each=kind) for kind in ("user", "session")]
    found, organization = BudgetCache(), OrganizationBudgets(1, budgets, "USD")
    for number in range(count):
        asked = (0, 0, 0, f"user-{number:06}", None, (), f"session-{number:06}", "", "", (), ())
        found.find(organization, asked, 1_760_000_000_000)
    return found


@pytest.mark.parametrize("fill", [_frames, _budgets])
def test_cached_values_take_what_is_counted(fill: Callable[[int], Frames | BudgetCache]) -> None:
    fill(10)
    gc.collect()
    tracemalloc.start()
    try:
        cache: Sized = fill(COUNTED)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache) == COUNTED
    assert isinstance(cache, Frames | BudgetCache)
    assert held <= cache.known.held <= 2 * held
