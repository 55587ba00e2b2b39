"""Agents: people sign programs such as Claude Code in, and the programs renew their keys by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.features.agents.settings import AgentsSettings
from gateway.features.record import Feature

if TYPE_CHECKING:
    from gateway.core.calls.routes import Route
    from gateway.http.ports import Answerer, Log
    from gateway.run.keeper_parts import AdminParts, Routes
    from gateway.settings.settings import Settings


def _routes(parts: AdminParts) -> Routes | None:
    settings, own = parts.settings, parts.settings.select(AgentsSettings)
    if not own.agents:
        return None
    from functools import partial  # of people's processes alone

    from gateway.features.agents.api import mount_agents
    from gateway.run.keeper_parts import Routes

    calls, console, policy = settings.calls_url, settings.links_url, own.agents_settings_file
    mount = partial(mount_agents, calls=calls, console=console, policy=policy)
    return Routes(mount=mount)


def _answers(settings: Settings, log: Log) -> Mapping[Route, Answerer]:
    if not settings.select(AgentsSettings).agents_keeper_url:
        return {}
    from gateway.features.agents.gateway import answers  # of the gateways that want it alone

    return answers(settings, log)


def _settings_here(settings: Settings, admin_url: str) -> Mapping[str, str]:
    """Return the keeper that agents are passed on to, unless a setting names it.

    Agents know only one origin, and a certificate of ours is not trusted everywhere.
    """
    own = settings.select(AgentsSettings)
    is_found = own.agents and not own.agents_keeper_url and settings.tls_files("admin") is None
    return {"agents_keeper_url": admin_url} if is_found else {}


FEATURE = Feature(
    name="agents",
    tables=("agent_sign_in",),
    settings=AgentsSettings,
    settings_here=_settings_here,
    has_templates=True,
    routes=_routes,
    answers=_answers,
)
