"""How a keeper calls others: webhooks, and services that it bills by; through the proxies of now.

Part of the composition root.
"""

from __future__ import annotations

from gateway.core.upstreams.proxies import DIRECT
from gateway.outbound.client import Connector, Outgoing, ProxiesNow


def outgoing(proxies: ProxiesNow, *, private: bool) -> Outgoing:
    """What posts to others, to those at private addresses only where that is allowed."""
    return Outgoing(private=private, proxies=proxies)


def connector(proxies: ProxiesNow) -> Connector | None:
    """How a library of somebody's connects to them; None where nobody is before any of them.

    Nobody ever is then: variables do not change while a process runs, and files of proxies are never empty.
    """
    return None if proxies() == DIRECT else Connector(proxies, None)
