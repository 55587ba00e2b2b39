"""The admin port of a keeper: what listens there, and its built-in tokens, read again from their files.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.admin.application import build
from gateway.admin.http.answers import Answers
from gateway.admin.http.server import Listening, listen
from gateway.admin.ports import AdminPorts, BuiltIn
from gateway.errors import SettingError
from gateway.run.tls_port import TlsPort
from gateway.run.vitals import ProcessVitals
from gateway.run.watching import LOOK_S, watch
from gateway.settings.settings import Settings, reread

# The settings of the built-in tokens, each by the role it is for.
TOKENS = {"admin_token": "admin", "readonly_token": "readonly"}


class AdminPort:
    """Listens once told to; `built_in` has the tokens of now, once `run` is kept going."""

    def __init__(self, settings: Settings, log: Callable[..., None], *, look_s: float = LOOK_S) -> None:
        self._log, self._look_s = log, look_s
        self.built_in = BuiltIn(settings.admin_token or None, settings.readonly_token or None)
        self._files = {name: path for name, path in settings.secret_files if name in TOKENS}
        self._tls = TlsPort(settings, "admin", log, look_s=look_s)
        self._listening: Listening | None = None
        self._answers, self.vitals = Answers(), ProcessVitals("admin")

    async def open(self, ports: AdminPorts, sockets: Sequence[socket.socket]) -> None:
        """Listen on what is bound already."""
        app = build(replace(ports, answers=self._answers))
        self._listening = await listen(app, sockets=sockets, wrapped=self._tls.wrapped)

    async def close(self) -> None:
        """Listen no more, once what is asked is answered."""
        if self._listening is not None:
            await self._listening.stop()

    def snapshot(self) -> Mapping[str, Any]:
        """What metrics say of the port."""
        return {**self._tls.snapshot(), **self._answers.snapshot(), **self.vitals.snapshot()}

    async def keep_certificate(self) -> None:
        """Look after the certificate until cancelled."""
        await self._tls.run()

    async def run(self) -> None:
        """Look after the files of the tokens, and the process, until cancelled."""
        tokens = watch(self._files.values, self._read_tokens, self._kept, look_s=self._look_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(tokens)
            group.create_task(self.vitals.keep_looking())

    def _kept(self, why: str) -> None:
        self._log("tokens are kept as they were", why=why, level="warning")

    async def _read_tokens(self) -> str:
        """Take over both tokens, or keep both and answer why."""
        now = {name: getattr(self.built_in, role) for name, role in TOKENS.items()}
        try:
            for name, path in self._files.items():
                now[name] = await asyncio.to_thread(reread, name, path)
            trouble = "both are the same" if now["admin_token"] == now["readonly_token"] else ""
        except SettingError as error:
            trouble = error.message
        if trouble:
            return trouble
        for name, role in TOKENS.items():
            if now[name] != getattr(self.built_in, role):
                setattr(self.built_in, role, now[name])
                self._log("token read again from its file", setting=name)
        return ""
