"""Stripe's library is loaded where a keeper has its key, and missed nowhere else."""

from __future__ import annotations

import hashlib
import hmac
import sys
import time
from typing import Any

import pytest
from stripe import APIError, InvalidRequestError

from gateway.background.loops import Isolation
from gateway.background.timed.deliveries import Handovers
from gateway.errors import MissingExtra, Unauthorized
from gateway.run.billing_providers import StripeConnection
from gateway.run.keeper_doors import KeeperSettings
from gateway.settings.settings import Settings, load
from tests.features.stripe.stripe_server import stripe_server
from tests.proxy_server import HERE, ProxyServer

KEY, SECRET = "sk_test_of_the_tests_only", "whsec_of_the_tests_only"


def of(**said: str) -> StripeConnection:
    return over(load({f"TOLLKEEPER_STRIPE_{name}": value for name, value in said.items()}))


def over(settings: Settings) -> StripeConnection:
    return StripeConnection(settings, KeeperSettings(settings, None, print, lambda _: None))


def loops(collecting: StripeConnection) -> dict[str, Any]:
    queue: Any = None  # nothing is asked of it before a loop runs
    return collecting.loops(queue, lambda *_, **__: None, Isolation())


async def test_without_a_key_nothing_is_loaded_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stripe", None)
    collecting = of()
    assert (loops(collecting), collecting.read) == ({}, None)
    await collecting.aclose()


async def test_with_a_key_it_hands_over_and_with_a_secret_it_reads() -> None:
    handing, hearing = of(API_KEY=KEY, COLLECTION="send_invoice"), of(WEBHOOK_SECRET=SECRET)
    [run] = loops(handing).values()
    assert isinstance(run.__self__, Handovers)
    assert (handing.read, loops(hearing)) == (None, {})
    assert hearing.read is not None
    with pytest.raises(Unauthorized):
        hearing.read(b"{}", "t=1,v1=00")
    for each in (handing, hearing):
        await each.aclose()


async def test_stripe_is_reached_through_a_proxy() -> None:
    async with stripe_server() as stripe, ProxyServer({"stripe.test": HERE}) as proxy:
        where = stripe.url.replace("127.0.0.1", "stripe.test")
        variables = {"TOLLKEEPER_STRIPE_API_KEY": KEY, "TOLLKEEPER_STRIPE_API_URL": where}
        settings = load({**variables, "HTTP_PROXY": f"http://{HERE}:{proxy.port}"})
        collecting = over(settings)
        api = collecting._api
        assert api is not None
        with pytest.raises(InvalidRequestError):
            await api.v1.invoices.retrieve_async("in_none")
        assert proxy.targets == [where.removeprefix("http://")]
        await collecting.aclose()


async def test_stripe_is_asked_and_believed_by_the_secrets_of_now() -> None:
    """Another key from the next request on; what was signed with the secret before is Stripe's no more."""
    async with stripe_server() as stripe:
        said = {"TOLLKEEPER_STRIPE_API_URL": stripe.url, "TOLLKEEPER_STRIPE_WEBHOOK_SECRET": SECRET}
        settings = load({**said, "TOLLKEEPER_STRIPE_API_KEY": KEY})
        later = KeeperSettings(settings, None, print, lambda _: None)
        collecting = StripeConnection(settings, later)
        api, read = collecting._api, collecting.read
        assert api is not None
        assert read is not None
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
        await collecting.aclose()


def signed(body: bytes, secret: str) -> str:
    """Stripe's signature, by its own page of them."""
    at = int(time.time())
    digest = hmac.new(secret.encode(), f"{at}.{body.decode()}".encode(), hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def test_where_the_library_is_missing_the_start_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gateway.handover.stripe_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stripe", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tollkeeper\[stripe\]'"):
        of(API_KEY=KEY)
