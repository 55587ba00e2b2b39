"""Any HTTP API under `/services/{key}/…`: whatever it sends passes, and is charged by the unit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.stage import Stage
from tests.waiting import wait_until

METHODS = ("GET", "HEAD", "POST", "PROPFIND")
LARGE_BYTES = 48 << 20  # more than BODY_BYTES_MAX


class Client:
    """A tenant that calls one Pay-Per-Use service of its own."""

    def __init__(self, stage: Stage, **service: Any) -> None:
        self.stack = stage
        self.tenant, key = stage.tenant(None)
        self.organization = stage.admin("GET", f"/tenants/{self.tenant}")[1]["organization_id"]
        self.headers = {"authorization": f"Bearer {key}"}
        models = stage.admin("GET", "/business-models?limit=100")[1]["items"]
        meter = next(model["id"] for model in models if model["name"] == "Pay-Per-Use")
        name = service.pop("key", f"svc-{os.urandom(4).hex()}")
        made = stage.make(
            "services", key=name, name=name, credits=0, service_type="Pay-As-You-Go", business_model_id=meter,
            counts_tokens=False, **service,
        )  # fmt: skip
        self.url = f"{stage.gateway_url}/services/{made['key']}"
        # Each worker learns of it by itself; a connection of its own reaches any of them.
        wait_until(lambda: all(self.call("GET", "/ready").status_code == 200 for _ in range(16)))

    def call(self, method: str, path: str, content: Any = b"", **fields: str) -> httpx.Response:
        headers = self.headers | {name.replace("_", "-"): value for name, value in fields.items()}
        return plain_http.request(method, self.url + path, content=content, headers=headers, timeout=60)

    def units(self, answer: httpx.Response) -> int:
        """What the ledger says this call used."""

        def row() -> Any:
            status, body = self.stack.admin(
                "GET", f"/feature-usage?organization_id={self.organization}&limit=1000"
            )
            assert status == 200, body
            wanted = answer.headers["x-request-id"]
            return [one for one in body["items"] if one["request_id"] == wanted]

        (found,) = wait_until(row)
        return int(found["usage_amount"])


@pytest.fixture(scope="module")
def client(stage: Stage) -> Client:
    return Client(stage)


@pytest.mark.parametrize("method", METHODS)
def test_any_method_is_forwarded_by_the_rest_of_its_path(client: Client, method: str) -> None:
    answer = client.call(method, "/deep/er?q=%20a&b", b"" if method in ("GET", "HEAD") else b"\x00\xffany")
    assert answer.status_code == 200
    if method != "HEAD":
        said = answer.json()
        assert (said["method"], said["target"]) == (method, "/deep/er?q=%20a&b")
        assert not {"authorization", "x-forwarded-for"} & {name.lower() for name, _ in said["headers"]}
    assert client.units(answer) == 1


@pytest.mark.parametrize("known_length", [True, False])
def test_bodies_larger_than_any_buffer_are_streamed(client: Client, known_length: bool) -> None:
    piece = os.urandom(1 << 20)

    def pieces() -> Iterator[bytes]:
        for _ in range(LARGE_BYTES >> 20):
            yield piece

    fields = {"content_length": str(LARGE_BYTES)} if known_length else {}
    answer = client.call("POST", "/large", pieces(), **fields)
    assert answer.json()["bytes"] == LARGE_BYTES
    digest = hashlib.sha256()
    for part in pieces():
        digest.update(part)
    assert answer.json()["sha256"] == digest.hexdigest()


def test_units_are_the_upstreams(client: Client) -> None:
    assert client.units(client.call("POST", "/x", x_demo_units="7")) == 7
    assert client.units(client.call("POST", "/x", x_demo_units="0007")) == 7
    assert client.units(client.call("POST", "/x", x_demo_units="-3")) == 1
    assert client.units(client.call("POST", "/x", x_demo_units="many")) == 1
