"""A console whose people sign in at a provider of identities, and the browsers that they do it with."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from gateway.core.issuers import IdentityProvider, Issuer, SignIn
from gateway.issuers.fetching import redeem
from gateway.issuers.key_set import Endpoints
from gateway.issuers.sign_in import SignIns
from tests.admin.conftest import Api, api_of
from tests.admin.console.conftest import Person
from tests.identity_provider import CLIENT, SECRET, FakeIdentityProvider, identity_provider
from tests.waiting import HUNG_S

CONSOLE = "https://console.example"


class Held:
    """Asks providers for tokens as the keeper does, once it is let go on; `times` it was asked to."""

    def __init__(self) -> None:
        self.times, self._one = 0, threading.Lock()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def ask(
        self, provider: IdentityProvider, endpoints: Endpoints, form: Mapping[str, str]
    ) -> Mapping[str, Any]:
        with self._one:
            self.times += 1
        assert self.goes_on.wait(HUNG_S)
        return redeem(provider, endpoints, form)


@dataclass
class World:
    """A console, a provider whose people it lets in, and another one beside it."""

    api: Api
    provider: FakeIdentityProvider
    other: FakeIdentityProvider
    said: list[dict[str, Any]]
    held: Held
    sign_ins: SignIns

    async def let_in(self, subject: str = "staff", **more: Any) -> Any:
        fields = {"name": f"people of {subject}", "role": "admin", "subject": subject} | more
        return await self.api.make("admin-tokens", **{"issuer": self.provider.url} | fields)


@asynccontextmanager
async def console_of_people(admin_database: str, keeper_database: str, **more: Any) -> AsyncIterator[World]:
    """A console that listens for as long as this lasts, and its two providers."""
    said: list[dict[str, Any]] = []
    held = Held()
    with identity_provider() as one, identity_provider() as other:
        sign_in = SignIn(CONSOLE, (configured("example", one), configured("other", other)))
        sign_ins = SignIns(
            sign_in, time.monotonic, time.time, lambda event, **more: said.append({"event": event} | more),
            ask=held.ask,
        )  # fmt: skip
        one.back, other.back = f"{CONSOLE}/sign-in/example/back", f"{CONSOLE}/sign-in/other/back"
        async with api_of(admin_database, keeper_database, sign_ins=sign_ins, **more) as api:
            yield World(api, one, other, said, held, sign_ins)


def configured(name: str, provider: FakeIdentityProvider, **more: Any) -> IdentityProvider:
    issuer = Issuer(provider.url, (CLIENT,), subject="/groups", user="/name")
    return replace(IdentityProvider(name, name.title(), issuer, CLIENT, SECRET), **more)


@dataclass
class Browser:
    """A person who goes to a provider and comes back, with the cookies that a browser would send."""

    person: Person
    signing: str = ""
    session: str = ""

    @staticmethod
    def at(world: World) -> Browser:
        return Browser(Person(world.api.client))

    async def leave(self, address: str = "/sign-in/example") -> str:
        """Go to the provider; where it sends the browser then."""
        answer = await self.person.open(address)
        assert answer.status == 303, answer.text
        self.signing = answer.headers["Set-Cookie"].split(";")[0]
        return at_provider(answer.headers["Location"])

    async def arrive(self, back: str) -> Any:
        """Come back as the provider said; the session's cookie is not sent with what another site asks."""
        parts = urlsplit(back)
        self.person.cookie = self.signing
        answer = await self.person.open(f"{parts.path}?{parts.query}")
        cookies = [one.split(";")[0] for one in answer.headers.getall("Set-Cookie", [])]  # type: ignore[attr-defined]  # a multidict
        begun = [one for one in cookies if one.startswith("__Host-tollkeeper_session=")]
        self.session = self.person.cookie = begun[0] if begun else ""
        return answer

    async def sign_in(self, address: str = "/sign-in/example") -> Any:
        return await self.arrive(await self.leave(address))


def at_provider(address: str) -> str:
    """What the provider answers to who is sent there."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        assert answer.status == 302, answer.read()
        return str(answer.headers["location"])
    finally:
        connection.close()


def changed(back: str, **more: str | None) -> str:
    """The same address with other parameters."""
    parts = urlsplit(back)
    said = {name: values[0] for name, values in parse_qs(parts.query).items()} | more
    return f"{parts.path}?{urlencode({name: value for name, value in said.items() if value is not None})}"
