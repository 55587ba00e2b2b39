"""Listening on the admin port: bounds on heads and idle connections, an orderly stop."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

KEEPALIVE_S = 30.0
SHUTDOWN_S = 10.0
LINE_BYTES_MAX = 8 * 1024
FIELD_BYTES_MAX = 16 * 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """A listening server; `port` is the one it really got."""

    port: int
    runner: web.AppRunner

    async def stop(self) -> None:
        """Stop accepting, let running requests finish, close."""
        await self.runner.cleanup()


async def listen(app: web.Application, host: str, port: int) -> Listening:
    """Serve the application; port 0 is any free one. `OSError` if the port is taken."""
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=FIELD_BYTES_MAX,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return Listening(int(runner.addresses[0][1]), runner)
