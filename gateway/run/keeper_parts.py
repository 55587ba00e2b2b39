"""The parts of a keeper that features use, and those that they hand over to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.background.loops import Isolation, Loop
from gateway.counters.keeper.client import Client
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import Settings
from persistence.engine import Engine
from persistence.store import Store

if TYPE_CHECKING:
    from gateway.admin.ports import Checkout, Mount, MountFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperParts:
    """The parts of a keeper that features may use. `later` has the settings that may change."""

    settings: Settings
    later: KeeperSettings
    engine: Engine
    store: Store
    counters: Client
    isolation: Isolation
    log: Callable[..., None]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A feature's loops and tasks, which run until cancelled, and its gauges for metrics."""

    loops: Sequence[Loop] = ()
    tasks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    # Runs with the housekeeping, once an hour.
    hourly: Sequence[Callable[[], Awaitable[object]]] = ()
    gauges: Sequence[Callable[[], Awaitable[Mapping[str, object]]]] = ()
    aclose: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminParts:
    """The parts of a keeper's process for people that features may use."""

    settings: Settings
    later: KeeperSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """A feature's routes of the admin port, its files for the console, and its checkout for customers.

    `aclose` is called when the process stops.
    """

    mount: Mount | None = None
    files: MountFiles | None = None
    checkout: Checkout | None = None
    aclose: Callable[[], Awaitable[None]] = _nothing
