"""The worker as one of its client connections sees it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from gateway.core.http_limits import HttpLimits
from gateway.http.clock import Clock
from gateway.http.routing.routed_head import HeadRouter, RoutedHead
from gateway.http.server.buffers import Buffers
from gateway.http.server.exchange import Exchange
from gateway.http.turns import Turns

C_contra = TypeVar("C_contra", contravariant=True)


class Host(Protocol[C_contra]):
    """What a connection needs of its worker."""

    head_router: HeadRouter
    limits: HttpLimits
    buffers: Buffers
    clock: Clock
    turns: Turns
    draining: bool

    def opened(self, connection: C_contra) -> bool:
        """Count a connection; False where there are too many."""

    def closed(self, connection: C_contra) -> None:
        """The connection is gone."""

    def exchange(self, connection: C_contra, routed: RoutedHead) -> Exchange:
        """Make the exchange of a request whose head has arrived."""

    def tell(self, exchange: Exchange) -> None:
        """Begin the handling of a request."""
