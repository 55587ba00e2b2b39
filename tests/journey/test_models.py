"""A model of the Admin API reaches the gateways, and its calls are charged by the one that answered."""

from __future__ import annotations

from tests import plain_http
from tests.stage import Stage
from tests.waiting import wait_until


def test_a_model_is_callable_within_moments_and_gone_as_soon(stage: Stage) -> None:
    _, key = stage.tenant()
    made = stage.make("models", name="house-model", targets=[{"upstream": "openai", "model": "demo-small"}])
    wait_until(lambda: "house-model" in listed(stage, key))
    answer = stage.chat(key, model="house-model")
    assert (answer.status_code, answer.json()["model"]) == (200, "demo-small")
    assert stage.admin("DELETE", f"/models/{made['id']}")[0] == 204
    wait_until(lambda: "house-model" not in listed(stage, key))


def listed(stage: Stage, key: str) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    answer = plain_http.request("GET", f"{stage.gateway_url}/v1/models", headers=headers, timeout=60)
    return [one["id"] for one in answer.json()["data"]]
