"""What holds for every answer of the admin port: errors as problems, time bounds, headers, request ids."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.admin.http.answers import Answers
from gateway.admin.http.auth import slow_down
from gateway.admin.http.metered import Metered
from gateway.admin.http.nearest import nearest
from gateway.admin.http.problem import problem, refusal
from gateway.admin.http.server import HELD
from gateway.core.accounts.hours import METER, Meter
from gateway.core.failures import Failures
from gateway.errors import TollkeeperError, Unauthorized

REQUEST_ID = web.RequestKey("request_id", str)
# The bound on a request's time; a long answer moves it on with each piece.
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
    """Make the outermost middleware; `failures` counts wrong credentials, `answers` all that is answered.

    Paths that are sent more than others have their bytes in `larger`, and read them themselves.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[REQUEST_ID] = str(uuid4())
        began = time.monotonic()
        bytes_max = larger.get(request.path, request.client_max_size)
        if (request.content_length or 0) > bytes_max:
            response: web.StreamResponse = _too_large(request.path)
        else:
            response = await _answer(request, handler, request_timeout_s, failures)
        answers.note(request.path, response.status, time.monotonic() - began)
        response.headers["x-request-id"] = request[REQUEST_ID]
        response.headers["Server"] = "tollkeeper"
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guarded


async def _answer(
    request: web.Request, handler: Handler, timeout_s: float, failures: Failures
) -> web.StreamResponse:
    path, meter = request.path, Meter()
    METER.set(meter)  # of this request: each is begun by one of its own
    try:
        async with AsyncExitStack() as held, asyncio.timeout(timeout_s) as deadline:
            request[HELD], request[DEADLINE] = held, deadline
            return await Metered(_begun(handler, request), meter)
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
        said = "There is nothing at this address." + (f" Did you mean {meant}?" if meant else "")
        return problem(404, "not_found", said, instance=path)
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
