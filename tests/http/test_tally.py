"""Who did what, within bounds, taken once."""

from __future__ import annotations

import pytest

from gateway.http import tally as tally_module
from gateway.http.tally import Tally
from tests.http.fakes import CALLER, CHAT, post
from tests.http.stage import eventually, staged


def test_what_tenants_did_is_taken_once() -> None:
    tally = Tally()
    tally.served(7, 12)
    tally.served(7, 30)
    tally.served(8, 0)
    tally.refused(8, "rate_limited")
    assert tally.take_busy() == {
        (7, "requests"): 2, (7, "tokens"): 42, (8, "requests"): 1, (8, "rate_limited"): 1,
    }  # fmt: skip
    assert tally.take_busy() == {}


def test_tenants_beyond_the_maximum_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "TENANTS_MAX", 2)
    tally = Tally()
    for tenant_id in (1, 2, 3, 4, 1):
        tally.served(tenant_id, 10)
        tally.refused(tenant_id, "rate_limited")
    taken = tally.take_busy()
    assert {tenant_id for tenant_id, _ in taken} == {0, 1, 2}
    assert sum(count for (_, kind), count in taken.items() if kind == "requests") == 5
    assert sum(count for (_, kind), count in taken.items() if kind == "rate_limited") == 5


async def test_a_call_and_a_refusal_are_its_tenants() -> None:
    async with staged() as stage:
        await stage.ask(post(CHAT))
        await stage.ask(post(b"{"))
        stage.directory.known = False
        await stage.ask(post(CHAT))
        await eventually(lambda: sum(count for (_, _, _), count in stage.tally.requests.items()) == 3)
        assert stage.tally.take_busy() == {
            (CALLER.tenant_id, "requests"): 1,
            (CALLER.tenant_id, "tokens"): 12,
            (CALLER.tenant_id, "invalid_request"): 1,
            (0, "invalid_api_key"): 1,
        }
