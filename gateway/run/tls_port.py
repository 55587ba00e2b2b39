"""TLS of one of our ports, where settings name a certificate; read again when its files change.

Part of the composition root: doors that listen are handed what wraps their protocols, and know nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.run.reload import LOOK_S
from gateway.settings.secret_files import Watched
from gateway.settings.settings import PREFIX, Settings
from gateway.settings.tls_names import PREFIXES
from gateway.tls.certificates import Certificates
from gateway.tls.gate import Gate

Made = Callable[[], Any]


class TlsPort:
    """A port, `gateway`, `admin` or `ops`, with TLS or without. Made inside a running event loop.

    `SettingError` where a file of it cannot be used.
    """

    def __init__(
        self, settings: Settings, port: str, log: Callable[..., None], *, look_s: float = LOOK_S
    ) -> None:
        self._port, self._log, self._look_s = port, log, look_s
        self._watched = Watched()
        files = settings.tls_files(port)
        prefix = PREFIX + PREFIXES[port].upper()
        self._gate = Gate(port, Certificates(files, prefix)) if files is not None else None
        self.renew(settings)

    @property
    def on(self) -> bool:
        """Whether it speaks TLS."""
        return self._gate is not None

    @property
    def wrapped(self) -> Callable[[Made], Made] | None:
        """What puts TLS in front of a protocol; None where there is none."""
        return self._gate.wrapped if self._gate is not None else None

    def renew(self, settings: Settings) -> None:
        """Go by these bounds from the next connection on."""
        if self._gate is not None:
            self._gate.bound(settings.http.tls_handshake_s, settings.http.tls_handshakes_max)

    def snapshot(self) -> dict[str, Any]:
        """What metrics say of it."""
        return self._gate.snapshot() if self._gate is not None else {}

    async def run(self) -> None:
        """Have a new certificate in use within seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            certificates = self._gate.certificates if self._gate is not None else None
            if certificates is not None and await asyncio.to_thread(
                self._watched.changed, certificates.paths
            ):
                await self._read(certificates)

    async def _read(self, certificates: Certificates) -> None:
        before = certificates.content
        await asyncio.to_thread(certificates.renew)
        if certificates.stale:
            why = certificates.stale
            self._log("the certificate is kept as it was", port=self._port, why=why, level="error")
        elif certificates.content != before:
            self._log("certificate read again", port=self._port)
