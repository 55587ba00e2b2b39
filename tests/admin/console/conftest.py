"""A person at the console: signs in, opens pages, sends the forms that are on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.admin.conftest import ADMIN, READONLY, Api

# Text as others wrote it, or as programs read it; and a time as programs write it, unless it says how to type one.
VERBATIM = re.compile(r"<(pre|textarea|code|script|style)\b.*?</\1>|<[^>]*>", re.DOTALL)
FOR_PROGRAMS = re.compile(r"(?<!such as )\d{4}-\d\d-\d\dT\d\d:\d\d\S*")


@dataclass
class Page:
    """What a browser was answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def form_token(self) -> str:
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', self.text)
        assert found, self.text[:2000]
        return found[1]

    def fields(self, action: str) -> list[tuple[str, str]]:
        """The hidden fields of the form that is sent to an address."""
        found = re.search(
            rf'<form method="post" action="{re.escape(action)}".*?</form>', self.text, re.DOTALL
        )
        assert found, f"no form for {action}"
        hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', found[0])
        return [(unescape(name), unescape(value)) for name, value in hidden]


@dataclass
class Person:
    """A browser with a person in front of it."""

    client: TestClient[Any, Any]
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://{self.client.host}:{self.client.port}"

    async def send(self, method: str, path: str, data: Any = None, **headers: str) -> Page:
        sent = {"Accept": "text/html"} | self.headers | {k.replace("_", "-"): v for k, v in headers.items()}
        if self.cookie:
            sent["Cookie"] = self.cookie
        async with self.client.request(
            method, path, data=data, headers=sent, allow_redirects=False
        ) as response:
            page = Page(response.status, response.headers, (await response.read()).decode(errors="replace"))
        if response.content_type == "text/html":
            assert FOR_PROGRAMS.findall(VERBATIM.sub(" ", page.text)) == [], path
        return page

    async def open(self, path: str) -> Page:
        return await self.send("GET", path)

    async def post(self, path: str, data: Any, **headers: str) -> Page:
        return await self.send("POST", path, data, **({"Origin": self.origin} | headers))

    async def sign_in(self, token: str) -> Page:
        answer = await self.post("/sign-in", {"token": token})
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    async def fill(self, page: str, action: str, **typed: str) -> Page:
        """Send a form of a page with what was typed into it."""
        hidden = (await self.open(page)).fields(action)
        return await self.post(action, [*hidden, *((k.replace("__", "."), v) for k, v in typed.items())])


@pytest.fixture
async def admin(api: Api) -> Person:
    person = Person(api.client)
    assert (await person.sign_in(ADMIN)).status == 303
    return person


@pytest.fixture
async def reader(api: Api) -> Person:
    person = Person(api.client)
    assert (await person.sign_in(READONLY)).status == 303
    return person


@pytest.fixture
def nobody(api: Api) -> Person:
    return Person(api.client)
