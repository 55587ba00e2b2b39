"""Calls that go as another model at a step of a budget: through a gateway, with the scripts of a real Valkey."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.core.accounts.budgets import MAXIMUM, MONEY, Budget, account_of, define_windows
from gateway.core.accounts.steps import SessionModel, Step
from gateway.core.accounts.windows import FIRST_USE, ROLLING, Carry
from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.routes import ModelRule, Route
from gateway.core.families import anthropic, gemini, openai
from gateway.core.families.seals import sealed_member
from gateway.core.model import (
    Admitted,
    BudgetAccount,
    Caller,
    Family,
    HoldRequest,
    Refused,
    Settlement,
    SettleResult,
)
from gateway.core.times import HOUR_MS
from gateway.core.wait import Wait
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from tests.builders import TTL_MS, World
from tests.http.fakes import ANSWER, FakeCounters, answer, post
from tests.http.stage import Answer, Stage, staged
from tests.http.test_made_costs import ROUTES as MADE_ROUTES
from tests.http.test_made_costs import answer_of, request_of, vector_of
from tests.http.test_models import rule
from tests.recorded.made import made
from tests.search import another, examples

MILLION = 1_000_000
WHOLE = 100_000_000  # of the budget, in nano-units


def price(number: int, each: int) -> Vector:
    """A price of so many nano-units a token."""
    return Vector(number, "USD", tuple(each * MILLION for _ in KINDS))


PRICES = {
    "dear": price(1, 10_000),
    "cheap": price(2, 1_000),
    "middle": price(3, 5_000),
    "unused": price(4, 7),
}
STEP = Step(0.8, (("dear*", "cheap"),))
BUDGET = Budget(1, "Größe", MONEY, WHOLE, "total", steps=(STEP,))


class ScriptCounters(FakeCounters):
    """The scripts of a real Valkey, as a worker calls them; each `reserve` is recorded."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def reserve(self, request: HoldRequest) -> Admitted | Refused:
        if not request.service.id:
            return await super().reserve(request)
        self.holds.append(replace(request))
        turn: Wait[None] = Wait()  # as a server far away: others come in between
        asyncio.get_running_loop().call_soon(turn.set, None)
        await turn
        packed = packing.reserve(self.world.run_id, self.world.catalogue, request.ttl_ms or TTL_MS, request)
        return packing.decision(self.world.run("reserve", packed), request.service)

    async def settle(self, settlement: Settlement) -> SettleResult:
        if not settlement.service.id:
            return await super().settle(settlement)
        self.settlements.append(settlement)
        packed = packing.settle(
            self.world.run_id,
            60_000,
            settlement,
            packing.MODE_CHARGE if settlement.charge else packing.MODE_RELEASE,
        )
        return SETTLE_RESULTS.read(self.world.run("settle", packed), settlement.request_id)


class MemorySessions:
    """What `ModelSessions` keeps, for as long as a test lasts."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str, str], SessionModel] = {}

    async def find(self, caller: Caller, session: str, model: str) -> SessionModel | None:
        return self.kept.get((caller.tenant_id, session, model.lower()))

    def keep(self, caller: Caller, session: str, model: str, goes_as: SessionModel) -> None:
        self.kept[caller.tenant_id, session, model.lower()] = goes_as


@dataclass
class Gate:
    """A gateway before a recording upstream, its budgets, and what they have used."""

    stage: Stage
    counters: ScriptCounters

    async def ask(
        self, model: str = "dear", path: bytes = b"/v1/chat/completions", session: str = "", **more: Any
    ) -> Answer:
        body = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]} | more
        fields = f"x-tollkeeper-session: {session}\r\n".encode() if session else b""
        written = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        return await self.stage.ask(post(written, path, fields))

    def use(self, amount: int, budget: Budget = BUDGET) -> None:
        """Use an amount of a budget."""
        made = self.counters.world.reserve(budgets=(self.account(budget),), money=amount)
        assert isinstance(made.decision, Admitted)
        made.settle(money=amount)

    @staticmethod
    def account(budget: Budget) -> BudgetAccount:
        return BudgetAccount(account_of(1, budget), define_windows([budget], 0), enforced=True)

    def held(self) -> list[tuple[int, int]]:
        """What the budget has used, and calls hold."""
        return [(one.used, one.held) for one in self.counters.world.windows(account_of(1, BUDGET))]

    @property
    def sent(self) -> list[str]:
        return [str(json.loads(one.body)["model"]) for one in self.stage.upstream.received]


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    made.plan(None)
    yield made
    made.client.close()


@asynccontextmanager
async def gate(world: World, *budgets: Budget, **more: Any) -> AsyncIterator[Gate]:
    counters = ScriptCounters(world)
    async with staged(counters=counters, **more) as stage:
        stage.directory.prices |= PRICES
        stage.directory.budgets_there = list(budgets or (BUDGET,))
        stage.directory.caller = world.caller
        stage.counters = counters
        yield Gate(stage, counters)


async def test_admission_sends_a_call_as_the_substitute_from_its_step_on(world: World) -> None:
    async with gate(world) as there:
        first = await there.ask()
        there.use(80_000_000 - there.counters.charges[0].money - 1)
        second = await there.ask()
        assert [one.all(b"x-tollkeeper-model") for one in (first, second)] == [[], []]
        there.stage.directory.prices["DEAR"] = PRICES["dear"]
        third = await there.ask("DEAR")
        assert there.sent == ["dear", "dear", "cheap"]
        assert third.one(b"x-tollkeeper-model") == b"cheap"
        assert unquote(third.one(b"x-tollkeeper-substituted-by").decode()) == BUDGET.name
        charge, facts = there.counters.charges[-1], there.stage.facts(-1)
        assert charge.money == 12 * 1_000 == facts.cost
        assert (facts.model, facts.step) == ("cheap", ("DEAR", 1, BUDGET.name, 12 * 9_000))
        assert there.stage.facts(0).step is None


async def test_a_call_that_does_not_fit_goes_as_the_other_model_before_the_step(world: World) -> None:
    """1,000 tokens of output at 10,000 are 10 million and more, of 9 that are left."""
    there_: Budget = replace(BUDGET, hold=MAXIMUM, steps=(Step(1.0, (("dear", "cheap"),)),))
    async with gate(world, there_) as there:
        there.use(WHOLE - 9_000_000)
        assert (await there.ask(max_tokens=1_000)).status == 200
        assert (await there.ask(max_tokens=10)).status == 200
        assert there.sent == ["cheap", "dear"]
        refused = await there.ask(max_tokens=100_000)
        message = json.loads(refused.body)["error"]["message"]
        assert refused.reason == "budget_exceeded"
        assert message.endswith(
            f'It was not sent as cheap: the budget "{BUDGET.name}" has too little left for that too.'
        )


async def test_admission_holds_once_while_all_steps_stay_reached(
    world: World,
) -> None:
    of_dear = replace(BUDGET, id=2, model="dear", amount=10**12, steps=(Step(0.0, (("dear", "cheap"),)),))
    for budgets, holds in (((BUDGET,), (2, 1, 1)), ((BUDGET, of_dear), (2, 2, 2))):
        async with gate(world, *budgets) as there:
            there.use(90_000_000)
            counts = list[int]()
            for _ in range(3):
                before = len(there.counters.holds)
                assert (await there.ask()).one(b"x-tollkeeper-model") == b"cheap"
                counts.append(len(there.counters.holds) - before)
            assert tuple(counts) == holds
            refill(there)
            await there.ask()
            await there.ask()
            assert there.sent[3:] == (["dear", "dear"] if len(budgets) == 1 else ["cheap", "cheap"])
            refill(there)


async def test_budgets_without_enforcement_have_no_steps(world: World) -> None:
    async with gate(
        world, replace(BUDGET, enforce=False), replace(BUDGET, id=2, amount=10**12, steps=())
    ) as there:
        there.use(WHOLE)
        assert (await there.ask()).status == 200
        assert there.sent == ["dear"]
        assert [one.steps for one in there.counters.holds] == [()]


# Where a call may not go as the other model.
SEALED: list[tuple[bytes, dict[str, Any], str]] = [
    (
        b"/v1/messages",
        {"messages": [
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "so", "signature": "EqQB"}]},
            {"role": "user", "content": "go on"},
        ]},
        "signature",
    ),
    (
        b"/v1/messages",
        {"messages": [
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "EqQB"}]},
            {"role": "user", "content": "go on"},
        ]},
        "redacted_thinking",
    ),
    (
        b"/v1/responses",
        {"messages": None, "max_tokens": None, "max_output_tokens": 20, "input": [
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, {"role": "user", "content": "hi"},
        ]},
        "encrypted_content",
    ),
    (
        b"/v1/responses",
        {"messages": None, "max_tokens": None, "max_output_tokens": 20, "input": "hi", "previous_response_id": "resp_1"},
        "previous_response_id",
    ),
    (
        b"/v1beta/models/dear:generateContent",
        {"model": None, "max_tokens": None, "messages": None, "generationConfig": {"maxOutputTokens": 10}, "contents": [
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "CiQB"}]},
        ]},
        "thoughtSignature",
    ),
    (
        b"/v1beta/models/dear:generateContent",
        {"model": None, "max_tokens": None, "messages": None, "generationConfig": {"maxOutputTokens": 10}, "contents": [
            {"role": "user", "parts": [{"text": "hi"}]}], "cachedContent": "cachedContents/1"},
        "cachedContent",
    ),
    (b"/v1/chat/completions", {"google": {"cached_content": "cachedContents/1"}}, "google.cached_content"),
]  # fmt: skip
APIS = tuple(
    replace(
        route,
        upstream="up",
        service={"openai": "chat", "anthropic": "messages", "gemini": "gemini"}[family.name],
    )
    for family in (openai.FAMILY, anthropic.FAMILY, gemini.FAMILY)
    for route in family.routes
    if route.service
)


@pytest.mark.parametrize(
    ("path", "body", "named"), SEALED, ids=[f"{path.decode()} {named}" for path, _, named in SEALED]
)
async def test_admission_keeps_a_sealed_conversation_with_its_model_while_that_fits(
    world: World, path: bytes, body: dict[str, Any], named: str
) -> None:
    async with gate(world, routes=APIS) as there:
        there.use(WHOLE - 10_000_000)
        there.stage.objects.kept |= {(1, "resp_1"), (1, "cachedContents/1")}
        assert (await there.ask(path=path, **body)).status == 200
        assert b"cheap" not in there.stage.upstream.received[0].body + there.stage.upstream.received[0].target
        there.use(9_999_999 - sum(one.money for one in there.counters.charges))
        refused = await there.ask(path=path, **body)
        assert refused.reason == "budget_exceeded"
        assert named.encode() in refused.body
        assert b"begin a new session" in refused.body
        assert b"cheap" in refused.body


async def test_admission_searches_a_body_for_seals_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = list[bytes]()

    def search(seals: Mapping[str, str], body: bytes) -> str:
        searched.append(body)
        return sealed_member(seals, body)

    monkeypatch.setattr("gateway.core.families.seals.sealed_member", search)
    path, sealed, _ = SEALED[0]
    async with gate(world, routes=APIS) as there:
        there.use(90_000_000)
        await there.ask(path=path)
        await there.ask(path=path, **sealed)
        assert (there.sent, len(searched)) == (["cheap", "dear"], 2)


# What names a seal and is none: a caller's own words, arguments and schemas.
UNSEALED: list[tuple[bytes, dict[str, Any]]] = [
    (b"/v1/messages", {"messages": [{"role": "user", "content": 'what is "signature": and redacted_thinking?'}]}),
    (
        b"/v1/messages",
        {"messages": [
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "t1", "name": "sign", "input": {"signature": "mine", "encrypted_content": "x"}}
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "done"}]},
        ]},
    ),
    (
        b"/v1/messages",
        {"tools": [{"name": "sign", "input_schema": {"type": "object", "properties": {"signature": {"type": "string"}}}}]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), UNSEALED)
async def test_words_that_are_no_seal_keep_no_call(world: World, path: bytes, body: dict[str, Any]) -> None:
    async with gate(world) as there:
        there.use(90_000_000)
        assert (await there.ask(path=path, **body)).status == 200
        assert there.sent == ["cheap"]


NAMED_BY: list[tuple[bytes, dict[str, Any]]] = [
    (b"/v1/chat/completions", {}),
    (b"/v1/responses", {"messages": None, "max_tokens": None, "max_output_tokens": 20, "input": "hi"}),
    (b"/v1/completions", {"messages": None, "prompt": "hi"}),
    (b"/v1/embeddings", {"messages": None, "max_tokens": None, "input": "hi"}),
    (b"/v1/messages", {}),
    (b"/v1beta/models/dear:generateContent", {
        "model": None, "max_tokens": None, "messages": None, "generationConfig": {"maxOutputTokens": 10},
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    }),
    (b"/v1beta/models/dear:embedContent", {
        "model": "models/dear", "max_tokens": None, "messages": None, "content": {"parts": [{"text": "hi"}]},
    }),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), NAMED_BY, ids=[path.decode() for path, _ in NAMED_BY])
async def test_each_api_is_sent_the_name_of_the_substitute_alone(
    world: World, path: bytes, body: dict[str, Any]
) -> None:
    async with gate(world, routes=APIS) as there:
        there.use(90_000_000)
        answered = await there.ask(path=path, **body)
        assert answered.one(b"x-tollkeeper-model") == b"cheap"
        received, whole = (
            there.stage.upstream.received[0],
            {"model": "dear", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]},
        )
        expected = {name: value for name, value in (whole | body).items() if value is not None}
        if "model" in expected:
            expected["model"] = "models/cheap" if "/" in str(expected["model"]) else "cheap"
        assert json.loads(received.body) == expected
        assert received.target == path.replace(b"dear", b"cheap")


async def test_each_api_is_sent_and_charged_as_the_substitute(world: World) -> None:
    """Whatever its answer reports: tokens, pictures, seconds, characters or searches."""
    meters = set[str]()
    async with gate(world, routes=MADE_ROUTES) as there:
        directory, upstream = there.stage.directory, there.stage.upstream
        directory.services["made"] = replace(directory.services["chat"], key="made")
        for answered in [row for row in made() if not row.rate]:
            vector, dear = vector_of(answered), f"{answered.model}-dear"
            asked = request_of(replace(answered, model=dear))
            if not re.search(rb'"model": "%b"|/%b |name="model"' % (dear.encode(), dear.encode()), asked):
                continue  # its model is named elsewhere
            directory.prices = {
                answered.model: vector,
                dear: vector._replace(price_id=9, request=vector.request + 1),
            }
            steps = (Step(0.0, ((dear, answered.model),)),)
            directory.budgets_there = [replace(BUDGET, amount=10**14, steps=steps)]
            upstream.scripts = [[answer_of(answered)]]
            headers = await there.stage.ask(asked)
            assert headers.all(b"x-tollkeeper-model") == [answered.model.encode()], answered.meter
            assert unquote(headers.one(b"x-tollkeeper-substituted-by").decode()) == BUDGET.name
            sent, facts, expected = upstream.received[-1], there.stage.facts(), request_of(answered)
            assert b" %b HTTP" % sent.target in expected
            assert compact(sent.body) == compact(expected.partition(b"\r\n\r\n")[2])
            assert (facts.model, facts.cost) == (answered.model, answered.nano), answered.name
            assert facts.step is not None
            assert facts.step[:3] == (dear, 1, BUDGET.name)
            meters.add(answered.meter)
    assert len(meters) >= 25


def compact(body: bytes) -> bytes:
    """The same body without what JSON may have between its members."""
    return json.dumps(json.loads(body)).encode() if body.startswith(b"{") else body


def made_route(meter: str, family: str = "openai") -> Route:
    return Route(("POST",), f"/{meter}", "up", "chat", Family(family), meter, objects="shared")


# Calls that go as asked although their model has a step: what makes them so.
FIXED: list[tuple[Route, dict[str, Any], str]] = [
    (
        made_route("bedrock_rerank", "bedrock"),
        {"queries": [{}], "sources": [{}], "rerankingConfiguration": {
            "bedrockRerankingConfiguration": {"modelConfiguration": {"modelArn": "dear"}}}},
        "names other models",
    ),
    (made_route("mistral_agents"), {"agent_id": "dear", "messages": []}, "cannot be replaced"),
    (
        made_route("mistral_conversations"), {"agent_id": "dear", "inputs": "x", "handoff_execution": "client"},
        "cannot be replaced",
    ),
    (made_route("gemini_cache", "gemini"), {"model": "models/dear", "contents": [], "ttl": "60s"}, "keeps"),
    (made_route("openai_training"), {"model": "dear", "training_file": "file-1"}, "keeps"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "why"), FIXED, ids=[route.meter for route, _, _ in FIXED])
async def test_admission_keeps_the_model_of_a_call_that_cannot_name_another(
    world: World, route: Route, body: dict[str, Any], why: str
) -> None:
    """Its charge would be another model's than answers, or what it makes."""
    units = {"search": 1, "fine_tuning_job": 1, "cache_hour": 1}
    async with gate(world, routes=(route,)) as there:
        there.stage.directory.prices = {
            name: vector._replace(tools=units, units=units) for name, vector in PRICES.items()
        }
        there.use(90_000_000)
        answered = await there.stage.ask(post(json.dumps(body).encode(), route.path.encode()))
        assert (answered.status, answered.all(b"x-tollkeeper-model")) == (200, [])
        sent = json.loads(there.stage.upstream.received[0].body)
        assert sent == sent | body
        assert there.stage.facts().model == "dear"
        there.use(10_000_000 - there.counters.charges[-1].money)
        refused = await there.stage.ask(post(json.dumps(body).encode(), route.path.encode()))
        assert why in refused.body.decode()


# Why a call may not go as the other model, and what makes it so.
OPENAI_LIKE = {"routes": APIS}
DEAR_RULE, CHEAP_RULE = rule("dear", ("up", "dear")), rule("cheap", ("up", "cheap"))


def listed(stage: Stage) -> None:
    stage.directory.caller = replace(stage.directory.caller, models=frozenset({"dear"}))


def unpriced(stage: Stage) -> None:
    del stage.directory.prices["cheap"]


def models(*rules: ModelRule) -> Any:
    def configure(stage: Stage) -> None:
        stage.directory.models_there = rules

    return configure


UNFIT: list[tuple[Any, dict[str, Any], str]] = [
    (listed, {}, "may not use the model cheap"),
    (unpriced, {}, "No USD price for the model cheap"),
    (models(replace(CHEAP_RULE, organization_id=99)), {}, "may not use the model cheap"),
    (models(replace(CHEAP_RULE, output_max=9)), {}, "answers with at most 9 tokens"),
    (models(replace(CHEAP_RULE, context=11)), {}, "reads at most 11 tokens"),
    (models(rule("cheap", ("elsewhere", "cheap"))), {}, "has no upstream here"),
    (lambda _: None, {"models": ["middle"]}, "names other models"),
    (models(rule("cheap", ("up", "gpt-4.1"))), {"reasoning_effort": "low"}, "does not take reasoning_effort"),
    (models(rule("cheap", ("up", "o3-mini"))), {"temperature": 0.5, "max_tokens": None, "max_completion_tokens": 9}, "does not take temperature"),
    (
        models(rule("cheap", ("up", "gpt-3.5-turbo"))),
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}]},
        "does not take pictures",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("configure", "body", "why"), UNFIT, ids=[why for _, _, why in UNFIT])
async def test_admission_sends_an_unfit_call_with_its_own_model_while_that_fits(
    world: World, configure: Any, body: dict[str, Any], why: str
) -> None:
    async with gate(world) as there:
        configure(there.stage)
        there.stage.directory.prices |= dict.fromkeys(
            ("gpt-4.1", "o3-mini", "gpt-3.5-turbo"), PRICES["cheap"]
        )
        there.use(90_000_000)
        assert (await there.ask(**body)).status == 200
        assert there.sent == ["dear"]
        assert there.stage.facts().step is None
        there.use(10_000_000 - 1 - there.counters.charges[-1].money)
        refused = await there.ask(**body)
        assert refused.reason == "budget_exceeded"
        message = json.loads(refused.body)["error"]["message"]
        assert message.endswith(".")
        assert not message.endswith("..")
        assert "It was not sent as cheap: " in message
        assert why in refused.body.decode()


async def test_admission_ignores_a_parameter_refused_by_both_models(world: World) -> None:
    async with gate(world, replace(BUDGET, steps=(Step(0.0, (("o1", "o3"),)),))) as there:
        there.stage.directory.prices |= {"o1": PRICES["dear"], "o3": PRICES["cheap"]}
        assert (await there.ask("o1", temperature=0.5, max_tokens=None)).status == 200
        assert there.sent == ["o3"]


async def test_admission_sends_a_substitute_to_its_own_targets_without_further_steps(
    world: World,
) -> None:
    """`cheap` falls back to the dear model: what answers is charged, and the most that could be is held."""
    steps = (Step(0.0, (("asked*", "cheap"), ("cheap", "unused"))),)
    async with gate(world, replace(BUDGET, steps=steps)) as there:
        there.stage.directory.models_there = (
            rule("asked-alias", ("up", "dear")), rule("cheap", ("up", "cheap"), ("up", "dear")),
        )  # fmt: skip
        broken = answer(b"{}", status=b"503 Unavailable")
        there.stage.upstream.scripts = [[broken], [answer(ANSWER)]]
        answered = await there.ask("Asked-Alias")
        assert (answered.status, answered.one(b"x-tollkeeper-model")) == (200, b"dear")
        assert there.sent == ["cheap", "dear"]
        hold, charge, facts = there.counters.holds[-1], there.counters.charges[-1], there.stage.facts()
        assert hold.money > 10 * 10_000 > 10 * 1_000
        assert (charge.money, facts.model) == (12 * 10_000, "cheap")
        assert facts.step is not None
        assert facts.step[0] == "Asked-Alias"


async def test_a_call_is_held_and_counted_in_the_budgets_of_the_substitute(world: World) -> None:
    of_dear = replace(BUDGET, id=1, model="dear")
    of_cheap = Budget(2, "cheap ones", MONEY, 50_000, "total", model="cheap")
    async with gate(world, of_dear, of_cheap) as there:
        there.use(90_000_000, of_dear)
        assert (await there.ask()).one(b"x-tollkeeper-model") == b"cheap"
        assert there.counters.holds[-1].names == (account_of(1, of_cheap),)
        there.use(50_000 - 12_000 - 1, of_cheap)
        assert (await there.ask()).status == 200  # there is no room left for it as the substitute
        assert there.sent == ["cheap", "dear"]


@pytest.mark.parametrize("seed", range(examples(40)))
async def test_admission_takes_the_reached_step_with_the_least_hold(world: World, seed: int) -> None:
    """Expected is counted from prices alone: a call holds as many tokens of each."""
    chance = random.Random(another(seed))
    names = ["m1", "m2", "m3", "m4"]
    each = {name: chance.randint(1, 4) * 100 for name in names}
    budgets, used = [], {}
    for number in range(1, chance.randint(2, 4)):
        steps = tuple(
            Step(
                chance.randint(0, 10) / 10,
                tuple(
                    (chance.choice(["d*", "dear", "de*", "other"]), chance.choice(names)) for _ in range(2)
                ),
            )
            for _ in range(chance.randint(1, 3))
        )
        budgets.append(
            Budget(
                number,
                f"b{number}",
                MONEY,
                WHOLE * number,
                "total",
                api_key_id=0,
                model=("dear*", "*", "d*")[number - 1],
                steps=steps,
            )
        )
        used[number] = chance.randint(0, 9) * WHOLE * number // 10
    async with gate(world, *budgets) as there:
        there.stage.directory.prices |= {name: price(10 + at, each[name]) for at, name in enumerate(names)}
        for budget in budgets:
            if used[budget.id]:
                there.use(used[budget.id], budget)
        answered = await there.ask()
        reached = []
        for budget in budgets:
            for place, step in enumerate(budget.steps):
                fitting = [
                    (("*" not in p, len(p)), -at, other)
                    for at, (p, other) in enumerate(step.models)
                    if (p == "dear" or (p.endswith("*") and "dear".startswith(p[:-1])))
                ]
                if fitting and Fraction(used[budget.id], budget.amount) >= Fraction(round(step.at * 10), 10):
                    other = max(fitting)[2]
                    reached.append((each[other], budget.id, -step.at, place, other, budget.name))
        if not reached:
            assert there.sent == ["dear"]
        else:
            assert there.sent == [min(reached)[4]]
            assert answered.one(b"x-tollkeeper-substituted-by").decode() == min(reached)[5]


WINDOWS: dict[str, dict[str, Any]] = {
    "total": {"interval": "total"},
    "carry": {"interval": "day", "carry": Carry(10**9, debt=True)},
    ROLLING: {"interval": "", "window": ROLLING, "length_ms": 5 * HOUR_MS},
    FIRST_USE: {"interval": "", "window": FIRST_USE, "length_ms": 5 * HOUR_MS},
}


@pytest.mark.parametrize("window", WINDOWS)
async def test_admission_passes_no_more_of_many_calls_than_fit(world: World, window: str) -> None:
    steps = (Step(0.5, (("dear", "middle"),)), Step(0.8, (("dear", "cheap"),)))
    passed, number = dict[bool, int](), 200 if window == "total" else 60
    for is_stepped in (False, True):
        budget = replace(
            BUDGET, id=5 + is_stepped, hold=MAXIMUM, amount=31_000_000, steps=steps if is_stepped else (),
            tenant_id=world.caller.tenant_id if is_stepped else 0, **WINDOWS[window],
        )  # fmt: skip
        async with gate(world, budget) as there:
            there.stage.upstream.scripts = [[1.0, answer(ANSWER)] for _ in range(number)]
            answers = await asyncio.gather(*[there.ask(max_tokens=100) for _ in range(number)])
            assert {answered.status for answered in answers} <= {200, 402, 429}
            assert sum(charge.money for charge in there.counters.charges) <= 31_000_000
            passed[is_stepped] = sum(answered.status == 200 for answered in answers)
            assert passed[is_stepped] == len(there.counters.charges)
            if is_stepped:
                assert {*there.sent} == {"dear", "middle", "cheap"}
    assert passed[True] >= passed[False] > 0


# Sessions.


def sealed_by(model: str) -> list[dict[str, Any]]:
    """A conversation in which a model has thought."""
    thought = {"type": "thinking", "thinking": "so", "signature": f"of {model}"}
    return [{"role": "assistant", "content": [thought]}, {"role": "user", "content": "go on"}]


async def test_admission_keeps_a_session_with_its_first_model_while_that_fits(world: World) -> None:
    async with gate(world, sessions=MemorySessions()) as there:
        assert (await there.ask(session="old")).status == 200
        there.use(90_000_000)
        await there.ask(session="old")
        await there.ask(session="new")
        await there.ask()
        assert there.sent == ["dear", "dear", "cheap", "cheap"]
        refill(there)
        answered = await there.ask(session="new")
        assert answered.one(b"x-tollkeeper-model") == b"cheap"
        assert unquote(answered.one(b"x-tollkeeper-substituted-by").decode()) == BUDGET.name
        await there.ask()
        assert there.sent[4:] == ["cheap", "dear"]


async def test_a_session_that_does_not_fit_any_more_goes_as_the_other_model_and_stays_so(
    world: World,
) -> None:
    async with gate(world, sessions=MemorySessions()) as there:
        await there.ask(session="old")
        there.use(99_750_000)
        await there.ask(session="old")
        refill(there)
        await there.ask(session="old")
        assert there.sent == ["dear", "cheap", "cheap"]


async def test_a_reached_step_that_switches_goes_before_sessions(world: World) -> None:
    steps = (Step(0.5, (("dear", "middle"),)), Step(0.9, (("dear", "cheap"),), switches=True))
    async with gate(world, replace(BUDGET, steps=steps), sessions=MemorySessions()) as there:
        await there.ask(session="first")
        there.use(60_000_000)
        for session in ("first", "second"):
            await there.ask(session=session)
        there.use(30_000_000)
        for session in ("first", "second", "first"):
            await there.ask(session=session)
        assert there.sent == ["dear", "dear", "middle", "cheap", "cheap", "cheap"]


async def test_sessions_end_with_a_step_that_always_switches(world: World) -> None:
    async with gate(
        world, replace(BUDGET, steps=(STEP._replace(switches=True),)), sessions=MemorySessions()
    ) as there:
        await there.ask(session="one")
        there.use(90_000_000)
        await there.ask(session="one")
        refill(there)
        await there.ask(session="one")
        assert there.sent == ["dear", "cheap", "dear"]


@pytest.mark.parametrize("switches", [False, True])
async def test_admission_sends_the_seals_of_a_substitute_back_to_that_model(
    world: World, switches: bool
) -> None:
    """Claude Code sends back what the model thought: another one refuses it."""
    budget = replace(BUDGET, steps=(STEP._replace(switches=switches),))
    async with gate(world, budget, sessions=MemorySessions()) as there:
        there.use(90_000_000)
        ask = partial(there.ask, path=b"/v1/messages", session="one")
        await ask()
        refill(there)
        await ask(messages=sealed_by("cheap"))
        there.use(WHOLE - 12_000 - 1)
        refused = await ask(messages=sealed_by("cheap"))
        assert there.sent == ["cheap", "cheap"]
        assert refused.reason == "budget_exceeded"
        assert (
            b"It was not sent as dear: it carries what another model sealed (signature): begin a new session."
            in refused.body
        )
        assert (await there.ask(path=b"/v1/messages", session="two")).reason == "budget_exceeded"


def too_long(stage: Stage) -> dict[str, Any]:
    """A call that asks for more than the substitute answers with."""
    stage.directory.models_there = (DEAR_RULE, replace(CHEAP_RULE, output_max=10))
    return {"max_tokens": 11}


def without_right(stage: Stage) -> dict[str, Any]:
    listed(stage)
    return {}


# A call that cannot be sent as the substitute of its session, and what makes it so.
ODD: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "names others": lambda _: {"models": ["dear"]},
    "too long": too_long,
    "without the right": without_right,
}
MESSAGES = b"/v1/messages"


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("switches", [(False,), (False, True)], ids=["keep", "one switches"])
async def test_admission_keeps_a_session_after_a_call_that_cannot_be_substituted(
    world: World, odd: Callable[[Stage], dict[str, Any]], switches: tuple[bool, ...]
) -> None:
    """Whether a step is reached at that moment, or the amount is new."""
    steps = (STEP, *[Step(1.0, (("dear", "middle"),), switches=True) for _ in switches[1:]])
    async with gate(world, replace(BUDGET, steps=steps), sessions=MemorySessions()) as there:
        there.use(90_000_000)
        caller, models_there = there.stage.directory.caller, there.stage.directory.models_there
        await there.ask(session="s")
        for is_anew in (False, True):
            if is_anew:
                refill(there)
            assert (await there.ask(session="s", **odd(there.stage))).status == 200
            there.stage.directory.caller, there.stage.directory.models_there = caller, models_there
            await there.ask(session="s")
        assert there.sent == ["cheap", *["dear", "cheap"] * 2]


async def test_admission_keeps_a_session_after_a_call_that_goes_as_a_third_model(
    world: World,
) -> None:
    steps = (Step(0.5, (("dear", "middle"),)), STEP)
    async with gate(world, replace(BUDGET, steps=steps), sessions=MemorySessions()) as there:
        there.use(90_000_000)
        caller = there.stage.directory.caller
        for models_allowed in (None, frozenset({"dear", "middle"}), None):
            there.stage.directory.caller = replace(caller, models=models_allowed)
            await there.ask(session="s")
        assert there.sent == ["cheap", "middle", "cheap"]


async def test_admission_ends_a_session_without_room_for_the_model(world: World) -> None:
    of_dear = replace(BUDGET, model="dear")
    of_cheap = Budget(2, "cheap ones", MONEY, 50_000, "total", model="cheap")
    async with gate(world, of_dear, of_cheap, sessions=MemorySessions()) as there:
        there.use(90_000_000, of_dear)
        await there.ask(session="s")
        refill(there, of_dear)
        there.use(50_000 - 2 * 12_000 - 1, of_cheap)
        await there.ask(session="s")
        there.use(90_000_000, of_dear)
        refill(there, of_cheap)
        await there.ask(session="s")
        assert there.sent == ["cheap", "dear", "dear"]


@pytest.mark.parametrize(
    "odd", [*ODD.values(), lambda _: {"messages": sealed_by("nobody")}], ids=[*ODD, "sealed"]
)
async def test_admission_begins_no_session_with_a_call_that_no_substitute_can_take(
    world: World, odd: Callable[[Stage], dict[str, Any]]
) -> None:
    async with gate(world, sessions=MemorySessions()) as there:
        there.use(90_000_000)
        caller, models_there = there.stage.directory.caller, there.stage.directory.models_there
        assert (await there.ask(path=MESSAGES, session="s", **odd(there.stage))).status == 200
        there.stage.directory.caller, there.stage.directory.models_there = caller, models_there
        await there.ask(path=MESSAGES, session="s")
        assert there.sent == ["dear", "cheap"]


@pytest.mark.parametrize(
    ("odd", "status", "why"),
    [
        (ODD["names others"], 400, "The session goes as cheap, and this call cannot: the call names other models too."),
        (ODD["too long"], 400, "The session goes as cheap, and this call cannot: it answers with at most 10 tokens."),
        (ODD["without the right"], 403, "may not use the model cheap."),
    ],
    ids=ODD,
)  # fmt: skip
@pytest.mark.parametrize("switches", [False, True])
async def test_admission_refuses_seals_of_an_unfit_substitute(
    world: World, odd: Callable[[Stage], dict[str, Any]], status: int, why: str, switches: bool
) -> None:
    steps = (STEP._replace(switches=switches),)
    async with gate(world, replace(BUDGET, steps=steps), sessions=MemorySessions()) as there:
        there.use(90_000_000)
        ask = partial(there.ask, path=MESSAGES, session="s")
        await ask()
        before, heads = there.held(), len(there.counters.heads)
        refused = await ask(messages=sealed_by("cheap"), **odd(there.stage))
        assert refused.status == status
        assert (
            f"{why} It was not sent as dear: it carries what another model sealed (signature): begin a new session."
            in refused.body.decode()
        )
        assert (there.sent, there.held()) == (["cheap"], before)
        assert len(there.counters.heads) == heads + 1  # one of its caller's requests


def refill(there: Gate, budget: Budget = BUDGET) -> None:
    """Begin the budget's interval anew."""
    there.counters.world.client.delete(keys.budget_account(there.counters.world.p, account_of(1, budget)))
