"""Asking a provider of identities: how many may at once, for how long, and what of its answers is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.core.issuers.sign_in import SignIn
from gateway.errors import IssuerUnavailable, SignInRefused
from gateway.issuers.sign_in import ASKED_AT_ONCE_MAX, SignIns
from tests.admin.console.elsewhere import Held, configured
from tests.identity_provider import IdentityProvider, identity_provider
from tests.waiting import eventually

COOKIE = "c" * 43


@pytest.fixture
def one() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture
def held() -> Iterator[Held]:
    found = Held()
    found.goes_on.clear()
    yield found
    found.goes_on.set()


@pytest.fixture
def other() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


def sign_ins_of(one: IdentityProvider, other: IdentityProvider, **more: Any) -> SignIns:
    providers = configured("one", one), configured("other", other)
    sign_in = SignIn("https://console.example", providers)
    return SignIns(sign_in, time.monotonic, time.time, lambda *_, **__: None, **more)


def redeem(sign_ins: SignIns, name: str, provider: IdentityProvider) -> Any:
    return sign_ins.redeem(name, code="made-up", issuer=provider.url, verifier="v", nonce="n")


async def test_made_up_codes_keep_nobody_from_another_provider_or_from_going_on(
    one: IdentityProvider, other: IdentityProvider, held: Held
) -> None:
    sign_ins = sign_ins_of(one, other, ask=held.ask)
    flood = [asyncio.ensure_future(redeem(sign_ins, "one", one)) for _ in range(ASKED_AT_ONCE_MAX)]
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


async def test_a_provider_that_does_not_answer_in_time_is_away(
    one: IdentityProvider, other: IdentityProvider, held: Held
) -> None:
    hurried = sign_ins_of(one, other, ask=held.ask, answered_s_max=0.05)
    await hurried.address("one", state="s", nonce="n", challenge="c")
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        await hurried.renew(one.url, hurried.seal("r", COOKIE), COOKIE)
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        await redeem(hurried, "one", one)


@pytest.mark.parametrize("odd", ["\ud800", "a\nb", "ü", "", "r" * 8193, 7])
async def test_what_cannot_be_asked_with_is_not_kept(
    one: IdentityProvider, other: IdentityProvider, odd: object
) -> None:
    sign_ins = sign_ins_of(one, other)
    one.renewals["first"] = True
    one.also = {"refresh_token": odd}
    arrival = await sign_ins.renew(one.url, sign_ins.seal("first", COOKIE), COOKIE)
    assert arrival.renewal == "first"
    one.renewals["first"], one.also = True, {"id_token": "\ud800.a.b"}
    with pytest.raises(SignInRefused, match="malformed"):
        await sign_ins.renew(one.url, sign_ins.seal("first", COOKIE), COOKIE)
