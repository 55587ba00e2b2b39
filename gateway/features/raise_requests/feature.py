"""Raise requests: people ask for more of a budget, and somebody who may raise it decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gateway.features.record import Feature, lazy, load, mounts

if TYPE_CHECKING:
    from gateway.core.alerts.messages import Delivery
    from gateway.settings.settings import Settings


def _links(settings: Settings) -> Mapping[str, Callable[[Delivery], str]]:
    """Return what makes the link in a message about a requested raise."""
    if not settings.links_url:
        return {}
    from functools import partial  # of keepers alone

    from gateway.core.credentials import peppers_of
    from gateway.features.raise_requests.signed import link_of

    return {"raise.requested": partial(link_of, peppers_of(settings).digest, settings.links_url)}


FEATURE = Feature(
    name="raise_requests",
    tables=("raise_request",),
    has_templates=True,
    resources=lazy("gateway.features.raise_requests.resources:RESOURCES"),
    subjects=lambda: {"raise-requests": load("persistence.raise_requests:RAISE_REQUESTS")},
    screens=(
        {
            "heading": "Spend", "name": "raise-requests", "title": "Raise requests", "one": "raise request",
            "columns": (
                "id", "budget", "who", "organization_id", "amount", "until", "reason", "status",
                "requested_by",
            ),
            "first_for": ("operator", "member"), "empty": "No raise request.", "next_step": ("See the budgets", "/budgets"),
        },
    ),
    routes=mounts(mount="gateway.features.raise_requests.links:mount_links"),
    events=lazy("gateway.features.raise_requests.events:EVENTS"),
    links=_links,
)  # fmt: skip
