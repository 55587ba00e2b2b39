"""Envoy's questions become holds: all descriptors of one have room, or none is charged."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from gateway.errors import SettingError
from gateway.features.rate_limit_service import judge
from gateway.features.rate_limit_service.judge import HoldsReply, RateLimitJudge
from gateway.features.rate_limit_service.messages import (
    OK,
    OVER_LIMIT,
    read_commit,
    read_request,
    read_reserve,
)
from gateway.features.rate_limit_service.table import RateLimitTable, read_table

# The messages as Envoy's files have them, for protobuf itself: field, number, type, whether it is repeated.
_F = descriptor_pb2.FieldDescriptorProto
TEXT, BYTES, U32, U64, FLAG, ENUM = (
    _F.TYPE_STRING, _F.TYPE_BYTES, _F.TYPE_UINT32, _F.TYPE_UINT64, _F.TYPE_BOOL, _F.TYPE_INT32,
)  # fmt: skip
SHAPES: dict[str, list[tuple[str, int, int | str, bool]]] = {
    "Entry": [("key", 1, TEXT, False), ("value", 2, TEXT, False)],
    "Override": [("requests_per_unit", 1, U32, False), ("unit", 2, ENUM, False)],
    "Hits": [("value", 1, U64, False)],
    "Descriptor": [
        ("entries", 1, "Entry", True), ("limit", 2, "Override", False), ("hits_addend", 3, "Hits", False),
        ("is_negative_hits", 4, FLAG, False),
    ],
    "Request": [
        ("domain", 1, TEXT, False), ("descriptors", 2, "Descriptor", True), ("hits_addend", 3, U32, False),
    ],
    "Duration": [("seconds", 1, U64, False)],
    "Status": [
        ("code", 1, ENUM, False), ("limit_remaining", 3, U32, False),
        ("duration_until_reset", 4, "Duration", False),
    ],
    "Header": [("key", 1, TEXT, False), ("value", 2, TEXT, False)],
    "Response": [
        ("overall_code", 1, ENUM, False), ("statuses", 2, "Status", True),
        ("response_headers_to_add", 3, "Header", True), ("raw_body", 5, BYTES, False),
        ("dynamic_metadata", 6, BYTES, False),
    ],
    "ReserveRequest": [
        ("domain", 1, TEXT, False), ("descriptors", 2, "Descriptor", True), ("amount", 3, U64, False),
        ("ttl", 4, "Duration", False),
    ],
    "ReserveResponse": [("code", 1, ENUM, False), ("reservation_id", 2, TEXT, False)],
    "CommitRequest": [
        ("domain", 1, TEXT, False), ("descriptors", 2, "Descriptor", True),
        ("reservation_id", 3, TEXT, False), ("actual_amount", 4, U64, False),
    ],
    "CommitResponse": [("reservation_released", 1, FLAG, False)],
}  # fmt: skip


def _messages() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="asked.proto", package="asked", syntax="proto3")
    for name, fields in SHAPES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            one = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                one.type, one.type_name = _F.TYPE_MESSAGE, f".asked.{kind}"
            else:
                one.type = kind  # type: ignore[assignment]  # numbers of an enumeration
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"asked.{name}") for name in SHAPES)
    return {one.name: message_factory.GetMessageClass(one) for one in found}


MESSAGES = _messages()
RULES = [
    {"domain": "api", "entries": {"team": "*"}, "key": "tk_team", "service": "chat", "user": "{team}"},
    {"domain": "api", "entries": {"plan": "gold"}, "key": "tk_gold", "service": "things", "unit": "units"},
    {"domain": "api", "entries": {"key": "*"}, "key": "{key}", "service": "chat"},
    {
        "domain": "api", "entries": {"team": "*", "id": "*"}, "key": "tk_team", "service": "chat",
        "call": "id", "hold": 100, "end": "end",
    },
]  # fmt: skip


def asked(*descriptors: Mapping[str, Any], domain: str = "api", kind: str = "Request", **more: Any) -> bytes:
    found = []
    for one in descriptors:
        entries = [{"key": name, "value": value} for name, value in one.items() if isinstance(value, str)]
        found.append({"entries": entries, **one.get("more", {})})
    written: bytes = MESSAGES[kind](domain=domain, descriptors=found, **more).SerializeToString()
    return written


def hits(number: int, *, back: bool = False) -> dict[str, Any]:
    return {"more": {"hits_addend": {"value": number}, "is_negative_hits": back}}


class Gateway:
    """Holds by key as a gateway keeps them; so many times it is `silent`, or its answer is `lost`."""

    def __init__(self, **room: int) -> None:
        self.room = room
        self.open: dict[str, tuple[str, int]] = {}
        self.charged: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.kept: dict[str, bytes] = {}
        self.silent = self.lost = 0

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> HoldsReply | None:
        if self.silent:
            self.silent -= 1
            return None
        if self.lost:
            self.lost -= 1
            await self.ask(method, path, headers, body)
            return None
        key, id_ = headers["authorization"].removeprefix("Bearer "), path.split("/")[3:]
        said = json.loads(body) if body else {}
        if not id_:
            return self._take(key, headers["idempotency-key"], said)
        if id_[0] not in self.open:
            return HoldsReply(409, {"x-tollkeeper-reason": "hold_ended"}, b"{}")
        key, amount = self.open.pop(id_[0])
        if method == "DELETE":
            self.room[key] += amount
            return HoldsReply(204, {}, b"")
        used = said["units"] if "units" in said else said["usage"]["output"]
        self.room[key] += amount - used
        self.charged.append((key, used))
        return HoldsReply(200, {}, b"{}")

    def _take(self, key: str, once: str, said: dict[str, Any]) -> HoldsReply:
        if once in self.kept:
            return HoldsReply(201, {"idempotent-replayed": "true"}, self.kept[once])
        self.bodies.append(said)
        amount = said.get("max_tokens") or said["amount"]
        if self.room.get(key, 0) < amount:
            told = {
                "x-tollkeeper-reason": "quota_exceeded",
                "retry-after": "7",
                "x-request-id": "r",
                "content-type": "a/b",
            }
            return HoldsReply(429, told, b'{"title": "over"}')
        self.room[key] -= amount
        id_ = str(UUID(int=len(self.bodies)))
        self.open[id_] = (key, amount)
        self.kept[once] = json.dumps({"id": id_, "remaining": self.room[key]}).encode()
        return HoldsReply(201, {"x-ratelimit-remaining-tokens": str(self.room[key])}, self.kept[once])


class RateLimitAsker:
    """A judge in front of a gateway; what it says is read by protobuf itself."""

    def __init__(self, gateway: Gateway, **table: Any) -> None:
        document = {"gateway": "http://gateway", "rules": RULES} | table
        self.failed: list[str] = []
        self.judge = RateLimitJudge(
            judge.msgspec.convert(document, RateLimitTable), gateway.ask, self.failed.append
        )

    async def reserve(self, *descriptors: Mapping[str, Any], **more: Any) -> Any:
        raw = asked(*descriptors, kind="ReserveRequest", **more)
        return MESSAGES["ReserveResponse"].FromString(await self.judge.reserve(read_reserve(raw)))

    async def commit(self, *descriptors: Mapping[str, Any], **more: Any) -> bool:
        raw = asked(*descriptors, kind="CommitRequest", **more)
        answer = MESSAGES["CommitResponse"].FromString(await self.judge.commit(read_commit(raw)))
        return bool(answer.reservation_released)

    async def __call__(self, *descriptors: Mapping[str, Any], **more: Any) -> Any:
        answer = await self.judge.judge(read_request(asked(*descriptors, **more)))
        return MESSAGES["Response"].FromString(answer)


def codes(answer: Any) -> list[int]:
    return [answer.overall_code, *(one.code for one in answer.statuses)]


def reason(answer: Any) -> str:
    return {one.key: one.value for one in answer.response_headers_to_add}.get("x-tollkeeper-reason", "")


async def test_rate_limit_request_charges_hits_at_once_and_the_answer_shows_the_remaining_amount() -> None:
    gateway = Gateway(tk_team=100, tk_gold=3)
    ask = RateLimitAsker(gateway)
    answer = await ask({"team": "search"}, hits_addend=30)
    assert (codes(answer), answer.statuses[0].limit_remaining) == ([OK, OK], 70)
    assert {one.key: one.value for one in answer.response_headers_to_add} == {
        "x-ratelimit-remaining-tokens": "70"
    }
    await ask({"team": "search"} | hits(40), hits_addend=1)
    await ask({"plan": "gold"})
    assert gateway.charged == [("tk_team", 30), ("tk_team", 40), ("tk_gold", 1)]
    assert gateway.bodies[0] == {"service": "chat", "max_tokens": 30, "ttl_s": 60, "user": "search"}
    assert gateway.bodies[2] == {"service": "things", "amount": 1, "ttl_s": 60}
    answer = await ask({"team": "search"} | hits(31))
    assert (codes(answer), answer.statuses[0].duration_until_reset.seconds) == ([OVER_LIMIT, OVER_LIMIT], 7)
    told = {one.key: one.value for one in answer.response_headers_to_add}
    assert told == {"x-tollkeeper-reason": "quota_exceeded", "retry-after": "7", "content-type": "a/b"}
    assert answer.raw_body == b'{"title": "over"}'


async def test_rate_limit_request_charges_all_descriptors_or_none_of_the_descriptors() -> None:
    gateway = Gateway(tk_team=100, tk_gold=0)
    answer = await RateLimitAsker(gateway)({"team": "search"} | hits(30), {"plan": "gold"})
    assert codes(answer) == [OVER_LIMIT, OK, OVER_LIMIT]
    assert (gateway.charged, gateway.room["tk_team"], gateway.open) == ([], 100, {})


async def test_rate_limit_request_of_zero_hits_checks_the_limit_without_charging() -> None:
    gateway = Gateway(tk_team=1)
    ask = RateLimitAsker(gateway)
    assert codes(await ask({"team": "a"} | hits(0))) == [OK, OK]
    assert (gateway.room["tk_team"], gateway.charged, gateway.open) == (1, [], {})
    await ask({"team": "a"})
    assert codes(await ask({"team": "a"} | hits(0))) == [OVER_LIMIT, OVER_LIMIT]


async def test_first_rate_limit_request_of_a_call_holds_an_amount_and_the_last_charges_actual_hits() -> None:
    gateway = Gateway(tk_team=250)
    ask = RateLimitAsker(gateway)
    for number, end in enumerate((hits(7), hits(300), hits(60, back=True), hits(0))):
        one = {"team": "a", "id": str(number)}
        gateway.room["tk_team"] = 250
        assert codes(await ask(one | hits(0))) == [OK, OK]
        assert gateway.room["tk_team"] == 150
        assert codes(await ask(one | {"end": "yes"} | end)) == [OK, OK]
        assert gateway.open == {}
    assert gateway.charged == [("tk_team", 7), ("tk_team", 300), ("tk_team", 40)]


async def test_repeated_start_or_unstarted_end_of_a_rate_limited_call_is_over_limit_and_not_charged() -> None:
    gateway = Gateway(tk_team=250)
    ask, one = RateLimitAsker(gateway), {"team": "a", "id": "1"}
    assert codes(await ask(one)) == [OK, OK]
    again = await ask(one)
    assert (codes(again), reason(again)) == ([OVER_LIMIT] * 2, "idempotency_conflict")
    never = await ask(one | {"id": "2", "end": "yes"} | hits(50))
    assert (codes(never), reason(never)) == ([OVER_LIMIT] * 2, "hold_not_found")
    assert (gateway.charged, gateway.room["tk_team"]) == ([], 150)
    # Another refusal gave it back: its end charges nothing either.
    assert codes(await ask(one | {"id": "3"}, {"plan": "gold"}))[0] == OVER_LIMIT
    await ask(one | {"id": "3", "end": "yes"} | hits(50))
    assert (gateway.charged, gateway.room["tk_team"]) == ([], 150)


@pytest.mark.parametrize(("on_failure", "code"), [("deny", OVER_LIMIT), ("allow", OK)])
async def test_rate_limit_service_retries_an_unresponsive_gateway_and_then_follows_on_failure(
    on_failure: str, code: int
) -> None:
    gateway = Gateway(tk_team=100)
    ask = RateLimitAsker(gateway, on_failure=on_failure)
    gateway.silent = judge.TRIES_MAX - 1
    assert codes(await ask({"team": "a"})) == [OK, OK]
    gateway.silent = judge.TRIES_MAX
    silent = await ask({"team": "a"})
    assert (codes(silent), reason(silent)) == (
        [code] * 2,
        "counters_unavailable" if code == OVER_LIMIT else "",
    )
    assert gateway.charged == [("tk_team", 1)]


async def test_rate_limit_service_answers_over_limit_when_the_gateway_reply_is_not_understood() -> None:
    for status, body in ((200, b"<html>"), (201, b"{}"), (302, b""), (201, b"\xff"), (404, b"<html>")):
        gateway = Gateway(tk_team=100)

        async def other(*_: Any, answer: HoldsReply = HoldsReply(status, {}, body)) -> HoldsReply:  # noqa: B008  # of this turn
            return answer

        ask = RateLimitAsker(gateway)
        ask.judge = RateLimitJudge(ask.judge._table, other, ask.failed.append)
        assert codes(await ask({"team": "a"})) == [OVER_LIMIT] * 2


async def test_rate_limit_service_retry_after_a_lost_gateway_reply_makes_no_second_hold() -> None:
    gateway = Gateway(tk_team=250)
    ask, gateway.lost = RateLimitAsker(gateway), 1
    assert codes(await ask({"team": "a", "id": "1"})) == [OK, OK]
    assert gateway.room["tk_team"] == 150


@pytest.mark.parametrize(
    ("descriptors", "domain"),
    [
        ([{"team": "a"}], "other"), ([{"team": "a"}], ""), ([{"unheard": "of"}], "api"), ([{}], "api"),
        ([{"team": "a", "plan": "gold"}], "api"), ([{"plan": "silver"}], "api"),
        ([{"team": "x" * 1_025}], "api"),
        ([{"team": "a"} | hits(10**9)], "api"), ([{"team": "a"} | hits(1, back=True)], "api"),
        ([{"team": "a", "more": {"limit": {"requests_per_unit": 9}}}], "api"),
        ([{"key": "tk\r\nx-evil: 1"}], "api"), ([{"team": "a"}] * 33, "api"), ([], "api"),
    ],
)  # fmt: skip
async def test_rate_limit_request_malformed_or_without_a_matching_rule_is_over_limit(
    descriptors: Any, domain: str
) -> None:
    gateway = Gateway(tk_team=100)
    answer = await RateLimitAsker(gateway)(*descriptors, domain=domain)
    assert answer.overall_code == OVER_LIMIT
    assert reason(answer) in {"invalid_request", "invalid_api_key"}
    assert gateway.bodies == []


async def test_rate_limit_request_without_a_matching_rule_passes_if_on_unknown_is_allow() -> None:
    assert codes(await RateLimitAsker(Gateway(), on_unknown="allow")({"unheard": "of"})) == [OK, OK]


# In our own words what quota.sh, multiservice-tokenquota.sh and replaces.sh of envoyproxy/ratelimit ask.
def served_by(one: str, **more: Any) -> dict[str, Any]:
    return {"domain": "api", "entries": {"service": one}, "key": f"tk_{one}", "service": "chat", **more}


async def test_quota_mode_passes_if_any_key_has_room_and_tells_envoy_which_key_was_charged() -> None:
    rules = [served_by(one, quota_mode=True, metadata={"serves": {"name": one}, one: "yes"}) for one in "ab"]
    gateway = Gateway(tk_a=1, tk_b=2)
    ask = RateLimitAsker(gateway, rules=[*rules, served_by("c")])
    found = [await ask({"service": "a"}, {"service": "b"}) for _ in range(3)]
    assert [codes(one) for one in found] == [[OK, OK, OK], [OK, OVER_LIMIT, OK], [OVER_LIMIT] * 3]
    told = [struct_pb2.Struct.FromString(one.dynamic_metadata) for one in found]
    assert [dict(one["metadata"]["serves"]) for one in told[:2]] == [{"name": "a"}, {"name": "b"}]
    assert (dict(told[0]["metadata"]).keys(), found[2].dynamic_metadata) == ({"serves", "a", "b"}, b"")
    assert [reason(one) for one in found] == ["", "", "quota_exceeded"]
    # One that is not in this mode still decides by itself.
    assert codes(await ask({"service": "b"} | hits(0), {"service": "c"}))[0] == OVER_LIMIT
    assert gateway.charged == [("tk_a", 1), ("tk_b", 1), ("tk_b", 1)]


async def test_rate_limit_rule_replaced_by_another_matching_rule_is_not_applied() -> None:
    gateway = Gateway(tk_a=0, tk_b=1)
    rules = [served_by("a", name="small"), served_by("b", replaces=["small"])]
    ask = RateLimitAsker(gateway, rules=rules)
    assert codes(await ask({"service": "a"})) == [OVER_LIMIT] * 2
    assert codes(await ask({"service": "a"}, {"service": "b"})) == [OK] * 3
    assert codes(await ask({"service": "a"}, {"service": "b"})) == [OVER_LIMIT, OK, OVER_LIMIT]
    assert gateway.charged == [("tk_b", 1)]


async def test_kuadrant_reserve_holds_for_all_descriptors_or_none_and_commit_charges_once() -> None:
    gateway = Gateway(tk_team=100, tk_gold=50)
    ask, both = RateLimitAsker(gateway), ({"team": "a"}, {"plan": "gold"})
    held = await ask.reserve(*both, amount=30, ttl={"seconds": 2**33})
    assert (held.code, gateway.room, gateway.bodies[0]["ttl_s"]) == (OK, {"tk_team": 70, "tk_gold": 20}, 3600)
    over = await ask.reserve(*both, amount=21)
    assert (over.code, over.reservation_id, gateway.room) == (
        OVER_LIMIT, "", {"tk_team": 70, "tk_gold": 20},
    )  # fmt: skip
    assert await ask.commit(*both, reservation_id=held.reservation_id, actual_amount=45)
    assert (gateway.charged, gateway.open) == ([("tk_team", 45), ("tk_gold", 45)], {})
    # It is over: the first one decided, and this charges nobody.
    assert not await ask.commit(*both, reservation_id=held.reservation_id, actual_amount=9)
    assert (len(gateway.charged), gateway.room) == (2, {"tk_team": 55, "tk_gold": 5})
    held = await ask.reserve({"team": "a"}, amount=5, ttl={"seconds": 7})
    assert gateway.bodies[-1]["ttl_s"] == 7
    assert await ask.commit({"team": "a"}, reservation_id=held.reservation_id)  # it used nothing
    assert (len(gateway.charged), gateway.room["tk_team"]) == (2, 55)


async def test_kuadrant_check_charges_no_hits_while_report_and_commit_without_reservation_charge() -> None:
    gateway = Gateway(tk_team=100)
    ask, team = RateLimitAsker(gateway), {"team": "a"}
    assert (
        codes(MESSAGES["Response"].FromString(await ask.judge.check(read_request(asked(team))))) == [OK] * 2
    )
    assert (gateway.room, gateway.charged, gateway.open) == ({"tk_team": 100}, [], {})
    await ask.judge.report(read_request(asked(team, hits_addend=60)))
    look = await ask.reserve(team)
    for id_ in ("", look.reservation_id, "../usage", "-"):
        assert not await ask.commit(team, reservation_id=id_, actual_amount=13)
    assert gateway.charged == [("tk_team", 60)] + 3 * [("tk_team", 13)]
    gateway.room["tk_team"] = 0
    assert not await ask.commit(team, actual_amount=5)
    assert ask.failed == ["a use that is committed"]
    # Two questions make one call by Envoy alone.
    call = await ask.reserve({"team": "a", "id": "1"}, amount=1)
    assert (call.code, len(gateway.charged), gateway.open) == (OVER_LIMIT, 4, {})


async def test_rate_limit_descriptor_key_is_used_without_the_bearer_prefix() -> None:
    gateway = Gateway(tk_own=5)
    await RateLimitAsker(gateway)({"key": "Bearer tk_own"})
    assert gateway.charged == [("tk_own", 1)]


def test_truncated_or_random_rate_limit_message_is_refused_with_value_error_only() -> None:
    raw, draw = asked({"team": "a"} | hits(300)), random.Random(7)
    cut = [raw[:at] for at in range(len(raw))]
    for one in [*cut, *(draw.randbytes(draw.randrange(40)) for _ in range(5_000)), b"\x80" * 64]:
        for read in (read_request, read_reserve, read_commit):
            with suppress(ValueError):
                read(one)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "{user}"}, "there is no entry user"), ({"hold": 5}, "call: is missing"),
        ({"call": "team", "hold": 5}, "end: expected"), ({"call": "team", "end": "end"}, "hold: is missing"),
        ({"call": "id", "hold": 5, "end": "end"}, "call: expected"), ({"unit": "money"}, "is not one of"),
        ({"colour": "red"}, "is not known"), ({"entries": {}}, "entries"), ({"key": "${NOT_SET}"}, "NOT_SET"),
    ],
)  # fmt: skip
def test_rate_limit_rules_file_error_names_the_position_of_the_mistake(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "rls.yaml"
    path.write_text(json.dumps({"gateway": "http://g", "rules": [RULES[0] | change]}))
    with pytest.raises(SettingError, match=said):
        read_table(path, {})
    path.write_text(json.dumps({"gateway": "http://g", "rules": [RULES[0] | {"replaces": ["other"]}]}))
    with pytest.raises(SettingError, match=r"rules\[0\].replaces: no rule has the name other"):
        read_table(path, {})
    path.write_text(json.dumps({"gateway": "http://g", "rules": RULES, "timeout_s": 1}))
    with pytest.raises(SettingError, match="timeout_s"):
        read_table(path, {})
    path.write_text(json.dumps({"gateway": "http://g", "rules": [RULES[0] | {"key": "${KEY}"}]}))
    assert read_table(path, {"KEY": "tk_x"}).rules[0].key == "tk_x"
