"""Many calls at the same instant against funds for one: how far past the limit they get.

`python -m tests.journey.parallel` starts a stack of its own and prints the figures.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.journey.apis import DOCUMENTS
from tests.journey.stack import Stack, eventually

CALLS = 500

# Tokens each call uses. What it states for its answers alone is as much, so its hold is never
# less, whatever the workers have learned of prompts from calls before.
SIZE = 60
CHAT = DOCUMENTS[0]


@dataclass(frozen=True)
class Crowd:
    """What became of the calls: by (status, reason), tokens used, and the funds there were."""

    outcomes: dict[tuple[int, str], int]
    used: int
    funds: int

    @property
    def admitted(self) -> int:
        """Calls that reached the upstream."""
        return sum(count for (status, _), count in self.outcomes.items() if status == 200)

    @property
    def overshoot(self) -> int:
        """Tokens used beyond the funds."""
        return self.used - self.funds

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {reason}" for (_, reason), count in self.outcomes.items() if reason)
        return (
            f"{sum(self.outcomes.values())} calls of {SIZE} tokens against {self.funds}: "
            f"{self.admitted} admitted, {refused}; {self.used} used, overshoot {max(0, self.overshoot)}"
        )


def against_quota(stack: Stack, funds: int = SIZE, calls: int = CALLS) -> Crowd:
    """A tenant whose cycle has tokens for one call."""
    tenant, key = stack.tenant(funds)
    return _crowd(stack, tenant, key, funds, calls)


def against_minute(stack: Stack, funds: int = 100, calls: int = CALLS) -> Crowd:
    """A tenant with so many tokens a minute."""
    tenant, key = stack.tenant(None)
    status, _ = stack.admin("PATCH", f"/tenants/{tenant}", {"limits": {"tokens_per_minute": funds}})
    assert status == 200
    return _crowd(stack, tenant, key, funds, calls)


def _crowd(stack: Stack, tenant: int, key: str, funds: int, calls: int) -> Crowd:
    demo = {"usage": f"{SIZE - 40},40", "delay_s": "2"}
    request = CHAT.request(key, "demo-small", demo).replace(b'"max_tokens": 64', b'"max_tokens": 30')
    outcomes = asyncio.run(_at_once(stack.gateway_url, request, calls))
    eventually(lambda: stack.quota(tenant)["tokens_held"] == 0)
    return Crowd(dict(outcomes), stack.quota(tenant)["tokens_used"], funds)


async def _at_once(url: str, request: bytes, calls: int) -> Counter[tuple[int, str]]:
    """Open every connection first, then send on all of them in one go."""
    parts = urlsplit(url)
    opened = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(calls)]
    for _, writer in opened:
        writer.write(request)
    outcomes: Counter[tuple[int, str]] = Counter()
    for head in await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in opened)):
        reason = head.partition(b"x-tollkeeper-reason: ")[2].split(b"\r\n")[0]
        outcomes[int(head[9:12]), reason.decode()] += 1
    for _, writer in opened:
        writer.close()
    return outcomes


def main() -> None:
    """Print the figures, measured on a stack of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "data", "--workers", "2")
        try:
            print(f"quota:  {against_quota(stack)}\nminute: {against_minute(stack)}")
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
