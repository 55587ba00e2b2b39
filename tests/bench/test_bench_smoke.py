"""The bench's arithmetic: medians, paired ratios, marks; and what ends a run with its reason."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.contenders import INTERPRETED, OURS
from tests.bench.figures import Window, paired, percentile, ratios, row, table
from tests.bench.load import REQUEST_BYTES, Traffic, chat, pace, saturate
from tests.bench.machine import BenchError, check_running, cpu_s, families_cpu_s, pin
from tests.bench.report import Measured, as_markdown, as_pair

TITLES = {"a": "Alpha", "b": "Beta"}


def window(
    contender: str, number: int, requests: int, *, errors: int = 0, entries: int | None = None
) -> Window:
    return Window(
        contender=contender, round=number, requests=requests, seconds=2.0, errors=errors,
        p50_us=100.0 * number, p99_us=1000.0, gateway_cpu_s=1.0, load_busy=0.5, redis_cpu_s=0.25,
        entries=entries,
    )  # fmt: skip


def test_row_holds_medians_not_means() -> None:
    found = row([window("a", 1, 1000), window("a", 2, 2000), window("a", 3, 90000)])
    assert found.rate == 1000
    assert found.per_core == 2000
    assert found.p50_us == 200
    assert found.gateway_us == 500
    assert found.redis_us == 125
    assert found.gateway_busy == 0.5
    assert found.spread == pytest.approx(44.5)


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    fast = [window("a", 1, 3000), window("a", 2, 300), window("a", 3, 5000)]
    slow = [window("b", 1, 1000), window("b", 2, 100), window("b", 3, 1000)]
    assert paired(fast, slow, lambda one: one.rate) == 3
    assert paired(fast, [], lambda one: one.rate) is None
    assert "| Beta | 3.00 × | 3.00 × | 0.33 × | 0.33 × |" in ratios([*fast, *slow], ["a"], TITLES)
    assert ratios(slow, ["a"], TITLES) == ""


def test_what_compiling_buys_is_told_within_rounds() -> None:
    slow = [window(INTERPRETED, 1, 1000), window(INTERPRETED, 2, 100)]
    fast = [window(OURS[0], 1, 1500), window(OURS[0], 2, 150)]
    found = as_pair(Measured(windows=[*slow, *fast], idle_rss={INTERPRETED: 30, OURS[0]: 36}), {"on": "this"})
    assert "| requests/s of a full gateway core | 550 | 825 | 1.50 × |" in found
    assert "| memory of an idle worker, MiB | 30 | 36 | 1.20 × |" in found
    assert found.startswith("on this. ")
    assert as_pair(Measured(windows=fast), {}) == ""
    ratios_of_peers = as_markdown(Measured(windows=[*slow, *fast]), {}).partition("| against |")[2]
    assert "interpreted" not in ratios_of_peers, "the pair has a table of its own"


def test_entries_are_counted_over_all_windows() -> None:
    found = row([window("a", 1, 1000, entries=1000), window("a", 2, 1000, entries=1100)])
    assert found.entries_per_request == 1.05
    assert row([window("a", 1, 1000)]).entries_per_request is None


def test_table_marks_errors() -> None:
    text = table([row([window("a", 1, 1000, errors=3)]), row([window("b", 1, 1000)])], TITLES)
    assert "Alpha **(3 errors)**" in text
    assert "| Beta |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_percentile_is_nearest_rank() -> None:
    values = [float(one) for one in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (50, 99, 100)
    assert percentile([7.0], 0.5) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@pytest.mark.parametrize(("users", "traced"), [(0, False), (1, False), (2_000, True)])
def test_every_contender_is_sent_the_same_number_of_bytes(users: int, traced: bool) -> None:
    traffic = Traffic(tuple(f"tk_bench_{number:05}" for number in range(2_000)), users, traced)
    sent = [chat("127.0.0.1:40000", traffic, number) for number in (0, 1, 7, 1_999, 2_000)]
    assert {len(head) + len(body) for head, body in sent} == {REQUEST_BYTES}
    assert all(f"Content-Length: {len(body)}".encode() in head for head, body in sent)
    first, *others, again = (head for head, _ in sent)
    assert first not in others
    assert (first == again) == (not traced)


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
        with pytest.raises(BenchError, match="nothing was answered in a window of 1 s"):
            saturate(port, Traffic(("key",)), core=0, connections=1, seconds=1, folder=tmp_path)
