"""What lasts longer than a call: responses, videos, batches, holds by API, sockets, a narrow upstream.

Each thing uses an amount that no other uses, so a row of the ledger tells which thing it charges. The
upstream and the callers share this process: a thing that a caller was told of is `certain`, and must be
charged exactly.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Self
from uuid import uuid4

import aiohttp

from gateway.core.accounts.upstream_jobs import OPENING, UNANSWERED_S_MAX, read_job, write_job
from gateway.core.calls.routes import Capacity, CapacityLimits, ModelRule, ModelTarget
from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from gateway.settings.settings import Settings
from tests.faults import audit, cast
from tests.faults.audit import Figures
from tests.faults.cast import WIDE_TOKENS, Cast, Tenant
from tests.faults.truth import Upstream
from tests.faults.world import FaultError, World
from tests.features.websockets.live_upstream import LiveUpstream, playing

KINDS = ("responses", "videos", "batches", "holds", "turns", "narrow")
ASYNC_KINDS = ("responses", "videos", "batches")
SERVICES = ("responses", "videos", "realtime")
VIDEO = "truth-video"
VIDEO_NANO = 1_000_000  # a second
VIDEO_SECONDS_MAX = 600
JOB_S, NARROW_S, LINES, CONCURRENCY = 1.5, 0.3, 5, 3
# Above every amount that is used: what is held. Holds by API hold amounts of their own.
HELD_TOKENS, HOLD_FROM = 100_000, 1_000_000
LEFT_TTL_S, TAKEN_TTL_S, ASK_S_MAX = 4, 30, 40.0
REST_S, KNOWN_S_MAX, AGE_S = 60.0, 20.0, 4.0


@dataclass(slots=True)
class Thing:
    """What was made or asked for: how much it uses, and whether somebody was told of it."""

    kind: str
    amount: int
    certain: bool = False
    made: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call was answered. Times are monotonic seconds."""

    kind: str
    began: float
    ended: float
    status: int


class Maker(Upstream):
    """The upstream of what lasts; it remembers over restarts. `resets`: it makes a thing, and never tells."""

    def __init__(self, seed: int, register: Callable[[str], Thing]) -> None:
        super().__init__(seed)
        self.register, self.resets = register, False
        self.mark = f"{uuid4().hex[:8]}-"  # no two upstreams have an id in common
        self.things: dict[str, list[Thing]] = {}
        self.due: dict[str, float] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}

    async def again(self, away_s: float) -> None:
        """Stop, stay away, and listen at the same port."""
        port = self.port
        await self.stop()
        await asyncio.sleep(away_s)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            while True:
                method, path, *_ = (head := await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split(" ")
                fields = dict(x.lower().split(": ", 1) for x in head.decode("latin-1").split("\r\n")[1:] if x)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                status, said = await self._told(method, path.partition("?")[0], body)
                if self.resets and method == "POST":
                    break
                kind = "application/octet-stream" if isinstance(said, bytes) else "application/json"
                raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                told = f"HTTP/1.1 {status} Told\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n\r\n"
                writer.write(told.encode() + raw)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()

    async def _told(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        kind, _, id_ = path.removeprefix("/v1/").partition("/")
        if kind == "chat":
            await asyncio.sleep(NARROW_S)
            return 200, _chat(self.register("narrow"))
        if kind == "files":
            if method == "POST":
                content = next(x for x in body.split(b"\r\n") if x.startswith(b'{"custom_id"'))
                return 200, self._file(content)
            content = self.files[id_.partition("/")[0]]
            return 200, content if id_.endswith("content") else {"id": id_, "bytes": len(content)}
        if method == "POST":
            return 200, self._make(kind, json.loads(body))
        if not id_:
            if kind != "batches":
                return 404, {}  # nobody finds a video or a response whose answer was lost
            return 200, {
                "data": [self._now(x) for x in self.said if x.startswith("batch")],
                "has_more": False,
            }
        return (200, self._now(id_)) if id_ in self.said else (404, {})

    def _file(self, content: bytes) -> dict[str, Any]:
        id_ = f"file-{self.mark}{len(self.files)}"
        self.files[id_] = content
        return {"id": id_, "object": "file", "bytes": len(content), "purpose": "batch", "status": "processed"}

    def _make(self, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = f"{kind[:-1] if kind != 'batches' else 'batch'}_{self.mark}{len(self.said)}"
        if kind == "batches":
            made = [self.register(kind) for _ in self.files[asked["input_file_id"]].splitlines()]
        else:
            made = [self.register(kind)]
        self.things[id_], self.due[id_] = made, time.monotonic() + JOB_S
        said = {
            "id": id_,
            "object": kind.removesuffix("s"),
            "status": "queued",
            "created_at": int(time.time()),
        }
        if kind == "videos":
            made[0].amount, said["seconds"] = int(asked["seconds"]), asked["seconds"]
        if kind == "batches":
            said |= {"object": "batch", "status": "in_progress"}
        self.said[id_] = asked | said
        return dict(self.said[id_])

    def _now(self, id_: str) -> dict[str, Any]:
        said, things = self.said[id_], self.things[id_]
        if time.monotonic() >= self.due[id_] and said["status"] != "completed":
            said["status"] = "completed"
            if "input_file_id" in said:
                ids = [json.loads(x)["custom_id"] for x in self.files[said["input_file_id"]].splitlines()]
                answers = [{"status_code": 200, "request_id": "x", "body": _chat(one)} for one in things]
                lines = [{"custom_id": id_, "response": one} for id_, one in zip(ids, answers, strict=True)]
                said["output_file_id"] = self._file("\n".join(map(json.dumps, lines)).encode())["id"]
            elif said["object"] == "response":
                said |= {"output": [], "usage": _usage(things[0].amount)}
        return said


def _usage(amount: int) -> dict[str, int]:
    return {"input_tokens": 1, "output_tokens": amount - 1, "total_tokens": amount}


def _chat(thing: Thing) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "so it is"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": thing.amount - 1, "total_tokens": thing.amount}
    return {"id": "x", "object": "chat.completion", "model": "truth", "choices": [choice], "usage": usage}


class Lasting:
    """The load of what lasts: one tenant for each kind, one budget over all."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.numbers, self.seconds = itertools.count(1_000), iter(range(1, VIDEO_SECONDS_MAX))
        self.things: list[Thing] = []
        self.answers: list[Answer] = []
        self.tenants: dict[str, Tenant] = {}
        self.upstream = Maker(seed, self.register)
        self.sockets: list[LiveUpstream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self.budget, self.before, self.last = 0, 0, ""

    def register(self, kind: str, amount: int = 0, *, certain: bool = False, made: bool = True) -> Thing:
        """Remember one thing, of a new amount unless it is said."""
        thing = Thing(kind, amount or next(self.numbers), certain, made)
        self.things.append(thing)
        return thing

    # --- beginning and end ---------------------------------------------------------------

    async def open(self) -> None:
        """Start the upstreams, have the gateways know them, and make who calls."""
        await self.upstream.start()
        live = await asyncio.start_server(playing(self._respond, self.sockets), "127.0.0.1", 0)
        self._live = live
        for node in self.world.gateways:
            node.program.settings = self._with(node.program.settings, live.sockets[0].getsockname()[1])
            starts = node.program.starts
            node.program.send(signal.SIGTERM)  # the world starts it again, with the new settings
            await self.world.until(lambda node=node, starts=starts: node.program.starts > starts)
        await asyncio.to_thread(self._make_tenants)

    async def close(self) -> None:
        """Stop the upstreams."""
        self._live.close()
        await self.upstream.stop()

    def _with(self, settings: Settings, live: int) -> Settings:
        table = settings.table
        (own,) = (one for one in table.upstreams if one.name == "openai")
        here = f"http://127.0.0.1:{self.upstream.port}"
        capacity = Capacity(CapacityLimits(concurrency=CONCURRENCY))
        more = (
            replace(own, name="later", base_url=here),
            replace(own, name="narrow", base_url=here, capacity=capacity),
            replace(own, name="live", base_url=f"http://127.0.0.1:{live}"),
        )
        places = dict.fromkeys(("responses", "videos", "batches", "files"), "later") | {"realtime": "live"}
        routes = tuple(
            replace(one, upstream=places[one.path.split("/")[2]])
            if one.upstream == "openai" and one.path.split("/")[2] in places else one
            for one in table.routes
        )  # fmt: skip
        rule = ModelRule("narrow", False, (ModelTarget("narrow", ""),))
        made = table._replace(
            routes=routes, upstreams=(*table.upstreams, *more), models=(*table.models, rule)
        )
        return settings.with_table(made).with_values(jobs_interval_s=1.0)

    def _make_tenants(self) -> None:
        world = self.world
        present = {one["key"] for one in world.admin("GET", "/services?limit=100")["items"]}
        models = {one["name"]: one["id"] for one in world.admin("GET", "/business-models?limit=100")["items"]}
        for key in set(SERVICES) - present:
            service = {"key": key, "name": key, "credits": 0, "business_model_id": models["Subscription"]}
            more = {"service_type": "Pay-As-You-Go", "counts_tokens": key != "videos"}
            world.admin("POST", "/services", service | more)
        tokens = {"input": "1", "output": "1"}
        sound = {"audio_input": "1", "audio_output": "1"}
        prices = {"truth": tokens | sound, "narrow": tokens, VIDEO: {"video_second": "0.001"}}
        for model, price in prices.items():
            if not world.admin("GET", f"/prices?model={model}")["items"]:
                said = {"model": model, "currency": "USD", "effective_from": "2024-01-01T00:00:00Z"}
                world.admin("POST", "/prices", said | price)
        organization = None
        for kind in KINDS:
            tenant = cast.make_tenant(world, WIDE_TOKENS, organization, {})
            self.tenants[kind], organization = tenant, tenant.organization_id
        budget = {"organization_id": organization, "name": f"lasting {organization}", "unit": "money"}
        self.budget = world.admin("POST", "/budgets", budget | {"amount": "1000000", "interval": "total"})[
            "id"
        ]

    async def __aenter__(self) -> Self:
        await self._until_known()
        makers = [self._response, self._video, self._batch, self._hold, self._turns, *[self._narrow] * 5]
        self._tasks = [asyncio.create_task(self._go(one, n)) for n, one in enumerate(makers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _until_known(self) -> None:
        """Wait until every gateway serves each kind and counts it in the budget."""
        for node in self.world.gateways:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{node.door()}") as http:
                await self._eventually(lambda http=http: self._is_budgeted(http))
                for make in (self._response, self._video, self._batch, self._hold, self._turns):
                    before = len(self.answers)
                    await self._eventually(lambda make=make, http=http: self._is_served(make, http))
                    assert len(self.answers) > before or make == self._turns
        await self.at_rest()
        await asyncio.to_thread(self._note_before)

    async def _eventually(self, look: Callable[[], Awaitable[bool]]) -> None:
        end = time.monotonic() + KNOWN_S_MAX
        while not await look():
            if time.monotonic() > end:
                raise FaultError(f"not served: {self.last}")
            await asyncio.sleep(0.2)

    async def _is_budgeted(self, http: aiohttp.ClientSession) -> bool:
        with suppress(aiohttp.ClientError):
            async with http.post("/v1/chat/completions", **self._chat_call()) as answer:
                if answer.status == 200:
                    self._certain(json.loads(await answer.read())["usage"]["total_tokens"])
                return "x-tollkeeper-budget" in answer.headers
        return False

    async def _is_served(self, make: Callable[..., Awaitable[None]], http: aiohttp.ClientSession) -> bool:
        certain = sum(one.certain for one in self.things)
        with suppress(aiohttp.ClientError, TimeoutError):
            await make(http)
        return sum(one.certain for one in self.things) > certain

    def _note_before(self) -> None:
        cost, used, _ = self._money()
        self.before = cost - used

    # --- callers -------------------------------------------------------------------------

    async def _go(self, make: Callable[[aiohttp.ClientSession], Awaitable[None]], number: int) -> None:
        gateways = self.world.gateways
        while not self._stop.is_set():
            door = gateways[number % len(gateways)].door()
            timeout = aiohttp.ClientTimeout(ASK_S_MAX)
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with aiohttp.ClientSession(f"http://127.0.0.1:{door}", timeout=timeout) as http:
                    await make(http)
            await asyncio.sleep(0.1)

    async def _ask(
        self, http: aiohttp.ClientSession, kind: str, method: str, path: str, **said: Any
    ) -> tuple[int, dict[str, Any]]:
        began, status = time.monotonic(), 0
        headers = {"authorization": f"Bearer {self.tenants[kind].key}"}
        try:
            async with http.request(method, path, headers=headers, **said) as answer:
                raw = await answer.read()
                status, self.last = answer.status, f"{path}: {answer.status} {raw[:300]!r}"
                return status, json.loads(raw) if raw else {}
        finally:
            self.answers.append(Answer(kind, began, time.monotonic(), status))

    def _certain(self, amount: int) -> None:
        for one in self.things:
            if one.amount == amount:
                one.certain = True

    async def _response(self, http: aiohttp.ClientSession) -> None:
        said = {"model": "truth", "input": "hi", "max_output_tokens": HELD_TOKENS, "background": True}
        await self._job(http, "responses", "/v1/responses", said)

    async def _video(self, http: aiohttp.ClientSession) -> None:
        # A length is one video's alone; in a long history they run out.
        if (seconds := next(self.seconds, None)) is not None:
            said = {"model": VIDEO, "prompt": "a", "seconds": str(seconds)}
            await self._job(http, "videos", "/v1/videos", said)

    async def _batch(self, http: aiohttp.ClientSession) -> None:
        body = {"model": "truth", "messages": [{"role": "user", "content": "hi"}], "max_tokens": HELD_TOKENS}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        lines = "\n".join(json.dumps({"custom_id": f"line-{n}"} | line) for n in range(LINES))
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", lines.encode(), filename="lines.jsonl")
        status, file = await self._ask(http, "batches", "POST", "/v1/files", data=form)
        if status == 200:
            said = {"input_file_id": file["id"], "endpoint": line["url"], "completion_window": "24h"}
            await self._job(http, "batches", "/v1/batches", said)

    async def _job(self, http: aiohttp.ClientSession, kind: str, path: str, said: dict[str, Any]) -> None:
        status, told = await self._ask(http, kind, "POST", path, json=said)
        if status == 200:
            for one in self.upstream.things[told["id"]]:
                one.certain = True

    async def _hold(self, http: aiohttp.ClientSession) -> None:
        """Take one; leave every third to its end, extend and settle the others."""
        held = HOLD_FROM + (number := next(self.numbers))
        left = number % 3 == 0
        thing = self.register("holds", held, made=False)
        ttl_s = LEFT_TTL_S if left else TAKEN_TTL_S
        said = {"service": "chat", "model": "truth", "max_tokens": held, "ttl_s": ttl_s}
        status, told = await self._ask(http, "holds", "POST", "/.tollkeeper/holds", json=said)
        if status != 201:
            return
        thing.certain = thing.made = left
        if not left:
            at = f"/.tollkeeper/holds/{told['id']}"
            await self._ask(http, "holds", "POST", f"{at}/extend", json={"ttl_s": LEFT_TTL_S})
            used = self.register("holds", made=False)
            usage = {"usage": {"input": 1, "output": used.amount - 1}}
            status, _ = await self._ask(http, "holds", "POST", f"{at}/settle", json=usage)
            used.certain = used.made = status == 200

    async def _turns(self, http: aiohttp.ClientSession) -> None:
        headers = {"authorization": f"Bearer {self.tenants['turns'].key}"}
        async with http.ws_connect("/v1/realtime?model=truth", headers=headers) as socket:
            for _ in range(3):
                await socket.send_json(
                    {"type": "response.create", "response": {"output_modalities": ["text"]}}
                )
                while (message := await socket.receive(20.0)).type is aiohttp.WSMsgType.TEXT:
                    if (said := json.loads(message.data))["type"] == "error":
                        return
                    if said["type"] == "response.done":
                        self._certain(said["response"]["usage"]["total_tokens"])
                        break
                else:  # it was closed, as by a gateway that is drained
                    return
                await asyncio.sleep(0.1)

    async def _respond(self, socket: LiveUpstream) -> None:
        with suppress(ConnectionError, TimeoutError):
            await socket.send({"type": "session.created", "session": {"type": "realtime", "model": "truth"}})
            while True:
                await socket.until("response.create")
                thing = self.register("turns")
                name = f"resp_{uuid4().hex}"
                begun = {"type": "response.created", "response": {"id": name, "status": "in_progress"}}
                await socket.send(begun, {"type": "response.output_text.delta", "delta": "word"})
                done = {"id": name, "status": "completed", "usage": _usage(thing.amount)}
                await socket.send({"type": "response.done", "response": done})
        socket.writer.close()

    def _chat_call(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hi"}]
        said = {"model": "narrow", "messages": messages, "max_tokens": HELD_TOKENS}
        return {"json": said, "headers": {"authorization": f"Bearer {self.tenants['narrow'].key}"}}

    async def _narrow(self, http: aiohttp.ClientSession) -> None:
        status, told = await self._ask(
            http, "narrow", "POST", "/v1/chat/completions", json=self._chat_call()["json"]
        )
        if status == 200:
            self._certain(told["usage"]["total_tokens"])

    # --- what became of it ---------------------------------------------------------------

    async def at_rest(self) -> float:
        """Wait until nothing is held; seconds it took. Jobs whose answer was lost grow older meanwhile."""
        began, rest = time.monotonic(), asyncio.create_task(audit.at_rest(self.world))
        while not rest.done():
            await asyncio.to_thread(self._age)
            await asyncio.wait([rest], timeout=1.0)
        await rest
        return time.monotonic() - began

    def _age(self) -> None:
        with self.world.counters() as counters:
            for partition in range(PARTITIONS):
                for member in counters.zrange(keys.jobs(partition), 0, -1):
                    raw = counters.get(keys.job(partition, keys.job_of(member)))
                    job = read_job(raw) if isinstance(raw, bytes) else None
                    if job is None or job.status != OPENING or job.settled_ms:
                        continue
                    if time.time() - job.created_ms / 1000 > AGE_S:
                        later_ms = int(1000 * (UNANSWERED_S_MAX + 60))
                        job.created_ms -= later_ms
                        job.next_look_ms -= later_ms
                        counters.set(keys.job(partition, job.hold_id), write_job(job), keepttl=True)

    async def finish(self, figures: Figures) -> None:
        """Compare once all is at rest; what is missing is looked for as long as that may take."""
        end = time.monotonic() + REST_S
        while True:
            found = Figures()
            await asyncio.to_thread(self._compare, found)
            if not found.broken or time.monotonic() > end:
                break
            await asyncio.sleep(1.0)
            await self.at_rest()
        figures.broken += found.broken
        figures.other |= found.other

    def _compare(self, figures: Figures) -> None:
        for kind, tenant in self.tenants.items():
            rows = self._rows(kind, tenant)
            things = {one.amount: one for one in self.things if one.kind == kind}
            # An estimate may come to what another thing used.
            sure = [row for row in rows if row[0] in things and (kind == "holds" or not row[1])]
            exact = Counter(amount for amount, _ in sure)
            rest = [row for row in rows if row not in sure]
            wrong = [f"{amount} is charged {count} times" for amount, count in exact.items() if count > 1]
            wrong += [
                f"{amount} is charged and was used by nothing" for amount, estimated in rest if not estimated
            ]
            missing = [one for one in things.values() if one.made and one.amount not in exact]
            wrong += [f"{one.amount} was told of and is not charged" for one in missing if one.certain]
            if kind in ASYNC_KINDS and len(missing) > len(rest):
                figures.broken.append(f"{kind}: {len(missing)} made and not charged, {len(rest)} estimated")
            figures.broken += [f"{kind}: {one}" for one in wrong]
            figures.complete += sum(exact.values())
            figures.other[kind] = f"{len(rows)} ({sum(e for _, e in rows)} estimated, {len(missing)} not)"
        others = Cast(self.world, list(self.tenants.values()))
        audit._balances(others, figures, [], (), slow=False)
        audit._slots(others, figures)
        cost, used, held = self._money()
        if held or cost - used != self.before:
            figures.broken.append(f"budget: calls cost {cost - self.before}, {used} used, {held} held")

    def _rows(self, kind: str, tenant: Tenant) -> list[tuple[int, bool]]:
        """Each charge of a tenant, and whether it is estimated."""
        if kind == "videos":
            query = "SELECT cost, estimated FROM call WHERE tenant_id = %s AND cost > 0"
            return [(int(cost) // VIDEO_NANO, bool(e)) for cost, e in self.world.rows(query, tenant.id)]
        rows = self.world.rows(audit.CHARGED["tokens"], [tenant.id])
        return [(int(amount), bool(e)) for id_, amount, _, e in rows if id_ and amount]

    def _money(self) -> tuple[int, int, int]:
        """Nano-units: what calls cost, and what the budget has used and holds."""
        (tenant, *_) = self.tenants.values()
        query = "SELECT coalesce(sum(cost), 0) FROM call WHERE organization_id = %s AND NOT refused"
        told = self.world.admin("GET", f"/budgets/{self.budget}")
        used, held = (int(Decimal(told[name]) * 10**9) for name in ("used", "held"))
        return int(self.world.rows(query, tenant.organization_id)[0][0]), used, held
