"""What the demo upstream itself counted, call by call: the other side of a comparison with a ledger."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from gateway.local.demo.request import Asked
from gateway.local.demo.shapes import Turn

CALLS_MAX = 20_000


@dataclass(slots=True)
class Noted:
    """One call. It is `over` once nothing more is sent, `complete` if that was everything."""

    asked: Asked
    turn: Turn
    over: bool = False
    complete: bool = False

    def told(self) -> dict[str, Any]:
        """The call as JSON. A broken one cost its input and what was sent of its output."""
        asked, turn = self.asked, self.turn
        cached = turn.cached + turn.created if asked.path == "/v1/messages" else 0
        sent = max(turn.spoken, turn.announced)
        output = turn.output if self.complete and not turn.end else sent
        return {
            "request_id": asked.headers.get("x-request-id", ""),
            "path": asked.path,
            "model": turn.model,
            "body_sha256": hashlib.sha256(asked.content).hexdigest(),
            "input": turn.input + cached,
            "output": output,
            "total": turn.input + cached + output,
            "sent": sent,
            "reported": turn.reports,
            "over": self.over,
            "complete": self.complete,
        }


class Calls:
    """The last calls, oldest first."""

    def __init__(self) -> None:
        self._calls: deque[Noted] = deque(maxlen=CALLS_MAX)

    def note(self, asked: Asked, turn: Turn) -> Noted:
        """Keep a call under the id its caller gave it."""
        noted = Noted(asked, turn)
        self._calls.append(noted)
        return noted

    def told(self, model: str) -> list[dict[str, Any]]:
        """Every call kept of a model, of any model where it is empty."""
        return [noted.told() for noted in self._calls if model in ("", noted.turn.model)]
