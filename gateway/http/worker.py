"""What all requests of one worker share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.core.calls.call import Bounds, Call
from gateway.core.http_limits import HttpLimits
from gateway.errors import Refusal
from gateway.http.clock import Clock
from gateway.http.large_bodies import LargeBodies
from gateway.http.ports import Ports
from gateway.http.routing.head_reader import HeadReader
from gateway.http.server.buffers import Buffers
from gateway.http.upstream.pool import Upstream


@dataclass(frozen=True, slots=True)
class Worker:
    """The ports, the limits, the clock, and the upstreams by name. `bounds` is what meters believe.

    `heads` understands heads and remembers what repeats of those of callers that are known; `buffers` counts
    what is kept for slow ends, `bodies` gives large ones their turns. `workloads` has the digests of a
    workload's key by the URI of its certificate.
    """

    ports: Ports
    limits: HttpLimits
    clock: Clock
    upstreams: Mapping[str, Upstream]
    bounds: Bounds
    heads: HeadReader
    buffers: Buffers
    bodies: LargeBodies[Call | Refusal]
    workloads: Mapping[str, tuple[str, ...]]

    def produced(self, started: float) -> float:
        """Note when a stream that was asked for at a second first produced something; the second of that."""
        now = self.ports.seconds()
        self.ports.tally.first_token_seconds.observe(now - started)
        return now
