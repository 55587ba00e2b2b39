"""Plays random histories on the scripts of the tree it runs in: `tests.model.two_programs` compares two trees.

Its text is given to a python there, so it uses what both trees have. It reads (seed, steps, whether to look after
each of them, whether both trees have the features of this version), a line each, and answers what the scripts answered
and what is stored. Histories follow from the seed alone. The scripts read a clock that the history sets: so levels, resets and windows are equal to the millisecond.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from dataclasses import asdict, replace
from typing import Any, cast

import redis

from gateway.core.accounts import budgets
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import BudgetAccount, HoldExtension, HoldRequest, Limits, Settlement
from gateway.counters.layouts import packing
from gateway.counters.leases.allowance import lease
from gateway.counters.redis import keys
from gateway.counters.redis.scripts import library
from tests import layout_player
from tests.builders import (
    BY_TOKEN,
    CHAT,
    CREDITS,
    EVERYTHING,
    ONE_TIME,
    TOMBSTONE_MS,
    TTL_MS,
    UNITS,
    World,
    together,
)
from tests.layout_player import TIERED
from tests.lua.windows import OTHER_NAME, account, window

# Only the version of a definition, and the name that Redis gives an entry, are not of the history.
UNLIKE = frozenset({"version", "entry_id", "created"})
TIME, CLOCK = "call('TIME')", "call('LRANGE', 'clock', 0, 1)"
BEGIN_MS, DAY_MS = 1_900_000_000_000, 86_400_000
SERVICES = (CHAT, CHAT, CREDITS, ONE_TIME, UNITS, EVERYTHING, BY_TOKEN, TIERED)
USERS = ("", "ann", "bob", "limited")
REQUESTS = 10
VERBS = (
    "reserve", "reserve", "reserve", "settle", "settle", "settle", "extend", "grant", "define", "pass", "pass",
    "lease", "amounts",
)  # fmt: skip
MODES = (1, 1, 1, 1, 2, 3, 4, 5, 6)
AMOUNTS = (0, 9, 70)
AMOUNTS_NEWEST = (0, 9, 9, 70, 2**53 - 25)  # this version counts money beyond one number
PASSES_MS = (0, 1, 40, 700, 5_000, 31_000, 3_600_000, DAY_MS, -4_000)


class Player(layout_player.Player):
    """An organization with two tenants, a key each, and budgets, in a database that only this tree uses."""

    unlike = UNLIKE

    def __init__(self, url: str) -> None:
        client, text = redis.Redis.from_url(url), library().text
        assert text.count(TIME) == 1
        client.function_load(text.replace(TIME, CLOCK), replace=True)
        client.rpush("clock", "0", "0")
        super().__init__(url)

    def history(self, seed: int, steps: int, looks: bool, is_newest: bool) -> list[Any]:
        """Play a history; return (verb, answer, what is stored then, or None) of each step."""
        self.drawn, self.is_newest = random.Random(seed), is_newest
        self._begin()
        played = []
        for _ in range(steps):
            verb = self.drawn.choice(VERBS)
            try:
                answer = getattr(self, f"_{verb}")()
            except redis.ResponseError:
                answer = "error"
            played.append((verb, answer, self._stored() if looks else None))
        played.append(("end", None, self._stored()))
        return played

    def _begin(self) -> None:
        client, draw = self.world.client, self.drawn.choice
        client.flushdb()
        self.now_ms, self.writes, self.asked = BEGIN_MS + draw(range(DAY_MS)), 0, dict[int, HoldRequest]()
        self.daily = [draw([True, False]) for _ in range(4)]
        client.rpush("clock", "0", "0")
        self._wait(0)
        self.world = World(self.world.url)
        self.worlds = [self.world, World(self.world.url, tenant_id=8, key_id=4, made=True)]
        self.world.define_organization(
            self._limits(), cap=draw([None, 200, 60_000]), credit_limit=draw([0, 20])
        )
        for world in self.worlds:
            world.define_tenant(self._limits(), users=draw([Limits(), Limits(concurrency=3)]))
            world.define_key(self._limits())
            world.grant("plan", terms=self._terms(), write_id=self._write())
        self.world.define_user("limited", Limits(requests_per_minute=4))
        self.world.grant("credits", draw([30, 500, 10_000]), write_id=self._write())
        self._amounts()

    def _wait(self, ms: int) -> None:
        self.now_ms += ms
        self.world.client.lset("clock", 0, str(self.now_ms // 1000))
        self.world.client.lset("clock", 1, str(self.now_ms % 1000 * 1000))

    def _limits(self) -> Limits:
        draw = self.drawn.choice
        return Limits(draw([None, None, 5, 30]), draw([None, None, 300, 2_000]), draw([None, None, 3, 20]))

    def _terms(self) -> PlanTerms:
        draw = self.drawn.choice
        return PlanTerms(
            draw([1, 2]), total_amount=draw([None, 200, 2_000]), reset_interval=draw(["none", "daily", "monthly"]),
            overage_policy=draw(["block", "carry", "bill"]), rollover_max=draw([0, 50]),
            admission=draw(["available", "strict"]), on_exhausted=draw(["finish", "cut"]),
        )  # fmt: skip

    def _write(self) -> str:
        self.writes += 1
        return layout_player._id(self.writes, 3)

    def _amounts(self) -> None:
        """Change the amounts of budgets; from now on calls bring these. The interval of a budget never changes."""
        draw = self.drawn.choice
        self.windows = [
            (number, draw([90, 600, 10**6]), unit, draw([True, True, False]), draw([False, False, True]))
            for number, unit in ((1, "money"), (2, "tokens"), (3, "requests"))
            if number == 1 or draw([True, True, False])
        ]
        self.owned = draw([60, 400])
        self._define_budgets()

    def _define_budgets(self) -> None:
        """Define the budgets as of now."""
        day = self.now_ms - self.now_ms % DAY_MS
        daily = (day, day + DAY_MS, day + 2 * DAY_MS)
        times = [daily if is_daily else (0, 0, 0) for is_daily in self.daily]
        shared = [
            window(number, amount, unit, at=times[number], enforce=enforce, cut=cut)
            for number, amount, unit, enforce, cut in self.windows
        ]
        owned = window(4, self.owned, at=times[0])
        self.budgets: list[BudgetAccount] = [account(*shared)]
        self.budgets += [account(owned, name=OTHER_NAME, value=letter * 24) for letter in "ab"]
        if self.is_newest:
            self.budgets.append(self._newest_account())

    def _defined_now(self, accounts: tuple[BudgetAccount, ...]) -> tuple[BudgetAccount, ...]:
        """Return accounts as they are defined now; the newest program may be told old definitions (`_pass`)."""
        now = {} if self.is_newest else {one.name: one for one in self.budgets}
        return tuple(now.get(one.name, one) for one in accounts)

    def _newest_account(self) -> BudgetAccount:
        """Return an account of windows that only this version has: one rolls, one begins at first use, one carries."""
        from gateway.core.accounts.windows import Carry  # the release before has none

        draw, length_ms = self.drawn.choice, 5 * 3_600_000
        carry = Carry(draw([20, 300]), draw([True, False]))
        of_kinds = [
            budgets.Budget(5, "rolls", "money", draw([60, 400]), "", window="rolling", length_ms=length_ms),
            budgets.Budget(
                6, "begins", "tokens", draw([90, 900]), "", window="first_use", length_ms=length_ms
            ),
            budgets.Budget(
                7, "carries", "money", draw([60, 400]), "hour", carry=carry, changed_ms=self.now_ms
            ),
        ]
        return BudgetAccount("c" * 16, budgets.define_windows(of_kinds, self.now_ms), enforced=True)

    def _draw_request(self) -> HoldRequest:
        draw = self.drawn.choice
        world, service, need = draw(self.worlds), draw(SERVICES), draw([0, 5, 20, 60, 150])
        number, more, held = draw(range(REQUESTS)), draw([0, 0, 30]), draw([0, 10, 50])
        chosen = [one for one in self.budgets if draw([True, False])]
        least = draw([0, 0, 5])
        request = HoldRequest(
            world.caller, layout_player._id(number), draw(USERS), service, need, need + more,
            service.credits or (held if service.meter == "consumption" else 0), draw([1, 3]),
            False, min(least, need), 0, budgets=tuple(chosen), money=held,
            money_most=held + more, money_least=min(least, held),
        )  # fmt: skip
        _set_tokens(request, "", need)
        _set_tokens(request, "most", need + more)
        _set_tokens(request, "least", min(least, need))
        if self.is_newest and chosen:
            request.steps = tuple(draw([(), (), ((1, 500_000, draw([0, 1, 2, 3])), (5, 300_000, 1))]))
        if (before := self.asked.get(number)) is not None and draw([True, False]):
            accounts = self._defined_now(before.budgets)
            request = replace(before, need=need, ceiling=need + more, raises=True, budgets=accounts)
        self.asked[number] = request
        return request

    def _together(self, verb: str, calls: list[packing.Call]) -> list[Any]:
        answer = self.world.run(verb, calls[0] if len(calls) == 1 else together(verb, calls))
        return answer if isinstance(answer, list) else [answer]

    def _reserve(self) -> list[Any]:
        self.writes += 1
        requests = [self._draw_request() for _ in range(self.drawn.choice([1, 1, 1, 2, 4]))]
        plan = self.drawn.choice([packing.ANY_PLAN] * 9 + [1])
        calls = [
            packing.reserve(self.world.run_id, 1, TTL_MS, one, self.writes, plan_id=plan) for one in requests
        ]
        return [
            "error" if isinstance(answer, Exception) else _decided(packing.decision(answer, request.service))
            for answer, request in zip(self._together("reserve", calls), requests, strict=True)
        ]

    def _settle(self) -> list[Any]:
        self.writes += 1
        draw, calls = self.drawn.choice, []
        for _ in range(draw([1, 1, 1, 2, 4])):
            number, mode, amount = draw([*self.asked] or [0]), draw(MODES), draw([0, 4, 25, 200])
            if mode == packing.MODE_CORRECT:
                amount = 0  # tokens of a correction are used now, where they lowered the limit before
            request = self.asked.get(number) or self._draw_request()
            if draw([True, True, False]):
                self.asked.pop(number, None)
            used = Settlement(
                request.caller, request.request_id, request.user, request.service,
                charge=mode != packing.MODE_RELEASE, tokens=amount, credits=draw([0, 7, 40]),
                units=draw([0, 1, 5]), attribution="1\t2\tv", metadata=b"{}",
                over=draw([0, 10**8]) if request.service is BY_TOKEN else 0,
                budgets=tuple(one.name for one in request.budgets), money=draw(AMOUNTS_NEWEST if self.is_newest else AMOUNTS),
            )  # fmt: skip
            _set_tokens(used, "", amount)
            late = mode in {packing.MODE_POST, packing.MODE_CORRECT}
            queue = keys.late(self.world.p)
            entry = cast("bytes", self.world.client.xadd(queue, {"a": ""})) if late else None
            names, arguments = packing.settle(
                self.world.run_id, TOMBSTONE_MS, used, mode, entry, batch=self.writes,
                definitions=tuple(one.defined for one in self._defined_now(request.budgets)) if late else (),
            )  # fmt: skip
            if mode == packing.MODE_RECOVER:
                arguments += (struct.pack("<5d", 1, 2, 1, 0, 0),)
            calls.append((names, arguments))
        return [
            "error" if isinstance(answer, Exception) else _settled(answer)
            for answer in self._together("settle", calls)
        ]

    def _extend(self) -> list[Any]:
        draw, live = self.drawn.choice, []
        for number in sorted(self.drawn.sample(range(REQUESTS), draw([1, 2, 3]))):
            request = self.asked.get(number)
            if request is not None:
                names = tuple(one.name for one in request.budgets)
                live.append((HoldExtension(request.caller, request.request_id, 0, draw([0, 10, 90]), budgets=names),
                             draw([0, 30])))  # fmt: skip
        return self.world.kept(live) if live else []

    def _grant(self) -> Any:
        draw, world = self.drawn.choice, self.drawn.choice(self.worlds)
        verb = draw(
            [
                "recharge",
                "reset",
                "adjust",
                "block",
                "unblock",
                "plan",
                "credits",
                "credits",
                "sweep",
                "budget",
            ]
        )
        if verb == "budget":
            call = packing.grant(
                world.run_id, verb, draw([1, 4]), self._write(), tenant_id=world.caller.tenant_id,
                organization_id=1, accounts=[one.name for one in self.budgets],
            )  # fmt: skip
            return list(world.run("grant", call))
        if verb == "plan":
            return asdict(world.grant(verb, self.now_ms, terms=self._terms(), write_id=self._write()))
        amount = draw([5, 60, 400]) if verb != "block" else 0  # the cause, which is new
        amount *= draw([1, 1, -1]) if verb in {"adjust", "credits"} else 1
        return asdict(world.grant(verb, amount, write_id="0" * 36 if verb == "sweep" else self._write()))

    def _define(self) -> int:
        world = self.drawn.choice(self.worlds)
        world.version += 1000
        return self.drawn.choice([world.define_key, world.define_tenant, world.define_organization])(
            self._limits()
        )

    def _pass(self) -> None:
        """Let time pass. In the release before, an old definition did not say when a window ends whose end is unknown."""
        self._wait(self.drawn.choice(PASSES_MS))
        if not self.is_newest or self.drawn.choice([True, False]):
            self._define_budgets()

    def _lease(self) -> list[float]:
        ttl, caller = self.drawn.choice([TTL_MS, TTL_MS, 0]), self.drawn.choice(self.worlds).caller
        answer = self.world.run(
            "lease", lease(self.world.run_id, caller, layout_player._id(0, 2), ttl, fraction=0.1)
        )
        return [number for (number,) in struct.iter_unpack("<d", answer)]

    def _stored(self) -> dict[str, Any]:
        """Return what is stored; of places in an index those that have not expired, which both remove some time later."""
        client, sets = self.world.client, dict[str, Any]()
        for name in cast("list[bytes]", client.keys(f"tk:{{p{self.world.p:02}}}:*")):
            if client.type(name) == b"zset":
                since = f"({self.now_ms}" if b":each:" in name else "-inf"
                if members := client.zrangebyscore(name, since, "inf", withscores=True):
                    sets[name.decode()] = members
        return self.found() | {"sets": sets}


def _set_tokens(of: Any, what: str, amount: int) -> None:
    """Set the tokens that budgets count, by the name that the tree has for them."""
    today = "budget_tokens"
    name = today if hasattr(of, today) else "raw"
    more = f"_{what}" if what else "" if name == today else "_tokens"
    setattr(of, name + more, amount)


def _settled(answer: bytes) -> list[float]:
    """Return the numbers of an answer; 3 is 1 where an account held less, which the release before did not say."""
    code, *numbers = (number for (number,) in struct.iter_unpack("<d", answer))
    return [1 if code == 3 else code, *numbers]


def _decided(decision: Any) -> dict[str, Any]:
    return asdict(decision) | {"verdict": decision.verdict.name}


def main() -> None:
    """Answer each line; the argument is the address of a database."""
    layout_player.UNLIKE = (
        UNLIKE  # where the player of the release before reads it; no test shares this process
    )
    player = Player(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(player.history(*json.loads(line)), default=str), flush=True)


if __name__ == "__main__":
    main()
