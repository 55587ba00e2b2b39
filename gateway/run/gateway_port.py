"""The port of a gateway worker: where it listens, its TLS, and other settings once it is told them.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from gateway.core.calls.call import Bounds
from gateway.http.server.server import DataPlane
from gateway.issuers.callers import TokenCallers
from gateway.local import heartbeat, ports
from gateway.run.parent_pipe import ParentPipe
from gateway.run.sent_settings import SentSettings
from gateway.run.tls_port import TlsPort
from gateway.run.vitals import ProcessVitals, limits_here
from gateway.settings.origins import origins_of
from gateway.settings.settings import Settings
from gateway.telemetry import logs


class GatewayPort:
    """Where the data plane meets clients. Made inside a running event loop."""

    def __init__(
        self, settings: Settings, plane: DataPlane, tokens: TokenCallers, log: Callable[..., None]
    ) -> None:
        self._settings, self._plane, self._tokens, self._log = settings, plane, tokens, log
        self._tls = TlsPort(settings, "gateway", log)
        self._vitals = ProcessVitals("gateway")
        self.sent = SentSettings(self._take, log)

    async def open(self, parent_pipe: ParentPipe | None) -> None:
        """Accept clients, and settings that come later."""
        settings, loop = self._settings, asyncio.get_running_loop()
        own, others = ports.given()
        if not own:
            own = [*ports.held(settings.gateway_host, settings.gateway_port, "gateway").sockets]
        await self._plane.start(own, others, wrapped=self._tls.wrapped)
        heartbeat.say_ready()
        self._log("gateway started", host=settings.gateway_host, port=settings.gateway_port, tls=self._tls.on)
        if parent_pipe is not None:
            parent_pipe.listen(lambda line: loop.call_soon_threadsafe(self.sent.hear, line))

    async def keep(self) -> None:
        """Look after the certificate, and the keys of issuers, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._tls.run())
            both.create_task(self._tokens.keep_fresh())

    async def keep_looking(self) -> None:
        """Look how late the loop is, and how many files are open, until cancelled."""
        await self._vitals.keep_looking()

    def snapshot(self) -> Mapping[str, Any]:
        """What metrics say of the port."""
        buffers = self._plane.buffers
        kept = {"buffered_bytes": buffers.used + buffers.heads, "shed": buffers.shed}
        stale = {"configuration_stale": int(self.sent.is_stale)}
        ours = {**self._plane.snapshot(), **self._vitals.snapshot(), **stale}
        return {**kept, **self._tls.snapshot(), **self._tokens.snapshot(), **ours}

    def _take(self, settings: Settings) -> None:
        bounds = Bounds(usage_tokens_max=settings.usage_tokens_max)
        # The plane first: it may refuse, and nothing has changed then.
        self._plane.renew(
            settings.routes, settings.upstreams, limits_here(settings), settings.services, bounds=bounds,
            origins=origins_of(settings.cors_origins), workloads=settings.workloads,
            accepts_tokens=bool(settings.issuers),
        )  # fmt: skip
        self._tokens.renew(settings.issuers)
        self._tls.renew(settings)
        logs.configure(settings.log_level)
        self._log("settings renewed", routes=len(settings.routes), upstreams=len(settings.upstreams))
