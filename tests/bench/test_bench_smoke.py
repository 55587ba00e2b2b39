"""The bench's arithmetic: medians, paired ratios, marks; and what ends a run with its reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.figures import OURS, Measured, Window, as_markdown, as_picture, paired, percentile
from tests.bench.load import Traffic, chat, pace, saturate
from tests.bench.machine import (
    BenchError,
    Placement,
    check_running,
    cpu_s,
    families_cpu_s,
    install_tools,
    pin,
)
from tests.bench.scenes import CALLERS, SCENES, Scene
from tests.bench.stage import Contender, Stage, window
from tests.bench.wide import SHARED, WORKERS, fitting, placed


def of(
    contender: str, number: int, gateway_us: float, redis_us: float = 0, *, scene: str = "ledger"
) -> Window:
    calls = 1000
    return Window(
        contender, scene, number, calls, 2.0, 0, 900.0, gateway_us * calls / 1e6, redis_us * calls / 1e6
    )


def measured(*windows: Window) -> Measured:
    return Measured(windows=list(windows), answered={OURS: 10}, cut={OURS: 2}, rows={OURS: 12})


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    ours = [of(OURS, 1, 30), of(OURS, 2, 300), of(OURS, 3, 50)]
    theirs = [of("nginx", 1, 10), of("nginx", 2, 100), of("nginx", 3, 10)]
    assert paired(ours, theirs, lambda one: one.gateway_us) == 3
    assert paired(ours, [], lambda one: one.gateway_us) is None
    assert paired(ours, [of("nginx", 4, 10)], lambda one: one.gateway_us) is None, "no common round"


def test_the_table_has_a_row_a_scene_with_ratios_to_who_was_there() -> None:
    found = measured(
        of(OURS, 1, 40, 30), of("nginx", 1, 20), of("nginx-lua", 1, 50, 20),
        of(OURS, 1, 60, 40, scene="limits"), of(OURS, 1, 800, 30, scene="stream"),
    )  # fmt: skip
    text = as_markdown(found, {"on": "this"}, "bench.svg", {"Bifrost": "a script"})
    row = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "| nginx | nginx + Lua + Redis | added" in row["| "], "no column of who was not there"
    beside = "40.0 (40.0) | 30.0 (30.0) | 2.00 × (20.0) | 0.80 ×, both 1.00 × (50.0 + 20.0) | –"
    assert beside in row["| quota and ledger"]
    assert "3.00 × (20.0) | 1.20 ×, both 1.43 × (50.0 + 20.0)" in row["| and limits on four scopes"]
    assert "| 2.0 (2.0) | 0.1 (0.1) | – | – |" in row[f"| {SCENES['stream'].title}"], "CPU of one event"
    assert text.startswith("on this. ")
    assert "![CPU a call beside nginx + Lua + Redis](bench.svg)" in text
    assert "12 calls in the ledger of 10 answered; none lost or doubled" in text
    assert "- not here: Bifrost: a script" in text
    picture = as_picture(found)
    assert picture.count("<rect") == 1 + 2 * 2, "bars of scenes that have a limiter beside them"
    assert ">1.00</text>" in picture


def test_a_run_with_a_lost_call_or_an_error_has_failed() -> None:
    found = measured(of(OURS, 1, 40))
    assert not found.failed
    found.rows[OURS] = 9
    assert found.failed
    assert "**1 lost or doubled**" in as_markdown(found, {}, "bench.svg", {})
    found.rows[OURS] = 13
    assert found.failed, "more than were in flight at the end of windows"
    found = measured(Window(OURS, "ledger", 1, 1000, 2.0, 3, 900.0, 1.0))
    assert found.failed
    assert "scene `ledger`: **3 errors**" in as_markdown(found, {}, "bench.svg", {})


def test_workers_that_have_no_core_of_their_own_are_left_out() -> None:
    assert [fitting(cores) for cores in (2, 5, 6, 8, 16)] == [(1,), (1,), (1, 2), (1, 2, 4), WORKERS]
    placement, workers = placed(list(range(16)), Placement(0, 1, 1, 1, 1))
    there = placement.client, placement.upstream, placement.redis, placement.rest, *workers
    assert len({*there}) == 16 == SHARED + len(workers)


def test_percentile_is_nearest_rank() -> None:
    values = [float(one) for one in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (50, 99, 100)
    assert percentile([7.0], 0.5) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_everyone_is_sent_the_same_body(scene: Scene) -> None:
    keys = tuple(f"tk_{number:05}" for number in range(scene.organizations))
    traffic = Traffic(keys, scene.callers, body_bytes=scene.body_bytes, events=scene.events)
    (first, body), (_, other), (again, _) = (
        chat("host", traffic, number) for number in (0, 1, scene.callers)
    )
    assert len(body) == scene.body_bytes
    assert body == other
    assert b"traceparent: " in first
    assert first != again, "a traceparent of its own"
    asked = json.loads(body)
    assert bool(asked.get("stream")) == bool(scene.events)
    assert ("tools" in asked) == (scene.body_bytes > 2_000)
    assert CALLERS % scene.organizations == 0, "each caller is of one organization"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen(["sleep", "600"])
    yield found
    found.kill()
    found.wait()


def test_a_process_that_is_gone_is_an_error_and_costs_nothing_never(process: subprocess.Popen[bytes]) -> None:
    core = min(os.sched_getaffinity(0))
    pin([process.pid], core)
    check_running([process.pid], core)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert cpu_s([process.pid]) == families_cpu_s([process.pid]) > 0
    with pytest.raises(
        BenchError, match=f"process {process.pid} may run on cores .*, not on {core + 1} alone"
    ):
        check_running([process.pid], core + 1)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for reaped in (False, True):
        if reaped:
            process.wait()
        for ask in (cpu_s, families_cpu_s, check_running):
            with pytest.raises(BenchError, match=f"process {process.pid} is gone"):
                ask([process.pid])


def test_a_window_without_samples_ends_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(BenchError, match="1 paced calls were never answered"):
            pace(port, Traffic(("key",)), rate=100, seconds=0.01, answer_s_max=0.1)
        if shutil.which("wrk") is None:
            install_tools(print)
        with pytest.raises(BenchError, match="nothing was answered in a window of 1 s"):
            saturate(port, Traffic(("key",)), core=0, connections=1, seconds=1, folder=tmp_path)


def test_a_window_of_a_contender_that_is_gone_is_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Placement.of_this_machine(), print, python="")
    gone = subprocess.Popen(["true"])
    gone.wait()
    one = Contender("nginx", 1, lambda _: Traffic(("key",)), gateway=[gone.pid])
    with pytest.raises(BenchError, match=f"^nginx, scene 60kB, round 2: process {gone.pid} is gone$"):
        window(stage, one, 1, scene=SCENES["60kB"], number=2)
