"""A quota that was passed is excused by a proof alone, and by no more than it proves."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from gateway.background.verifying import admission_gate
from gateway.counters.settlement_log import resubmission
from tests.faults.grants import LATE, Passed, Reports, Window, unnoticed
from tests.faults.workload import Asked, Call, Kind


def call(request_id: str, began: float) -> Call:
    return Call(Asked(Kind.CHAT, "key"), began, request_id=request_id)


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (Passed(0, 0), 0),
        (Passed(5, 70, 5, 70), 0),
        (Passed(6, 70, 5, 70), 1),
        (Passed(5, 71, 5, 70), 1),
        (Passed(1, 1), 2),
    ],
)
def test_no_more_is_excused_than_is_proven(passed: Passed, said: int) -> None:
    assert len(passed.unproven) == said


def test_calls_are_meant_that_were_made_while_nobody_knew() -> None:
    calls = [call("before", 1.0), call("meanwhile", 2.5), call("again", 12.0), call("behind", 3.5)]
    windows = [Window(2.0, 3.0), Window(11.0, 13.0)]
    ids = ["before", "meanwhile", "again", "behind", "left early"]
    assert unnoticed(calls, windows, ids) == {"meanwhile", "again"}
    assert unnoticed([*calls, call("", 1.0)], windows, ids) == {"meanwhile", "again"}
    assert unnoticed([*calls, call("", 2.1)], windows, ids) == {"meanwhile", "again", "left early"}
    assert unnoticed(calls, (), ids) == set()


def test_processes_say_it_in_these_words() -> None:
    said = [inspect.getsource(one) for one in (admission_gate, resubmission)]
    assert [word in source for word, source in zip(LATE, said, strict=True)] == [True, True]


def test_what_a_process_said_of_being_late_before_proves_nothing(tmp_path: Path) -> None:
    logs = [tmp_path / "gateway0.log", tmp_path / "keeper0.log", tmp_path / "keeper1.log"]
    lines = [f'{{"level": "warning", "event": "{one}", "partitions": [1]}}\n' for one in LATE]
    logs[0].write_text(lines[1])
    reports = Reports(lambda: logs)
    assert reports.late() == []
    with logs[0].open("a") as log:
        log.write('{"event": "settlements sent again"}\n')
    logs[2].write_text(lines[0] * 2)
    assert reports.late() == [f"keeper1: {LATE[0]}"] * 2
    with logs[0].open("a") as log:
        log.write(lines[1])
    assert reports.late() == [f"gateway0: {LATE[1]}", *[f"keeper1: {LATE[0]}"] * 2]
