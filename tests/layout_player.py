"""Plays steps of calls on one partition, as one program or another: a child process is the other one.

`Step` says everything, so that whoever plays a later step need not have played the earlier ones.
`python -m tests.layout_player URL` plays what it reads, a line each, and answers what the scripts do.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast
from uuid import UUID

from gateway.core.accounts.plans import PlanTerms
from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import HoldExtension, HoldRequest, Limits, Service, Settlement
from gateway.core.wait import in_task
from gateway.counters.late import late_settlement, read_entry
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.states import BUDGET, unpack_windows
from gateway.counters.leases.allowance import lease
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import record_of, unpack
from tests.builders import BY_TOKEN, CHAT, CREDITS, ONE_TIME, TTL_MS, World, settlement_log, together
from tests.lua.windows import OTHER_NAME, account, window
from tests.tree import ROOT

TIERED = Service(
    id=4, key="search", meter="pay_per_use", counts_tokens=False,
    pricing=ServicePricing(tiers=(PriceTier(10, 1), PriceTier(None, 2))),
)  # fmt: skip
SERVICES = (CHAT, BY_TOKEN, CREDITS, TIERED, CHAT, ONE_TIME)
BUDGETS = (
    account(window(1, 10**6), window(2, 10**6, "tokens"), window(3, 10**6, "requests")),
    account(window(4, 10**6), name=OTHER_NAME, value="a" * 24),
)
VERBS = ("reserve", "reserve", "raise", "extend", "settle", "settle", "several", "release", "reclaim", "post",
         "correct", "recharge", "credits", "define", "lease", "give back")  # fmt: skip
# What a clock says, and what only the newer program has.
UNLIKE = frozenset({
    "at", "ledger_at", "deadline", "created", "credit_at", "spend_at", "last_reset", "next_reset", "at_ms",
    "next_reset_ms", "version", "spare", "settled", "entry_id",
})  # fmt: skip


USED = 123


class Step(NamedTuple):
    """What is done, with the call of which number, and how much."""

    verb: str
    number: int
    amount: int


def history(seed: int, length: int, after: int = 0) -> list[Step]:
    """Steps that follow from a seed alone; calls are numbered from `after` on."""
    drawn = random.Random(seed)
    return [
        Step(drawn.choice(VERBS), after + at // 6 + drawn.randrange(5), drawn.randrange(1, 60))
        for at in range(length)
    ]


class Player:
    """Plays them with the scripts of this very program."""

    unlike: ClassVar = UNLIKE

    def __init__(self, url: str, *, made: bool = True) -> None:
        self.world = World(url, made=made)

    def begin(self, layout: int | None = None) -> None:
        """An empty server with one partition, written in this layout."""
        self.world.client.flushall()
        world = self.world = World(self.world.url)
        if layout is not None:
            self.lift(layout)
        world.define_tenant(Limits(concurrency=90))
        world.define_key(Limits(concurrency=80))
        terms = PlanTerms(plan_id=1, total_amount=100_000, on_store_failure="allow")
        world.grant("plan", terms=terms, write_id=_id(1, 3))
        world.grant("credits", 100_000, write_id=_id(2, 3))

    def lift(self, layout: int) -> None:
        """Have the partition written in this layout from now on."""
        world, name = self.world, keys.marker(self.world.p)
        world.client.set(name, packing.marker(world.run_id, 1, 1, layout))

    def play(self, step: Step) -> str:
        """Do it; what the script answered, as far as it is the same at any time."""
        world, (verb, number, amount) = self.world, step
        if verb in {"recharge", "credits"}:
            return str(world.grant(verb, amount, write_id=_id(number, 1)).code)
        if verb == "define":
            world.version = world.tenant.version
            return str(world.define_tenant(Limits(concurrency=50 + amount)))
        if verb in {"lease", "give back"}:
            ttl = TTL_MS if verb == "lease" else 0
            answer = world.run("lease", lease(world.run_id, world.caller, _id(0, 2), ttl, fraction=0.1))
            return str(packing.code_of(answer))
        asked = self._asked(number, raises=verb == "raise")
        if verb == "several":
            requests = asked, self._asked(number + 1000), self._asked(number + 2000)
            calls = [packing.reserve(world.run_id, world.catalogue, TTL_MS, one) for one in requests]
            answers = world.run("reserve", together("reserve", calls))
            return " ".join(
                packing.decision(answer, one.service).verdict.name
                for answer, one in zip(answers, requests, strict=True)
            )
        if verb in {"reserve", "raise"}:
            answer = world.run("reserve", packing.reserve(world.run_id, world.catalogue, TTL_MS, asked))
            return packing.decision(answer, asked.service).verdict.name
        if verb == "extend":
            names = tuple(one.name for one in asked.budgets)
            live = HoldExtension(
                world.caller, asked.request_id, 0, amount, budgets=names, counts_budget_tokens=bool(names)
            )
            return str(world.kept([(live, amount)]))
        return str(int(self._settled(asked, verb, amount)))

    def _settled(self, asked: HoldRequest, verb: str, amount: int) -> int:
        modes = {
            "settle": packing.MODE_CHARGE, "release": packing.MODE_RELEASE, "reclaim": packing.MODE_RECLAIM,
            "post": packing.MODE_POST, "correct": packing.MODE_CORRECT,
        }  # fmt: skip
        used = {
            "credits": amount,
            "units": amount,
            "money": amount,
            "budget_tokens": amount,
            "metadata": b"{}",
        }
        used = {} if verb == "release" else used
        return self.world.settle(asked, 0 if verb == "release" else amount, mode=modes[verb], **used)

    def _asked(self, number: int, *, raises: bool = False) -> HoldRequest:
        need, budgets = 10 + number % 40, BUDGETS if number % 3 == 0 else ()
        more = {"money": need, "budget_tokens": need} if budgets else {}
        service = SERVICES[number % len(SERVICES)]
        return HoldRequest(
            self.world.caller, _id(number), "ann" if number % 2 else "", service, need, need,
            need if service.meter == "consumption" else 0, need, raises, budgets=budgets, **more,
        )  # fmt: skip

    def spool(self, folder: str, layout: int) -> None:
        """Leave a settlement on a disk, as a worker does whose counters are written in this layout."""
        asked = self._asked(3)
        late = {b"a": packing.settle(self.world.run_id, 0, _used(asked), 1)[1][0][packing.BATCH_BYTES :]}

        async def spooled() -> None:
            log = settlement_log(Path(folder))
            log.take_up(layout)
            await in_task(log.spool(record_of(late | {b"u": asked.user.encode()})))
            await log.close()

        asyncio.run(spooled())

    def adopted(self, folder: str) -> list[int]:
        """The tokens of what waits in a folder, as this program reads it."""

        async def read() -> list[int]:
            log = settlement_log(Path(folder))
            segments = await log.adopt()
            found = [unpack(one.record(at).arguments).tokens for one in segments for at in one.waiting]
            await log.close()
            return found

        return asyncio.run(read())

    def beside(self) -> int:
        """The layout of a tenant in a partition of today's, once a call there came with one from here."""
        here, there = self.world, World(self.world.url, organization_id=2, tenant_id=8, key_id=4)
        there.plan(100)
        asked = self._asked(3)  # it takes from an account for each, which is written last
        other = replace(asked, caller=there.caller, budgets=())
        calls = [packing.reserve(here.run_id, here.catalogue, TTL_MS, one) for one in (asked, other)]
        there.run("reserve", together("reserve", calls))
        there.reserve(need=5)
        return there.get(there.tenant_key)[0]

    def layouts(self) -> set[int]:
        """Of which layouts all states, holds and late settlements of the partition are."""
        world, found = self.world, set[int]()
        for name in cast("list[bytes]", world.client.keys(f"tk:{{p{world.p:02}}}:?:*")):
            if name.split(b":")[2] in b"kutohab":
                found.add(world.get(name.decode())[0])
        return found | {fields[b"a"][0] for fields in world.late() if fields[b"a"]}

    def versions(self) -> set[int]:
        """Of which versions the entries of the outbox are."""
        return {fields[b"e"][0] for _, fields in self.world.entries(keys.outbox(self.world.p))}

    def found(self) -> dict[str, Any]:
        """What is stored, as this program reads it, but for times."""
        world, found = self.world, dict[str, Any]()
        kinds = {
            "k": states.KeyState, "u": states.UserState, "t": states.TenantState,
            "o": states.OrganizationState, "a": states.ActivationState,
        }  # fmt: skip
        for raw_name in sorted(cast("list[bytes]", world.client.keys(f"tk:{{p{world.p:02}}}:?:*"))):
            name = raw_name.decode()
            kind, raw = name.split(":")[2], b""
            if kind in "kutohab":
                raw = world.get(name)
            if kind in kinds:
                found[name] = self._like(asdict(states.unpack(kinds[kind], raw)))
            elif kind == "h":
                hold, user, tiers = states.unpack_hold(raw)
                budgets = () if hold.flags & states.HOLD_RECLAIMED else states.held_budgets(raw)
                found[name] = [self._like(asdict(hold)), user, tiers.hex(), str(budgets)]
            elif kind == "b":
                calls = BUDGET.struct.unpack_from(BUDGET.today(raw))[3]
                found[name] = [calls, *(self._like(asdict(one)) for one in unpack_windows(raw))]
        found["outbox"] = [self._like(asdict(one)) for one in world.events()]
        entries = world.client.xrange(keys.late(world.p))
        read = [
            read_entry([id_, [part for pair in fields.items() for part in pair]]) for id_, fields in entries
        ]
        found["late"] = [self._like(asdict(late_settlement(one))["settlement"]) for one in read if one]
        return cast("dict[str, Any]", json.loads(json.dumps(found, default=str)))

    def _like(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in self.unlike}


class Other:
    """The player of another program, in a process of its own."""

    def __init__(self, tree: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.layout_player", url],
            env=os.environ | {"PYTHONPATH": f"{tree}:{ROOT}"}, cwd=tree,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, method: str, *arguments: object) -> Any:
        """What a method of its player answers; AssertionError where that fails."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '["it has ended"]')
        assert len(answer) == 2, answer[0]
        return answer[1]

    def play(self, step: Step) -> str:
        return cast("str", self.ask("play", step))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _used(asked: HoldRequest) -> Settlement:
    return Settlement(asked.caller, asked.request_id, asked.user, asked.service, charge=True, tokens=USED)


def _id(number: int, kind: int = 0) -> str:
    return str(UUID(fields=(number, kind, 0x4000, 0x80, 0, 0)))


def _lines() -> Iterator[list[Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Answer each line."""
    player = Player(sys.argv[1])
    for method, *arguments in _lines():
        given = [Step(*one) if isinstance(one, list) else one for one in arguments]
        try:
            answer = [None, getattr(player, method)(*given)]
        except Exception as error:  # noqa: BLE001  # whoever asked is told
            answer = [repr(error)]
        print(json.dumps(answer, default=list), flush=True)


if __name__ == "__main__":
    main()
