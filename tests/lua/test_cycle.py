"""Lua and `core/calendar.py` agree on every boundary."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import redis

from gateway.core.billing.calendar import cycles_between, next_reset_ms

LIB = Path("lua/lib")
CALL = """
bind()
local interval, anchor = tonumber(ARGV[1]), tonumber(ARGV[2])
local now, steps = tonumber(ARGV[3]), tonumber(ARGV[4])
local first = boundary(interval, anchor, now)
local last = first
for _ = 1, steps do last = boundary(interval, anchor, last) end
return {string.format('%.0f', first), string.format('%.0f', last), cycles_between(interval, first, last)}
"""
NUMBERS = {"daily": 1, "weekly": 2, "monthly": 3}
FIRST, LAST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (1971, 2120))


def test_lua_and_python_agree_on_every_boundary(valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        text = "".join((LIB / name).read_text() for name in ("state.lua", "cycle.lua"))
        ask = client.register_script((text + CALL).encode())
        some = random.Random(3)
        for _ in range(2000):
            interval = some.choice(list(NUMBERS))
            anchor, now, steps = some.randint(1, 31), some.randint(FIRST, LAST), some.randint(0, 14)
            if some.random() < 0.3:
                now -= now % 86_400_000
            first = last = next_reset_ms(interval, now, anchor)
            for _ in range(steps):
                assert last is not None
                last = next_reset_ms(interval, last, anchor)
            assert first is not None
            assert last is not None
            answer = [int(number) for number in ask(args=[NUMBERS[interval], anchor, now, steps])]
            assert answer == [first, last, cycles_between(interval, first, last)], (interval, anchor, now)
