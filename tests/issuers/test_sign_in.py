"""Asking a provider of identities: how many may at once, for how long, and what of its answers is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.core.issuers import SignIn
from gateway.errors import IssuerUnavailable, NotFound, SignInRefused
from gateway.issuers.sign_in import ASKED_AT_ONCE_MAX, ASKED_BY_SITE_MAX, SignIns
from tests.admin.console.elsewhere import Held, configured
from tests.identity_provider import FakeIdentityProvider, identity_provider
from tests.waiting import eventually

COOKIE = "c" * 43


@pytest.fixture
def one() -> Iterator[FakeIdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture
def held() -> Iterator[Held]:
    found = Held()
    found.goes_on.clear()
    yield found
    found.goes_on.set()


@pytest.fixture
def other() -> Iterator[FakeIdentityProvider]:
    with identity_provider() as provider:
        yield provider


def sign_ins_of(one: FakeIdentityProvider, other: FakeIdentityProvider, **more: Any) -> SignIns:
    providers = configured("one", one), configured("other", other)
    sign_in = SignIn("https://console.example", providers)
    return SignIns(sign_in, time.monotonic, time.time, lambda *_, **__: None, **more)


def redeem(sign_ins: SignIns, name: str, provider: FakeIdentityProvider, address: str = "192.0.2.99") -> Any:
    asked = {"code": "made-up", "issuer": provider.url, "verifier": "v", "nonce": "n"}
    return sign_ins.redeem(name, address=address, **asked)


async def test_made_up_codes_keep_nobody_from_another_provider_or_from_going_on(
    one: FakeIdentityProvider, other: FakeIdentityProvider, held: Held
) -> None:
    sign_ins = sign_ins_of(one, other, ask=held.ask)
    everywhere = [f"192.0.2.{site}" for site in range(ASKED_AT_ONCE_MAX)]
    flood = [asyncio.ensure_future(redeem(sign_ins, "one", one, site)) for site in everywhere]
    await eventually(lambda: held.times == ASKED_AT_ONCE_MAX)
    for waiting in flood:  # who goes away leaves a thread that asks: its place is not another's yet
        waiting.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    with pytest.raises(IssuerUnavailable, match="Too many"):
        await redeem(sign_ins, "one", one)
    elsewhere = asyncio.ensure_future(redeem(sign_ins, "other", other))
    renewing = asyncio.ensure_future(sign_ins.renew(one.url, sign_ins.seal("gone", COOKIE), COOKIE))
    await eventually(lambda: held.times == ASKED_AT_ONCE_MAX + 2)
    held.goes_on.set()
    for asking in (elsewhere, renewing):
        with pytest.raises(SignInRefused, match="invalid_grant"):
            await asking

    async def is_asked_again() -> bool:
        try:
            await redeem(sign_ins, "one", one)
        except IssuerUnavailable:
            return False
        except SignInRefused:
            return True

    await eventually(is_asked_again)


@pytest.mark.parametrize("site", [["192.0.2.1"], [f"2001:db8::{host}" for host in range(1, 9)]])
async def test_made_up_codes_of_one_site_leave_room_for_people_elsewhere(
    one: FakeIdentityProvider, other: FakeIdentityProvider, held: Held, site: list[str]
) -> None:
    sign_ins = sign_ins_of(one, other, ask=held.ask)
    sent = [site[n % len(site)] for n in range(ASKED_BY_SITE_MAX)]
    flood = [asyncio.ensure_future(redeem(sign_ins, "one", one, address)) for address in sent]
    await eventually(lambda: held.times == ASKED_BY_SITE_MAX)
    with pytest.raises(IssuerUnavailable, match="Too many"):
        await redeem(sign_ins, "one", one, site[-1])
    assert held.times == ASKED_BY_SITE_MAX
    honest = asyncio.ensure_future(redeem(sign_ins, "one", one, "198.51.100.7"))
    elsewhere = asyncio.ensure_future(redeem(sign_ins, "other", other, site[-1]))
    await eventually(lambda: held.times == ASKED_BY_SITE_MAX + 2)
    held.goes_on.set()
    for asking in (*flood, honest, elsewhere):
        with pytest.raises(SignInRefused, match="invalid_grant"):
            await asking
    with pytest.raises(SignInRefused, match="invalid_grant"):
        await redeem(sign_ins, "one", one, site[0])
    assert not sign_ins._redeeming


async def test_a_provider_that_does_not_answer_in_time_is_away(
    one: FakeIdentityProvider, other: FakeIdentityProvider, held: Held
) -> None:
    hurried = sign_ins_of(one, other, ask=held.ask, answered_s_max=0.05)
    await hurried.address("one", state="s", nonce="n", challenge="c")
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        await hurried.renew(one.url, hurried.seal("r", COOKIE), COOKIE)
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        await redeem(hurried, "one", one)


@pytest.mark.parametrize("odd", ["\ud800", "a\nb", "ü", "", "r" * 8193, 7])
async def test_what_cannot_be_asked_with_is_not_kept(
    one: FakeIdentityProvider, other: FakeIdentityProvider, odd: object
) -> None:
    sign_ins = sign_ins_of(one, other)
    one.renewals["first"] = True
    one.also = {"refresh_token": odd}
    arrival = await sign_ins.renew(one.url, sign_ins.seal("first", COOKIE), COOKIE)
    assert arrival.renewal == "first"
    one.renewals["first"], one.also = True, {"id_token": "\ud800.a.b"}
    with pytest.raises(SignInRefused, match="malformed"):
        await sign_ins.renew(one.url, sign_ins.seal("first", COOKIE), COOKIE)


async def test_other_providers_are_gone_by_at_once_and_what_is_known_of_the_same_stays(
    one: FakeIdentityProvider, other: FakeIdentityProvider
) -> None:
    sign_ins = sign_ins_of(one, other)
    labels, known = sign_ins.labels, sign_ins._keys["other"]
    answer: dict[str, Any] = {"state": "s", "nonce": "n", "challenge": "c"}
    assert (await sign_ins.address("one", **answer)).startswith(one.url)
    sign_ins.renew_providers(SignIn("https://console.example", (configured("other", other),)))
    assert list(labels) == ["other"]
    assert sign_ins._keys["other"] is known
    with pytest.raises(NotFound):
        await sign_ins.address("one", **answer)
    assert (await sign_ins.address("other", **answer)).startswith(other.url)
