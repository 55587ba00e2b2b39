"""A client of holds: `Holds` for plain programs, `AsyncHolds` for those with an event loop.

It needs Python's own library alone, and imports nothing of the gateway. A request whose answer is lost is
sent again: creating a hold has an `Idempotency-Key`, and settling twice settles once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit
from uuid import uuid4

PATH: Final = "/.tollkeeper/holds"
TIMEOUT_S: Final = 10.0
# How often a request is sent, and the pause between.
TRIES_MAX: Final = 4
PAUSE_S: Final = 0.2
# Idle connections at most.
IDLE_MAX: Final = 32
# The largest answer that is read.
ANSWER_BYTES_MAX: Final = 1 << 20
_UNAVAILABLE: Final = 503
_NO_CONTENT: Final = 204


class HoldRefused(Exception):  # refusals are named so everywhere here
    """A refused hold: its status, reason and detail, and the seconds until a retry may help, if known."""

    def __init__(self, status: int, reason: str, detail: str, retry_after_s: int | None) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status, self.reason, self.detail, self.retry_after_s = status, reason, detail, retry_after_s


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """An answer of the gateway: its status, its reason, the seconds until a retry, and its JSON document."""

    status: int
    reason: str
    retry_after_s: int | None
    document: dict[str, Any]


class _Connections:
    """Connections to one gateway, for any number of threads."""

    def __init__(self, url: str, key: str, timeout_s: float, pause: Callable[[float], None]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"the gateway's URL must be http:// or https://, not {url}")
        self._of = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._place, self._prefix = (parts.hostname, parts.port), parts.path.rstrip("/")
        self._key, self._timeout_s, self._pause = key, timeout_s, pause
        self._idle: list[HTTPConnection] = []

    def ask(
        self, method: str, path: str, body: object = None, tries: int = TRIES_MAX, **headers: str
    ) -> dict[str, Any]:
        """Send a request, up to `tries` times if the answer is lost or 503; return the answer's JSON object.

        Raise `HoldRefused` for a status other than 2xx. With `tries` 1 a new connection is used, because an
        idle one may be closed already.
        """
        fields = {"authorization": f"Bearer {self._key}", "content-type": "application/json"} | headers
        sent = None if body is None else json.dumps(body).encode()
        for left in reversed(range(tries)):
            try:
                answer = self._once(method, f"{self._prefix}{PATH}{path}", sent, fields, new=tries == 1)
            except (OSError, HTTPException):
                if not left:
                    raise
            else:
                if answer.status < 300 and (answer.document or answer.status == _NO_CONTENT):  # it is done
                    return answer.document
                if answer.status != _UNAVAILABLE or not left:
                    detail = str(answer.document.get("detail", ""))
                    raise HoldRefused(answer.status, answer.reason, detail, answer.retry_after_s)
            self._pause(PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def settle(self, id_: str, **said: Any) -> dict[str, Any]:
        """Settle the hold with this id; `said` are the fields of the request, such as `usage` and `cost`."""
        return self.ask("POST", f"/{id_}/settle", _without_nulls(said))

    def _once(
        self, method: str, path: str, body: bytes | None, fields: Mapping[str, str], *, new: bool
    ) -> HoldAnswer:
        """Send a request once, on an idle connection unless `new`, and return the answer."""
        idle = self._idle and not new
        connection = self._idle.pop() if idle else self._of(*self._place, timeout=self._timeout_s)
        try:
            connection.request(method, path, body, dict(fields))
            answer = connection.getresponse()
            raw = answer.read(ANSWER_BYTES_MAX)
        except (OSError, HTTPException):
            connection.close()
            raise
        if answer.will_close or len(self._idle) >= IDLE_MAX:
            connection.close()
        else:
            self._idle.append(connection)
        after = answer.getheader("retry-after", "")
        return HoldAnswer(
            answer.status, answer.getheader("x-tollkeeper-reason", ""),
            int(after) if after.isdigit() else None,
            _document(raw) if answer.status != _NO_CONTENT else {},
        )  # fmt: skip

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Hold:
    """One hold: its amount, the rest of its limit, and its end. A `with` block releases it unless settled."""

    def __init__(self, connections: _Connections, taken: Mapping[str, Any]) -> None:
        self._connections = connections
        self.id = str(taken["id"])
        self.is_over = False
        self._learn(taken)

    def _learn(self, answer: Mapping[str, Any]) -> None:
        self.held, self.remaining, self.expires_at = answer["held"], answer["remaining"], answer["expires_at"]

    def extend(self, ttl_s: int = 60, more: int | str | None = None) -> Self:
        """Extend this hold to `ttl_s` seconds from now, and add `more` to its amount, in its unit."""
        body: dict[str, object] = {"ttl_s": ttl_s} if more is None else {"ttl_s": ttl_s, "more": more}
        tries = TRIES_MAX if more is None else 1  # a retry could raise the amount twice
        self._learn(self._connections.ask("POST", f"/{self.id}/extend", body, tries))
        return self

    def settle(
        self,
        usage: Mapping[str, Any] | None = None,
        *,
        cost: str | None = None,
        units: int | None = None,
        status: int = 200,
    ) -> dict[str, Any]:
        """Charge the usage and return the charged amounts; `cost` is money as a decimal text."""
        body = {"usage": usage, "cost": cost, "units": units, "status": status}
        answer = self._connections.settle(self.id, **body)
        self.is_over = True
        return answer

    def release(self) -> None:
        """Release this hold: its whole amount is free again, and nothing is charged."""
        self._connections.ask("DELETE", f"/{self.id}")
        self.is_over = True

    def __enter__(self) -> Self:
        """Return this hold, for the program to settle in the `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release this hold unless it was settled."""
        if not self.is_over:
            self.release()


class Holds:
    """Holds at one gateway, by one API key; for any number of threads."""

    def __init__(
        self, url: str, key: str, timeout_s: float = TIMEOUT_S, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._connections = _Connections(url, key, timeout_s, pause)

    def take(self, service: str, **said: Any) -> Hold:
        """Create a hold on the limits of a service; `said` has other fields of the request, such as `model`.

        `idempotency_key` is generated unless it is given. Raise `HoldRefused` if a limit refuses the hold.
        """
        key = said.pop("idempotency_key", None) or str(uuid4())
        body = _without_nulls({"service": service} | said)
        fields = {"idempotency-key": key}
        return Hold(self._connections, self._connections.ask("POST", "", body, TRIES_MAX, **fields))

    def settle(self, id_: str, usage: Mapping[str, Any] | None = None, **said: Any) -> dict[str, Any]:
        """Charge the usage to a hold that another program created, by its id; return the charged amounts.

        `said` has the other arguments of `Hold.settle`, such as `cost`.
        """
        return self._connections.settle(id_, usage=usage, **said)

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.close()


class AsyncHold:
    """A hold of `AsyncHolds`. Each request runs in a thread."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    @property
    def id(self) -> str:
        """The id of the hold, and of its call in the journal."""
        return self._hold.id

    @property
    def held(self) -> int | str:
        """The amount that the hold reserves: a number of tokens or units, or money as a decimal text."""
        held: int | str = self._hold.held
        return held

    @property
    def remaining(self) -> int | str | None:
        """The rest of the limit after the hold was created or extended; None without a limit."""
        left: int | str | None = self._hold.remaining
        return left

    async def extend(self, ttl_s: int = 60, more: int | str | None = None) -> Self:
        """Extend the hold to `ttl_s` seconds from now, and add `more` to its amount, as `Hold.extend`."""
        await asyncio.to_thread(self._hold.extend, ttl_s, more)
        return self

    async def settle(self, usage: Mapping[str, Any] | None = None, **said: Any) -> dict[str, Any]:
        """Charge the usage, and return the charged amounts, as `Hold.settle`."""
        return await asyncio.to_thread(self._hold.settle, usage, **said)

    async def release(self) -> None:
        """Release the whole amount without a charge, as `Hold.release`."""
        await asyncio.to_thread(self._hold.release)

    async def __aenter__(self) -> Self:
        """Return this hold, for the program to settle in the `async with` block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release this hold unless it was settled."""
        if not self._hold.is_over:
            await self.release()


class AsyncHolds:
    """Holds at one gateway, by one API key, for programs with an event loop."""

    def __init__(self, url: str, key: str, timeout_s: float = TIMEOUT_S) -> None:
        self._holds = Holds(url, key, timeout_s)

    async def take(self, service: str, **said: Any) -> AsyncHold:
        """Create a hold on the limits of a service without blocking the event loop, as `Holds.take`."""
        return AsyncHold(await asyncio.to_thread(self._holds.take, service, **said))

    async def settle(self, id_: str, usage: Mapping[str, Any] | None = None, **said: Any) -> dict[str, Any]:
        """Charge the usage to a hold that another program created, by its id, as `Holds.settle`."""
        return await asyncio.to_thread(self._holds.settle, id_, usage, **said)

    def close(self) -> None:
        """Close the idle connections."""
        self._holds.close()


def _document(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of an answer; {} if the answer is something else, such as a proxy's page."""
    try:
        document = json.loads(raw) if raw else {}
    except ValueError:
        document = {}
    return document if isinstance(document, dict) else {}


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
