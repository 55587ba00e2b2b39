"""One port that speaks TLS: who connects shakes hands here, in time, in turn, and not too many at once."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from gateway.tls.certificates import Certificates
from gateway.tls.session import SILENT, Session

# A handshake takes a millisecond of a processor: so many are done before others have their turn.
STEPS_A_TURN = 4
HANDSHAKE_S = 10.0
HANDSHAKES_MAX = 1_000


class Gate:
    """What the sessions of one port share. `failures` counts handshakes that failed, by why.

    Where too many shake hands at once, the one that has been at it longest gives way.
    """

    def __init__(
        self,
        port: str,
        certificates: Certificates,
        *,
        handshake_s: float = HANDSHAKE_S,
        handshakes_max: int = HANDSHAKES_MAX,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.port, self.certificates, self.wall = port, certificates, wall
        self.failures: Counter[str] = Counter()
        self.bound(handshake_s, handshakes_max)
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[Session, asyncio.TimerHandle] = {}
        self._due: deque[Session] = deque()
        self._left = STEPS_A_TURN
        self._scheduled = False

    def bound(self, handshake_s: float, handshakes_max: int) -> None:
        """Go by these from the next connection on."""
        self._handshake_s, self._handshakes_max = handshake_s, handshakes_max

    def wrapped(self, inner: Callable[[], Any]) -> Callable[[], Session]:
        """Makers of protocols, as a server wants them: each has TLS between its socket and itself."""
        return lambda: Session(self, inner())

    @property
    def shaking(self) -> int:
        """How many shake hands now."""
        return len(self._shaking)

    def snapshot(self) -> dict[str, Any]:
        """What metrics say of this port."""
        ends, name = self.certificates.ends, f"{self.port} port"
        return {
            "tls_handshake_failures": [
                [self.port, why, count] for why, count in sorted(self.failures.items())
            ],
            "tls_certificate_stale": [[self.port, int(bool(self.certificates.stale))]],
            "certificate_expiry_timestamp_seconds": [[name, ends]] if ends is not None else [],
        }

    # what sessions ask

    def context(self) -> ssl.SSLContext:
        """The certificate of now."""
        return self.certificates.context

    def opened(self, session: Session) -> None:
        """Give a handshake its time."""
        if len(self._shaking) >= self._handshakes_max:
            oldest = next(iter(self._shaking))
            self._shaking.pop(oldest).cancel()
            oldest.expire("crowded_out")
        self._shaking[session] = self._loop.call_later(self._handshake_s, session.expire, "timeout")

    def is_due(self, session: Session) -> bool:
        """Whether it goes on now; else it does when those before it did."""
        self._schedule()
        if self._left > 0 and not self._due:
            self._left -= 1
            return True
        self._due.append(session)
        return False

    def settled(self, session: Session, failure: str) -> None:
        """A handshake is over."""
        deadline = self._shaking.pop(session, None)
        if deadline is not None:
            deadline.cancel()
        if failure not in {"", SILENT}:  # who said nothing only looked whether somebody listens
            self.failures[failure] += 1

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(min(STEPS_A_TURN, len(self._due))):
            self._due.popleft().go_on()
        self._left = STEPS_A_TURN
        if self._due:
            self._left = 0
            self._schedule()
