"""Batches: read when they are uploaded, held for when they are made, each line charged once by its result."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import anthropic
import httpx2 as httpx
import openai
import pytest

from tests import plain_http
from tests.journey.budgets import MODEL, Spender
from tests.journey.stack import ANSWER_S_MAX
from tests.stage import Stage
from tests.waiting import wait_until

ENDPOINT = "/v1/chat/completions"
NOTHING = Decimal(0)


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


def line(number: int, **changed: Any) -> dict[str, Any]:
    said = {"role": "user", "content": f"hello there {number}"}
    body = {"model": MODEL, "messages": [said], "max_tokens": 16}
    return {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body} | changed


def form(content: bytes, purpose: str = "batch") -> tuple[str, bytes]:
    """The type and the bytes of a form that uploads a file."""
    mark = uuid4().hex
    parts = (
        f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="calls.jsonl"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return f"multipart/form-data; boundary={mark}", parts.encode() + content + f"\r\n--{mark}--\r\n".encode()


def ask(spender: Spender, method: str, path: str, key: str = "", **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key or spender.key}"} | more.pop("headers", {})
    url = f"{spender.stack.gateway_url}/v1/{path}"
    return plain_http.request(method, url, headers=headers, timeout=ANSWER_S_MAX, **more)


def upload(spender: Spender, lines: list[Any], key: str = "") -> httpx.Response:
    content = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines)
    kind, body = form(content)
    return ask(spender, "POST", "files", key, headers={"content-type": kind}, content=body)


def make(spender: Spender, lines: int = 3, key: str = "", **wishes: Any) -> httpx.Response:
    """Upload so many calls, and have a batch made of them."""
    file = upload(spender, [line(number) for number in range(lines)], key).raise_for_status().json()["id"]
    said = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h"}
    wished = {name: str(value) for name, value in wishes.items()}
    return ask(spender, "POST", "batches", key, json=said | {"metadata": wished})


def found(spender: Spender) -> list[dict[str, Any]]:
    """The journal's rows of this organization that cost something; none where nobody answers."""
    status, body = spender.stack.admin("GET", f"/calls?organization_id={spender.organization}&limit=1000")
    items: list[dict[str, Any]] = body["items"] if status == 200 else []
    return [one for one in items if one["cost"] and Decimal(one["cost"])]


def journal(spender: Spender, rows: int) -> list[dict[str, Any]]:
    """Those rows, once there are so many."""
    wait_until(lambda: len(found(spender)) >= rows)
    return found(spender)


def live(spender: Spender, budget: dict[str, Any]) -> tuple[Decimal, Decimal]:
    """What a budget has used and holds."""
    found = spender.stack.admin("GET", f"/budgets/{budget['id']}")[1]
    return Decimal(found["used"]), Decimal(found["held"])


def settled(stage: Stage, batch: str, status: str) -> dict[str, Any]:
    """A job as the Admin API has it, once it has this status."""
    path = f"/jobs/{quote(batch, safe='')}"
    wait_until(lambda: stage.admin("GET", path)[1].get("status") == status)
    job: dict[str, Any] = stage.admin("GET", path)[1]
    return job


def test_a_batch_is_held_for_and_charged_line_by_line_when_its_result_is_told(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    made = make(spender, demo_after_s=600)
    assert made.status_code == 200, made.text
    wait_until(lambda: live(spender, budget)[1] > 0)
    batch = make(spender).raise_for_status().json()["id"]
    told = ask(spender, "GET", f"batches/{batch}").raise_for_status().json()
    assert told["status"] == "completed"
    content = ask(spender, "GET", f"files/{told['output_file_id']}/content").raise_for_status().text
    assert len(content.splitlines()) == 3
    rows = journal(spender, 3)
    assert len(rows) == 3
    assert {(one["service_tier"], one["model"]) for one in rows} == {("batch", MODEL)}
    spent = sum(Decimal(one["cost"]) for one in rows)
    wait_until(lambda: live(spender, budget)[0] == spent)


def test_a_hold_ends_only_behind_the_charges_of_its_lines(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    batch = make(spender, 40, demo_after_s=600).raise_for_status().json()["id"]
    wait_until(lambda: live(spender, budget)[1] > 0)
    held = live(spender, budget)[1]
    ask(spender, "POST", f"batches/{batch}/cancel").raise_for_status()
    ask(spender, "GET", f"batches/{batch}").raise_for_status()
    seen = [live(spender, budget)]

    def is_over() -> bool:
        seen.append(live(spender, budget))
        return seen[-1][1] == 0

    wait_until(is_over)
    spent = sum(Decimal(one["cost"]) for one in journal(spender, 20))
    assert seen[-1] == (spent, NOTHING)
    assert all(used + kept >= min(spent, held) for used, kept in seen)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers["x-tollkeeper-reason"]


def test_what_is_no_batch_is_refused_by_its_line_and_names_only_what_its_key_may_use(
    spender: Spender, stage: Stage
) -> None:
    bodies = [line(number)["body"] | {"user": f"user-{number}"} for number in range(2)]
    for lines, said in (
        ([line(1), b"{no json"], "Line 2: it cannot be read"),
        ([line(1), line(1)], "Line 2: custom_id must be there"),
        ([line(1, url="/v1/images/generations")], "Line 1: method must be POST, and url one of"),
        ([line(1), line(2, body={"messages": []})], "Line 2: it cannot be read"),
        ([line(1), line(2, body={"model": "another"})], f"Line 2: body.model must be {MODEL}"),
        ([], "There is no line in file"),
    ):
        refused = upload(spender, lines)
        assert refusal(refused) == (400, "invalid_request")
        assert said in refused.json()["error"]["message"]
    for calls, said in (
        ([], "There is no line in requests"),
        ([{"custom_id": "a"}], "Line 1: it cannot be read"),
        (messages_of(1) * 2, "Line 2: custom_id must be there"),
    ):
        refused = ask(spender, "POST", "messages/batches", json={"requests": calls})
        assert refusal(refused) == (400, "invalid_request")
        assert said in refused.json()["error"]["message"]
    file = upload(spender, [line(number, body=body) for number, body in enumerate(bodies)]).json()["id"]
    refused = ask(spender, "POST", "batches", json={"input_file_id": file, "endpoint": ENDPOINT})
    assert "Line 2: it must be of the first line's user" in refused.json()["error"]["message"]
    refused = make(spender, **{f"name_{number}": number for number in range(16)})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata")
    other = Spender(stage)
    _, narrow = spender.another_key(models=["something-else"])
    _, in_runs = spender.another_key(runs={"max": "0.000001", "required": True})
    assert refusal(upload(spender, [line(1)], narrow)) == (403, "model_not_allowed")
    file = upload(spender, [line(1)]).raise_for_status().json()["id"]
    asked = {"input_file_id": file, "endpoint": ENDPOINT}
    assert refusal(ask(spender, "POST", "batches", narrow, json=asked)) == (403, "model_not_allowed")
    for named, expected in (({}, (400, "run_required")), ({"x-tollkeeper-run": "a"}, (429, "run_exceeded"))):
        assert refusal(ask(spender, "POST", "batches", in_runs, json=asked, headers=named)) == expected
    batch = make(spender, demo_after_s=600).raise_for_status().json()
    assert set(batch["metadata"]) == {"demo_after_s", "tollkeeper_hold"}
    for answer in (
        ask(other, "POST", "batches", json=asked), ask(other, "GET", f"batches/{batch['id']}"),
        ask(other, "POST", f"batches/{batch['id']}/cancel"), ask(other, "GET", f"files/{file}/content"),
    ):  # fmt: skip
        assert refusal(answer) == (404, "object_not_found")


@pytest.mark.parametrize(
    ("wishes", "cancels", "charged"),
    [
        ({"demo_status": "failed"}, False, 0),
        ({"demo_status": "expired", "demo_lines": 1}, False, 1),
        ({"demo_after_s": 600}, True, 2),
    ],
)
def test_a_job_that_does_not_complete_is_charged_what_was_done(
    spender: Spender, wishes: dict[str, Any], cancels: bool, charged: int
) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    batch = make(spender, 4, **wishes).raise_for_status().json()["id"]
    if cancels:
        ask(spender, "POST", f"batches/{batch}/cancel").raise_for_status()
    ask(spender, "GET", f"batches/{batch}").raise_for_status()
    rows = journal(spender, charged)
    spent = sum(Decimal(one["cost"]) for one in rows)
    wait_until(lambda: live(spender, budget) == (spent, NOTHING))
    assert len(rows) == charged


def test_many_who_ask_at_once_charge_a_batch_once(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    batch = make(spender, 40).raise_for_status().json()["id"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(spender, "GET", f"batches/{batch}"), range(16)))
    assert {one.status_code for one in answers} == {200}
    rows = journal(spender, 40)
    spent = sum(Decimal(one["cost"]) for one in rows)
    wait_until(lambda: live(spender, budget) == (spent, NOTHING))
    assert len(journal(spender, 40)) == 40


def test_a_job_is_told_to_its_organization_and_to_nobody_else(spender: Spender, stage: Stage) -> None:
    batch = make(spender, 4, demo_after_s=600).raise_for_status().json()["id"]
    job = settled(stage, batch, "in_progress")
    assert (job["kind"], job["model"], job["lines"], job["cost"]) == ("batch", MODEL, 4, None)
    assert Decimal(job["held"]) > 0
    ask(spender, "POST", f"batches/{batch}/cancel").raise_for_status()
    job = settled(stage, batch, "cancelled")
    spent = sum(Decimal(one["cost"]) for one in journal(spender, 2))
    assert (Decimal(job["cost"]), Decimal(job["held"])) == (spent, 0)
    assert stage.admin("GET", f"/jobs/{job['number']}")[1] == job
    for owner, there in ((spender.organization, [batch]), (Spender(stage).organization, [])):
        listed = stage.admin("GET", f"/jobs?organization_id={owner}&kind=batch&status=cancelled")[1]["items"]
        assert [one["id"] for one in listed] == there
    assert stage.admin("GET", "/jobs/batch_unknown")[0] == 404


def messages_of(lines: int, **wishes: Any) -> list[Any]:
    """Calls of a batch of messages; the first one's metadata says what the demo upstream makes of it."""
    said = [{"role": "user", "content": "hello there"}]
    wished = {name: str(value) for name, value in wishes.items()}
    params: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "messages": said}
    return [
        {"custom_id": f"line-{one}", "params": params | ({} if one else {"metadata": wished})}
        for one in range(lines)
    ]


def test_a_batch_of_messages_is_held_for_and_charged_by_anthropics_own_client(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    client = anthropic.Anthropic(base_url=spender.stack.gateway_url, api_key=spender.key, max_retries=0)
    with client:
        made = client.messages.batches.create(requests=messages_of(4, demo_after_s=600))
        wait_until(lambda: live(spender, budget)[1] > 0)
        assert client.messages.batches.retrieve(made.id).processing_status == "in_progress"
        client.messages.batches.cancel(made.id)
        told = client.messages.batches.retrieve(made.id)
        assert (told.processing_status, told.request_counts.succeeded) == ("ended", 2)
        kinds = [one.result.type for one in client.messages.batches.results(made.id)]
        assert kinds == ["succeeded"] * 2 + ["canceled"] * 2
        rows = journal(spender, 2)
        assert {(one["service_tier"], one["route"]) for one in rows} == {("batch", "/v1/messages")}
        spent = sum(Decimal(one["cost"]) for one in rows)
        wait_until(lambda: live(spender, budget) == (spent, NOTHING))
        job = settled(spender.stack, made.id, "cancelled")
        assert (Decimal(job["cost"]), Decimal(job["held"]), job["lines"]) == (spent, 0, 4)
        spender.known(spender.budget("0.00001"))
        with pytest.raises(anthropic.RateLimitError):
            client.messages.batches.create(requests=messages_of(20))


def test_results_of_messages_are_charged_before_they_are_told(spender: Spender) -> None:
    batch = ask(spender, "POST", "messages/batches", json={"requests": messages_of(3)})
    path = f"messages/batches/{batch.raise_for_status().json()['id']}"
    assert ask(Spender(spender.stack), "GET", f"{path}/results").status_code == 404
    assert len(ask(spender, "GET", f"{path}/results").raise_for_status().text.splitlines()) == 3
    assert len(journal(spender, 3)) == 3


def test_each_organization_lists_what_is_its_own(spender: Spender, stage: Stage) -> None:
    other = Spender(stage)
    made: dict[Spender, list[str]] = {spender: [], other: []}
    for one in (spender, other, spender, other, spender):
        made[one].append(make(one).raise_for_status().json()["id"])
    for one, ids in made.items():
        with openai.OpenAI(base_url=f"{stage.gateway_url}/v1", api_key=one.key, max_retries=0) as client:
            assert [each.id for each in client.batches.list(limit=2)] == ids[::-1]
            inputs = {client.batches.retrieve(id_).input_file_id for id_ in ids}
            assert inputs <= {each.id for each in client.files.list(limit=1)}
    first = ask(spender, "GET", "batches?limit=2").json()
    assert (len(first["data"]), first["has_more"], first["last_id"]) == (2, True, made[spender][1])
    foreign = ask(spender, "GET", f"batches?after={made[other][0]}")
    assert (foreign.status_code, foreign.headers["x-tollkeeper-reason"]) == (404, "object_not_found")
    for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("before=x", "before")):
        refused = ask(spender, "GET", f"batches?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert ask(Spender(stage), "GET", "files").json()["data"] == []


def test_batches_of_messages_are_listed_and_deleted_by_anthropics_own_client(
    spender: Spender, stage: Stage
) -> None:
    asked = {"requests": messages_of(1)}
    ids = [ask(spender, "POST", "messages/batches", json=asked).json()["id"] for _ in range(3)]
    ask(Spender(stage), "POST", "messages/batches", json=asked).raise_for_status()
    client = anthropic.Anthropic(base_url=stage.gateway_url, api_key=spender.key, max_retries=0)
    with client:
        assert [one.id for one in client.messages.batches.list(limit=1)] == ids[::-1]
        client.messages.batches.delete(ids[0])
        assert [one.id for one in client.messages.batches.list()] == ids[:0:-1]
    assert journal(spender, 1)  # it was charged before it was deleted; the others may be meanwhile


def operations_of(calls: int, **wishes: Any) -> dict[str, Any]:
    """A batch of Gemini's API; its name says what the demo upstream makes of it."""
    said = {"contents": [{"parts": [{"text": "hello there"}]}], "generationConfig": {"maxOutputTokens": 16}}
    name = " ".join(f"{one}={value}" for one, value in wishes.items())
    requests = [{"request": said, "metadata": {"key": "same"}} for _ in range(calls)]
    return {"batch": {"displayName": name, "inputConfig": {"requests": {"requests": requests}}}}


def ask_gemini(spender: Spender, method: str, path: str, **more: Any) -> httpx.Response:
    url = f"{spender.stack.gateway_url}/v1beta/{path}"
    return plain_http.request(
        method, url, headers={"x-goog-api-key": spender.key}, timeout=ANSWER_S_MAX, **more
    )


def test_a_batch_of_gemini_is_held_for_and_charged_line_by_line(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    maker = f"models/{MODEL}:batchGenerateContent"
    runs = ask_gemini(spender, "POST", maker, json=operations_of(4, demo_after_s=600))
    name = runs.raise_for_status().json()["name"]
    wait_until(lambda: live(spender, budget)[1] > 0)
    assert "deleted" in ask_gemini(spender, "DELETE", name).json()["error"]["message"]
    cancelled = ask_gemini(spender, "POST", f"{name}:cancel", json={}).raise_for_status().json()
    assert cancelled["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert ask_gemini(spender, "GET", name).raise_for_status().json()["done"] is True
    rows = journal(spender, 2)
    assert [one["service_tier"] for one in rows] == ["batch"] * 2
    spent = sum(Decimal(one["cost"]) for one in rows)
    wait_until(lambda: live(spender, budget) == (spent, NOTHING))
    job = settled(spender.stack, name, "cancelled")
    assert (Decimal(job["cost"]), job["lines"], job["model"]) == (spent, 4, MODEL)
    listed = ask_gemini(spender, "GET", "batches").json()["operations"]
    assert [(one["name"], "response" in one) for one in listed] == [(name, False)]
    other = Spender(spender.stack)
    assert ask_gemini(other, "GET", name).status_code == 404
    assert ask_gemini(other, "GET", "batches").json()["operations"] == []
    twice = operations_of(1)
    twice["batch"]["input_config"] = {"file_name": "files/a"}
    for body, told in (
        (operations_of(0), "There is no line"), (twice, "appears twice"),
        ({"batch": {"inputConfig": {"file_name": "files/a"}}}, "fileName is not accepted"),
    ):  # fmt: skip
        refused = ask_gemini(spender, "POST", maker, json=body)
        assert refused.status_code in {400, 404}
        assert told in refused.text or "object_not_found" in refused.headers["x-tollkeeper-reason"]
    ask_gemini(spender, "DELETE", name).raise_for_status()
