"""One request and its answer: what the story knows about its client.

An exchange outlives its client where the route says that what was begun is drained and charged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.core.model import Observed
from gateway.core.trace import Trace
from gateway.errors import CountersUnavailable, Refusal
from gateway.http.clock import NEVER, Clock
from gateway.http.limits import HttpLimits
from gateway.http.plan import Plan
from gateway.http.story import Story

if TYPE_CHECKING:
    from gateway.http.charge import Charge
    from gateway.http.connection import ClientConnection

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class Exchange(Story):
    """The state of one request. Times are seconds of the worker's monotonic clock.

    `began_upstream` and `ended_upstream` bound the time that is not the gateway's own.
    `charge` is set while a hold is taken, `observed` while that hold is kept alive. `opened`
    says that a head was sent, `broken` that what was begun cannot be completed. `trace` is there
    where requests are traced.
    """

    __slots__ = (
        "_on_end", "began_upstream", "body_failure", "body_length", "broken", "charge", "connection",
        "deadline", "ended_upstream", "gone", "keep_alive", "observed", "opened", "plan", "reason",
        "request_id", "started", "status", "trace", "until_close",
    )  # fmt: skip

    def __init__(
        self,
        connection: ClientConnection,
        plan: Plan,
        request_id: str,
        started: float,
        on_end: Callable[[Exchange, BaseException | None], None],
    ) -> None:
        super().__init__()
        self.connection = connection
        self.plan = plan
        self.request_id = request_id
        self.started = started
        self._on_end = on_end
        self.began_upstream = self.ended_upstream = 0.0
        self.deadline = NEVER
        self.gone = self.opened = self.broken = self.until_close = self.keep_alive = False
        self.status = 0
        self.reason = ""
        self.body_length: int | None = None
        self.body_failure: Refusal | None = None
        self.charge: Charge | None = None
        self.observed: Observed | None = None
        self.trace: Trace | None = None

    def ended(self, error: BaseException | None) -> None:
        """Tell the worker, then leave the connection."""
        self._on_end(self, error)
        if self.broken:
            self.connection.cut(self.until_close)
        else:
            self.connection.finish(self.keep_alive)

    # the request

    async def late_body(self) -> bytes:
        """The whole of a body that is still arriving. Raises the `Refusal` it earns, or `ClientGone`."""
        self.invite_body()
        await self.connection.body_arrival()
        return self.connection.body()

    def invite_body(self) -> None:
        """Send `100 Continue` to a client that waits for it (RFC 9110, 10.1.1)."""
        if self.plan.expects and not self.gone:
            self.connection.write(CONTINUE)

    # the answer

    def decide_keep_alive(self) -> bool:
        """Whether the connection serves another request after this one; said in the answer's head."""
        plan, connection = self.plan, self.connection
        self.keep_alive = plan.keep_alive and connection.reusable
        if plan.expects and not connection.body_complete:
            self.keep_alive = False  # whether its body follows is the client's choice
        return self.keep_alive

    def write(self, data: bytes) -> None:
        """Send a part of the answer; nothing once the client is gone."""
        self.opened = True
        if not self.gone:
            self.connection.transport.write(data)

    # interruptions

    def body_failed(self, refusal: Refusal) -> None:
        """The rest of the body cannot be had: the story says so when it comes to it, or at once if it has."""
        self.body_failure = refusal
        if self.began_upstream:
            self.interrupt(refusal)

    def client_gone(self, clock: Clock, limits: HttpLimits) -> None:
        """The client is gone: drain what is charged, unless the route says abort, and end the rest."""
        self.gone = True
        if self.shielded:
            return
        route = self.plan.route
        draining = self.charge is not None and route is not None and route.on_disconnect != "abort"
        if draining and self.connection.body_complete:
            self.deadline = clock.now + limits.drain_s
        else:
            self.interrupt(ClientGone())

    def expire(self) -> None:
        """The deadline of a wait has passed."""
        self.deadline = NEVER
        if self.shielded:
            self.expire_wait(CountersUnavailable(retry_after_s=1))
        else:
            self.interrupt(ClientGone())
