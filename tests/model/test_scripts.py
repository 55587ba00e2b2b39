"""Random histories have the answers, states and events that the scripts of the release before gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ValkeyServer
from tests.model.two_programs import TwoPrograms
from tests.release_before import write_release

HISTORIES = 120
VERDICTS = {
    "ADMITTED", "TENANT_BLOCKED", "OTHER_PLAN", "RATE_LIMITED", "CONCURRENCY_LIMITED", "QUOTA_EXCEEDED", "QUOTA_HELD",
    "INSUFFICIENT_CREDITS", "SPEND_CAP_REACHED", "BUDGET_EXCEEDED",
}  # fmt: skip


@pytest.fixture
def programs(own_valkey: Callable[..., ValkeyServer], tmp_path: Path) -> Iterator[TwoPrograms]:
    both = TwoPrograms(write_release(tmp_path / "release", "tests"), own_valkey().url)
    yield both
    both.close()


def test_scripts_answer_as_in_the_release_before(programs: TwoPrograms) -> None:
    verdicts, codes = set[str](), set[int]()
    for verb, answers in programs.compare(range(HISTORIES)):
        if verb == "reserve" and answers != "error":
            verdicts |= {answer["verdict"] for answer in answers if answer != "error"}
        if verb == "settle" and answers != "error":
            codes |= {answer[0] for answer in answers if answer != "error"}
    assert verdicts >= VERDICTS
    assert codes >= {1, -1, -2}
