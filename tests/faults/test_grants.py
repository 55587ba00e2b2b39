"""A quota that was passed is excused by a proof alone, and by no more than it proves."""

from __future__ import annotations

import inspect
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.background.verifying import admission_gate
from gateway.counters.settlement_log import resubmission
from tests.faults.grants import LATE, Passed, Reports, Window, unnoticed
from tests.faults.workload import Call, Kind, PlannedCall


def call(request_id: str, began: float) -> Call:
    return Call(PlannedCall(Kind.CHAT, "key"), began, request_id=request_id)


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


def line(what: str, at: float) -> str:
    """As a process logs it, at so many monotonic seconds."""
    said = datetime.fromtimestamp(at - time.monotonic() + time.time(), UTC).isoformat(timespec="milliseconds")
    return f'{{"time": "{said}", "level": "warning", "event": "{what}", "partitions": [1]}}\n'


def test_what_a_process_said_of_being_late_before_proves_nothing(tmp_path: Path) -> None:
    logs = [tmp_path / "gateway0.log", tmp_path / "keeper0.log", tmp_path / "keeper1.log"]
    lines = [line(one, 100.0) for one in LATE]
    logs[0].write_text(lines[1])
    reports = Reports(lambda: logs)
    assert reports.late() == []
    with logs[0].open("a") as log:
        log.write(line("settlements sent again", 101.0))
    logs[2].write_text(lines[0] * 2)
    found = [(one.who, one.what) for one in reports.late()]
    assert found == [("keeper1", LATE[0])] * 2
    with logs[0].open("a") as log:
        log.write(lines[1])
    assert [(one.who, one.what) for one in reports.late()] == [("gateway0", LATE[1]), *found]


def test_a_late_line_excuses_calls_around_when_it_was_said_and_no_others(tmp_path: Path) -> None:
    log = tmp_path / "keeper0.log"
    reports = Reports(lambda: [log])
    log.write_text(line(LATE[0], 1_000.0) + line(LATE[0], 1_200.0))
    began = {
        "before": 997.5, "opened first": 998.5, "behind it": 1_059.5, "later": 1_060.5,
        "in between": 1_197.5, "again": 1_201.0,
    }  # fmt: skip
    calls = [call(request_id, at) for request_id, at in began.items()]
    windows = [one.window for one in reports.late()]
    assert unnoticed(calls, windows, began) == {"opened first", "behind it", "again"}


def test_a_line_that_was_cut_short_and_one_that_tells_of_it_excuse_nothing(tmp_path: Path) -> None:
    log = tmp_path / "gateway0.log"
    reports = Reports(lambda: [log])
    whole = line(LATE[1], 50.0)
    log.write_text(whole[:-5] + "\n" + f"somebody told of {LATE[1]}\n" + whole)
    assert [one.said for one in reports.late()] == [pytest.approx(50.0, abs=0.1)]
