"""Who was refused and why is told of every call of somebody known, whatever refused it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.core.accounts.call_facts import read_facts
from gateway.core.accounts.definitions import ModelLists
from gateway.core.accounts.refusals import RefusedBatch, read_batch
from gateway.core.model import LimitKind, Refused, Scope, Verdict
from tests.http.fakes import CALLER, answer, get, post
from tests.http.stage import Stage
from tests.waiting import eventually

WORKER = "00000000-0000-0000-0000-000000000001"
CHAT = b"/v1/chat/completions"


def call(path: bytes = CHAT, fields: bytes = b"", **more: object) -> bytes:
    body = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return post(json.dumps(body | more).encode(), path, b"content-type: application/json\r\n" + fields)


def told(stage: Stage) -> RefusedBatch:
    batch = read_batch(stage.refusals.take(WORKER, 1))
    assert batch is not None
    return batch


async def test_a_refused_call_is_told_whole(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, user="")
    stage.counters.decision = Refused(Verdict.RATE_LIMITED, Scope.TENANT, LimitKind.REQUESTS, 5, 5, 60_000, 1)
    said = b"x-tollkeeper-project-id: 8\r\nx-tollkeeper-user: ann\r\nx-tollkeeper-session: s\r\n"
    for _ in range(2):
        assert (await stage.ask(call(fields=said))).status == 429
    batch = told(stage)
    [count] = batch.counts
    assert (count.refused, count.model, count.project_id, count.user) == (2, "m", 8, "ann")
    one = batch.calls[0]
    assert (one.status, one.reason, one.model, one.streamed) == (429, "rate_limited", "m", True)
    assert (one.organization_id, one.tenant_id, one.key_id, one.service_id) == (1, 2, 3, 1)
    assert (one.user, one.attribution, one.session, one.route) == ("ann", "\t8\t", "s", CHAT.decode())
    assert count.hour_ms == one.at_ms - one.at_ms % 3_600_000


@pytest.mark.parametrize(
    ("request_", "caller", "status", "reason", "model"),
    [
        (call(model="o"), replace(CALLER, models=frozenset({"m"})), 403, "model_not_allowed", "o"),
        (call(n="x" * 5, fields=b"x-tollkeeper-project-id: x\r\n"), CALLER, 400, "invalid_request", ""),
        (post(b"{", CHAT), CALLER, 400, "invalid_request", ""),
        (call(), replace(CALLER, user="", user_header="require"), 400, "user_required", "m"),
        (get(b"/v1/models/m?fields=x"), CALLER, 400, "invalid_request", ""),
    ],
)
async def test_whatever_refuses_a_call_is_told(  # noqa: PLR0917  # a row of the table
    stage: Stage, request_: bytes, caller: object, status: int, reason: str, model: str
) -> None:
    stage.directory.caller = caller  # type: ignore[assignment]  # a caller, or what stands for one
    got = await stage.ask(request_)
    assert (got.status, got.reason) == (status, reason)
    [one] = told(stage).calls
    assert (one.status, one.reason, one.model) == (status, reason, model)


@pytest.mark.parametrize(
    ("lists", "refused"),
    [
        (ModelLists(("m", "o*")), ""),
        (ModelLists(("o*",)), "organization"),
        (ModelLists(("m",), {2: ("o",), 9: ("m",)}), "tenant"),
        (ModelLists(None, {9: ()}, {"eve": ()}), ""),
        (ModelLists(None, {2: ("m*",)}, {"ann": ("o", "m-*")}), "user"),
    ],
)
async def test_a_model_is_on_every_list_that_a_call_is_held_to(
    stage: Stage, lists: ModelLists, refused: str
) -> None:
    stage.directory.lists = lists
    stage.upstream.scripts.append([answer()])
    got = await stage.ask(call(stream=False, fields=b"x-tollkeeper-user: ann\r\n"))
    assert got.status == (403 if refused else 200)
    if refused:
        assert got.reason == "model_not_allowed"
        assert f"This {refused} may not use the model m." in got.body.decode()


async def test_nothing_is_told_of_nobody(stage: Stage) -> None:
    stage.directory.known = False
    assert (await stage.ask(call())).status == 401
    assert (await stage.ask(get(b"/v1/nothing"), "GET")).status == 404
    assert stage.refusals.take(WORKER, 1) == b""


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ([answer(b'{"error":{}}', status=b"500 Oops")], 500, "upstream_error"),
        ([answer(b'{"error":{}}', status=b"429 Later")], 429, "upstream_error"),
        ([b"nonsense\r\n\r\n"], 502, "upstream_unreachable"),
    ],
)
async def test_an_admitted_call_that_fails_tells_of_itself_by_its_release(
    stage: Stage, script: list[bytes], status: int, reason: str
) -> None:
    stage.upstream.scripts.append(script)  # type: ignore[arg-type]  # steps are bytes here
    request = call(stream=False, fields=b"x-tollkeeper-project-id: 8\r\n")
    assert (await stage.ask(request)).status == status
    await eventually(lambda: stage.counters.releases)
    [release] = stage.counters.releases
    facts = read_facts(release.metadata)
    assert facts is not None
    assert (facts.status, facts.reason, facts.model) == (status, reason, "m")
    assert (facts.total, facts.units) == (0, 0)
    assert (facts.cost, release.attribution) == (None, "\t8\t")
    assert stage.refusals.take(WORKER, 1) == b""
    assert not stage.counters.charges


async def test_refused_calls_are_counted_by_tags(stage: Stage) -> None:
    stage.directory.tag_names = ("feature",)
    stage.counters.decision = Refused(Verdict.RATE_LIMITED, Scope.TENANT, LimitKind.REQUESTS, 5, 5, 60_000, 1)
    for feature in (b"search", b"chat", b"search"):
        said = b'x-tollkeeper-metadata: {"feature":"%b"}\r\n' % feature
        assert (await stage.ask(call(fields=said))).status == 429
    batch = told(stage)
    counts = {one.tags: one.refused for one in batch.counts}
    assert counts == {(("feature", "search"),): 2, (("feature", "chat"),): 1}
    assert [one.tags for one in batch.calls] == [{"feature": name} for name in ("search", "chat", "search")]
