"""What a keeper lends its features; the work that each adds to its loops, and the routes to its admin port.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.admin.ports import Mount, MountFiles
from gateway.background.loops import Isolation, Loop
from gateway.run.keeper_doors import KeeperSettings
from gateway.settings.settings import Settings
from persistence.engine import Engine
from persistence.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperParts:
    """The doors of a keeper. `later` has the settings that may change while it runs."""

    settings: Settings
    later: KeeperSettings
    engine: Engine
    store: Store
    isolation: Isolation
    log: Callable[..., None]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Loops and tasks that run until they are cancelled; gauges are asked at times, for metrics."""

    loops: Sequence[Loop] = ()
    tasks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    # Joins the housekeeping, which is once an hour.
    hourly: Sequence[Callable[[], Awaitable[object]]] = ()
    gauges: Sequence[Callable[[], Awaitable[Mapping[str, object]]]] = ()
    aclose: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """The doors of a keeper's process for people, as `KeeperParts` are those of its loops."""

    settings: Settings
    later: KeeperSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Routes of the admin port, and `files` that the console has too; `aclose` is called at the end."""

    mount: Mount | None = None
    files: MountFiles | None = None
    aclose: Callable[[], Awaitable[None]] = _nothing
