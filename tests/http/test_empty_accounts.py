"""An account that is out of money: who is asked instead, for how long, at what price, and who asks it again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from gateway.core.calls.routes import ModelRule, Route, UpstreamTarget
from gateway.core.model import Family, Refused, Verdict
from tests.http.fakes import (
    ANSWER,
    CALLER,
    DONE_EVENT,
    EVENT,
    ROUTES,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Answer, Close, FakeUpstream, Step, staged
from tests.http.test_budget_hold import BUDGET
from tests.http.test_costs import DEAR, OPUS
from tests.http.test_models import FAILED, Pair, chat, keyed, paired, rule
from tests.waiting import eventually

STATUSES = {
    400: b"400 Bad Request", 402: b"402 Payment Required", 403: b"403 Forbidden", 429: b"429 Too Many Requests",
}  # fmt: skip
CLAUDE = rule("claude", ("up", "claude-a"), ("other", "claude-b"))
MESSAGES = b"/v1/messages"


def refusal(status: int, **error: object) -> bytes:
    return answer(json.dumps({"error": error}).encode(), status=STATUSES[status])


EMPTY = refusal(402, message="Insufficient Balance")
QUOTA = refusal(429, type="insufficient_quota", code="insufficient_quota")
LOW = refusal(400, type="invalid_request_error", message="Your credit balance is too low to access the API.")
LARGE = refusal(402, message="This request requires more credits, or fewer max_tokens.")
CAUSED = {"attempts": [{"upstream": "up", "cause": "credit"}, {"upstream": "other"}]}


@dataclass
class Clock:
    """A clock that tests set forward."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def timed(pair: Pair) -> Clock:
    pair.stage.seconds = clock = Clock()
    return clock


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with paired() as made:
        yield made


def attempts(pair: Pair) -> object:
    """Return the targets in the metadata of the last charge."""
    return json.loads(bytes(pair.stage.facts().metadata))


# The next target.


@pytest.mark.parametrize("empty", [EMPTY, QUOTA])
async def test_the_next_target_answers_for_an_empty_account_and_is_charged(pair: Pair, empty: bytes) -> None:
    pair.stage.directory.prices |= {"first": DEAR, "second": OPUS}
    pair.stage.directory.budgets_there = [BUDGET]
    pair.stage.counters.holds_asked = True
    pair.stage.upstream.scripts.append([empty])
    got = await pair.ask(chat())
    assert (got.status, got.body, pair.asked) == (200, ANSWER, (1, 1))
    [charge] = pair.stage.counters.charges
    assert charge.money == (7 * OPUS.prices[0] + 5 * OPUS.prices[4]) // 10**6
    assert attempts(pair) == CAUSED
    assert pair.stage.tally.fallbacks == {("up", "credit"): 1}
    [line] = pair.stage.events("upstream_empty")
    assert (line["upstream"], line["status"]) == ("up", int(empty[9:12]))
    assert "upstream-secret" not in str(pair.stage.logged)


async def test_the_next_target_answers_for_an_empty_account_of_anthropic() -> None:
    async with paired(CLAUDE) as pair:
        pair.stage.upstream.scripts.append([LOW])
        assert (await pair.ask(chat("claude"), MESSAGES)).status == 200
        assert pair.asked == (1, 1)


async def test_a_refusal_that_comes_in_parts_is_read_whole(pair: Pair) -> None:
    head, _, body = QUOTA.partition(b"\r\n\r\n")
    pair.stage.upstream.scripts.append([head + b"\r\n\r\n", body[:20], body[20:]])
    assert (await pair.ask(chat())).status == 200
    assert [*pair.stage.empty.entries] != []


async def test_a_stream_goes_on_before_its_first_byte(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([EMPTY])
    pair.other.scripts.append([STREAM_HEAD, chunks(EVENT, USAGE_EVENT, DONE_EVENT)])
    got = await pair.ask(chat(stream=True, stream_options={"include_usage": True}))
    assert (got.status, got.body) == (200, EVENT + USAGE_EVENT + DONE_EVENT)
    assert [one.tokens for one in pair.stage.counters.charges] == [12]


async def test_a_call_that_acts_goes_on_too(pair: Pair) -> None:
    """An upstream that asks for money has done nothing."""
    pair.stage.upstream.scripts.append([EMPTY])
    assert (await pair.ask(chat(tools=[{"type": "mcp", "server_url": "https://x"}]))).status == 200


@pytest.mark.parametrize(
    "steps",
    [
        [refusal(400, code="invalid_value", message="Your credit balance is too low, said the prompt")],
        [refusal(403, message="Your team has used all available credits")],
        [answer(b'{"error":"' + b"x" * 20_000 + b'"}', status=STATUSES[403])],
    ],
)
async def test_an_error_that_quotes_the_words_is_relayed(pair: Pair, steps: list[Step]) -> None:
    pair.stage.upstream.scripts.append(list(steps))
    got = await pair.ask(chat())
    assert got.body == bytes(steps[0]).partition(b"\r\n\r\n")[2]  # type: ignore[arg-type]  # an answer
    assert (pair.asked, pair.stage.empty.entries) == ((1, 0), {})


async def test_a_broken_off_refusal_closes_no_account(pair: Pair) -> None:
    head, _, body = QUOTA.partition(b"\r\n\r\n")
    pair.stage.upstream.scripts.append([head + b"\r\n\r\n" + body[:20], Close(reset=True)])
    assert (await pair.ask(chat())).status == 200  # a 429 is a cause of its own
    assert pair.stage.empty.entries == {}


async def test_a_model_without_credit_relays_the_answer_of_an_empty_account() -> None:
    async with paired(rule("fast", ("up", "a"), ("other", "b"), fallback=frozenset({"429", "5xx"}))) as pair:
        pair.stage.upstream.scripts += [[EMPTY], [QUOTA]]
        assert (await pair.ask(chat())).status == 402
        assert pair.asked == (1, 0)
        assert len(pair.stage.empty.entries) == 1
        assert (await pair.ask(chat())).status == 200  # `insufficient_quota` is a 429 as well
        assert pair.asked == (2, 1)


async def test_a_model_with_a_single_target_relays_the_answer_of_an_empty_account_each_time() -> None:
    async with paired(rule("fast", ("up", "a"))) as pair:
        pair.stage.upstream.scripts += [[EMPTY], [EMPTY]]
        for number in (1, 2):
            got = await pair.ask(chat())
            assert (got.status, got.body) == (402, EMPTY.partition(b"\r\n\r\n")[2])
            assert pair.asked == (number, 0)
        assert len(pair.stage.empty.entries) == 1
        assert pair.stage.counters.charges == []
        assert (await pair.ask(chat())).status == 200
        assert pair.stage.empty.entries == {}


async def test_the_last_answer_is_relayed_where_all_accounts_are_empty(pair: Pair) -> None:
    last = refusal(402, message="of the last one")
    pair.stage.upstream.scripts.append([EMPTY])
    pair.other.scripts += [[last], [last]]
    for asked in ((1, 1), (1, 2)):
        got = await pair.ask(chat())
        assert (got.status, got.body, pair.asked) == (402, last.partition(b"\r\n\r\n")[2], asked)
    assert pair.stage.counters.charges == []
    assert len(pair.stage.empty.entries) == 2


async def test_our_own_402_asks_no_upstream(pair: Pair) -> None:
    pair.stage.counters.decision = Refused(Verdict.INSUFFICIENT_CREDITS)
    assert (await pair.ask(chat())).status == 402
    assert (pair.asked, pair.stage.empty.entries) == ((0, 0), {})


# What is left alone, and who asks again.


async def test_an_empty_account_is_left_alone_for_a_minute_and_then_gets_a_single_call(pair: Pair) -> None:
    clock = timed(pair)
    pair.stage.upstream.scripts.append([EMPTY])
    for _ in range(3):
        assert (await pair.ask(chat())).status == 200
        assert attempts(pair) == CAUSED
    assert pair.asked == (1, 3)
    clock.now += 60.0
    pair.stage.upstream.scripts.append([EMPTY])
    for _ in range(3):
        assert (await pair.ask(chat())).status == 200
    assert pair.asked == (2, 6)
    clock.now += 60.0
    assert (await pair.ask(chat())).status == 200
    assert (pair.asked, pair.stage.empty.entries) == ((3, 6), {})


async def test_many_calls_at_once_over_an_account_that_becomes_empty_are_all_served(pair: Pair) -> None:
    pair.stage.upstream.scripts += [[EMPTY] for _ in range(200)]
    found = await asyncio.gather(*(pair.ask(chat()) for _ in range(200)))
    assert [one.status for one in found] == [200] * 200
    assert len(pair.stage.counters.charges) == len(pair.other.received) == 200
    assert len(pair.stage.events("upstream_empty")) == 1


async def test_a_single_call_of_many_at_once_asks_again(pair: Pair) -> None:
    clock = timed(pair)
    pair.stage.upstream.scripts.append([EMPTY])
    await pair.ask(chat())
    clock.now += 60.0
    begun = asyncio.Event()
    pair.stage.upstream.scripts.append([begun, EMPTY])
    waiting = [asyncio.create_task(pair.ask(chat())) for _ in range(20)]
    await eventually(lambda: len(pair.other.received) == 20)
    begun.set()
    assert {(await one).status for one in waiting} == {200}
    assert pair.asked == (2, 21)


@pytest.mark.parametrize(
    "steps", [[refusal(400, message="no such field")], [LARGE], [FAILED], [Close(reset=True)]]
)
async def test_a_question_with_another_answer_is_repeated_by_the_next_call(
    pair: Pair, steps: list[Step]
) -> None:
    """A caller of bad requests keeps no account shut."""
    clock = timed(pair)
    pair.stage.upstream.scripts.append([EMPTY])
    await pair.ask(chat())
    clock.now += 60.0
    pair.stage.upstream.scripts.append(list(steps))
    await pair.ask(chat())
    assert (await pair.ask(chat())).status == 200
    assert (len(pair.stage.upstream.received), pair.stage.empty.entries) == (3, {})


async def test_a_client_that_leaves_keeps_no_account_shut(pair: Pair) -> None:
    clock = timed(pair)
    pair.stage.upstream.scripts.append([EMPTY])
    await pair.ask(chat())
    clock.now += 60.0
    begun = asyncio.Event()
    pair.stage.upstream.scripts.append([begun, Close(reset=True)])
    client = await pair.stage.client()
    client.writer.write(post(chat()))
    await eventually(lambda: len(pair.stage.upstream.received) == 2)
    client.close()
    begun.set()
    await eventually(lambda: pair.stage.empty.entries == {} or min(
        one.until for one in pair.stage.empty.entries.values()) <= clock.now)  # fmt: skip
    assert (await pair.ask(chat())).status == 200
    assert pair.stage.empty.entries == {}


@pytest.mark.parametrize(
    "free",
    [
        get(b"/v1/models/m"), post(chat("m"), b"/v1/messages/count_tokens"), get(b"/services/search/health"),
        post(b'{"model":"m","input":"a"}', b"/v1/moderations"),
    ],
)  # fmt: skip
async def test_a_free_answer_opens_no_account(free: bytes) -> None:
    """The next call that costs something asks."""
    routes = (
        *ROUTES,
        Route(("POST",), "/v1/messages/count_tokens", "up", "", Family("anthropic")),
        Route(("POST",), "/v1/moderations", "up", "chat", Family("openai"), "openai_moderations"),
    )
    async with paired(routes=routes) as pair:
        clock = timed(pair)
        pair.stage.upstream.scripts.append([EMPTY])
        await pair.ask(chat())
        for wait_s in (0.0, 60.0):
            clock.now += wait_s
            assert (await pair.stage.ask(free)).status == 200
            assert len(pair.stage.empty.entries) == 1
        assert (await pair.ask(chat())).status == 200
        assert (pair.asked, pair.stage.empty.entries) == ((4, 1), {})


async def test_a_402_of_a_service_shuts_no_account(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([EMPTY])
    assert (await pair.stage.ask(post(b"1", b"/services/search/x"))).status == 402
    assert (await pair.ask(chat())).status == 200
    assert (pair.asked, pair.stage.empty.entries) == ((2, 0), {})


async def test_a_member_that_a_caller_names_shuts_no_account() -> None:
    name = "Your credit balance is too low"
    wrong = refusal(400, type="invalid_request_error", message=f"{name}: Extra inputs are not permitted")
    async with paired(CLAUDE) as pair:
        pair.stage.upstream.scripts.append([wrong])
        assert (await pair.ask(chat("claude", **{name: 1}), MESSAGES)).status == 400
        assert (pair.asked, pair.stage.empty.entries) == ((1, 0), {})


async def test_a_slow_error_keeps_no_call_from_the_next_target(pair: Pair) -> None:
    head, _, body = EMPTY.partition(b"\r\n\r\n")
    pair.stage.upstream.scripts.append([head + b"\r\n\r\n" + body[:5], asyncio.Event()])
    assert (await pair.ask(chat())).status == 200
    assert pair.asked == (1, 1)


async def test_an_empty_answer_with_usage_is_not_charged() -> None:
    used = json.loads(ANSWER)["usage"]
    async with paired(rule("fast", ("up", "a"))) as pair:
        pair.stage.upstream.scripts.append([
            answer(json.dumps({"error": {"message": "x"}, "usage": used}).encode(), status=STATUSES[402])
        ])  # fmt: skip
        assert (await pair.ask(chat())).status == 402
        assert pair.stage.counters.charges == []


async def test_a_call_that_began_before_opens_no_account(pair: Pair) -> None:
    clock = timed(pair)
    late = asyncio.Event()
    pair.stage.upstream.scripts += [[late, answer()], [EMPTY]]
    early = asyncio.create_task(pair.ask(chat()))
    await eventually(lambda: len(pair.stage.upstream.received) == 1)
    clock.now += 1.0
    await pair.ask(chat())
    late.set()
    assert (await early).status == 200
    assert len(pair.stage.empty.entries) == 1


async def test_an_empty_key_is_left_alone_by_itself() -> None:
    async with staged(of_target=keyed("one", "two")) as stage:
        stage.upstream.scripts.append([EMPTY])
        assert (await stage.ask(post(chat("m")))).status == 402
        for model in ("m", "n"):
            assert (await stage.ask(post(chat(model)))).status == 200
        keys = [one.all(b"authorization") for one in stage.upstream.received]
        assert keys == [[b"Bearer one"], [b"Bearer two"], [b"Bearer two"]]
        assert len(stage.empty.entries) == 1


@pytest.mark.parametrize(
    "bound",
    [
        {"messages": [{"role": "assistant", "content": "b", "reasoning_opaque": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    ],
)  # fmt: skip
async def test_a_call_with_parts_of_its_account_goes_to_no_second_key(bound: dict[str, object]) -> None:
    async with staged(of_target=keyed("one", "two")) as stage:
        stage.objects.kept.add((CALLER.organization_id, "file-1"))
        stage.upstream.scripts += [[EMPTY], [EMPTY]]
        assert (await stage.ask(post(chat("m")))).status == 402
        got = await stage.ask(post(chat("m", **bound)))
        assert (got.status, got.body) == (402, EMPTY.partition(b"\r\n\r\n")[2])
        assert [one.all(b"authorization") for one in stage.upstream.received] == [[b"Bearer one"]] * 2


async def test_a_credential_that_names_the_caller_is_an_account_of_its_own() -> None:
    told = {"headers": (), "told": (("authorization", "Bearer {organization}"), ("x-priority", "{priority}"))}
    async with paired(of_target=told) as pair:
        pair.stage.upstream.scripts.append([EMPTY])
        await pair.ask(chat())
        assert (await pair.ask(chat())).status == 200
        assert pair.asked == (1, 2)
        pair.stage.directory.caller = replace(CALLER, organization_id=CALLER.organization_id + 1)
        assert (await pair.ask(chat())).status == 200
        assert (pair.asked, len(pair.stage.empty.entries)) == ((2, 2), 1)


async def test_a_call_too_large_for_its_account_shuts_no_account(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([LARGE])
    assert (await pair.ask(chat())).status == 200
    assert (pair.asked, pair.stage.empty.entries) == ((1, 1), {})
    assert (await pair.ask(chat())).status == 200
    assert pair.asked == (2, 1)


async def test_an_upstream_that_limits_single_callers_is_never_left_alone() -> None:
    async with paired(of_other={}, of_target={"limits": "caller"}) as pair:
        pair.stage.upstream.scripts += [[EMPTY], [EMPTY]]
        for asked in ((1, 1), (2, 2)):
            assert (await pair.ask(chat())).status == 200
            assert (pair.asked, pair.stage.empty.entries) == (asked, {})


async def test_an_upstream_that_limits_single_callers_has_calls_beside_an_empty_upstream() -> None:
    upstream = FakeUpstream()
    await upstream.start()
    first = UpstreamTarget("first", f"http://127.0.0.1:{upstream.port}", (("authorization", "Bearer a"),))
    models = rule("fast", ("first", "a"), ("up", "b")), rule("slow", ("same", "a"), ("up", "b"))
    async with staged(others=(first, replace(first, name="same", limits="caller")), models=models) as stage:
        upstream.scripts += [[EMPTY], [EMPTY]]
        for model, asked in (("fast", (1, 1)), ("slow", (2, 2)), ("slow", (3, 2))):
            assert (await stage.ask(post(chat(model)))).status == 200
            assert (len(upstream.received), len(stage.upstream.received)) == asked
        assert len(stage.empty.entries) == 1
    await upstream.stop()


async def test_another_organization_goes_past_the_empty_account_too(pair: Pair) -> None:
    pair.stage.upstream.scripts.append([EMPTY])
    await pair.ask(chat())
    pair.stage.directory.caller = replace(CALLER, organization_id=CALLER.organization_id + 1)
    assert (await pair.ask(chat())).status == 200
    assert pair.asked == (1, 2)


# What the first account sealed.


async def sealed(model: ModelRule, path: bytes, **more: object) -> tuple[Answer, tuple[int, int]]:
    """Return the answer to a call with sealed parts whose first account is empty, and who was asked."""
    async with paired(model) as pair:
        pair.stage.upstream.scripts += [[EMPTY], [EMPTY]]
        await pair.ask(chat(model.name), path)
        before = pair.asked
        got = await pair.ask(chat(model.name, **more), path)
        now = pair.asked
        return got, (now[0] - before[0], now[1] - before[1])


def thinking() -> dict[str, object]:
    block = {"type": "thinking", "thinking": "x", "signature": "EvgB"}
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [block]}]}


async def test_a_call_with_a_seal_of_its_account_has_the_first_answer() -> None:
    details = {"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **details}]
    got, asked = await sealed(
        rule("fast", ("up", "a"), ("other", "b")), b"/v1/chat/completions", messages=messages
    )
    assert (got.status, asked) == (402, (1, 0))


async def test_a_signature_of_claude_is_taken_by_another_account_of_claude_alone() -> None:
    got, asked = await sealed(CLAUDE, MESSAGES, **thinking())
    assert (got.status, asked) == (200, (0, 1))
    elsewhere = rule("claude", ("up", "claude-a"), ("other", "glm-5"))
    got, asked = await sealed(elsewhere, MESSAGES, **thinking())
    assert (got.status, asked) == (402, (1, 0))
