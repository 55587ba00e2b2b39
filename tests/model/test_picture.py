"""The examples of docs/internals/scripts.md are what a call of `reserve` does."""

from __future__ import annotations

import re

from gateway.core.model import HoldRequest, Limits
from gateway.counters.layouts import packing
from gateway.counters.redis import scripts
from tests.builders import CHAT, TTL_MS, World, new_id
from tests.lua.clocks import ClockWorld
from tests.lua.windows import NAME, account, window
from tests.tree import ROOT

NOW_MS, PASSED_MS, NEED, MONEY = 1_900_000_000_000, 12_000, 300, 40
ROW = re.compile(r"^\| (\w+) \| (\w+) ((?:\| [\d,]+ ){5})\|$", re.MULTILINE)


def page() -> str:
    return (ROOT / "docs/internals/scripts.md").read_text(encoding="utf-8")


def printed_rows() -> dict[tuple[str, str], list[int]]:
    """Return limit, stored amount, amount at the call, taken amount and what is left, by account and meter."""
    part = page().partition("### What the loops do")[2].partition("\n## ")[0]
    return {
        (account, meter): [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", numbers)]
        for account, meter, numbers in ROW.findall(part)
    }


def test_reserve_takes_the_printed_example(valkey: str) -> None:
    world = ClockWorld(valkey, NOW_MS)
    rows = printed_rows()
    limits = {place: row[0] for place, row in rows.items()}
    before = {place: row[1] for place, row in rows.items()}
    at = NOW_MS - PASSED_MS

    world.define_key(
        Limits(requests_per_minute=limits["key", "requests"], concurrency=limits["key", "slots"])
    )
    world.put_key(requests_used=before["key", "requests"], inflight=before["key", "slots"], at=at)
    world.define_tenant(Limits(tokens_per_minute=limits["tenant", "tokens"]))
    world.plan(limits["tenant", "quota"])
    world.put_tenant(tokens_used=before["tenant", "tokens"], held=before["tenant", "quota"], at=at)
    budget = account(window(1, limits["budget", "money"]))
    world.reserve(0, budgets=(budget,), money=before["budget", "money"])
    world.put_key(requests_used=before["key", "requests"], inflight=before["key", "slots"], at=at)

    world.reserve(NEED, budgets=(budget,), money=MONEY)
    after = {
        ("key", "requests"): world.key.requests_used, ("key", "slots"): world.key.inflight,
        ("tenant", "tokens"): world.tenant.tokens_used, ("tenant", "quota"): world.tenant.held,
        ("budget", "money"): world.windows(NAME)[0].held,
    }  # fmt: skip
    assert after == {place: row[4] for place, row in rows.items()}
    assert all(row[2] + row[3] == row[4] for row in rows.values())


def test_the_printed_text_is_written_out(valkey: str) -> None:
    client = ClockWorld(valkey, NOW_MS).client
    parse, key = "return loadstring(concat(text, '\\n'))()", "written"

    def read(name: str) -> str:
        return scripts.read(name).replace(parse, f"call('RPUSH', '{key}', concat(text, '\\n')) {parse}")

    library = scripts.assemble(read)
    client.function_load(library.text)
    world = World(valkey)
    world.plan(None)
    budget = account(window(1, 900), window(2, 900, "tokens", enforce=False))
    for _ in range(2):  # a new account is not written out
        packed = packing.reserve(
            world.run_id,
            1,
            TTL_MS,
            HoldRequest(world.caller, new_id(), "", CHAT, NEED, NEED, budgets=(budget,)),
        )
        client.fcall(library.functions["reserve"], len(packed[0]), *packed[0], *packed[1])
    assert client.lrange(key, 0, 0)[0].decode() in page(), client.lrange(key, 0, 0)[0].decode()
