"""What 20 teams have of an upstream's capacity while one of them floods it with a batch job.

A whole `tollkeeper up` before a stub that counts as OpenAI does: buckets of requests and of tokens, filled
evenly, that begin with two seconds' worth. 19 teams call now and then, in bursts; each has a guaranteed
part. The last one keeps 200 calls of a batch going. Prints the provider's 429, the used part of the stated
limit, how much of a guaranteed part was missed in the worst ten seconds, and the longest waits, beside what
is wanted. Usage: python -m tests.bench.capacity [SECONDS, 60 if it is not said]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientSession, TCPConnector, web

from tests.journey.stack import Stack

TEAMS, FLOOD, WARM_S = 20, 200, 5.0
REQUESTS, TOKENS = 3_000, 420_000  # a minute
GUARANTEED = 60
RATE, BURST = 1.6, 4  # calls a second of each of the others, so many at a time
WINDOW_S, EDGE_S = 10.0, 0.5
ANSWER_S = 0.05


@dataclass
class Bucket:
    """What a provider lets through: `a_minute`, filled evenly, and as much at once."""

    a_minute: int
    level: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def takes(self, amount: int) -> bool:
        now = time.monotonic()
        self.level = min(self.a_minute, self.level + (now - self.at) * self.a_minute / 60)
        self.at = now
        if self.level < amount:
            return False
        self.level -= amount
        return True


class Provider:
    """The stub: it counts what it takes and what it refuses, from `begin` on."""

    def __init__(self) -> None:
        self.requests, self.tokens = Bucket(REQUESTS, REQUESTS / 30), Bucket(TOKENS, TOKENS / 30)
        self.taken = self.used = self.refused = 0

    def begin(self) -> None:
        self.taken = self.used = self.refused = 0

    async def answer(self, request: web.Request) -> web.Response:
        asked = await request.json()
        await asyncio.sleep(ANSWER_S)
        output = random.randint(20, asked["max_tokens"])
        usage = {"prompt_tokens": 9, "completion_tokens": output, "total_tokens": 9 + output}
        if not (self.requests.takes(1) and self.tokens.takes(9 + output)):
            self.refused += 1
            return web.json_response({"error": {"message": "Rate limit reached"}}, status=429)
        self.taken, self.used = self.taken + 1, self.used + 9 + output
        message = {"role": "assistant", "content": "hi"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        made = {"id": "chatcmpl-1", "object": "chat.completion", "model": asked["model"], "created": 1}
        return web.json_response(made | {"choices": choices, "usage": usage})


@dataclass
class Team:
    """A team's key, when it called, when it was served, and how long its calls waited."""

    key: str
    called: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    waited_ms: list[int] = field(default_factory=list)
    refused: int = 0

    async def call(self, session: ClientSession, url: str, priority: str) -> None:
        self.called.append(time.monotonic())
        body = {"model": "gpt", "max_tokens": 160, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {self.key}", "x-tollkeeper-priority": priority}
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()
        if answer.status == 200:
            self.served.append(time.monotonic())
            self.waited_ms.append(int(answer.headers.get("x-tollkeeper-waited-ms", 0)))
        else:
            self.refused += 1

    def missed(self, begun: float, ended: float) -> float:
        """The part of what is guaranteed that was asked for and missed, in the worst ten seconds."""
        worst, at = 0.0, begun
        while at + WINDOW_S <= ended:
            asked = sum(at <= one < at + WINDOW_S - EDGE_S for one in self.called)
            served = sum(at <= one < at + WINDOW_S for one in self.served)
            wanted = min(asked, GUARANTEED * WINDOW_S / 60)
            worst, at = max(worst, (wanted - served) / wanted if wanted else 0.0), at + 1
        return worst


async def main(seconds: float) -> int:
    """Set it up, have everybody call, and print what came of it; 1 where that is not what is wanted."""
    provider = Provider()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [(_, port), *_] = runner.addresses
    with tempfile.TemporaryDirectory(prefix="tollkeeper-capacity-") as name:
        config = Path(name) / "config.yaml"
        limits = f"{{requests_per_minute: {REQUESTS}, tokens_per_minute: {TOKENS}}}"
        config.write_text(
            f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{port}', capacity: {limits}}}}}\n"
        )
        stack = await asyncio.to_thread(Stack, Path(name) / "data", "--config", str(config), "--workers", "2")
        try:
            teams = await asyncio.to_thread(made, stack)
            begun, ended = await load(stack.gateway_url, teams, provider, seconds)
        finally:
            await asyncio.to_thread(stack.stop)
    await runner.cleanup()
    return told(teams, provider, begun, ended)


def made(stack: Stack) -> list[Team]:
    teams = []
    for number in range(TEAMS):
        tenant, key = stack.tenant(None)
        part = {"requests_per_minute": GUARANTEED} if number else None
        stack.make("shares", upstream="openai", tenant_id=tenant, guaranteed=part)
        teams.append(Team(key))
    return teams


async def load(url: str, teams: list[Team], provider: Provider, seconds: float) -> tuple[float, float]:
    """Everybody calls, for so long behind a while to warm up; from when until when that was."""
    flood, *others = teams
    ends = time.monotonic() + WARM_S + seconds

    async def keep_calling(session: ClientSession) -> None:
        while time.monotonic() < ends:
            await flood.call(session, url, "batch")

    async def now_and_then(team: Team, session: ClientSession, group: asyncio.TaskGroup) -> None:
        drawn = random.Random(team.key)
        while time.monotonic() < ends:
            await asyncio.sleep(drawn.expovariate(RATE / BURST))
            for _ in range(BURST):
                group.create_task(team.call(session, url, "interactive"))

    async def warm() -> float:
        await asyncio.sleep(WARM_S)
        provider.begin()
        return time.monotonic()

    async with ClientSession(connector=TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        begun = group.create_task(warm())
        for _ in range(FLOOD):
            group.create_task(keep_calling(session))
        for team in others:
            group.create_task(now_and_then(team, session, group))
        counted = group.create_task(counts(provider, ends))
    taken, used, refused = counted.result()
    provider.taken, provider.used, provider.refused = taken, used, refused
    return begun.result(), ends


async def counts(provider: Provider, ends: float) -> tuple[int, int, int]:
    await asyncio.sleep(max(0.0, ends - time.monotonic()))
    return provider.taken, provider.used, provider.refused


def told(teams: list[Team], provider: Provider, begun: float, ended: float) -> int:
    minutes = (ended - begun) / 60
    waits = sorted(one for team in teams[1:] for one in team.waited_ms)
    found = {
        "provider_429": provider.refused / max(1, provider.taken + provider.refused),
        "used": max(provider.taken / REQUESTS, provider.used / TOKENS) / minutes,
        "guaranteed_missed": max(team.missed(begun, ended) for team in teams[1:]),
        "interactive_wait_p99_s": waits[int(len(waits) * 0.99)] / 1000,
    }
    wanted = {"provider_429": 0.001, "used": 0.97, "guaranteed_missed": 0.02, "interactive_wait_p99_s": 0.5}
    others = {
        "calls": provider.taken,
        "interactive_refused": sum(team.refused for team in teams[1:]),
        "interactive_wait_s": [waits[int(len(waits) * part)] / 1000 for part in (0.5, 0.9, 0.95, 0.999)],
    }
    print(json.dumps({"found": found, "wanted": wanted, **others}))
    held = [
        found[name] >= bound if name == "used" else found[name] <= bound for name, bound in wanted.items()
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)))
