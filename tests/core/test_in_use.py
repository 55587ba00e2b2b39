"""What is looked up by a key is bounded by its size, and those go that were used longest ago."""

from __future__ import annotations

from gateway.core.lru import LruCache, LruEntry


def room(most: int, keys: str = "") -> LruCache[str, LruEntry]:
    found: LruCache[str, LruEntry] = LruCache(most)
    for key in keys:
        found.put(key, LruEntry())
    return found


def test_one_goes_for_each_that_comes_and_never_one_in_use() -> None:
    kept = room(4, "abcd")
    for newcomer in "efghijk":
        assert kept.find("a") is not None
        kept.put(newcomer, LruEntry())
        assert kept.held == len(kept) == 4
    assert "a" in kept.known


def test_what_takes_more_than_before_has_those_go_that_were_used_longest_ago() -> None:
    kept = room(4, "abcd")
    kept.put("b", LruEntry(), 3)
    assert (list(kept.known), kept.held) == (["b", "d"], 4)
    kept.put("b", LruEntry(), 1)
    assert (set(kept.known), kept.held) == ({"b", "d"}, 2)


def test_one_in_use_does_not_go_for_others_that_grow() -> None:
    kept = room(8, "abcd")
    for growing in "bcd":
        assert kept.find("a") is not None
        kept.put(growing, LruEntry(), 3)
    assert (list(kept.known), kept.held) == (["a", "c", "d"], 7)


def test_what_is_larger_than_all_there_is_room_for_is_there_alone() -> None:
    kept = room(4, "abcd")
    kept.put("e", LruEntry(), 9)
    assert (list(kept.known), kept.held) == (["e"], 9)
    kept.put("f", LruEntry())
    assert (list(kept.known), kept.held) == (["f"], 1)


def test_what_is_dropped_takes_no_room() -> None:
    kept = room(4, "abcd")
    kept.drop("b")
    kept.drop("b")
    assert (kept.find("b"), kept.held) == (None, 3)
    kept.put("e", LruEntry())
    assert set(kept.known) == set("acde")
