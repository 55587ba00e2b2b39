"""A tenant as an SDK's test sees it: clients with its key, and what its ledger says was charged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
from google import genai
from google.genai import types

from tests.journey.stack import Body, Stack
from tests.waiting import wait_until

HELLO: Any = [{"role": "user", "content": "hello there"}]


@dataclass(frozen=True)
class Account:
    """One tenant, with the official clients of its key. `demo` are fields that dictate to the upstream."""

    stack: Stack
    tenant: int
    key: str
    kept: list[object] = field(default_factory=list)

    def openai(self, **demo: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.stack.gateway_url}/v1",
            api_key=self.key,
            max_retries=0,
            default_headers=named(demo),
        )

    def anthropic(self, **demo: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            base_url=self.stack.gateway_url, api_key=self.key, max_retries=0, default_headers=named(demo)
        )

    def gemini(self, version: str = "v1", **demo: str) -> genai.Client:
        options = types.HttpOptions(base_url=self.stack.gateway_url, api_version=version, headers=named(demo))
        client = genai.Client(api_key=self.key, http_options=options)
        self.kept.append(client)  # it closes itself where nobody holds it
        return client

    def charges(self, count: int) -> list[Body]:
        """The consume rows once there are so many; no more come."""
        found: list[Body] = wait_until(lambda: len(rows := self.consumed()) >= count and rows)
        assert len(found) == count, found
        return found

    def consumed(self) -> list[Body]:
        return [row for row in self.stack.ledger(self.tenant) if row["transaction_type"] == "consume"]

    def amounts(self, count: int) -> list[int]:
        return [row["amount"] for row in self.charges(count)]


def named(demo: dict[str, str]) -> dict[str, str]:
    """`usage="1,2"` as the header field `x-demo-usage`."""
    return {"x-demo-" + name.replace("_", "-"): value for name, value in demo.items()}


def account(stack: Stack, total: int | None = 100_000, **plan: Any) -> Account:
    """A new tenant on a plan of its own."""
    return Account(stack, *stack.tenant(total, **plan))


def said(row: Body, *names: str) -> tuple[Any, ...]:
    """These members of a row's metadata."""
    return tuple(row["metadata"][name] for name in names)
