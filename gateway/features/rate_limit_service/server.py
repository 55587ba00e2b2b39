"""The gRPC server of `tollkeeper rls`, and its HTTP client for the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from gateway.core.circuit_breaker import is_worth_a_line
from gateway.errors import StartError
from gateway.features.rate_limit_service.judge import HoldsReply, RateLimitJudge
from gateway.features.rate_limit_service.messages import (
    REQUEST_BYTES_MAX,
    RateLimitQuestion,
    read_commit,
    read_request,
    read_reserve,
)
from gateway.features.rate_limit_service.table import RateLimitTable, RateLimitTls
from gateway.files import read_regular
from gateway.outbound.client import read_most
from gateway.run.lifecycle import stop_signal
from gateway.telemetry import logs

# Concurrent requests. Further ones are answered as if the gateway were unavailable.
CALLS_MAX: Final = 1_000
# Concurrent streams. gRPC refuses further ones.
STREAMS_MAX: Final = 10 * CALLS_MAX
CONNECTIONS_MAX: Final = 256
PEM_BYTES_MAX: Final = 256 << 10
ANSWER_BYTES_MAX: Final = 256 << 10
STOP_S_MAX: Final = 10.0
SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
KUADRANT: Final = "kuadrant.service.ratelimit.v1.RateLimitService"
HEALTH: Final = "grpc.health.v1.Health"
_SERVING: Final = b"\x08\x01"
_OPTIONS: Final = (("grpc.max_receive_message_length", REQUEST_BYTES_MAX), ("grpc.so_reuseport", 0))


async def serve(table: RateLimitTable, listen: str) -> None:
    """Serve until a stop signal. Requests in progress are answered."""
    log, stop, failures = logs.logger("rls"), stop_signal(), 0
    timeout = ClientTimeout(total=table.timeout_s)
    connector = TCPConnector(limit=CONNECTIONS_MAX)

    def failed(what: str) -> None:
        nonlocal failures
        failures += 1
        if is_worth_a_line(failures):
            log("not settled, and charged as held", what=what, failures=failures, level="warning")

    async with ClientSession(connector=connector, timeout=timeout, cookie_jar=DummyCookieJar()) as session:
        base = table.gateway.rstrip("/")

        async def ask(method: str, path: str, headers: Mapping[str, str], body: bytes) -> HoldsReply | None:
            try:
                async with session.request(
                    method, base + path, headers=headers, data=body, allow_redirects=False
                ) as reply:
                    read = await read_most(reply, ANSWER_BYTES_MAX + 1)
                    if len(read) > ANSWER_BYTES_MAX:
                        return None
                    told = {name.lower(): value for name, value in reply.headers.items()}
                    return HoldsReply(reply.status, told, read)
            except (ClientError, OSError, TimeoutError):
                return None

        questions, judge = _Questions(), RateLimitJudge(table, ask, failed)
        answer = questions.answers
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=STREAMS_MAX)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE, {"ShouldRateLimit": answer(read_request, judge.judge, judge.busy)}
                ),
                grpc.method_handlers_generic_handler(
                    KUADRANT,
                    {
                        "CheckRateLimit": answer(read_request, judge.check, judge.busy),
                        "Report": answer(read_request, judge.report, judge.busy),
                        "Reserve": answer(read_reserve, judge.reserve, judge.too_busy_to_reserve),
                        "Commit": answer(read_commit, judge.commit, judge.too_busy_to_commit),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    HEALTH, {"Check": grpc.unary_unary_rpc_method_handler(_well)}
                ),
            )
        )
        try:
            if table.tls is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, _credentials(table.tls))
        except RuntimeError as error:
            raise StartError(f"--listen {listen}: cannot be listened on") from error
        await server.start()
        log("listening", port=port, gateway=base, rules=len(table.rules))
        await stop.wait()
        await server.stop(STOP_S_MAX)
        await questions.end()


def _credentials(tls: RateLimitTls) -> grpc.ServerCredentials:
    try:
        key, certificate = (read_regular(path, PEM_BYTES_MAX) for path in (tls.key_file, tls.cert_file))
        clients = read_regular(tls.client_ca_file, PEM_BYTES_MAX) if tls.client_ca_file else None
    except OSError as error:
        raise StartError(f"tls: {error.filename} cannot be read ({error.strerror})") from error
    return grpc.ssl_server_credentials([(key, certificate)], clients, require_client_auth=clients is not None)


class _Questions:
    """Requests in progress. Each is completed even if Envoy disconnects, so that its holds are settled."""

    def __init__(self) -> None:
        self._going = set[asyncio.Future[bytes]]()

    def answers(
        self,
        read: Callable[[bytes], RateLimitQuestion],
        judge: Callable[[RateLimitQuestion], Awaitable[bytes]],
        busy: Callable[[RateLimitQuestion], bytes],
    ) -> grpc.RpcMethodHandler:
        """Return the gRPC handler of a kind of request: `read` parses it, and `judge` makes the answer.

        If too many are in progress, `busy` makes the answer instead.
        """

        async def answer(raw: bytes, context: Any) -> bytes:
            try:
                asked = read(raw)
            except ValueError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"this cannot be read: {error}")
                raise
            if len(self._going) >= CALLS_MAX:
                return busy(asked)
            going = asyncio.ensure_future(judge(asked))
            self._going.add(going)
            going.add_done_callback(self._going.discard)
            return await asyncio.shield(going)

        return grpc.unary_unary_rpc_method_handler(answer)

    async def end(self) -> None:
        """Wait for the requests in progress. Each is bounded in time and tries."""
        if self._going:
            await asyncio.wait(self._going, timeout=STOP_S_MAX)


async def _well(_: bytes, __: Any) -> bytes:
    """Answer health checks with `SERVING`: only this process is checked."""
    return _SERVING
