"""What the demo upstream itself counted, call by call: the other side of a comparison with a ledger."""

from __future__ import annotations

from collections import deque
from typing import Any

from gateway.local.demo_request import Asked
from gateway.local.demo_shapes import Turn

CALLS_MAX = 20_000


class Calls:
    """The last calls. A call that was broken off cost its input and what was sent of its output."""

    def __init__(self) -> None:
        self._calls: deque[dict[str, Any]] = deque(maxlen=CALLS_MAX)

    def note(self, asked: Asked, turn: Turn, *, complete: bool) -> None:
        """Keep one call under the id its caller gave it."""
        cached = turn.cached + turn.created if asked.path == "/v1/messages" else 0
        output = turn.output if complete and not turn.end else turn.spoken
        self._calls.append(
            {
                "request_id": asked.headers.get("x-request-id", ""),
                "path": asked.path,
                "input": turn.input + cached,
                "output": output,
                "total": turn.input + cached + output,
                "reported": turn.reports,
                "complete": complete,
            }
        )

    def told(self) -> list[dict[str, Any]]:
        """Every call kept, oldest first."""
        return list(self._calls)
