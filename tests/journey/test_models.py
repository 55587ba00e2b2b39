"""A model of the Admin API reaches the gateways, and its calls are charged by the one that answered."""

from __future__ import annotations

from tests import plain_http
from tests.journey.stack import Stack
from tests.waiting import wait_until


def test_a_model_is_callable_within_moments_and_gone_as_soon(stack: Stack) -> None:
    _, key = stack.tenant()
    made = stack.make("models", name="house-model", targets=[{"upstream": "openai", "model": "demo-small"}])
    wait_until(lambda: "house-model" in listed(stack, key))
    answer = stack.chat(key, model="house-model")
    assert (answer.status_code, answer.json()["model"]) == (200, "demo-small")
    assert stack.admin("DELETE", f"/models/{made['id']}")[0] == 204
    wait_until(lambda: "house-model" not in listed(stack, key))


def listed(stack: Stack, key: str) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    answer = plain_http.request("GET", f"{stack.gateway_url}/v1/models", headers=headers, timeout=60)
    return [one["id"] for one in answer.json()["data"]]
