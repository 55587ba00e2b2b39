"""TLS of one of our ports, if settings name a certificate; its files are read again when they change.

Part of the composition root: listeners get a function that wraps their protocols, and know nothing of TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.core.times import moment_of
from gateway.run.process_vitals import limits_here
from gateway.run.reload import LOOK_S, watch
from gateway.settings.settings import PREFIX, Settings
from gateway.settings.tls_files import PREFIXES
from gateway.tls.certificates import Certificates, load
from gateway.tls.session import TlsGate

ProtocolFactory = Callable[[], Any]
# A certificate that has expired, or will so soon, is logged at the start and once an hour.
SOON_S = 14 * 86_400.0
SAY_S = 3_600.0


class TlsPort:
    """TLS of one port (`gateway`, `admin` or `ops`), if configured; to be made inside a running event loop.

    `SettingError` if one of its files cannot be used.
    """

    def __init__(
        self, settings: Settings, port: str, log: Callable[..., None], *, look_s: float = LOOK_S,
        say_s: float = SAY_S,
    ) -> None:  # fmt: skip
        self._port, self._log, self._look_s, self._say_s = port, log, look_s, say_s
        files = settings.tls_files(port)
        self._gate = TlsGate(port, Certificates(files, _prefix_of(port))) if files is not None else None
        self.renew(settings)

    @property
    def on(self) -> bool:
        return self._gate is not None

    @property
    def wrapped(self) -> Callable[[ProtocolFactory], ProtocolFactory] | None:
        """A function that wraps a protocol factory in TLS; None without TLS."""
        return self._gate.wrapped if self._gate is not None else None

    def renew(self, settings: Settings) -> None:
        if self._gate is not None:
            limits = limits_here(settings)
            self._gate.bound(limits.tls_handshake_s, limits.tls_handshakes_max)

    def snapshot(self) -> dict[str, Any]:
        return self._gate.snapshot() if self._gate is not None else {}

    async def run(self) -> None:
        """Reload a changed certificate within seconds, until cancelled."""
        paths = self._gate.certificates.paths if self._gate is not None else ()
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(lambda: paths, self._read, self._warn_kept, look_s=self._look_s))
            group.create_task(self._keep_saying())

    async def _keep_saying(self) -> None:
        while True:
            self._say_ends()
            await asyncio.sleep(self._say_s)

    def _say_ends(self) -> None:
        """Log certificates that have expired or will soon, with the setting that names each."""
        gate = self._gate
        if gate is None:
            return
        for whose, end in gate.ends():
            left_s = end - gate.wall()
            if left_s < SOON_S:
                setting = "CLIENT_CA_FILE" if whose.endswith("clients") else "CERT_FILE"
                self._log(
                    "a certificate has ended" if left_s < 0 else "a certificate ends soon", port=self._port,
                    setting=_prefix_of(self._port) + setting, ends=moment_of(int(end * 1000)).isoformat(),
                    do="put a new one there: it is in use within seconds",
                    level="error" if left_s < 0 else "warning",
                )  # fmt: skip

    def _warn_kept(self, why: str) -> None:
        self._log("the certificate is kept as it was", port=self._port, why=why, level="error")

    async def _read(self) -> str:
        """Read the certificates again; return why the present ones are stale, or ""."""
        if self._gate is None:
            return ""
        certificates = self._gate.certificates
        before = certificates.content
        await asyncio.to_thread(certificates.renew)
        if not certificates.stale and certificates.content != before:
            self._log("certificate read again", port=self._port)
            self._say_ends()
        return certificates.stale


def check_files(settings: Settings, *ports: str) -> None:
    """Raise `SettingError` if a TLS file of these ports cannot be used."""
    for port in ports:
        files = settings.tls_files(port)
        if files is not None:
            load(files, _prefix_of(port))


def _prefix_of(port: str) -> str:
    """Return the prefix of a port's TLS settings."""
    return PREFIX + PREFIXES[port].upper()
