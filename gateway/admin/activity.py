"""`/activity`: which tenants are busy now, and what they are refused for, over all gateways."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import Field

from gateway.admin.auth import identify
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.values import Out
from gateway.core.accounts.activity import Busy, busiest
from gateway.errors import Unprocessable

WINDOW_S, WINDOW_S_LEAST, WINDOW_S_MAX = 60, 5, 60
TENANTS, TENANTS_MAX = 20, 100


class BusyTenant(Out):
    """What calls of one tenant did."""

    tenant_id: int
    tenant: str | None = Field(description="Its name; null once it is deleted.")
    requests: int = Field(description="Calls that were settled.")
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason.")


class ActivityReport(Out):
    """What all tenants did within a window that ends now. Numbers to look at: bills come from the ledger."""

    window_s: float = Field(description="Seconds the numbers are of.")
    requests: int
    tokens: int
    refused: dict[str, int] = Field(description="Calls that were refused, by reason; of unknown callers too.")
    items: list[BusyTenant] = Field(description="The tenants with most calls, most first.")


MODELS = ((ActivityReport, "serialization"),)


def mount_activity(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the report."""

    async def show(request: web.Request) -> web.Response:
        await identify(ports, request)
        window_s = _number(request, "window", WINDOW_S, WINDOW_S_LEAST, WINDOW_S_MAX)
        counts, covered_s = await ports.activity.read(window_s)
        everybody, tenants = busiest(counts, _number(request, "limit", TENANTS, 1, TENANTS_MAX))
        names = await ports.tenant_names([busy.tenant_id for busy in tenants])
        return web.json_response(
            {
                "window_s": round(covered_s, 3),
                "requests": everybody.requests,
                "tokens": everybody.tokens,
                "refused": everybody.refused,
                "items": [_item(busy, names.get(busy.tenant_id)) for busy in tenants],
            }
        )

    app.router.add_get(f"{root}/activity", show)


def paths(root: str, refusals: dict[str, Any]) -> dict[str, Any]:
    """Describe the route as OpenAPI does; `refusals` are the responses every route may give."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ActivityReport"}}}
    return {
        f"{root}/activity": {
            "get": {
                "operationId": "activity.show",
                "tags": ["activity"],
                "summary": "Read what tenants did within the last minute",
                "parameters": [
                    _parameter("window", "Seconds, up to now.", WINDOW_S, WINDOW_S_LEAST, WINDOW_S_MAX),
                    _parameter("limit", "Most tenants to name.", TENANTS, 1, TENANTS_MAX),
                ],
                "responses": {"200": {"description": "The report.", "content": content}, **refusals},
            }
        }
    }


def _item(busy: Busy, name: str | None) -> dict[str, Any]:
    return {
        "tenant_id": busy.tenant_id,
        "tenant": name,
        "requests": busy.requests,
        "tokens": busy.tokens,
        "refused": busy.refused,
    }


def _number(request: web.Request, name: str, otherwise: int, least: int, most: int) -> int:
    text = request.query.get(name, str(otherwise))
    if not text.isascii() or not text.isdigit() or len(text) > 4 or not least <= int(text) <= most:
        wanted = f"must be a whole number from {least} to {most}"
        raise Unprocessable("Some query parameters are wrong.", ((name, wanted),))
    return int(text)


def _parameter(name: str, description: str, otherwise: int, least: int, most: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": least, "maximum": most, "default": otherwise}
    return {"name": name, "in": "query", "description": description, "schema": schema}
