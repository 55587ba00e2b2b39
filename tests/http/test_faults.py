"""Errors of our own are logged by type and place, in few lines that say how many are missing."""

from __future__ import annotations

from gateway.http.reply import LINES_MAX, PERIOD_S, FaultLog, UnexpectedError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def raised() -> Exception:
    try:
        raise ValueError("what a caller wrote")
    except ValueError as error:
        return error


def test_a_fault_keeps_type_and_place_and_nothing_else() -> None:
    fault = UnexpectedError(raised())
    assert str(fault) == "ValueError"
    assert fault.place.partition(":")[0] == __name__
    assert "wrote" not in repr((fault, fault.args, fault.__dict__, fault.__cause__, fault.__context__))


def test_lines_are_few_and_count_what_is_left_out() -> None:
    lines: list[dict[str, object]] = []
    clock = Clock()

    def log(event: str, /, **facts: object) -> None:
        lines.append({"event": event, **facts})

    faults = FaultLog(log, clock)
    for _ in range(LINES_MAX + 5):
        faults.note("req", raised())
    assert [line["left_out"] for line in lines] == [0] * LINES_MAX
    clock.now = PERIOD_S
    faults.note("req", raised())
    faults.note("req", raised())
    assert [line["left_out"] for line in lines[LINES_MAX:]] == [5, 0]
    assert "wrote" not in str(lines)
