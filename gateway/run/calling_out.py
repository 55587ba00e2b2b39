"""How a keeper calls others: webhooks, and services that it bills by; through the proxies of its settings.

Part of the composition root.
"""

from __future__ import annotations

from gateway.admin.outgoing import Outgoing
from gateway.admin.tunnelling import Tunnelling
from gateway.core.upstreams.proxies import DIRECT
from gateway.http.upstream.tunnel import tunnelled
from gateway.settings.settings import Settings


def outgoing(settings: Settings, *, private: bool) -> Outgoing:
    """What posts to others, to those at private addresses only where that is allowed."""
    return Outgoing(tunnelled, private=private, proxies=settings.proxies)


def connector(settings: Settings) -> Tunnelling | None:
    """How a library of somebody's connects to them; None where nobody is before any of them."""
    return None if settings.proxies == DIRECT else Tunnelling(settings.proxies, tunnelled, None)
