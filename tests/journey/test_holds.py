"""Holds by the API: taken, extended, settled and released; by many at once, by anybody's worker, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import pytest
import redis

from gateway.client.holds import AsyncHolds, HoldRefused, Holds
from tests import plain_http
from tests.journey.budgets import MODEL, Spender, cost, reasons
from tests.journey.stack import ANSWER_S_MAX, Body, Stack
from tests.stage import Stage
from tests.waiting import wait_until

CALLERS, CALLS = 32, 500
TOKENS = 100
WORTH = 20


class Holder:
    """A tenant whose key takes holds."""

    def __init__(self, stack: Stack, total: int | None = None, **key: Any) -> None:
        self.stack = stack
        self.tenant, self.key = stack.tenant(total)
        if key:
            self.key = stack.make("api-keys", tenant_id=self.tenant, **key)["key"]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        fields = {"authorization": f"Bearer {self.key}"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.stack.gateway_url}/.tollkeeper/holds{path}"
        return plain_http.request(method, url, json=body, headers=fields, timeout=ANSWER_S_MAX)

    def take(self, tokens: int = TOKENS, **said: Any) -> Body:
        answer = self.ask("POST", "", {"service": "chat", "max_tokens": tokens} | said)
        assert answer.status_code == 201, answer.text
        taken: Body = answer.json()
        return taken

    def settle(self, id_: str, output: int = 7) -> httpx.Response:
        return self.ask("POST", f"/{id_}/settle", {"usage": {"input": 3, "output": output}})

    def consumed(self) -> list[int]:
        rows = self.stack.ledger(self.tenant)
        return [row["amount"] for row in rows if row["transaction_type"] == "consume"]


def test_a_hold_is_taken_settled_once_and_is_a_row_as_a_call_is(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    taken = holder.take(model="demo-small", user="ann", ttl_s=60)
    assert (taken["held"], taken["remaining"], taken["unit"]) == (TOKENS, 900, "tokens")
    assert stage.quota(holder.tenant)["tokens_held"] == TOKENS
    first = holder.settle(taken["id"])
    assert (first.status_code, first.json()["tokens"]) == (200, 10)
    again = holder.settle(taken["id"], output=500)
    assert (again.status_code, again.json()) == (200, first.json())
    stage.settled(holder.tenant, 2)
    assert holder.consumed() == [10]
    (call,) = wait_until(lambda: stage.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"])
    assert (call["request_id"], call["model"], call["tokens"], call["status"]) == (
        taken["id"],
        "demo-small",
        10,
        200,
    )
    assert call["route"] == "/.tollkeeper/holds/{id}/settle"
    assert stage.quota(holder.tenant)["tokens_held"] == 0
    assert holder.ask("DELETE", f"/{taken['id']}").status_code == 409


def test_what_is_released_costs_nothing_and_is_over(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    id_ = holder.take()["id"]
    assert [holder.ask("DELETE", f"/{id_}").status_code for _ in range(2)] == [204, 204]
    refused = holder.settle(id_)
    assert (refused.status_code, refused.headers["x-tollkeeper-reason"]) == (409, "hold_ended")
    assert holder.ask("POST", f"/{id_}/extend", {"ttl_s": 60}).status_code == 409
    failed = holder.take()["id"]
    answer = holder.ask("POST", f"/{failed}/settle", {"status": 502})
    assert (answer.status_code, answer.json()["charged"]) == (200, False)
    assert stage.quota(holder.tenant)["tokens_remaining"] == 1000
    assert stage.quota(holder.tenant)["tokens_held"] == 0


def test_hold_without_its_account_is_not_released(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    id_ = holder.take()["id"]
    with redis.Redis.from_url(stage.redis_url) as client:
        (name,) = client.keys(f"tk:*:t:{holder.tenant}")
        raw = client.getdel(name)
        answers = [holder.ask("DELETE", f"/{id_}").status_code]
        client.set(name, raw)
        answers.append(holder.ask("DELETE", f"/{id_}").status_code)
    assert (answers, stage.quota(holder.tenant)["tokens_held"]) == ([503, 204], 0)


def test_many_at_once_never_hold_more_than_there_is(stage: Stage) -> None:
    holder = Holder(stage, WORTH * TOKENS)
    said = {"service": "chat", "max_tokens": TOKENS, "ttl_s": 600}
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda _: holder.ask("POST", "", said), range(CALLS)))
    taken = [one.json()["id"] for one in answers if one.status_code == 201]
    assert len(taken) == WORTH
    assert {one.status_code for one in answers} == {201, 429}
    refused = [one for one in answers if one.status_code == 429]
    assert set(reasons(refused)) == {"quota_held"}
    assert refused[0].headers["content-type"] == "application/problem+json"
    with ThreadPoolExecutor(CALLERS) as pool:  # each twice at once: charged once
        settled = list(pool.map(holder.settle, taken * 2))
    assert {one.status_code for one in settled} == {200}
    stage.settled(holder.tenant, 1 + WORTH)
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)
    assert holder.consumed() == [10] * WORTH


def test_a_hold_is_extended_whole_or_not_at_all_and_no_longer_than_a_day(stage: Stage) -> None:
    holder = Holder(stage, 250)
    taken = holder.take()
    more = holder.ask("POST", f"/{taken['id']}/extend", {"ttl_s": 3600, "more": TOKENS})
    assert (more.status_code, more.json()["held"]) == (200, 2 * TOKENS)
    assert more.json()["expires_at"] > taken["expires_at"]
    assert stage.quota(holder.tenant)["tokens_held"] == 2 * TOKENS
    short = holder.ask("POST", f"/{taken['id']}/extend", {"more": TOKENS})
    assert (short.status_code, short.headers["x-tollkeeper-reason"]) == (429, "quota_exceeded")
    assert stage.quota(holder.tenant)["tokens_held"] == 2 * TOKENS
    days_old = [name for name in _names(stage) if name.endswith(f":hold:{taken['id']}")]
    _age(stage, days_old[0], "created_ms", 86_400_000)
    late = holder.ask("POST", f"/{taken['id']}/extend", {"ttl_s": 60})
    assert (late.status_code, "a day" in late.text) == (400, True)
    assert holder.settle(taken["id"]).status_code == 200


def _names(stage: Stage) -> list[str]:
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:
        return list(client.scan_iter(count=1000))


def _age(stage: Stage, name: str, field: str, ms: int) -> None:
    """The hold was taken, or its time was over, so much earlier."""
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:
        raw = str(client.get(name))
        then = int(raw.partition(f'"{field}":')[2].partition(",")[0])
        client.set(name, raw.replace(f'"{field}":{then}', f'"{field}":{then - ms}'), keepttl=True)


@pytest.mark.parametrize(("unsettled", "left"), [("charge", 900), ("release", 1000)])
def test_what_nobody_settles_is_charged_or_not_and_a_late_settlement_is_made_good(
    stage: Stage, unsettled: str, left: int
) -> None:
    holder = Holder(stage, 1000, unsettled=unsettled)
    id_ = holder.take(ttl_s=1)["id"]
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)
    assert stage.quota(holder.tenant)["tokens_remaining"] == left
    (record,) = [name for name in _names(stage) if name.endswith(f":hold:{id_}")]
    with redis.Redis.from_url(stage.redis_url) as client:  # holds that nobody settles fill no memory for days
        wait_until(lambda: 0 < int(client.ttl(record)) <= 3600)
    if unsettled == "charge":
        with ThreadPoolExecutor(12) as pool:
            ended = pool.map(
                lambda number: holder.settle(id_) if number == 6 else holder.ask("DELETE", f"/{id_}"),
                range(12),
            )
        assert [one.status_code for one in ended] == [409] * 6 + [200] + [409] * 5
    assert holder.settle(id_).status_code == 200
    wait_until(lambda: stage.quota(holder.tenant)["tokens_remaining"] == 990)
    assert holder.settle(id_).status_code == 200


def test_a_request_with_a_key_is_answered_once(stage: Stage) -> None:
    holder, key = Holder(stage, 1000), str(uuid4())
    said = {"service": "chat", "max_tokens": TOKENS}
    first = holder.ask("POST", "", said, idempotency_key=key)
    again = holder.ask("POST", "", said, idempotency_key=key)
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    other = holder.ask("POST", "", said | {"max_tokens": 1}, idempotency_key=key)
    assert (other.status_code, other.headers["x-tollkeeper-reason"]) == (409, "idempotency_conflict")
    assert stage.quota(holder.tenant)["tokens_held"] == TOKENS
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda _: holder.ask("POST", "", said, idempotency_key=f"{key}2"), range(8)))
    assert {one.status_code for one in at_once} <= {201, 409}
    assert len({one.json()["id"] for one in at_once if one.status_code == 201}) == 1
    assert stage.quota(holder.tenant)["tokens_held"] == 2 * TOKENS
    refused = holder.ask("POST", "", said | {"max_tokens": 9_000}, idempotency_key=f"{key}3")
    assert refused.status_code == 429
    stage.act(holder.tenant, "recharge", amount=10_000)
    assert holder.ask("POST", "", said | {"max_tokens": 9_000}, idempotency_key=f"{key}3").status_code == 201


def test_a_wrong_body_is_refused_by_its_field_and_what_is_wrong_settles_nothing(
    stage: Stage,
) -> None:
    holder, stranger = Holder(stage, 1000), Holder(stage)
    said: Body
    for said, param in (
        ({"max_tokens": 1}, "service"), ({"service": "chat"}, "max_tokens"),
        ({"service": "chat", "max_tokens": 1, "ttl_s": 3601}, "ttl_s"),
        ({"service": "chat", "max_tokens": 1, "ttl_s": 0}, "ttl_s"),
        ({"service": "chat", "max_tokens": 0}, "max_tokens"),
        ({"service": "chat", "max_tokens": 1, "amount": 1}, "max_tokens"),
        ({"service": "chat", "amount": "-1"}, "amount"),
        ({"service": "chat", "amount": "0.00"}, "amount"), ({"service": "chat", "amount": 1.5}, "amount"),
        ({"service": "chat", "max_tokens": 1, "weight": 1}, "weight"),
        ({"service": "chat", "max_tokens": 1, "run": "a; max=0"}, "run"),
    ):  # fmt: skip
        answer = holder.ask("POST", "", said)
        assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (400, "invalid_request"), said
        assert param in answer.json()["detail"]
    id_ = holder.take()["id"]
    for said in (
        {}, {"usage": {"input": -1}}, {"usage": {"tokens": 1}}, {"units": -1}, {"cost": "-5"}, {"status": 99},
        {"usage": {"output": 1, "reasoning": 2}}, {"cost": "1e3"}, {"units": 1},
    ):  # fmt: skip
        assert holder.ask("POST", f"/{id_}/settle", said).status_code == 400, said
    for method, path in (("POST", "/settle"), ("POST", "/extend"), ("DELETE", "")):
        for asked in (id_, str(uuid4()), "x"):
            answer = stranger.ask(method, f"/{asked}{path}", {} if method == "POST" else None)
            assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (404, "hold_not_found")
    assert stage.quota(holder.tenant)["tokens_held"] == TOKENS
    told = holder.settle(id_, output=2_997).json()  # more than was held is charged as told
    assert (told["tokens"], stage.quota(holder.tenant)["tokens_remaining"]) == (3_000, -2_000)


def test_money_units_and_requests_are_held_where_they_are_limited(stage: Stage) -> None:
    spender = Spender(stage)
    budget = spender.budget("0.01")
    spender.known(budget)
    holder = Holder(stage)
    holder.key = spender.key
    request = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
    by_request = holder.ask("POST", "", {"service": "chat", "request": request})
    assert by_request.status_code == 201, by_request.text
    assert by_request.json()["held"] >= 16
    by_money = holder.ask("POST", "", {"service": "chat", "model": MODEL, "amount": "0.005"})
    assert (by_money.status_code, by_money.json()["held"]) == (201, "0.005")
    over = holder.ask("POST", "", {"service": "chat", "model": MODEL, "amount": "0.0099"})
    assert (over.status_code, over.headers["x-tollkeeper-reason"]) == (429, "quota_held")
    used = {"usage": {"input": 100, "output": 10}}
    assert holder.ask("POST", f"/{by_request.json()['id']}/settle", used).status_code == 200
    told = holder.ask("POST", f"/{by_money.json()['id']}/settle", {"cost": "0.004"}).json()
    assert (told["cost"], told["currency"]) == ("0.004", "USD")
    spender.comes_to(budget, cost(100, 10) + Decimal("0.004"))


def test_a_hold_grows_to_no_more_than_a_new_one_may_be(stage: Stage) -> None:
    spender = Spender(stage)
    spender.known(spender.budget("9007199"))
    holder = Holder(stage)
    holder.key = spender.key
    taken = holder.ask("POST", "", {"service": "chat", "model": MODEL, "amount": "0.25"}).json()
    for more in ("9007199.254740991", "9007199.004740992"):
        over = holder.ask("POST", f"/{taken['id']}/extend", {"more": more})
        assert (over.status_code, "9007199.254740991" in over.text, "more" in over.json()["detail"]) == (
            400, True, True,
        )  # fmt: skip
    small = holder.ask("POST", f"/{taken['id']}/extend", {"more": "0.5"})
    assert (small.status_code, small.json()["held"]) == (200, "0.75")
    by_tokens = holder.take(model=MODEL)["id"]
    (record,) = [name for name in _names(stage) if name.endswith(f":hold:{by_tokens}")]
    with redis.Redis.from_url(stage.redis_url, decode_responses=True) as client:  # at a very high price
        said = json.loads(str(client.get(record)))
        assert said["held"][3] > 0
        said["held"][3] = 2**53 - 1
        client.set(record, json.dumps(said), keepttl=True)
    over = holder.ask("POST", f"/{by_tokens}/extend", {"more": 1})
    assert (over.status_code, "more" in over.json()["detail"]) == (400, True)


def test_hold_grows_by_the_limits_in_force_and_not_at_its_beginning(stage: Stage) -> None:
    """Ada has no limit, then nothing, then 1.00: 0.50 are held, and of 0.60 and 0.50 more the second fits."""
    spender = Spender(stage)
    each = spender.budget("9", each="user")
    path = f"/budgets/{each['id']}/overrides/ada"
    holder = Holder(stage)
    holder.key = spender.key
    wanted = {"service": "chat", "model": MODEL, "amount": "0.50", "user": "ada"}

    def override(amount: str | None) -> None:
        assert stage.admin("PUT", path, {"amount": amount})[0] == 200
        limit = None if amount is None else Decimal(amount)

        def is_in_force() -> bool:
            amount_now = spender.told(each, user="ada")["limit"]
            return (None if amount_now is None else Decimal(amount_now)) == limit

        wait_until(is_in_force)

    override(None)
    id_ = holder.ask("POST", "", wanted).json()["id"]
    override("0")
    assert holder.ask("POST", "", wanted).status_code == 429
    extended = [holder.ask("POST", f"/{id_}/extend", {"more": more}) for more in ("0.01", "1000")]
    assert [(one.status_code, reasons([one])) for one in extended] == [(429, ["budget_exceeded"])] * 2
    override("1.00")
    extended = [holder.ask("POST", f"/{id_}/extend", {"more": more}) for more in ("0.60", "0.50")]
    assert [one.status_code for one in extended] == [429, 200]
    assert Decimal(extended[1].json()["held"]) == 1


def test_a_hold_of_money_that_ends_by_itself_is_charged_as_held_and_no_token(stage: Stage) -> None:
    spender = Spender(stage)
    budget, counted = spender.budget("9.5"), spender.budget(50, "tokens")
    spender.known(budget, counted)
    holder = Holder(stage)
    holder.tenant, holder.key = spender.tenant, spender.key
    held = holder.ask("POST", "", {"service": "chat", "model": MODEL, "amount": "0.25", "ttl_s": 1})
    assert (held.status_code, held.json()["held"]) == (201, "0.25")
    (call,) = wait_until(lambda: stage.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"])
    assert (call["request_id"], call["reason"], call["tokens"]) == (held.json()["id"], "reclaimed", 0)
    assert Decimal(call["cost"]) == Decimal("0.25")
    assert holder.consumed() == [0]
    spender.comes_to(budget, Decimal("0.25"))
    assert Decimal(spender.told(counted)["used"]) == 0
    settled = holder.ask("POST", f"/{held.json()['id']}/settle", {"cost": "0.2", "usage": {"output": 3}})
    assert settled.status_code == 200
    spender.comes_to(budget, Decimal("0.2"))
    wait_until(lambda: sum(holder.consumed()) == 0 and Decimal(spender.told(counted)["used"]) == 3)


def test_units_cost_credits_and_a_run_is_drawn_from(stage: Stage) -> None:
    holder = Holder(stage)
    organization = stage.admin("GET", f"/tenants/{holder.tenant}")[1]["organization_id"]
    (model,) = stage.admin("GET", "/business-models?name=Consumption")[1]["items"]
    service = stage.make(
        "services", name=f"units {uuid4()}", key=f"units-{uuid4().hex[:8]}", credits=2,
        service_type="Pay-As-You-Go", business_model_id=model["id"],
    )  # fmt: skip
    stage.make("credit-additions", organization_id=organization, credits_added=20)
    said = {"service": service["key"], "amount": 6}
    first = wait_until(lambda: (one := holder.ask("POST", "", said)).status_code == 201 and one)
    assert (first.json()["held"], first.json()["remaining"], first.json()["unit"]) == (6, 4, "units")
    held = holder.ask("POST", "", said)
    assert (held.status_code, held.headers["x-tollkeeper-reason"]) == (429, "quota_held")
    told = holder.ask("POST", f"/{first.json()['id']}/settle", {"units": 5}).json()
    assert (told["credits"], told["units"]) == (10, 5)
    assert holder.ask("POST", "", said).status_code == 402
    run = "hold-run; max_tokens=150"
    assert holder.take(run=run)["remaining"] == 50
    over = holder.ask("POST", "", {"service": "chat", "max_tokens": TOKENS, "run": "hold-run"})
    assert (over.status_code, over.headers["x-tollkeeper-reason"]) in {
        (429, "quota_held"),
        (429, "run_exceeded"),
    }


def test_the_client_takes_settles_and_releases(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    holds = Holds(stage.gateway_url, holder.key)
    with holds.take("chat", max_tokens=TOKENS) as hold:
        assert (hold.held, hold.remaining) == (TOKENS, 900)
        assert hold.extend(ttl_s=600, more=50).held == TOKENS + 50
        assert hold.settle({"input": 3, "output": 7})["tokens"] == 10
    with pytest.raises(ZeroDivisionError), holds.take("chat", max_tokens=TOKENS):
        raise ZeroDivisionError
    with pytest.raises(HoldRefused) as refused:
        holds.take("chat", max_tokens=5_000)
    assert (refused.value.status, refused.value.reason) == (429, "quota_exceeded")
    holds.close()
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)
    assert stage.quota(holder.tenant)["tokens_remaining"] == 990


async def test_the_client_of_event_loops_does_the_same(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    holds = AsyncHolds(stage.gateway_url, holder.key)
    async with await holds.take("chat", max_tokens=TOKENS, user="ann") as hold:
        assert (hold.held, hold.remaining, len(hold.id)) == (TOKENS, 900, 36)
        assert (await (await hold.extend(more=50)).settle({"output": 7}, status=200))["tokens"] == 7
    async with await holds.take("chat", max_tokens=TOKENS):
        pass
    holds.close()
    assert stage.quota(holder.tenant)["tokens_remaining"] == 993


def test_settled_extended_and_released_at_once_a_hold_has_one_end(stage: Stage) -> None:
    holder, rounds = Holder(stage, 100_000), 12

    def hurried(id_: str) -> Callable[[int], httpx.Response]:
        def ask(number: int) -> httpx.Response:
            if number % 3 == 0:
                return holder.ask("POST", f"/{id_}/extend", {"ttl_s": 3600, "more": 5})
            return holder.ask("DELETE", f"/{id_}") if number % 3 == 1 else holder.settle(id_, output=number)

        return ask

    charged = list[int]()
    with ThreadPoolExecutor(12) as pool:
        for number in range(rounds):
            id_ = holder.take(ttl_s=600)["id"]
            if number % 2:  # its time is over, and no keeper has ended it yet
                (record,) = [name for name in _names(stage) if name.endswith(f":hold:{id_}")]
                _age(stage, record, "expires_ms", 700_000)
            answers = list(pool.map(hurried(id_), range(12)))
            assert {one.status_code for one in answers} <= {200, 204, 409}, [one.text for one in answers]
            settled = {one.text for one in answers[2::3] if one.status_code == 200}
            released = [one for one in answers[1::3] if one.status_code == 204]
            assert len(settled) == (0 if released else 1)
            charged += [json.loads(one)["tokens"] for one in settled]
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)
    stage.settled(holder.tenant, 1 + len(charged))
    assert sorted(holder.consumed()) == sorted(charged)


def test_hold_has_the_tags_of_its_request_and_extension_keeps_these(stage: Stage) -> None:
    """Each feature has 150 tokens: another hold has all of the other one, and this hold grows by its own 50."""
    holder = Holder(stage)
    owner = stage.admin("GET", f"/tenants/{holder.tenant}")[1]["organization_id"]
    assert stage.admin("PATCH", f"/organizations/{owner}", {"tags": ["feature"]})[0] == 200
    stage.make(
        "budgets", organization_id=owner, name="each feature", unit="tokens", amount=150, interval="day",
        each="tag:feature",
    )  # fmt: skip
    body, of = (
        {"service": "chat", "max_tokens": TOKENS},
        {name: json.dumps({"feature": name}) for name in "ab"},
    )
    wait_until(
        lambda: (
            holder.ask("POST", "", {**body, "max_tokens": 151}, x_tollkeeper_metadata=of["b"]).status_code
            == 429
        )
    )
    taken = holder.ask("POST", "", body, x_tollkeeper_metadata=of["a"]).json()
    full = {**body, "max_tokens": 150}
    assert holder.ask("POST", "", full, x_tollkeeper_metadata=of["b"]).status_code == 201
    assert (
        holder.ask("POST", f"/{taken['id']}/extend", {"more": 50}, x_tollkeeper_metadata=of["b"]).status_code
        == 200
    )
    assert holder.settle(taken["id"]).status_code == 200
    (call,) = wait_until(
        lambda: [
            row
            for row in stage.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"]
            if row["request_id"] == taken["id"]
        ]
    )
    assert call["tags"] == {"feature": "a"}
