"""Responses in the background: held for as long as they run, and charged once by their result."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests import plain_http
from tests.journey.budgets import MODEL, Spender
from tests.journey.stack import ANSWER_S_MAX
from tests.journey.test_batches import NOTHING, ask, journal, live, settled
from tests.stage import Stage
from tests.waiting import wait_until


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


def begin(spender: Spender, text: str = "hello there", **wishes: Any) -> httpx.Response:
    wished = {name: str(value) for name, value in wishes.items()}
    said = {"model": MODEL, "input": text, "max_output_tokens": 16, "background": True}
    return ask(spender, "POST", "responses", json=said | {"metadata": wished})


def test_a_response_in_the_background_is_held_for_and_charged_once(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    with openai.OpenAI(
        base_url=f"{spender.stack.gateway_url}/v1", api_key=spender.key, max_retries=0, timeout=ANSWER_S_MAX
    ) as client:
        made = client.responses.create(
            model=MODEL,
            input="hello",
            max_output_tokens=16,
            background=True,
            metadata={"demo_after_s": "600"},
        )
        assert made.status == "in_progress"
        wait_until(lambda: live(spender, budget)[1] > 0)
        assert client.responses.retrieve(made.id).status == "in_progress"
        job = settled(spender.stack, made.id, "in_progress")
        assert (job["kind"], job["lines"], job["model"], job["cost"]) == ("response", 1, MODEL, None)
        with pytest.raises(openai.BadRequestError, match="cancel it first"):
            client.responses.delete(made.id)
        done = client.responses.create(model=MODEL, input="hello", max_output_tokens=16, background=True)
        for _ in range(3):
            told = client.responses.retrieve(done.id)
        assert told.status == "completed"
        assert told.usage is not None
    (row,) = journal(spender, 1)
    assert (row["route"], row["tokens"]) == ("/v1/responses", told.usage.total_tokens)
    assert settled(spender.stack, done.id, "completed")["cost"] == row["cost"]
    wait_until(lambda: live(spender, budget)[0] == Decimal(row["cost"]))
    assert live(spender, budget)[1] == Decimal(job["held"])


@pytest.mark.parametrize(("wishes", "charged"), [({"demo_status": "failed"}, 0), ({"demo_after_s": 600}, 1)])
def test_one_that_says_no_use_costs_nothing_if_it_failed_and_else_its_hold(
    spender: Spender, wishes: dict[str, Any], charged: int
) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    text = "hello there " * (30_000 if charged else 1)  # of a long one the head is held for before its body
    id_ = begin(spender, text, **wishes).raise_for_status().json()["id"]
    wait_until(lambda: live(spender, budget)[1] > 0)
    held = live(spender, budget)[1]
    if charged:
        ask(spender, "POST", f"responses/{id_}/cancel").raise_for_status()
    ask(spender, "GET", f"responses/{id_}").raise_for_status()
    wait_until(lambda: live(spender, budget) == (held * charged, NOTHING))
    assert len(journal(spender, charged)) == charged
    ask(spender, "DELETE", f"responses/{id_}").raise_for_status()


def test_it_is_its_organizations_alone_and_only_a_call_by_itself_runs_so(spender: Spender) -> None:
    id_, other = begin(spender).raise_for_status().json()["id"], Spender(spender.stack)
    for method, path in (("GET", id_), ("POST", f"{id_}/cancel"), ("DELETE", id_)):
        assert ask(other, method, f"responses/{path}").headers["x-tollkeeper-reason"] == "object_not_found"
    said: dict[str, Any] = {"model": MODEL, "input": "hello", "background": True}
    url, headers = (
        f"{spender.stack.gateway_url}/.tollkeeper/holds",
        {"authorization": f"Bearer {spender.key}"},
    )
    asked = {"service": "responses", "model": MODEL, "request": said}
    for refused in (
        ask(spender, "POST", "responses", json=said | {"stream": True}),
        plain_http.request("POST", url, json=asked, headers=headers),
    ):
        assert (refused.status_code, "background" in refused.text) == (400, True)
