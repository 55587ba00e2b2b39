"""Limits of every scope: refused by name, changed while calls run, told to who asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX, Body
from tests.stage import Stage
from tests.waiting import wait_until

USER = "käthe o'hara / 7"
SCOPES = ("this API key", "this user", "this tenant", "this organization")


class Caller:
    """A tenant with its organization and key, each of which may be limited."""

    def __init__(self, stage: Stage, **key: Any) -> None:
        self.stack = stage
        self.tenant, _ = stage.tenant(None)
        made = stage.make("api-keys", tenant_id=self.tenant, **key)
        self.key, self.key_id = made["key"], made["id"]
        self.organization = stage.admin("GET", f"/tenants/{self.tenant}")[1]["organization_id"]

    def limit(self, scope: str, **limits: int | None) -> None:
        """Set limits where refusals speak of `scope`."""
        places = {
            "this API key": (f"/api-keys/{self.key_id}", "limits"),
            "this user": (f"/tenants/{self.tenant}", "user_limits"),
            "this tenant": (f"/tenants/{self.tenant}", "limits"),
            "this organization": (f"/organizations/{self.organization}", "limits"),
        }
        path, field = places[scope]
        status, body = self.stack.admin("PATCH", path, {field: limits})
        assert status == 200, body

    def call(self, usage: str = "1,1", user: str = USER, **fields: Any) -> httpx.Response:
        """One chat call of a user; more than ASCII travels as UTF-8."""
        body = {"model": "demo-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        return plain_http.post(
            f"{self.stack.gateway_url}/v1/chat/completions",
            json=body | fields.pop("body", {}),
            headers=[
                (b"authorization", f"Bearer {self.key}".encode()),
                (b"x-demo-usage", usage.encode()),
                (b"x-tollkeeper-user", user.encode()),
                *(
                    (f"x-demo-{name}".replace("_", "-").encode(), value.encode())
                    for name, value in fields.items()
                ),
            ],
            timeout=ANSWER_S_MAX,
        )

    def usage(self, user: str = USER) -> Body:
        """What the key holder is told."""
        headers = [(b"authorization", f"Bearer {self.key}".encode()), (b"x-tollkeeper-user", user.encode())]
        told: Body = plain_http.get(
            f"{self.stack.gateway_url}/.tollkeeper/usage", headers=headers, timeout=ANSWER_S_MAX
        ).json()
        return told


def in_flight(caller: Caller, calls: int) -> None:
    """Wait until so many calls hold their slots, by looking only: a call would take one itself."""
    wait_until(
        lambda: (
            [
                limit["used"]
                for limit in caller.usage().get("limits", ())
                if limit.get("name") == "concurrency"
            ]
            == [calls]
        )
    )


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    assert answer.status_code != 200
    return answer.status_code, answer.headers["x-tollkeeper-reason"], answer.json()["error"]["message"]


def test_a_changed_limit_counts_up_and_down_with_calls_in_flight(stage: Stage) -> None:
    caller, scope = Caller(stage), "this tenant"
    caller.limit(scope, concurrency=3)
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(caller.call, delay_s="6") for _ in range(3)]
        in_flight(caller, 3)
        assert caller.call().status_code == 429
        caller.limit(scope, concurrency=4)
        assert wait_until(lambda: caller.call().status_code == 200)
        caller.limit(scope, concurrency=1)
        answer = wait_until(lambda: (got := caller.call()).status_code == 429 and got)
        assert f"Concurrency limit of {scope}: 3 of 1 requests at once" in refused(answer)[2]
        assert [each.result().status_code for each in slow] == [200] * 3
    assert caller.call().status_code == 200
    caller.limit(scope, requests_per_minute=1)
    assert wait_until(lambda: caller.call().status_code == 429)
    caller.limit(scope)
    assert wait_until(lambda: caller.call().status_code == 200)


def test_users_have_limits_each_and_their_own_stand_above_the_tenants(stage: Stage) -> None:
    caller = Caller(stage)
    caller.limit("this user", requests_per_minute=1)
    assert [caller.call(user=user).status_code for user in ("ann", "bob", "ann")] == [200, 200, 429]
    assert caller.call(user="").status_code == 200  # nobody's user has nobody's limits

    def met() -> Any:
        users = stage.admin("GET", f"/users?organization_id={caller.organization}")[1]["items"]
        return {user["external_id"]: user["id"] for user in users if user["external_id"] in ("ann", "bob")}

    users = wait_until(lambda: len(found := met()) == 2 and found)  # made on first sight
    assert stage.admin("PATCH", f"/users/{users['ann']}", {"limits": {"requests_per_minute": 5}})[0] == 200
    assert wait_until(lambda: caller.call(user="ann").status_code == 200)
    assert caller.call(user="bob").status_code == 429
    limits = {limit["scope"]: limit for limit in caller.usage("ann")["limits"]}
    assert limits["user"]["limit"] == 5
    assert limits["user"]["used"] in {1, 2}  # one is back after twelve seconds
    rows = [row for row in stage.settled(caller.tenant, 5) if row["user_id"] == users["ann"]]
    assert len(rows) == 2


def test_the_narrowest_list_of_models_holds(stage: Stage) -> None:
    caller = Caller(stage, models=["demo-*"])
    made = stage.make("users", organization_id=caller.organization, external_id=USER)
    for place in (
        f"/organizations/{caller.organization}", f"/tenants/{caller.tenant}", f"/users/{made['id']}"
    ):  # fmt: skip
        status, row = stage.admin("PATCH", place, {"models": ["demo-large", "other-*"]})
        assert (status, row["models"]) == (200, ["demo-large", "other-*"])
        wait_until(lambda: caller.call().status_code == 403)
        assert refused(caller.call())[1] == "model_not_allowed"
        assert caller.call(body={"model": "demo-large"}).status_code == 200
        assert caller.call(body={"model": "other-1"}).status_code == 403, "not on the list of the key"
        stage.admin("PATCH", place, {"models": None})
        wait_until(lambda: caller.call().status_code == 200)
    stage.admin("PATCH", f"/users/{made['id']}", {"models": ["demo-large"]})
    wait_until(lambda: caller.call().status_code == 403)
    assert caller.call(user="somebody else").status_code == 200
    assert stage.admin("DELETE", f"/users/{made['id']}")[0] == 204
    wait_until(lambda: caller.call().status_code == 200)


def test_a_key_holder_is_told_what_is_left_of_each_limit(stage: Stage) -> None:
    caller = Caller(stage)
    for scope in SCOPES:
        caller.limit(scope, tokens_per_minute=50)
    assert caller.call("10,10").status_code == 200
    told = caller.usage()
    assert [limit["scope"] for limit in told["limits"]] == ["key", "user", "tenant", "organization"]
    for limit in told["limits"]:
        assert limit["limit"] == 50
        assert 10 <= limit["used"] <= 20  # it drains meanwhile, by five sixths a second
        assert limit["remaining"] == limit["limit"] - limit["used"]
