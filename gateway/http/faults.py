"""Errors of our own: of what type and where, never what they say, which may quote what was read.

Whoever finds a way to one may have it as often as it likes, so lines are few and say how many are missing.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.http.ports import Log

LINES_MAX = 10  # of `request_failed` in PERIOD_S
PERIOD_S = 60.0
_OURS = "gateway."


class Fault(Exception):
    """An error nobody expects. Keeps nothing of it but its type and the last line of ours it came through."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.place = _place(error)


class FaultLog:
    """Log faults, so many in a period; the next line after it counts those left out."""

    __slots__ = ("_began", "_left_out", "_lines", "_log", "_seconds")

    def __init__(self, log: Log, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._began = seconds()
        self._lines = self._left_out = 0

    def note(self, request_id: str, error: BaseException) -> None:
        """Write a line, or count one that is left out."""
        now = self._seconds()
        if now - self._began >= PERIOD_S:
            self._began, self._lines = now, 0
        if self._lines >= LINES_MAX:
            self._left_out += 1
            return
        self._lines += 1
        fault = error if isinstance(error, Fault) else Fault(error)
        left_out, self._left_out = self._left_out, 0
        self._log(
            "request_failed",
            request_id=request_id,
            error=str(fault),
            place=fault.place,
            left_out=left_out,
            level="error",
        )


def _place(error: BaseException) -> str:
    """Module and line of the innermost frame of ours, else of the innermost; empty where there is none."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(_OURS) or not place.startswith(_OURS):
            place = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
