"""Services under `up`, which has one upstream for all, and under a lone `serve`, where each has its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.conftest import free_port
from tests.journey.stack import ROOT, Stack
from tests.waiting import HUNG_S, wait_until

METERED = (
    "/v1/chat/completions", "/v1/Chat/Completions/", "/v1/ch%61t/completions", "/v1/messages",
    "/v1/responses", "/v1/embeddings", "/v1beta/models/demo-small:generateContent",
)  # fmt: skip
CHAT = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
CONFIG = """
upstreams:
  mine: {{base_url: "{upstream}"}}
  openai: {{base_url: "{upstream}"}}
services:
  {sms}: {{upstream: mine, paths: [/sms/*]}}
"""


@pytest.fixture(scope="module", autouse=True)
def unbound(stack: Stack) -> Iterator[None]:
    """Afterwards no service names an upstream that the stack's own gateways do not have."""
    yield
    for one in stack.admin("GET", "/services?limit=1000")[1]["items"]:
        if one["upstream"] == "mine":
            assert stack.admin("PATCH", f"/services/{one['id']}", {"upstream": None})[0] == 200


def service(stack: Stack, credits_: int, **fields: object) -> str:
    """The key of a new Consumption service."""
    models = stack.admin("GET", "/business-models?name=Consumption")[1]["items"]
    key = f"svc-{os.urandom(4).hex()}"
    stack.make(
        "services", key=key, name=key, credits=credits_, service_type="Pay-As-You-Go",
        business_model_id=models[0]["id"], counts_tokens=False, **fields,
    )  # fmt: skip
    return key


class Lone:
    """A `serve` of its own beside a stack's Redis."""

    def __init__(self, stack: Stack, folder: Path, config: str, **environ: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        (folder / "config.yaml").write_text(config)
        secrets = json.loads(Path(stack.data_dir, "secrets.json").read_bytes())
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")
        }
        self.environ |= {
            "PYTHONPATH": str(ROOT),
            "TOLLKEEPER_REDIS_URL": stack.redis_url,
            "TOLLKEEPER_OPS_HOST": "127.0.0.1",
            "TOLLKEEPER_KEY_PEPPER": secrets["key_pepper"],
            "TOLLKEEPER_DATA_DIR": str(folder / "data"),
        } | environ
        self.words = [sys.executable, "-m", "gateway"]
        self.config = ("--config", str(folder / "config.yaml"))
        self.process = subprocess.Popen(
            [*self.words, "serve", *self.config, "--gateway-port", str(port), "--ops-port", "0"],
            env=self.environ, cwd=ROOT, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def doctor(self) -> tuple[int, str]:
        done = subprocess.run(
            [*self.words, "doctor", "--for", "serve", *self.config],
            env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout


def asked(url: str, key: str, path: str, method: str = "POST") -> tuple[int, str]:
    try:
        answer = plain_http.request(
            method, url + path, json=CHAT, headers={"authorization": f"Bearer {key}"}, timeout=60
        )
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.headers.get("x-tollkeeper-reason", "")


@pytest.fixture(scope="module")
def buyer(stack: Stack) -> str:
    """An API key of an organization with credits."""
    owner = stack.make("organizations", name="bound services")["id"]
    tenant = stack.make("tenants", name="bound services", organization_id=owner)["id"]
    stack.make("credit-additions", organization_id=owner, credits_added=10_000)
    return str(stack.make("api-keys", tenant_id=tenant)["key"])


@pytest.fixture(scope="module")
def lone(stack: Stack) -> Iterator[tuple[Lone, str]]:
    sms = service(stack, 10)
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        one = Lone(stack, Path(folder), CONFIG.format(upstream=stack.upstream_url, sms=sms))
        yield one, sms
        one.process.terminate()
        assert one.process.wait(HUNG_S) == 0


def test_up_takes_any_service_anywhere_but_where_tokens_are_metered(stack: Stack, buyer: str) -> None:
    for key in (service(stack, 10), service(stack, 0), service(stack, 1, upstream="services")):
        path = f"/services/{key}"
        wait_until(
            lambda path=path: (
                [asked(stack.gateway_url, buyer, f"{path}/any/thing")[0] for _ in "1234"] == [200] * 4
            )
        )
        for metered in METERED:
            assert asked(stack.gateway_url, buyer, path + metered) == (404, "unknown_route"), metered


def test_a_lone_gateway_serves_only_what_is_bound(stack: Stack, buyer: str, lone: tuple[Lone, str]) -> None:
    gateway, sms = lone
    unbound, bound = service(stack, 0), service(stack, 0, upstream="mine", paths=["/free/*"])
    wait_until(lambda: asked(gateway.url, buyer, f"/services/{bound}/free/x") == (200, ""))
    assert asked(gateway.url, buyer, f"/services/{sms}/sms/send") == (200, "")
    for path in (
        f"{unbound}/sms/send",
        f"{bound}/sms/send",
        f"{sms}/free/x",
        f"{bound}/free/%252e%252e/sms/send",
    ):
        assert asked(gateway.url, buyer, f"/services/{path}") == (404, "unknown_route"), path


def test_prices_that_could_be_undercut_are_refused_until_paths_are_apart(
    stack: Stack, buyer: str, lone: tuple[Lone, str]
) -> None:
    gateway, sms = lone
    cheap = service(stack, 0, upstream="mine", paths=["/sms/*"])
    for key in (cheap, sms):
        wait_until(
            lambda key=key: asked(gateway.url, buyer, f"/services/{key}/sms/x") == (404, "unknown_route")
        )
    status, said = gateway.doctor()
    assert status == 1
    assert f"service {sms}: shares paths of the upstream mine with {cheap}" in said
    row = stack.admin("GET", f"/services?key={cheap}")[1]["items"][0]["id"]
    assert stack.admin("PATCH", f"/services/{row}", {"paths": ["/mail/*"]})[0] == 200
    for path in (f"/services/{cheap}/mail/x", f"/services/{sms}/sms/x"):
        wait_until(lambda path=path: asked(gateway.url, buyer, path) == (200, ""))


def test_a_gateway_starts_with_services_that_share_paths_only_if_they_cost_the_same(
    stack: Stack, buyer: str, tmp_path: Path
) -> None:
    upstreams = f"upstreams: {{theirs: {{base_url: '{stack.upstream_url}'}}}}\n"
    line = "services: {{{}: {{upstream: theirs}}, {}: {{upstream: theirs}}}}\n"
    dear, cheap, same = service(stack, 10), service(stack, 0), service(stack, 10)
    refused = Lone(stack, tmp_path, upstreams + line.format(dear, cheap))
    assert refused.process.wait(HUNG_S) == 1
    status, said = refused.doctor()
    assert status == 1
    assert all(f"services.{key}" in said for key in (dear, cheap))
    started = Lone(stack, tmp_path, upstreams + line.format(dear, same))
    try:
        for key in (dear, same):
            wait_until(lambda key=key: asked(started.url, buyer, f"/services/{key}/x") == (200, ""))
    finally:
        started.process.terminate()
        assert started.process.wait(HUNG_S) == 0
