"""Callers that remember what they received: every kind of charge, as JSON and as streams, some leaving.

A call counts as *complete* once its caller has all of it: the last byte a content-length named, or
`[DONE]` of a stream. Of such a call we promise that it is charged exactly.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

READ_BYTES = 65_536
CALL_S_MAX = 60.0
MAX_TOKENS = 40
PAUSE_AFTER_REFUSAL_S = 0.05
MORE_S_MAX = 180.0


class Kind(Enum):
    """What a call is charged as."""

    CHAT = "chat"
    STREAM = "stream"
    CREDITS = "credits"
    UNITS = "units"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call to make. `leave_at` is the piece of the answer at which its caller hangs up; 0 before any."""

    kind: Kind
    key: str
    path: str = "/v1/chat/completions"
    leave_at: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    max_tokens: int = MAX_TOKENS


@dataclass(slots=True)
class Call:
    """What became of it. `status` 0: no answer. `budget`: the one it names. Times are monotonic seconds."""

    asked: PlannedCall
    began: float
    ended: float = 0.0
    status: int = 0
    reason: str = ""
    request_id: str = ""
    complete: bool = False
    budget: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Caller:
    """One connection to a gateway, made anew whenever it breaks."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self, asked: PlannedCall) -> Call:
        """Make one call to its end, or leave it where it says."""
        call = Call(asked, time.monotonic())
        kept = False
        # The last is uvloop's for a connection that was closed between two calls.
        with suppress(OSError, EOFError, TimeoutError, ValueError, RuntimeError):
            async with asyncio.timeout(CALL_S_MAX):
                if self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port())
                assert self._reader is not None
                self._writer.write(request(asked))
                if asked.leave_at != 0:
                    kept = await self._read(call, self._reader)
        if not kept:
            self.leave()
        call.ended = time.monotonic()
        return call

    def leave(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _read(self, call: Call, reader: asyncio.StreamReader) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        status = int(head[0].split()[1])
        call.request_id, call.reason = fields.get("x-request-id", ""), fields.get("x-tollkeeper-reason", "")
        call.budget = fields.get("x-tollkeeper-budget", "")
        call.status = status
        leave_at = call.asked.leave_at
        if leave_at == 1:
            return False
        if "content-length" in fields:
            await reader.readexactly(int(fields["content-length"]))
            call.complete = status == 200
        else:
            pieces = 1
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                piece = (await reader.readexactly(size + 2))[:-2]
                pieces += piece.count(b"data: ")
                call.complete = call.complete or b"[DONE]" in piece
                if leave_at is not None and pieces >= leave_at:
                    return False
            await reader.readuntil(b"\r\n")
        return fields.get("connection") != "close"


def request(asked: PlannedCall) -> bytes:
    """The bytes of a call."""
    body = b"{}"
    if asked.kind in (Kind.CHAT, Kind.STREAM):
        message = {"role": "user", "content": "what is the truth of this call, and who keeps it?"}
        said = {"model": "truth", "messages": [message], "max_tokens": asked.max_tokens}
        body = json.dumps(said | ({"stream": True} if asked.kind is Kind.STREAM else {})).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in asked.fields)
    head = (
        f"POST {asked.path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {asked.key}\r\n"
        f"content-type: application/json\r\n{more}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Load:
    """So many callers at once, each making what `draw` says, until stopped.

    `calls` is what they saw, `complete` how many of these were answered completely.
    """

    ports: Sequence[Callable[[], int]]
    draw: Callable[[random.Random], PlannedCall]
    seed: int
    callers: int = 8
    pause_s: float = 0.0
    calls: list[Call] = field(default_factory=list)
    complete: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._go(number)) for number in range(self.callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more(self, count: int, within_s: float = MORE_S_MAX) -> None:
        """Wait until so many more calls were answered completely."""
        wanted = self.complete + count
        async with asyncio.timeout(within_s):
            while self.complete < wanted:
                await asyncio.sleep(0.01)

    async def _go(self, number: int) -> None:
        draw = random.Random(f"{self.seed} {number}")
        caller = Caller(self.ports[number % len(self.ports)])
        while not self._stop.is_set():
            call = await caller.call(self.draw(draw))
            self.calls.append(call)
            self.complete += call.complete
            if call.status != 200:
                await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)
            elif self.pause_s:
                await asyncio.sleep(draw.uniform(0, 2 * self.pause_s))
        caller.leave()
