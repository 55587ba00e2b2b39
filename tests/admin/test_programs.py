"""`GET /programs`: who runs which version, for those who look after all organizations."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.core.layout import LAYOUT
from tests.admin.conftest import READONLY, Api

OLD = {
    "id": "b", "role": "gateway", "version": "0.9", "layout": LAYOUT - 1, "schema_version": None,
    "host": "<b>old</b>", "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    "said_at": datetime(2026, 1, 2, tzinfo=UTC), "refused": "Redis holds another layout: run a newer one",
}  # fmt: skip
NEW = OLD | {"id": "a", "role": "keeper", "version": "1.0", "host": "new", "layout": LAYOUT, "refused": None}


async def test_programs_are_listed_with_what_they_know(api: Api) -> None:
    api.counters.running = [NEW, OLD]
    found = (await api.acting_as(READONLY).get("programs")).json
    assert (found["layout"], found["runs_from"]) == (LAYOUT, "0069")
    assert [(one["version"], one["layout"], one["refused"]) for one in found["items"]] == [
        ("1.0", LAYOUT, None), ("0.9", LAYOUT - 1, OLD["refused"]),
    ]  # fmt: skip
    assert found["items"][0]["started_at"] == "2026-01-01T00:00:00Z"


async def test_nobody_knows_while_redis_is_away(api: Api) -> None:
    api.counters.away = True
    assert (await api.get("programs")).status == 503


async def test_hosts_are_for_who_looks_after_all(api: Api) -> None:
    assert (await api.acting_as(None).get("programs")).status == 401
    own = await api.make("organizations", name="x")
    token = await api.make("admin-tokens", name="of one", role="operator", organization_id=own["id"])
    assert (await api.acting_as(token["token"]).get("programs")).status == 403
