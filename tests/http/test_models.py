"""A configured model: which upstream answers, by which path and key, what it costs, and who may list it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from gateway.core.accounts.call_facts import read_facts
from gateway.core.billing.money import CostMarkup, CreditRates, ServicePricing
from gateway.core.calls.routes import ModelRule, ModelTarget, ServiceRules, UpstreamTarget
from gateway.core.model import Service
from gateway.http.routing.routed_head import OPENINGS_MAX
from tests.http.fakes import (
    ANSWER,
    CALLER,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Answer, Close, FakeUpstream, Stage, Step, staged
from tests.http.test_budget_hold import BUDGET
from tests.http.test_costs import DEAR, OPUS
from tests.http.test_model_lists import names_in

AZURE: dict[str, object] = {
    "path": "/openai/deployments/{model}/{operation}",
    "query": (("api-version", "2024-10-21"),),
}
FAILED = answer(b'{"error":{"message":"broken"}}', status=b"500 Internal Server Error")
LIMITED = answer(b'{"error":{"message":"enough"}}', status=b"429 Too Many Requests")
OVERLOADED = answer(b'{"type":"error","error":{"type":"overloaded_error"}}', status=b"529 Overloaded")


def chat(model: str = "fast", **more: object) -> bytes:
    document = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps(document | more).encode()


def rule(name: str, *targets: tuple[str, str], **more: object) -> ModelRule:
    found = tuple(ModelTarget(upstream, model) for upstream, model in targets)
    return replace(ModelRule(name, False, found), **more)  # type: ignore[arg-type] # as its fields are


@dataclass
class Pair:
    """A stage with two upstreams: `up`, the stage's own, and `other`."""

    stage: Stage
    other: FakeUpstream

    async def ask(self, body: bytes, path: bytes = b"/v1/chat/completions") -> Answer:
        return await self.stage.ask(post(body, path))

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.stage.upstream.received), len(self.other.received)


@contextlib.asynccontextmanager
async def paired(
    *models: ModelRule, of_other: dict[str, object] | None = None, **more: object
) -> AsyncIterator[Pair]:
    other = FakeUpstream()
    await other.start()
    target = UpstreamTarget("other", f"http://127.0.0.1:{other.port}", (("authorization", "Bearer theirs"),))
    target = replace(target, **of_other or {})  # type: ignore[arg-type] # as its fields are
    models = models or (rule("fast", ("up", "first"), ("other", "second")),)
    async with staged(others=(target,), models=models, **more) as stage:  # type: ignore[arg-type] # as it has them
        yield Pair(stage, other)
    await other.stop()
    assert not other.errors


def sent_model(upstream: FakeUpstream) -> str:
    return str(json.loads(upstream.received[-1].body)["model"])


# A name of one's own.


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with paired() as made:
        yield made


async def test_the_upstream_is_sent_its_own_name_of_the_model() -> None:
    async with paired(rule("fast", ("other", "gpt-4o-prod"))) as pair:
        assert (await pair.ask(chat())).status == 200
        assert (pair.asked, sent_model(pair.other)) == ((0, 1), "gpt-4o-prod")
        sent = pair.other.received[0]
        assert sent.all(b"authorization") == [b"Bearer theirs"]
        assert json.loads(sent.body) == json.loads(chat("gpt-4o-prod"))
        facts = pair.stage.facts(0)
        assert (facts.model, bytes(facts.metadata)) == ("fast", b"null")


async def test_another_model_goes_where_its_route_says(pair: Pair) -> None:
    assert (await pair.ask(chat("m"))).status == 200
    assert (pair.asked, sent_model(pair.stage.upstream)) == ((1, 0), "m")


async def test_a_list_of_a_key_holds_the_name_that_is_asked_for() -> None:
    async with paired(rule("fast", ("other", "second")), rule("slow", ("other", "first"))) as pair:
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"fast"}))
        assert (await pair.ask(chat("fast"))).status == 200
        for model in ("slow", "second"):
            assert (await pair.ask(chat(model))).reason == "model_not_allowed"
        assert pair.asked == (0, 1)


async def test_the_longest_prefix_decides_and_an_exact_name_before_it() -> None:
    models = (
        rule("gpt-", ("up", ""), prefix=True),
        rule("gpt-4", ("other", "x-*"), prefix=True),
        rule("gpt-4o", ("up", "exact")),
    )
    async with paired(*models) as pair:
        for asked, upstream, sent in (
            ("gpt-3", "up", "gpt-3"), ("gpt-4.1", "other", "x-.1"), ("gpt-4o", "up", "exact"),
        ):  # fmt: skip
            assert (await pair.ask(chat(asked))).status == 200
            assert sent_model(pair.other if upstream == "other" else pair.stage.upstream) == sent


async def test_what_is_configured_for_one_organization_is_nobody_elses() -> None:
    models = (
        rule("fast", ("other", "theirs"), organization_id=CALLER.organization_id),
        rule("fast", ("up", "everybody")),
        rule("own", ("other", "theirs"), organization_id=CALLER.organization_id),
    )
    async with paired(*models) as pair:
        for model in ("fast", "own"):
            assert (await pair.ask(chat(model))).status == 200
        assert pair.asked == (0, 2)
        pair.stage.directory.caller = replace(CALLER, organization_id=77)
        assert (await pair.ask(chat("fast"))).status == 200
        assert sent_model(pair.stage.upstream) == "everybody"
        refused = await pair.ask(chat("own"))
        assert (refused.status, refused.reason) == (403, "model_not_allowed")
        assert pair.asked == (1, 2)


async def test_a_wider_name_another_case_or_a_name_beside_is_no_way_to_anothers_model() -> None:
    models = (
        rule("ft:secret", ("other", "theirs"), organization_id=77),
        rule("ft:", ("up", ""), prefix=True),
    )
    async with paired(*models) as pair:
        assert (await pair.ask(chat("ft:open"))).status == 200
        for body in (
            chat("ft:secret"), chat("FT:Secret"), chat("m", models=["ft:secret"]),
            chat("ft:open", fallbacks=["ft:secret"]),
        ):  # fmt: skip
            refused = await pair.ask(body)
            assert (refused.status, refused.reason) == (403, "model_not_allowed")
        assert pair.asked == (1, 0)
        pair.stage.directory.caller = replace(CALLER, organization_id=77)
        assert (await pair.ask(chat("FT:secret"))).status == 200
        assert (pair.asked, sent_model(pair.other)) == ((1, 1), "theirs")


async def test_a_prefix_alone_is_no_name_of_a_model() -> None:
    async with paired(rule("local/", ("other", "*"), prefix=True)) as pair:
        await pair.ask(chat("local/"))
        assert pair.asked == (1, 0)  # as one that nobody configured


async def test_no_target_of_another_api_is_asked() -> None:
    models = (rule("claude", ("up", ""), ("other", "claude-5")), rule("none", ("other", "claude-5")))
    async with paired(*models, of_other={"family": "anthropic"}, of_target={"family": "openai"}) as pair:
        assert (await pair.ask(chat("claude"))).status == 200
        assert (await pair.ask(chat("claude", max_tokens=9), b"/v1/messages")).status == 200
        assert pair.asked == (1, 1)
        refused = await pair.ask(chat("none"))
        assert (refused.status, refused.reason) == (400, "invalid_request")
        assert b"anthropic" in refused.body


async def test_geminis_model_is_renamed_in_the_path_and_where_the_body_names_it() -> None:
    body = json.dumps({"model": "models/fast", "contents": []}).encode()
    reply = json.dumps({"usageMetadata": {"totalTokenCount": 3}, "modelVersion": "x"}).encode()
    async with paired(rule("fast", ("other", "gemini 3"))) as pair:
        pair.other.scripts.append([answer(reply)])
        assert (await pair.ask(body, b"/v1beta/models/fast:generateContent?alt=json")).status == 200
        sent = pair.other.received[0]
        assert sent.target == b"/v1beta/models/gemini%203:generateContent?alt=json"
        assert json.loads(sent.body)["model"] == "models/gemini 3"


# Paths, queries and keys of an upstream.


async def test_a_template_makes_the_path_and_fixes_the_query() -> None:
    async with paired(rule("fast", ("other", "prod")), of_other=AZURE) as pair:
        for query in (b"", b"?api-version=1"):
            assert (await pair.ask(chat(), b"/v1/chat/completions" + query)).status == 200
            assert pair.other.received[-1].target == (
                b"/openai/deployments/prod/chat/completions?api-version=2024-10-21"
            )


async def test_an_upstream_is_told_whose_a_call_is_and_how_much_it_hurries() -> None:
    told = (("x-whose", "o{organization}-t{tenant}"), ("x-hurry", "{priority}"))
    async with paired(rule("fast", ("other", "prod")), of_other={"told": told}) as pair:
        for fields, hurry in (b"", b"interactive"), (b"x-tollkeeper-priority: batch\r\n", b"batch"):
            claimed = b"x-whose: o1-t1\r\nX-Hurry: now\r\n" + fields
            assert (await pair.stage.ask(post(chat(), fields=claimed))).status == 200
            sent = pair.other.received[-1]
            whose = b"o%d-t%d" % (CALLER.organization_id, CALLER.tenant_id)
            assert (sent.all(b"x-whose"), sent.all(b"x-hurry")) == ([whose], [hurry])


async def test_a_template_serves_calls_whose_model_nobody_configured() -> None:
    async with staged(of_target=AZURE) as stage:
        for model in ("a", "b", "a"):
            assert (await stage.ask(post(chat(model)))).status == 200
        targets = [one.target.split(b"/")[3] for one in stage.upstream.received]
        assert targets == [b"a", b"b", b"a"]
        refused = await stage.ask(get(b"/v1/models"), "GET")
        assert (refused.status, refused.reason) == (404, "unknown_route")


@pytest.mark.parametrize("model", [".", "..", "cheap/../dear", "a\\b"])
async def test_no_name_of_a_model_leads_to_another_path(model: str) -> None:
    async with paired(rule("local-", ("other", "*"), prefix=True), of_other=AZURE, of_target=AZURE) as pair:
        for asked in (model, f"local-{model}"):
            refused = await pair.ask(chat(asked))
            assert (refused.status, refused.reason) == (400, "invalid_request")
        assert pair.asked == (0, 0)


async def test_an_operation_is_the_routes_and_never_a_word_behind_a_colon() -> None:
    async with staged(of_target={"path": "/own/{operation}"}) as stage:
        assert (await stage.ask(get(b"/v1/models/x:files"), "GET")).status == 200
        assert stage.upstream.received[-1].target == b"/own/models/x:files"
        body = json.dumps({"contents": []}).encode()
        await stage.ask(post(body, b"/v1beta/models/a:generateContent"))
        assert stage.upstream.received[-1].target == b"/own/generateContent"


async def test_heads_that_callers_vary_take_bounded_memory() -> None:
    async with staged(of_target=AZURE) as stage:
        router, client = stage.plane.heads.router, await stage.client()
        for number in range(OPENINGS_MAX + 10):
            await client.ask(post(chat(f"m{number}")))
        assert 0 < len(router._openings) <= OPENINGS_MAX  # nobody else knows how many


def keyed(*names: str) -> dict[str, object]:
    return {"headers": (), "keys": tuple((("authorization", f"Bearer {name}"),) for name in names)}


async def test_a_key_that_is_limited_is_left_alone_by_itself() -> None:
    async with staged(of_target=keyed("one", "two")) as stage:
        stage.upstream.scripts.append([LIMITED])
        assert (await stage.ask(post(chat()))).status == 429
        for _ in range(3):
            assert (await stage.ask(post(chat()))).status == 200
        keys = [one.all(b"authorization") for one in stage.upstream.received]
        assert keys == [[b"Bearer one"], *[[b"Bearer two"]] * 3]
        stage.upstream.scripts.append([answer(b"{}", b"retry-after: 30\r\n", b"429 Too Many Requests")])
        assert (await stage.ask(post(chat()))).one(b"x-tollkeeper-refused-by") == b"upstream"
        assert (await stage.ask(post(chat()))).status == 429
        assert len(stage.upstream.received) == 5  # both are left alone
        assert (await stage.ask(post(chat("another")))).status == 200
        assert stage.upstream.received[-1].all(b"authorization") == [b"Bearer one"]


async def test_each_upstream_has_its_own_time_outs() -> None:
    async with paired(
        rule("fast", ("other", "m")), of_other={"first_byte_s": 0.05}, upstream_first_byte_s=30
    ) as pair:
        pair.other.scripts.append([asyncio.Event()])
        assert (await pair.ask(chat())).reason == "upstream_timeout"
        assert (await pair.ask(chat("m"))).status == 200


# The next target.


CAUSES: dict[str, list[Step]] = {
    "unreachable": [Close(reset=True)],
    "429": [LIMITED],
    "5xx": [FAILED],
}


@pytest.mark.parametrize("cause", [*CAUSES])
async def test_the_next_target_answers_where_the_first_one_fails(pair: Pair, cause: str) -> None:
    pair.stage.upstream.scripts.append(list(CAUSES[cause]))
    got = await pair.ask(chat())
    assert (got.status, got.body) == (200, ANSWER)
    assert (pair.asked, sent_model(pair.other)) == ((1, 1), "second")
    [charge] = pair.stage.counters.charges
    facts = read_facts(charge.metadata)
    assert facts is not None
    attempts = json.loads(bytes(facts.metadata))["attempts"]
    assert attempts == [{"upstream": "up", "cause": cause}, {"upstream": "other"}]
    assert (charge.tokens, facts.status, facts.model) == (12, 200, "fast")
    assert pair.stage.tally.snapshot()["upstream_fallbacks"] == [("up", cause, 1)]
    [line] = pair.stage.events("request")
    assert (line["upstream"], line["passed_over"]) == ("other", [f"up {cause}"])


@pytest.mark.parametrize("cause", [*CAUSES])
async def test_a_cause_that_is_not_configured_is_told_as_it_is(cause: str) -> None:
    others = frozenset(CAUSES) - {cause}
    async with paired(rule("fast", ("up", "a"), ("other", "b"), fallback=others)) as pair:
        pair.stage.upstream.scripts.append(list(CAUSES[cause]))
        got = await pair.ask(chat())
        assert got.status == {"unreachable": 502, "429": 429, "5xx": 500}[cause]
        assert pair.asked == (1, 0)
        assert not pair.stage.counters.charges


async def test_where_nobody_listens_or_answers_in_time_the_next_one_is_asked() -> None:
    silent = UpstreamTarget("gone", "http://127.0.0.1:9")
    models = (rule("fast", ("gone", "a"), ("up", "b"), ("other", "c")),)
    other = FakeUpstream()
    await other.start()
    target = UpstreamTarget("other", f"http://127.0.0.1:{other.port}")
    async with staged(
        others=(silent, target), models=models, of_target={"first_byte_s": 0.05}, show_upstream=True
    ) as stage:
        stage.upstream.scripts.append([asyncio.Event()])
        got = await stage.ask(post(chat()))
        assert (got.status, got.one(b"x-tollkeeper-upstream")) == (200, b"other")
        assert len(stage.counters.charges) == 1
    await other.stop()


async def test_each_target_is_asked_once_and_the_last_ones_answer_is_told(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([LIMITED])
    pair.other.scripts.append([FAILED])
    got = await pair.ask(chat())
    assert (got.status, got.all(b"x-tollkeeper-upstream")) == (500, [])
    assert pair.asked == (1, 1)
    assert not pair.stage.counters.charges
    assert len(pair.stage.counters.releases) == 1


async def test_an_upstream_that_is_left_alone_is_passed_over_and_all_of_them_refuse() -> None:
    enough = answer(b"{}", b"retry-after: 30\r\n", b"429 Too Many Requests")
    async with paired() as pair:
        pair.stage.upstream.scripts.append([enough])
        assert (await pair.ask(chat())).status == 200
        assert (await pair.ask(chat())).status == 200
        assert pair.asked == (1, 2)
        pair.other.scripts.append([enough])
        assert (await pair.ask(chat())).status == 429
        assert (await pair.ask(chat())).one(b"x-tollkeeper-refused-by") == b"upstream"
        assert pair.asked == (1, 3)


@pytest.mark.parametrize("begun", [[STREAM_HEAD], [STREAM_HEAD, chunks(EVENT, end=False)]])
async def test_nothing_is_sent_twice_once_an_answer_began(pair: Pair, begun: list[Step]) -> None:
    pair.stage.upstream.scripts.append([*begun, Close(reset=True)])
    got = await pair.ask(chat(stream=True))
    assert pair.asked == (1, 0)
    assert got.status == 502 or not got.complete


async def test_a_stream_falls_back_before_its_first_byte(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([FAILED])
    pair.other.scripts.append([STREAM_HEAD, chunks(EVENT, USAGE_EVENT, DONE_EVENT)])
    got = await pair.ask(chat(stream=True, stream_options={"include_usage": True}))
    assert (got.status, got.complete, got.body) == (200, True, EVENT + USAGE_EVENT + DONE_EVENT)
    assert [one.tokens for one in pair.stage.counters.charges] == [12]


ACTING = [{"type": "mcp", "server_url": "https://x"}]


@pytest.mark.parametrize(
    ("steps", "asked"),
    [(CAUSES["unreachable"], 0), ([FAILED], 0), ([LIMITED], 1), ([OVERLOADED], 1)],
)
async def test_what_may_have_acted_is_not_asked_for_again(pair: Pair, steps: list[Step], asked: int) -> None:
    pair.stage.upstream.scripts.append(list(steps))
    got = await pair.ask(chat(tools=ACTING))
    assert (got.status == 200) == bool(asked)
    assert pair.asked == (1, asked)


async def test_a_target_that_was_sent_nothing_is_passed_over_also_behind_one_that_refused() -> None:
    targets = ("up", "first"), ("other", "second"), ("up", "third")
    async with paired(rule("fast", *targets), of_other={"base_url": "http://127.0.0.1:1"}) as pair:
        pair.stage.upstream.scripts.append([LIMITED])
        assert (await pair.ask(chat(tools=ACTING))).status == 200
        assert (pair.asked, sent_model(pair.stage.upstream)) == ((2, 0), "third")


# Money.


async def test_the_hold_is_the_dearest_and_the_charge_is_by_the_one_that_answered() -> None:
    for dear, cheap in (("first", "second"), ("second", "first")):
        async with paired() as pair:
            pair.stage.directory.prices |= {dear: DEAR, cheap: OPUS}
            pair.stage.directory.budgets_there = [BUDGET]
            pair.stage.counters.holds_asked = True
            pair.stage.upstream.scripts.append([FAILED])
            assert (await pair.ask(chat())).status == 200
            [charge] = pair.stage.counters.charges
            facts = read_facts(charge.metadata)
            assert facts is not None
            price = DEAR if dear == "second" else OPUS
            assert (facts.price_id, facts.cost) == (price.price_id, charge.money)
            assert facts.cost == (7 * price.prices[0] + 5 * price.prices[4]) // 10**6
            assert pair.stage.counters.holds[0].money_most >= 10 * DEAR.prices[4] // 10**6


async def test_a_target_without_a_price_has_that_of_the_name_asked_for() -> None:
    async with paired(rule("fast", ("other", "deployment"))) as pair:
        pair.stage.directory.prices["fast"] = OPUS
        assert (await pair.ask(chat())).status == 200
        facts = pair.stage.facts(0)
        assert facts.price_id == OPUS.price_id


async def test_where_money_decides_every_target_needs_a_price(pair: Pair) -> None:
    pair.stage.directory.prices["first"] = OPUS
    pair.stage.directory.budgets_there = [BUDGET]
    refused = await pair.ask(chat())
    assert (refused.status, refused.reason) == (403, "model_not_priced")
    assert pair.asked == (0, 0)


async def test_a_budget_of_a_targets_model_holds_calls_by_another_name() -> None:
    async with paired(rule("fast", ("other", "claude-opus-5"))) as pair:
        pair.stage.directory.prices["claude-opus-5"] = OPUS
        pair.stage.directory.budgets_there = [replace(BUDGET, model="claude-*")]
        pair.stage.counters.holds_asked = True
        assert (await pair.ask(chat())).status == 200
        assert pair.stage.counters.charges[0].money > 0


async def test_a_service_at_cost_is_charged_by_the_one_that_answered() -> None:
    at_cost = Service(
        1, "chat", meter="pay_per_use", counts_tokens=False,
        pricing=ServicePricing(at_cost=CostMarkup()),
    )  # fmt: skip
    async with paired() as pair:
        pair.stage.directory.services["chat"] = at_cost
        pair.stage.directory.prices |= {"first": DEAR, "second": OPUS}
        pair.stage.upstream.scripts.append([FAILED])
        assert (await pair.ask(chat())).status == 200
        facts = pair.stage.facts(0)
        assert facts.price_id == OPUS.price_id


async def test_a_service_priced_by_the_token_is_charged_by_the_one_that_answered() -> None:
    per_million = {"first": CreditRates(1_000, 1_000), "*": CreditRates(1, 1), "fast": CreditRates(10, 10)}
    service = Service(
        1, "chat", meter="consumption", counts_tokens=False, pricing=ServicePricing(per_million=per_million)
    )
    for failing, price in ((False, 1_000), (True, 10)):
        async with paired() as pair:
            pair.stage.directory.services["chat"] = service
            if failing:
                pair.stage.upstream.scripts.append([FAILED])
            assert (await pair.ask(chat())).status == 200
            [charge] = pair.stage.counters.charges
            assert 10**9 * charge.credits - charge.over == 12 * price * 1_000


async def test_input_that_a_passed_over_target_took_is_charged_where_nobody_answers() -> None:
    models, gone = (rule("fast", ("up", "a"), ("gone", "b")),), UpstreamTarget("gone", "http://127.0.0.1:9")
    async with staged(others=(gone,), models=models, of_target={"first_byte_s": 0.05}) as stage:
        stage.upstream.scripts.append([asyncio.Event()])
        assert (await stage.ask(post(chat()))).status == 502
        [charge] = stage.counters.charges
        assert charge.tokens > 0


# Lists.


async def test_a_list_has_the_configured_models_that_the_caller_may_use() -> None:
    models = (
        rule("fast", ("other", "a")),
        rule("slow", ("other", "b")),
        rule("theirs", ("other", "c"), organization_id=77),
        rule("gpt-", ("other", ""), prefix=True),
    )
    async with paired(*models) as pair:
        got = await pair.stage.ask(get(b"/v1/models"), "GET")
        assert names_in(got) == ["fast", "slow"]
        assert json.loads(got.body)["object"] == "list"
        one = await pair.stage.ask(get(b"/v1/models/fast"), "GET")
        assert json.loads(one.body)["id"] == "fast"
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"slow"}))
        assert names_in(await pair.stage.ask(get(b"/v1/models"), "GET")) == ["slow"]
        assert (await pair.stage.ask(get(b"/v1/models/fast"), "GET")).status == 403
        assert pair.asked == (0, 0)


async def test_models_that_come_and_go_while_it_serves_count_from_the_next_call_on() -> None:
    async with paired(rule("fast", ("other", "of the file"))) as pair:
        assert (await pair.ask(chat("more"))).status == 200
        told = (rule("more", ("other", "told")), rule("fast", ("up", "told as well")))
        pair.stage.directory.models_there = told
        for model, sent in (("more", "told"), ("fast", "of the file")):
            assert (await pair.ask(chat(model))).status == 200
            assert sent_model(pair.other) == sent
        pair.stage.directory.models_there = ()
        assert (await pair.ask(chat("more"))).status == 200
        assert pair.asked == (2, 2)
        pair.stage.directory.models_there = (rule("more", ("gone", "")),)
        refused = await pair.ask(chat("more"))
        assert (refused.status, b"no upstream here" in refused.body) == (400, True)


# Around a model.


async def test_no_service_gets_to_where_a_model_is_answered() -> None:
    search = {"upstreams": (("search", "other"),)}
    async with paired(services=ServiceRules(**search)) as pair:  # type: ignore[arg-type] # as its fields are
        assert (await pair.ask(b"{}", b"/services/search/v2/find")).status == 200
        for path in (b"v1/chat/completions", b"openai/deployments/x/chat/completions", b"v1/files/x"):
            assert (await pair.ask(b"{}", b"/services/search/" + path)).reason == "unknown_route"
        pair.stage.directory.caller = replace(CALLER, models=frozenset({"fast"}))
        assert (await pair.ask(b"{}", b"/services/search/v2/find")).reason == "model_not_allowed"


# Faults.


@pytest.mark.parametrize("seed", range(3))
async def test_parallel_calls_over_failing_upstreams_are_each_charged_once(seed: int) -> None:
    """The last target is well: whatever the others do, every caller is answered and charged one time."""
    chance = random.Random(seed)
    faults: list[list[Step]] = [
        [Close(reset=True)], [Close()], [FAILED], [LIMITED], [asyncio.Event()], [answer()],
    ]  # fmt: skip
    other = FakeUpstream()
    well = FakeUpstream()
    await other.start()
    await well.start()
    targets = tuple(
        UpstreamTarget(name, f"http://127.0.0.1:{one.port}", first_byte_s=first)
        for name, one, first in (("other", other, 0.2), ("well", well, None))
    )
    models = (rule("fast", ("up", "a"), ("other", "b"), ("well", "c")),)
    async with staged(others=targets, models=models, of_target={"first_byte_s": 0.2}) as stage:
        for upstream in (stage.upstream, other):
            upstream.scripts = [list(chance.choice(faults)) for _ in range(60)]
        got = await asyncio.gather(*(stage.ask(post(chat())) for _ in range(60)))
        assert Counter(one.status for one in got) == {200: 60}
        charged = Counter(one.request_id for one in stage.counters.charges)
        assert set(charged) == {one.one(b"x-request-id").decode() for one in got}
        assert set(charged.values()) == {1}
        assert sum(one.tokens for one in stage.counters.charges) == 60 * 12
        assert len(stage.counters.settlements) == 60
    for upstream in (other, well):
        await upstream.stop()
