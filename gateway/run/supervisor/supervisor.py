"""The running children of one data directory: who they are, and the order in which they stop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from gateway.errors import StartError
from gateway.local import leftovers
from gateway.local.announce import Voice
from gateway.local.child import Child, Program
from gateway.local.data_directory import DataDirectory
from gateway.local.ports import HeldPort


class Supervisor:
    """The running children of one data directory, in the order they are stopped."""

    STOP_ORDER = ("gateway", "demo upstream", "keeper", "redis", "postgres")

    def __init__(self, data: DataDirectory, voice: Voice) -> None:
        self.data = data
        self.voice = voice
        self.held: HeldPort | None = None
        self._children: list[tuple[str, Child]] = []
        self._complete = False

    async def run(self, role: str, program: Program) -> None:
        """Start a program and keep it running until `stop`."""
        child = Child(program, self.voice.say, self._note)
        self._children.append((role, child))
        try:
            await child.start()
        except StartError:
            self._children.remove((role, child))
            raise

    async def tell(self, role: str, line: bytes) -> None:
        """Tell every program of a role other settings."""
        await asyncio.gather(*(child.tell(line) for child in self.children(role)))

    def pids(self) -> dict[str, Any]:
        """Current process ids by role; None for what is not run here or is just starting again."""

        def of(role: str) -> list[int]:
            return [child.pid for child in self.children(role) if child.pid is not None]

        return {
            "gateway": of("gateway"),
            **{role: next(iter(of(role)), None) for role in ("keeper", "redis", "postgres")},
        }

    def children(self, role: str) -> list[Child]:
        """Those of a role."""
        return [child for each, child in self._children if each == role]

    async def stop(self) -> None:
        """Stop all children, role by role. The gateway's port is its workers' alone from now on."""
        if self.held is not None:
            self.held.close()
        for role in self.STOP_ORDER:
            async with AsyncExitStack() as stack:
                for each, child in self._children:
                    if each == role:
                        stack.push_async_callback(child.stop)
        for name in ("pids.json", "processes.json"):
            self.data.forget(name)

    def _note(self) -> None:
        self.data.write("pids.json", self.pids())
        ours = [
            leftovers.noted(child.pid) for role, child in self._children if role not in {"redis", "postgres"}
        ]
        self.data.write("processes.json", {"programs": [note for note in ours if note]})
