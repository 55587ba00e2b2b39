"""Videos: held for by their seconds when they are asked for, charged once when they are there."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests import plain_http
from tests.journey.budgets import Spender
from tests.journey.stack import ANSWER_S_MAX
from tests.journey.test_batches import NOTHING, ask, journal, live, settled
from tests.stage import Stage
from tests.waiting import wait_until

SORA, VEO = "budgeted-sora", "budgeted-veo"
# Dollars a second.
SECOND = {SORA: Decimal("0.1"), VEO: Decimal("0.4")}


@pytest.fixture
def spender(stage: Stage) -> Spender:
    spender = Spender(stage)
    for model, price in SECOND.items():
        if not stage.admin("GET", f"/prices?model={model}")[1]["items"]:
            since = "2026-01-01T00:00:00Z"
            stage.make("prices", model=model, currency="USD", effective_from=since, video_second=str(price))
    return spender


def begin(spender: Spender, prompt: str = "a cat", key: str = "", **said: Any) -> httpx.Response:
    return ask(spender, "POST", "videos", key, json={"model": SORA, "prompt": prompt, **said})


def begun(spender: Spender, prompt: str = "a cat", **said: Any) -> dict[str, Any]:
    """A video, once every worker that is asked knows its price."""
    made = wait_until(lambda: (one := begin(spender, prompt, **said)).status_code != 403 and one)
    assert made.status_code == 200, made.text
    told: dict[str, Any] = made.json()
    return told


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_a_video_is_held_for_and_charged_by_its_seconds_with_the_official_client(spender: Spender) -> None:
    budget = spender.budget(100)
    spender.known(budget)
    begun(spender, seconds="4")
    with openai.OpenAI(
        base_url=f"{spender.stack.gateway_url}/v1", api_key=spender.key, max_retries=0, timeout=ANSWER_S_MAX
    ) as client:
        made = client.videos.create(
            model=SORA,
            prompt="a dog demo_after_s=600",
            seconds="8",
            input_reference=("a.png", b"\x89PNG", "image/png"),
        )
        wait_until(lambda: live(spender, budget)[1] >= 8 * SECOND[SORA])
        with pytest.raises(openai.BadRequestError, match="no results"):
            client.videos.download_content(made.id)
        with pytest.raises(openai.BadRequestError, match="cannot be deleted"):
            client.videos.delete(made.id)
        done = client.videos.create(model=SORA, prompt="a dog", seconds="12")
        again = client.videos.remix(done.id, prompt="a red dog")
        assert client.videos.retrieve(done.id).status == "completed"
        assert client.videos.download_content(again.id).read() == b"a red dog"
        assert {one.id for one in client.videos.list()} >= {made.id, done.id, again.id}
        client.videos.delete(done.id)
    rows = journal(spender, 2)
    # 4 s or 12 s at 0.1: the first one may not be looked at yet.
    assert {Decimal(one["cost"]) for one in rows} <= {Decimal("0.4"), Decimal("1.2")}
    for id_, seconds in ((done.id, 12), (again.id, 12)):
        job = settled(spender.stack, id_, "completed")
        assert (job["kind"], job["model"], Decimal(job["cost"])) == ("video", SORA, seconds * SECOND[SORA])


@pytest.mark.parametrize(("status", "charged"), [("failed", 0), ("completed", 1)])
def test_one_that_fails_gives_back_what_it_held(spender: Spender, status: str, charged: int) -> None:
    budget = spender.budget(100)
    spender.known(budget)
    id_ = begun(spender, f"a cat demo_status={status}", seconds="6")["id"]
    ask(spender, "GET", f"videos/{id_}").raise_for_status()
    spent = charged * Decimal("0.6")
    wait_until(lambda: live(spender, budget) == (spent, NOTHING))
    assert Decimal(settled(spender.stack, id_, status)["held"]) == 0


def test_videos_are_their_organizations_alone_and_budgets_refuse_them(spender: Spender, stage: Stage) -> None:
    id_, other = begun(spender)["id"], Spender(stage)
    for method, path in (
        ("GET", id_), ("GET", f"{id_}/content"), ("POST", f"{id_}/remix"), ("DELETE", id_),
    ):  # fmt: skip
        more = {"json": {"prompt": "mine"}} if method == "POST" else {}
        answer = ask(other, method, f"videos/{path}", **more)
        assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (404, "object_not_found")
    assert ask(other, "GET", "videos").json()["data"] == []
    spender.known(spender.budget("0.3"))
    refused = begin(spender, seconds="4")
    assert (refused.status_code, refused.headers["x-tollkeeper-reason"]) == (429, "budget_exceeded")


def test_videos_of_gemini_are_operations(spender: Spender) -> None:
    budget = spender.budget(100)
    spender.known(budget)
    said = {"instances": [{"prompt": "a cat"}], "parameters": {"sampleCount": 2, "durationSeconds": 6}}
    url = f"{spender.stack.gateway_url}/v1beta/models/{VEO}"

    def make(body: dict[str, Any]) -> httpx.Response:
        headers = {"x-goog-api-key": spender.key}
        return plain_http.request(
            "POST", f"{url}:predictLongRunning", json=body, headers=headers, timeout=ANSWER_S_MAX
        )

    made = wait_until(lambda: (one := make(said)).status_code != 403 and one).raise_for_status().json()
    place = f"{spender.stack.gateway_url}/v1beta/{made['name']}"
    told = plain_http.request("GET", place, headers={"x-goog-api-key": spender.key}, timeout=ANSWER_S_MAX)
    assert told.json()["done"] is True
    (row,) = journal(spender, 1)
    assert Decimal(row["cost"]) == Decimal("4.8")  # 2 × 6 s × 0.4
    wait_until(lambda: live(spender, budget) == (Decimal("4.8"), NOTHING))
