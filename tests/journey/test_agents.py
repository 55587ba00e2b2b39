"""The unmodified Claude Code signs in at the gateway's own port by the device grant, works, and is out."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.journey.clients import node_with
from tests.journey.stack import Stack
from tests.journey.test_client_pages import CLAUDE_CODE, environment
from tests.stacks import AGENTS_MODEL as MODEL
from tests.waiting import HUNG_S, wait_until

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
pytestmark = pytest.mark.nightly


class Agent:
    """Claude Code with a home of its own, where it finds tokens as its `/login` leaves them."""

    def __init__(self, home: Path, gateway_url: str) -> None:
        self.home, self.url = home, gateway_url
        folder = node_with(CLAUDE_CODE, then="@anthropic-ai/claude-code/install.cjs")
        self.program = str(folder / "node_modules" / ".bin" / "claude")
        self.kept = home / ".claude" / ".credentials.json"

    def has(self, tokens: dict[str, Any], expires_in_s: float) -> None:
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        gateway = {
            "url": self.url, "jwt": tokens["access_token"], "idpRefreshToken": tokens["refresh_token"],
            "expiresAt": int((time.time() + expires_in_s) * 1000), "tokenEndpoint": f"{self.url}/oauth/token",
        }  # fmt: skip
        trust = {str(urlsplit(self.url).hostname): "http-loopback"}
        self.kept.write_text(json.dumps({"enterpriseGateway": gateway, "gatewayTrust": trust}))

    @property
    def tokens(self) -> dict[str, str]:
        kept = json.loads(self.kept.read_text())["enterpriseGateway"]
        return {"access_token": kept["jwt"], "refresh_token": kept["idpRefreshToken"]}

    def run(self, *options: str, **environ: str) -> tuple[int, str]:
        env = environment(self.home) | {"DISABLE_AUTOUPDATER": "1"} | environ
        ran = subprocess.run(
            [self.program, *options], cwd=self.home, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HUNG_S, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout


def approved(stack: Stack, token: str, code: str) -> None:
    """A person signs in at the console, types the code, and lets the device in."""
    with httpx.Client(base_url=stack.admin_url, headers={"Origin": stack.admin_url}) as console:
        signed = console.post("/sign-in", data={"token": token})
        assert signed.status_code == 303, signed.text
        page = console.get("/device", params={"user_code": code})
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page.text)
        assert found, page.text[:2000]
        sent = {"form_token": found[1], "user_code": code, "decision": "approve"}
        assert console.post("/device", data=sent).status_code == 303


def test_claude_code_signs_in_works_sees_its_limit_and_is_out_at_one_origin(
    other_stack: Stack, tmp_path: Path
) -> None:
    stack = other_stack
    tenant, _ = stack.tenant(None)
    organization = stack.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    user = stack.make("users", organization_id=organization, external_id="ada")
    member = stack.make(
        "admin-tokens", name="ada", role="member", organization_id=organization, tenant_id=tenant,
        user_id=user["id"],
    )["token"]  # fmt: skip
    budget = stack.make(
        "budgets", organization_id=organization, name="a day", each="user", unit="money", amount="5",
        interval="day",
    )  # fmt: skip
    with httpx.Client(base_url=stack.gateway_url) as gateway:
        metadata = gateway.get("/.well-known/oauth-authorization-server").json()
        assert metadata["token_endpoint"] == f"{stack.gateway_url}/oauth/token"
        device = gateway.post("/oauth/device_authorization").json()
        approved(stack, member, device["user_code"])
        form = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
        tokens = gateway.post("/oauth/token", data=form).json()
        agent = Agent(tmp_path, stack.gateway_url)
        agent.has(tokens, expires_in_s=0)  # it renews its key before it does anything

        code, said = agent.run("-p", "Say hi", OTEL_METRICS_EXPORTER="otlp", OTEL_LOGS_EXPORTER="otlp")
        assert code == 0, said
        assert "You said: Say hi" in said
        assert agent.tokens["access_token"] != tokens["access_token"]
        [row] = wait_until(lambda: stack.admin("GET", f"/calls?tenant_id={tenant}")[1]["items"])
        assert (row["model"], row["status"], row["user_id"]) == (MODEL, 200, user["id"])
        kept = json.loads((tmp_path / ".claude" / "remote-settings.json").read_text())
        assert kept["model"] == MODEL
        key = {"Authorization": f"Bearer {agent.tokens['access_token']}"}
        told = gateway.get("/api/oauth/usage", headers=key).json()
        assert told["extra_usage"]["monthly_limit"] == 500
        [limit] = told["limits"]
        assert (limit["group"], limit["is_active"]) == ("daily", True)

        # Its person's access ends: the next call is refused, and so is the next renewal.
        assert gateway.post("/oauth/revoke", data={"token": agent.tokens["refresh_token"]}).json() == {}
        wait_until(lambda: gateway.get("/api/oauth/usage", headers=key).status_code == 401)
        code, said = agent.run("-p", "Say hi")
        assert code == 1, said
        code, said = agent.run("auth", "logout")
        assert code == 0, said
        assert not agent.kept.exists()
    assert budget["each"] == "user"
    assert len(stack.admin("GET", f"/calls?tenant_id={tenant}")[1]["items"]) == 1
