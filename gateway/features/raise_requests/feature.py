"""Raise requests: people ask for more of a budget, and somebody who may raise it decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    from gateway.admin.console.screens import Screen
    from gateway.admin.resources.resource import Resource
    from gateway.core.alerts.messages import Delivery
    from gateway.run.keeper_doors import AdminParts, Routes
    from gateway.settings.settings import Settings
    from persistence.entity import Entity


def _resources() -> Sequence[Resource]:
    from gateway.features.raise_requests.resources import RESOURCES  # noqa: PLC0415  # of people's processes alone

    return RESOURCES


def _subjects() -> Mapping[str, Entity]:
    from persistence.raise_requests import RAISE_REQUESTS  # noqa: PLC0415  # as above

    return {"raise-requests": RAISE_REQUESTS}


def _screens() -> Sequence[Screen]:
    from gateway.admin.console.screens import Screen  # noqa: PLC0415  # as above

    return (
        Screen(
            "Spend", "raise-requests", "Raise requests", "raise request",
            ("id", "budget", "organization_id", "amount", "until", "reason", "status", "requested_by"),
            empty="No raise request.",
            next_step=("See the budgets", "/budgets"),
        ),
    )  # fmt: skip


def _routes(_: AdminParts) -> Routes:
    from gateway.features.raise_requests.links import mount_links  # noqa: PLC0415  # as above
    from gateway.run.keeper_doors import Routes  # noqa: PLC0415  # as above

    return Routes(mount=mount_links)


def _links(settings: Settings) -> Mapping[str, Callable[[Delivery], str]]:
    if not settings.links_url:
        return {}
    from functools import partial  # noqa: PLC0415  # of keepers alone

    from gateway.core.credentials import peppers_of  # noqa: PLC0415  # as above
    from gateway.features.raise_requests.signed import link_of  # noqa: PLC0415  # as above

    return {"raise.requested": partial(link_of, peppers_of(settings).digest, settings.links_url)}


FEATURE = Feature(
    name="raise_requests",
    tables=("raise_request",),
    resources=_resources,
    subjects=_subjects,
    screens=_screens,
    routes=_routes,
    links=_links,
)
