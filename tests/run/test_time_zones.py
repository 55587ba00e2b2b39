"""All processes read time zones of one edition: the locked one, or that of the system where a setting says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pytest
import redis

from gateway.core.accounts.intervals import DAY, window_bounds
from gateway.core.times import EDITION_DAYS_MAX, is_old_edition, ms_of
from gateway.counters.redis import keys
from gateway.ops.doctor import examine_edition
from gateway.ops.doctor_redis import Finding, examine_redis
from gateway.run.lifecycle import this_program
from gateway.run.process_vitals import ProcessVitals
from gateway.settings.settings import Settings, load, to_json
from gateway.telemetry import scrape
from gateway.telemetry.metrics import merge
from tests.tree import ROOT

AT = ms_of(datetime(2026, 12, 1, 12, 38, tzinfo=UTC))
# A command, a worker, and a replay, each of which says when a day of Vancouver ends, and by which edition.
PROCESS = f"""
import asyncio, json, sys
from gateway.core.accounts.intervals import window_bounds
from gateway.core.times import zones_edition

def say(*_):
    return [window_bounds("day", "America/Vancouver", 1, {AT})[1], zones_edition()]

async def run(settings, pipe):
    print(json.dumps(say()), flush=True)

if sys.argv[1] == "command":
    from gateway.run import serving
    serving.resolved(None)
    print(json.dumps(say()))
elif sys.argv[1] == "worker":
    from gateway import __main__ as program
    asyncio.run(program._read_settings_and_run(run))
else:
    from gateway.run import replay_process
    replay_process.answer_of = say
    replay_process.run_replay()
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Zones of a system of 2019, in which Vancouver's clocks change in winter."""
    (tmp_path / "America").mkdir()
    of_winter = files("tzdata") / "zoneinfo" / "Etc" / "GMT+8"
    (tmp_path / "America" / "Vancouver").write_bytes(of_winter.read_bytes())
    (tmp_path / "tzdata.zi").write_text("# version 2019b\n# This zic input file is in the public domain.\n")
    return tmp_path


@pytest.mark.parametrize(
    ("process", "source"),
    [("command", "system"), ("worker", "bundled"), ("worker", "system"), ("replay", "system")],
)
def test_process_reads_the_zones_that_the_setting_names(process: str, source: str, system: Path) -> None:
    said = {
        "command": b"",
        "worker": to_json(Settings(time_zones=source)) + b"\n",  # type: ignore[arg-type]  # one of both
        "replay": json.dumps({"time_zones": source}).encode() + b"\n",
    }
    environ = {"PYTHONTZPATH": str(system), "PYTHONPATH": str(ROOT), "TOLLKEEPER_TIME_ZONES": source}
    program = [sys.executable, "-c", PROCESS, process]
    with subprocess.Popen(
        program,
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=system,
        start_new_session=True,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(said[process])
        running.stdin.flush()
        ends_ms, edition = json.loads(running.stdout.readline())
        running.communicate(timeout=60)
    hour, named = {"bundled": (7, locked_edition()), "system": (8, "2019b")}[source]
    assert datetime.fromtimestamp(ends_ms / 1000, UTC) == datetime(2026, 12, 2, hour, tzinfo=UTC)
    assert edition == named


def locked_edition() -> str:
    """Return the edition that the lock of `make run` names, as the IANA spells it."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    version = next(line.split()[0] for line in lines if line.startswith("tzdata=="))
    year, _, number = version.removeprefix("tzdata==").partition(".")
    return year + " abcdefghijklmnopqrstuvwxyz"[int(number)]


# Zones whose law of 2026 is in no earlier edition: when the day after noon of 2026-12-01 UTC begins there.
@pytest.mark.parametrize(
    ("zone", "begins"),
    [
        ("America/Vancouver", "2026-12-02T07:00:00+00:00"),
        ("America/Edmonton", "2026-12-02T06:00:00+00:00"),
        ("America/Winnipeg", "2026-12-02T05:00:00+00:00"),
        ("America/Havana", "2026-12-02T04:00:00+00:00"),
        ("Africa/Casablanca", "2026-12-02T00:00:00+00:00"),
    ],
)
def test_day_begins_by_the_laws_of_2026(zone: str, begins: str) -> None:
    ends_ms = window_bounds(DAY, zone, 1, AT)[1]
    assert datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat() == begins


@pytest.mark.parametrize(
    ("edition", "is_old"),
    [("2025b", True), ("2026a", False), ("2026f", False), ("2024a", True), ("unknown", False), ("", False)],
)
def test_edition_of_an_earlier_year_is_old_from_summer_on(edition: str, is_old: bool) -> None:
    assert EDITION_DAYS_MAX == 180
    assert is_old_edition(edition, datetime(2026, 6, 30, tzinfo=UTC)) is is_old
    assert is_old_edition(edition, datetime(2026, 6, 29, 23, tzinfo=UTC)) is (edition == "2024a")


@pytest.mark.parametrize(
    ("edition", "source", "well", "says"),
    [
        ("2026f", "bundled", True, "edition 2026f, bundled"),
        ("2025b", "bundled", None, "some clocks may be wrong: update Tollkeeper"),
        ("2025b", "system", None, "some clocks may be wrong: update the package tzdata of this machine"),
        ("unknown", "system", None, "edition unknown, system"),
    ],
)
def test_doctor_marks_an_edition_that_is_old_or_unknown(
    edition: str, source: str, well: bool | None, says: str
) -> None:
    found = examine_edition(edition, source, datetime(2026, 12, 1, tzinfo=UTC))
    assert (found.subject, found.well) == ("time zones", well)
    assert says in found.says


async def test_doctor_names_programs_of_another_edition_without_a_write(valkey: str) -> None:
    told = b'{"id":"%s","role":"%s","version":"%s","layout":133,"host":"%s","started_at":1.5%s}'
    with redis.Redis.from_url(valkey) as client:
        seconds, _ = client.time()
        here = b',"time_zones":"%s"' % locked_edition().encode()
        client.zadd(keys.PROGRAMS, {told % (b"a", b"keeper", b"1.1.0", b"db-1", here): seconds})
        assert await of_programs(valkey) == []
        for name, zones in ((b"b", b',"time_zones":"2025b"'), (b"c", b"")):
            member = told % (name, b"gateway", b"1.0.9", b"web-" + name, zones)
            client.zadd(keys.PROGRAMS, {member: seconds})
        client.zadd(keys.PROGRAMS, {told % (b"d", b"gateway", b"1.0.0", b"gone", b""): seconds - 1_000})
        (found,) = await of_programs(valkey)
        assert client.zcard(keys.PROGRAMS) == 4
    assert found.well is None
    assert f"{locked_edition()} here, 2025b at gateway 1.0.9 on web-b; " in found.says
    assert "that of their machine at gateway 1.0.9 on web-c: " in found.says


async def of_programs(url: str) -> list[Finding]:
    given = load({}).with_values(redis_url=url, upstreams=())
    return [one async for one in examine_redis(given, "keeper") if one.subject == "time zones"]


def test_programs_and_metrics_name_the_edition() -> None:
    assert this_program("gateway").time_zones == locked_edition()
    ours, others = (ProcessVitals(process).snapshot() for process in ("gateway", "keeper"))
    editions = {"time_zones_info": merge(ours, others)["time_zones_info"]}
    line = f'tollkeeper_time_zones_info{{edition="{locked_edition()}"}} 1.0\n'
    assert line.encode() in scrape.render("", editions)[0]
