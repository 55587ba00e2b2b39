"""Errors of scripts are told by who reads the answer: counted by script, logged at intervals, no outage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.model import SettleResult
from gateway.core.wait import in_task
from gateway.counters.redis.address import WHY
from gateway.counters.redis.calls import refused, verb_in
from gateway.counters.redis.connection import encode, encode_script
from gateway.counters.redis.script_errors import LOG_INTERVAL_S, OUTAGES, SCRIPT_ERRORS, ScriptErrors
from gateway.counters.redis.scripts import VERBS, library
from gateway.counters.settlement_log.resubmission import REFUSALS_MAX
from gateway.errors import ScriptFailed
from tests.builders import World
from tests.counters.conftest import Connect
from tests.counters.settlement_log.test_resubmission import QUICK, charged, worker_at

RIGHT = "if #KEYS < 9 or #ARGV < 4 then return redis.error_reply('ERR settle takes"


class Lines(logging.Handler):
    """The lines of a logger, as (event, level, fields)."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, str, dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: vars(record)[name] for name in ("script", "why") if name in vars(record)}
        self.records.append((record.getMessage(), record.levelname, fields))


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, handler = logging.getLogger("tollkeeper.redis"), Lines()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def counted(script: str) -> int:
    return dict(SCRIPT_ERRORS.snapshot())[script]


def load(world: World, text: str) -> None:
    assert library().text.count(RIGHT) == 1
    world.client.execute_command("FUNCTION", "LOAD", "REPLACE", text)


def refuse_settlements(world: World) -> None:
    """Have `settle` answer an error to every call."""
    load(world, library().text.replace(RIGHT, RIGHT.replace("#KEYS < 9", "true")))


def test_errors_are_counted_each_and_logged_once_an_interval(lines: Lines) -> None:
    now = 0.0
    errors = ScriptErrors(lambda: now)
    for _ in range(3):
        assert errors.note("settle", "ERR settle takes 9 or more keys")
    assert errors.note("extend", "NOPERM User gateway has no permissions")
    assert [fields["script"] for _, _, fields in lines.records] == ["settle", "extend"]
    now = LOG_INTERVAL_S
    assert errors.note("settle", "ERR " + "x" * 500)
    assert lines.records[-1] == ("a script failed", "ERROR", {"script": "settle", "why": "ERR " + "x" * 196})
    assert dict(errors.snapshot()) == dict.fromkeys(VERBS, 0) | {"extend": 1, "settle": 4}


def test_error_of_script_is_logged_and_raised_with_its_file_and_line(lines: Lines) -> None:
    place = "lua/lib/calendar.lua:5"
    line = library().places.index(place) + 1
    raised = refused(
        f"ERR user_function:{line}: no number script: tk_note, on @user_function:{line}.", "note"
    )
    assert isinstance(raised, ScriptFailed)
    assert f"Redis refused: ERR {place}: no number script: tk_note, on {place}." in raised.message
    assert str(lines.records[-1][2]["why"]).startswith(f"ERR {place}: no number")


def test_outages_and_other_commands_are_no_errors_of_scripts(lines: Lines) -> None:
    errors = ScriptErrors(lambda: 0.0)
    assert {*WHY} < OUTAGES
    for code in OUTAGES:
        assert not errors.note("settle", f"{code} says why")
    assert not errors.note("settle", "ERR Function not found")
    assert not errors.note("", "ERR unknown command")
    assert (dict(errors.snapshot()), lines.records) == (dict.fromkeys(VERBS, 0), [])


def test_a_command_says_which_script_it_calls() -> None:
    for verb in VERBS:
        assert verb_in(encode_script(verb, ("k",), (b"\r\n", b""))) == verb
    assert verb_in(encode(b"SET", b"FCALL", b"x")) == ""
    assert verb_in(b"") == ""


@pytest.mark.parametrize("count", [1, 3])
async def test_a_script_that_answers_an_error_is_told_before_anybody_catches_it(
    world: World, connect: Connect, lines: Lines, count: int
) -> None:
    wire = await connect(world.url)
    before = counted("peek")
    waits = [wire.send(encode_script("peek", ("k",), ())) for _ in range(count)]
    for wait in waits:
        with pytest.raises(ScriptFailed, match="ERR peek takes 2 or more keys"):
            await in_task(wait)
    assert counted("peek") == before + count


async def test_a_settlement_that_its_script_refuses_is_told_kept_set_aside_and_settled_once_it_may(
    world: World, tmp_path: Path
) -> None:
    world.plan(100)
    async with worker_at(world.url, tmp_path, bounds=QUICK) as worker:
        call = world.reserve(need=5)
        refuse_settlements(world)
        before = counted("settle")
        assert await worker.settle(call, 7) is SettleResult.SPOOLED
        assert counted("settle") == before + 1
        for sent in range(REFUSALS_MAX + 3):
            assert worker.resubmitter.set_aside == (sent >= REFUSALS_MAX)
            await worker.look()
        assert counted("settle") == before + 1 + REFUSALS_MAX
        assert (worker.log.waiting, charged(world)) == (1, [])
        worker.die()
    load(world, library().text)
    async with worker_at(world.url, tmp_path, bounds=QUICK) as worker:
        await worker.look()
        assert (charged(world), worker.log.waiting, worker.resubmitter.set_aside) == ([(call.id, 7)], 0, 0)
