"""One request and its answer: what the story knows about its client.

An exchange outlives its client where the route says that what was begun is drained and charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.model import Observed
from gateway.errors import CountersUnavailable
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


class Exchange:
    """The state of one request. Times are seconds of the worker's monotonic clock.

    `began_upstream` and `ended_upstream` bound the time that is not the gateway's own.
    `charge` is set while a hold is taken, `observed` while that hold is kept alive.
    """

    __slots__ = (
        "_clock", "_connection", "_limits", "began_upstream", "body_length", "broken",
        "charge", "deadline", "ended_upstream", "gone",
        "keep_alive", "observed", "opened", "plan", "reason", "request_id", "started", "status", "story",
        "too_large", "until_close",
    )  # fmt: skip

    story: Story[Exchange]

    def __init__(
        self,
        connection: ClientConnection,
        plan: Plan,
        request_id: str,
        started: float,
        clock: Clock,
        limits: HttpLimits,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._limits = limits
        self.plan = plan
        self.request_id = request_id
        self.started = started
        self.began_upstream = 0.0
        self.ended_upstream = 0.0
        self.deadline = NEVER
        self.too_large = False
        self.gone = False
        self.opened = False
        self.broken = False
        self.until_close = False
        self.body_length: int | None = None
        self.keep_alive = False
        self.status = 0
        self.reason = ""
        self.charge: Charge | None = None
        self.observed: Observed | None = None

    # the request

    @property
    def body_complete(self) -> bool:
        """Whether the request has arrived in full."""
        return self._connection.body_complete

    async def body(self) -> bytes:
        """The whole body. Raises the `Refusal` it earns, or `ClientGone`."""
        connection = self._connection
        if not connection.body_complete:
            self.invite_body()
            await connection.body_arrival()
        return connection.body()

    def arrived_body(self) -> bytes:
        """What has arrived of a body that is streamed."""
        return self._connection.body()

    def invite_body(self) -> None:
        """Send `100 Continue` to a client that waits for it (RFC 9110, 10.1.1)."""
        if self.plan.expects and not self.gone:
            self._connection.write(CONTINUE)

    # the answer

    def decide_keep_alive(self) -> bool:
        """Whether the connection serves another request after this one; said in the answer's head."""
        plan, connection = self.plan, self._connection
        self.keep_alive = plan.keep_alive and connection.reusable
        if plan.expects and not connection.body_complete:
            self.keep_alive = False  # whether its body follows is the client's choice
        return self.keep_alive

    @property
    def blocked(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self._connection.blocked and not self.gone

    async def writable(self) -> None:
        """Wait until the client has caught up, or is gone."""
        try:
            await self._connection.writable()
        except ClientGone:
            return

    def write(self, data: bytes) -> None:
        """Send a part of the answer; nothing once the client is gone."""
        if not self.gone:
            self._connection.write(data)

    def finish(self) -> None:
        """Leave the connection: for its next request, or broken so that nobody takes a part for the whole."""
        if self.broken:
            self._connection.cut(self.until_close)
        else:
            self._connection.finish(self.keep_alive)

    @property
    def connection(self) -> ClientConnection:
        """Where a streamed body comes from."""
        return self._connection

    # interruptions

    def shield(self) -> None:
        """What follows asks the counters: it is not interrupted, only bounded in time."""
        self.story.shielded = True
        self.deadline = self._clock.now + self._limits.counters_s

    def unshield(self) -> None:
        """Interruptions count again."""
        self.story.shielded = False
        self.deadline = self._clock.now + self._limits.drain_s if self.gone else NEVER

    def client_gone(self) -> None:
        """The client's connection is gone: end what was not begun, drain or abort the rest."""
        self.gone = True
        route = self.plan.route
        draining = self.began_upstream and route is not None and route.on_disconnect != "abort"
        if self.story.shielded:
            return
        if draining and self._connection.body_complete:
            self.deadline = self._clock.now + self._limits.drain_s
        else:
            self.story.interrupt(ClientGone())

    def expire(self) -> None:
        """The deadline of a wait has passed."""
        self.deadline = NEVER
        if self.story.shielded:
            self.story.expire(CountersUnavailable(retry_after_s=1))
        else:
            self.story.interrupt(ClientGone())
