"""Agents: people sign programs such as Claude Code in, and the programs renew their keys by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.features.record import Feature

if TYPE_CHECKING:
    from gateway.core.calls.routes import Route
    from gateway.http.ports import Answerer, Log
    from gateway.run.keeper_parts import AdminParts, Routes
    from gateway.settings.settings import Settings


def _routes(parts: AdminParts) -> Routes | None:
    settings = parts.settings
    if not settings.agents:
        return None
    from functools import partial  # of people's processes alone

    from gateway.features.agents.api import mount_agents
    from gateway.run.keeper_parts import Routes

    calls, console, policy = settings.calls_url, settings.links_url, settings.agents_settings_file
    mount = partial(mount_agents, calls=calls, console=console, policy=policy)
    return Routes(mount=mount)


def _answers(settings: Settings, log: Log) -> Mapping[Route, Answerer]:
    if not settings.agents_keeper_url:
        return {}
    from gateway.features.agents.gateway import answers  # of the gateways that want it alone

    return answers(settings, log)


FEATURE = Feature(
    name="agents",
    tables=("agent_sign_in",),
    settings=("agents", "agents_settings_file", "agents_keeper_url", "agents_collector_url"),
    routes=_routes,
    answers=_answers,
)
