"""Creates the demo organization through the Admin API, like any other client.

Each step has an `Idempotency-Key` of this data directory, so an interrupted start creates nothing twice. The
API key is stored with the secrets, and printed at every start.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from gateway.errors import StartError
from gateway.local.data_directory import DataDirectory

CALL_MAX_S = 10.0
DEMO_TOKENS = 1_000_000
# High enough never to refuse, so that answers show the header fields for limits.
DEMO_LIMITS = {"requests_per_minute": 1_000_000}
# The seller on demo invoices if none is configured, so that these can become final.
DEMO_SELLER = {
    "invoice_issuer": "Tollkeeper Demo\n1 Demo Street",
    "invoice_country": "DE",
    "invoice_tax_number": "DE123456789",
}
# Proxies of the environment are not for connections on this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

SERVICES = {
    "chat": "Chat completions (OpenAI)",
    "completions": "Text completions (OpenAI)",
    "responses": "Responses (OpenAI)",
    "embeddings": "Embeddings (OpenAI)",
    "messages": "Messages (Anthropic)",
    "gemini": "Content generation (Gemini)",
    "moderations": "Moderations (OpenAI)",
    "images": "Pictures (OpenAI)",
    "speech": "Speech (OpenAI)",
    "transcriptions": "Transcripts (OpenAI)",
    "videos": "Videos (OpenAI, Gemini)",
    "realtime": "Realtime (OpenAI)",
    "mcp": "MCP tools",
    "echo": "Echo (the demo upstream, one unit a request)",
}


def seed(
    data: DataDirectory,
    admin_url: str,
    admin_token: str,
    database: str,
    opener: urllib.request.OpenerDirector = _DIRECT,
) -> str:
    """Return the demo API key; create it with its organization, plan, tenant and services at the first start.

    A new `database` gets a new demo organization. If objects with the demo's names exist already, other names
    are used. A key that was revoked, expired or deleted is replaced by a new one. If the key's tenant was
    deleted, the result is empty.
    """
    kept = data.secrets()
    place = hashlib.sha256(database.encode()).hexdigest()
    if kept.get("demo_api_key") and kept.get("demo_database") == place:
        return _renew_key(data, _Admin(opener, admin_url, admin_token, kept["demo_run"]))
    if not kept.get("demo_run") or kept.get("demo_database") != place:
        data.remember(
            demo_run=str(uuid4()), demo_database=place, demo_api_key="", demo_key_id="", demo_tenant_id=""
        )
    admin = _Admin(opener, admin_url, admin_token, data.secrets()["demo_run"])
    plan = admin.make_named(
        "token-plans",
        {
            "name": "Demo",
            "description": "A million tokens a month",
            "total_amount": DEMO_TOKENS,
            "reset_interval": "monthly",
        },
    )
    organization = admin.make_named("organizations", {"name": "Demo"})
    tenant = admin.make(
        "tenants",
        {"name": "Demo", "organization_id": organization["id"], "plan_id": plan["id"], "limits": DEMO_LIMITS},
    )
    _make_services(admin)
    made = admin.make("api-keys", {"tenant_id": tenant["id"], "name": "Demo"})
    if not made.get("key"):
        # An interrupted start created the key, which is shown only once: create another.
        made = admin.make("api-keys", {"tenant_id": tenant["id"], "name": "Demo"}, again=True)
    return _keep(data, made)


def _renew_key(data: DataDirectory, admin: _Admin) -> str:
    """Return the demo's API key, another one if it was revoked; empty without its tenant."""
    kept = data.secrets()
    if not kept.get("demo_key_id") or _works(admin.read_row("api-keys", kept["demo_key_id"])):
        return kept["demo_api_key"]
    if not admin.read_row("tenants", kept["demo_tenant_id"]):
        return ""
    asked = {"tenant_id": int(kept["demo_tenant_id"]), "name": "Demo"}
    return _keep(data, admin.make("api-keys", asked, again=True))


def _works(key: dict[str, Any]) -> bool:
    if not key or key.get("revoked_at"):
        return False
    until = key.get("expires_at")
    return until is None or datetime.fromisoformat(until) > datetime.now(UTC)


def _keep(data: DataDirectory, made: dict[str, Any]) -> str:
    key = str(made["key"])
    data.remember(
        demo_api_key=key, demo_key_id=str(made["id"]), demo_tenant_id=str(made.get("tenant_id", ""))
    )
    return key


def _make_services(admin: _Admin) -> None:
    """Create the services of the default routes, unless they exist."""
    present = {service["key"] for service in admin.all("services")}
    models = {model["name"]: model["id"] for model in admin.all("business-models")}
    for key, description in SERVICES.items():
        if key not in present:
            admin.make(
                "services",
                {
                    "name": description.partition(" (")[0],
                    "description": description,
                    "key": key,
                    "credits": 0,
                    "service_type": "Pay-As-You-Go",
                    "business_model_id": models["Subscription"],
                },
                step=key,
            )


def status_of(
    url: str,
    headers: Mapping[str, str] | None = None,
    opener: urllib.request.OpenerDirector = _DIRECT,
) -> int | None:
    """Return the status of a GET request, or None without an answer."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310  # our own http URL
    try:
        with opener.open(request, timeout=CALL_MAX_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


class _Admin:
    """The calls of the Admin API that the demo needs."""

    def __init__(self, opener: urllib.request.OpenerDirector, url: str, token: str, run: str) -> None:
        self._opener = opener
        self._root = f"{url}/admin/v1"
        self._token = token
        self._run = run

    def make(
        self, resource: str, body: dict[str, Any], *, step: str = "", again: bool = False
    ) -> dict[str, Any]:
        """Create an object by the Admin API, and return it; 202 (stored, but not in Redis yet) is success.

        A second call with the same `step` returns the existing object, unless `again` is set.
        """
        key = str(uuid4()) if again else f"demo-{self._run}-{resource}-{step}"
        return self._call("POST", resource, json.dumps(body).encode(), key)

    def make_named(self, resource: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object with the name in `body`; if the name is taken, append the demo's id."""
        try:
            return self.make(resource, body)
        except StartError as error:
            answer = error.__cause__
            if not isinstance(answer, urllib.error.HTTPError) or answer.code != HTTPStatus.CONFLICT:
                raise
        return self.make(resource, {**body, "name": f"{body['name']} {self._run[:8]}"}, step="own")

    def read_row(self, resource: str, row_id: str) -> dict[str, Any]:
        return self._call("GET", f"{resource}/{row_id}")

    def all(self, resource: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._call("GET", f"{resource}?limit=100")["items"]
        return items

    def _call(self, method: str, path: str, body: bytes | None = None, key: str = "") -> dict[str, Any]:
        """Return the Admin API's answer, {} for a missing object; raise StartError for other errors."""
        request = urllib.request.Request(  # noqa: S310  # our own http URL
            f"{self._root}/{path}",
            method=method,
            data=body,
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                **({"Idempotency-Key": key} if key else {}),
            },
        )
        try:
            with self._opener.open(request, timeout=CALL_MAX_S) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            if (method, error.code) == ("GET", 404):
                return {}
            said = error.read(2000).decode(errors="replace")
            raise StartError(
                f"the demo data cannot be made: {method} {path} answered {error.code} {said}"
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise StartError(f"the demo data cannot be made: {method} {path}: {error}") from error
