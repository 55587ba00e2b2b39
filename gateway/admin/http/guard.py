"""The rules for every answer of the admin port: errors as problems, timeouts, headers, request ids, files."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack, aclosing
from contextvars import Context
from functools import partial
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.admin.http.answers import Answers
from gateway.admin.http.callers import slow_down
from gateway.admin.http.problems import CONTENT_TYPE, problem, refusal
from gateway.admin.http.server import HELD
from gateway.admin.http.work_slots import ConcurrencyLimits, WorkSlots
from gateway.core.accounts.administration import Actor
from gateway.core.accounts.hourly_budget import METER, WorkMeter
from gateway.core.failures import Failures
from gateway.core.text import read_json
from gateway.errors import TollkeeperError, Unauthorized

# Counts the CPU time of a request: in its own steps, in tasks, and in threads.
#
# A step of a coroutine is timed by its thread's CPU clock, so it does not include the work of others.

P = ParamSpec("P")
T = TypeVar("T")


class MeteredCoroutine(Coroutine[Any, Any, T]):
    __slots__ = ("_inner", "_meter")

    def __init__(self, inner: Coroutine[Any, Any, T], meter: WorkMeter) -> None:
        self._inner, self._meter = inner, meter

    def send(self, value: Any) -> Any:
        began = time.thread_time()
        try:
            return self._inner.send(value)
        finally:
            _count(self._meter, began)

    def throw(self, *error: Any) -> Any:
        began = time.thread_time()
        try:
            return self._inner.throw(*error)
        finally:
            _count(self._meter, began)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Generator[Any, Any, T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_task_factory(_task)


def _task(
    loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None, **named: Any
) -> asyncio.Future[Any]:
    meter = METER.get() if context is None else context.get(METER)
    counted = work if meter is None else MeteredCoroutine(work, meter)
    return asyncio.Task(counted, loop=loop, context=context, **named)


async def in_thread(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Run work in a thread and return its result; the caller's meter counts the CPU time.

    A cancelled caller waits until the thread has ended, so resources count as used until then. The work must
    be bounded, as nothing ends a thread early.
    """
    running = asyncio.ensure_future(asyncio.to_thread(_counted, METER.get(), partial(work, *given, **named)))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()


def _counted(meter: WorkMeter | None, work: Callable[[], T]) -> T:
    began = time.thread_time()
    try:
        return work()
    finally:
        if meter is not None:
            _count(meter, began)


def _count(meter: WorkMeter, began: float) -> None:
    if meter.hour is not None:
        meter.hour.cpu_s += time.thread_time() - began


# A suggestion of the probable path, for a path that does not exist.

# Longer paths are not compared, as nobody typed them.
PATH_CHARS_MAX = 128
# The least similarity of a path, without the common beginning, from 0 to 1.
ALIKE_MIN = 0.75
BEGINNING = "/admin/v1/"
_NUMBER = re.compile(r"(?<=/)\d+(?=/|$)")


def nearest(app: web.Application, path: str) -> str:
    """Return the most similar path template of the API; "" if none is similar."""
    if len(path) > PATH_CHARS_MAX:
        return ""
    asked = _NUMBER.sub("{id}", path.rstrip("/"))
    served = {resource.canonical for resource in app.router.resources()}
    beginning = BEGINNING if asked.startswith(BEGINNING) else ""
    alike = [
        path.removeprefix(beginning)
        for path in sorted(served)
        if path.startswith(beginning) and path.count("/") == asked.count("/")
    ]
    close_matches = difflib.get_close_matches(asked.removeprefix(beginning), alike, 1, ALIKE_MIN)
    return beginning + close_matches[0] if close_matches else ""


REQUEST_ID = web.RequestKey("request_id", str)
# Renders an error as a page for browsers, where pages are served; None leaves it unchanged.
AS_PAGE: web.AppKey[Callable[[web.Request, web.Response], web.Response | None]] = web.AppKey("as_page")
# Converts the problem of a request's error to another format; unset: the problem is sent.
Shape = Callable[[Mapping[str, Any]], dict[str, Any]]
SHAPE: web.RequestKey[Shape] = web.RequestKey("shape")
# The timeout of a request; a long answer extends it with each piece.
DEADLINE = web.RequestKey("deadline", asyncio.Timeout)

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-store",
}

NONE_LARGER: Mapping[str, int] = {}

_log = logging.getLogger("tollkeeper.admin")


def guard(
    *,
    request_timeout_s: float,
    failures: Failures,
    answers: Answers,
    larger: Mapping[str, int] = NONE_LARGER,
) -> Middleware:
    """Return the outermost middleware; `failures` counts wrong credentials, `answers` all answers.

    `larger` are the maximum body bytes of paths with large bodies, whose handlers read the body themselves.
    """

    @web.middleware
    async def answer_guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request with the headers and the format that all answers have, and count it."""
        request[REQUEST_ID] = str(uuid4())
        began = time.monotonic()
        bytes_max = larger.get(request.path, request.client_max_size)
        if (request.content_length or 0) > bytes_max:
            response: web.StreamResponse = _too_large(request.path)
        else:
            response = await _answer(request, handler, request_timeout_s, failures)
        if (page := request.app.get(AS_PAGE)) is not None and response.content_type == CONTENT_TYPE:
            assert isinstance(response, web.Response)
            response = page(request, response) or response
        if (shape := request.get(SHAPE)) is not None and response.content_type == CONTENT_TYPE:
            assert isinstance(response, web.Response)
            response.text = json.dumps(shape(read_json(response.text or "")))
            response.content_type = "application/json"
        answers.note(request.path, response.status, time.monotonic() - began)
        response.headers["x-request-id"] = request[REQUEST_ID]
        response.headers["Server"] = "tollkeeper"
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return answer_guarded


async def _answer(
    request: web.Request, handler: Handler, timeout_s: float, failures: Failures
) -> web.StreamResponse:
    """Run the handler of a request; return an answer for each error that it raises or a passed deadline."""
    path, meter = request.path, WorkMeter()
    METER.set(meter)  # of this request: each is begun by one of its own
    try:
        async with AsyncExitStack() as held, asyncio.timeout(timeout_s) as deadline:
            request[HELD], request[DEADLINE] = held, deadline
            return await MeteredCoroutine(_begun(handler, request), meter)
    except Unauthorized as error:
        await slow_down(failures, request, error.failure)
        return refusal(error, instance=path)
    except TollkeeperError as error:
        return refusal(error, instance=path)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return problem(
            405,
            "method_not_allowed",
            f"This path accepts {allowed}.",
            instance=path,
            headers={"Allow": allowed},
        )
    except web.HTTPRequestEntityTooLarge:
        return _too_large(path)
    except (web.RequestPayloadError, ConnectionResetError):
        return problem(400, "invalid_request", "The body did not arrive in one piece.", instance=path)
    except web.HTTPNotFound:
        meant = nearest(request.app, path)
        message = "There is nothing at this address." + (f" Did you mean {meant}?" if meant else "")
        return problem(404, "not_found", message, instance=path)
    except web.HTTPException as error:
        if error.status < 400:
            return error
        return problem(error.status, "invalid_request", error.reason, instance=path)
    except TimeoutError:
        return problem(
            503, "timeout", "This took too long; a write may have been done.", instance=path,
            headers={"Retry-After": "1"},
        )  # fmt: skip
    except Exception:  # noqa: BLE001  # the last line of defence: logged, answered, never a torn connection
        _log.exception("admin request failed", extra={"request_id": request[REQUEST_ID], "path": path})
        return problem(500, "internal_error", "Something went wrong; the log says what.", instance=path)


async def _begun(handler: Handler, request: web.Request) -> web.StreamResponse:
    return await handler(request)


def _too_large(path: str) -> web.Response:
    return problem(413, "request_too_large", "The body is larger than is accepted here.", instance=path)


# Downloads in pieces: a limited number at once, and an interrupted one never looks complete.

CSV = "text/csv; charset=utf-8"
# Maxima for files of all kinds. Each uses a connection to PostgreSQL until its reader has all of it.
ROOM = ConcurrencyLimits(staff_max=4, own_max=1, others_max=3, waiting_max=4)


class Files:
    """Sends downloads; `piece_s` is the maximum of seconds between two pieces."""

    def __init__(self, piece_s: float, room: ConcurrencyLimits = ROOM) -> None:
        self._piece_s = piece_s
        self._places = WorkSlots(room)

    async def answer(
        self, request: web.Request, actor: Actor, name: str, media: str, pieces: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Send the pieces as they are made; an error before the first one is answered like any other."""
        async with self._places.of(actor.organization_id), aclosing(pieces):
            first = await anext(pieces)
            response = web.StreamResponse(headers=headers_of(name, media))
            await response.prepare(request)
            whole = False
            try:
                await response.write(first)
                async for piece in pieces:
                    await response.write(piece)
                    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + self._piece_s)
                await response.write_eof()
                whole = True
            finally:
                # An interrupted file must not look complete.
                if not whole and request.transport is not None:
                    request.transport.abort()
            return response


_FILES = web.AppKey("files", Files)


def files_of(app: web.Application, piece_s: float) -> Files:
    """Return the `Files` of an application; all its downloads share one limit."""
    if _FILES not in app:
        app[_FILES] = Files(piece_s)
    return app[_FILES]


def headers_of(name: str, media: str) -> dict[str, str]:
    return {"Content-Type": media, "Content-Disposition": f'attachment; filename="{name}"'}
