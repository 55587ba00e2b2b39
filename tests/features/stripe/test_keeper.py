"""Stripe's library is loaded where a keeper has its key, and missed nowhere else."""

from __future__ import annotations

import hashlib
import hmac
import re
import sys
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import pytest
from stripe import APIError, InvalidRequestError

from gateway.background.loops import Isolation
from gateway.errors import MissingExtra, Unauthorized
from gateway.extras import install
from gateway.features.stripe.feature import FEATURE
from gateway.features.stripe.handover import HandoverStep
from gateway.features.stripe.keeper import Handovers
from gateway.run.keeper_parts import AdminParts, KeeperParts, Routes, Work
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import Settings, load
from tests.features.stripe.stripe_server import stripe_server
from tests.proxy_server import HERE, ProxyServer

KEY, SECRET = "sk_test_of_the_tests_only", "whsec_of_the_tests_only"
HUSH = "hush"


def of(**said: str) -> Settings:
    return load({f"TOLLKEEPER_STRIPE_{name}": value for name, value in said.items()})


def work_of(settings: Settings) -> Work:
    nothing: Any = None  # nothing is asked of it before a loop runs
    parts = KeeperParts(
        settings=settings, later=KeeperSettings(settings, None, print, lambda _: None), engine=nothing,
        store=nothing, counters=nothing, isolation=Isolation(), log=lambda *_, **__: None,
    )  # fmt: skip
    work = FEATURE.work(parts)
    assert work is not None
    return work


def routes_of(settings: Settings, later: KeeperSettings | None = None) -> tuple[Any, Any, Routes]:
    """What reads and what looks up, of the routes of a keeper."""
    later = later or KeeperSettings(settings, None, print, lambda _: None)
    routes = FEATURE.routes(AdminParts(settings=settings, later=later))
    assert routes is not None
    assert isinstance(routes.mount, partial)
    return (*routes.mount.args, routes)


async def test_keeper_without_stripe_settings_loads_no_stripe_library_and_runs_no_stripe_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "stripe", None)
    work, (read, look_up, routes) = work_of(of()), routes_of(of())
    assert (work.tasks, read, look_up) == ({}, None, None)
    await work.aclose()
    await routes.aclose()


async def test_keeper_with_a_stripe_api_key_sends_invoices_and_with_a_webhook_secret_reads_events() -> None:
    handing, hearing = of(API_KEY=KEY, COLLECTION="send_invoice"), of(WEBHOOK_SECRET=SECRET)
    work, (read, look_up, routes) = work_of(handing), routes_of(hearing)
    [run] = work.tasks.values()
    assert isinstance(getattr(run, "__self__", None), Handovers)
    assert (routes_of(handing)[0], look_up, work_of(hearing).tasks) == (None, None, {})
    with pytest.raises(Unauthorized):
        read(b"{}", "t=1,v1=00")
    await work.aclose()
    await routes.aclose()


async def test_failed_transfer_to_stripe_is_logged_by_id_without_invoice_contents() -> None:
    said: list[dict[str, Any]] = []
    isolation = Isolation(lambda _, **more: said.append(more))
    handover = HandoverStep(12, HUSH, 1, 1, "customer", HUSH, datetime.now(UTC), paper=HUSH)  # type: ignore[arg-type]  # only its id is read
    failing = AsyncMock(hand_over=AsyncMock(side_effect=ValueError))
    await Handovers(failing, failing, print, isolation=isolation).attempt(handover)
    assert [one["item"] for one in said] == ["handover 12"]
    assert HUSH not in str(said)


async def test_stripe_is_reached_through_a_proxy() -> None:
    async with stripe_server() as stripe, ProxyServer({"stripe.test": HERE}) as proxy:
        where = stripe.url.replace("127.0.0.1", "stripe.test")
        variables = {"TOLLKEEPER_STRIPE_API_KEY": KEY, "TOLLKEEPER_STRIPE_API_URL": where}
        settings = load({**variables, "HTTP_PROXY": f"http://{HERE}:{proxy.port}"})
        _, look_up, routes = routes_of(settings)
        api = look_up.__self__._api
        with pytest.raises(InvalidRequestError):
            await api.v1.invoices.retrieve_async("in_none")
        assert proxy.targets == [where.removeprefix("http://")]
        await routes.aclose()


async def test_changed_stripe_api_key_and_webhook_secret_are_used_without_a_restart() -> None:
    """Another key from the next request on; what was signed with the secret before is Stripe's no more."""
    async with stripe_server() as stripe:
        said = {"TOLLKEEPER_STRIPE_API_URL": stripe.url, "TOLLKEEPER_STRIPE_WEBHOOK_SECRET": SECRET}
        settings = load({**said, "TOLLKEEPER_STRIPE_API_KEY": KEY})
        later = KeeperSettings(settings, None, print, lambda _: None)
        read, look_up, routes = routes_of(settings, later)
        api = look_up.__self__._api
        with pytest.raises(InvalidRequestError):
            await api.v1.invoices.retrieve_async("in_none")
        body = b'{"data": {"object": {"object": "customer"}}}'
        assert read(body, signed(body, SECRET)) is None
        later._renew(
            settings.with_values(stripe_api_key="sk_test_another_key", stripe_webhook_secret="w" * 16)
        )
        with pytest.raises(APIError):
            await api.v1.invoices.retrieve_async("in_none")
        assert read(body, signed(body, "w" * 16)) is None
        with pytest.raises(Unauthorized):
            read(body, signed(body, SECRET))
        await routes.aclose()


def signed(body: bytes, secret: str) -> str:
    """Stripe's signature, by its own page of them."""
    at = int(time.time())
    digest = hmac.new(secret.encode(), f"{at}.{body.decode()}".encode(), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def test_keeper_start_without_the_stripe_library_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "gateway.features.stripe.service", raising=False)
    monkeypatch.setitem(sys.modules, "stripe", None)
    with pytest.raises(MissingExtra, match=re.escape(install("stripe"))):
        work_of(of(API_KEY=KEY))
