"""Loops that fail go on, and say so without filling a disk; last things are done in time, or left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.errors import CountersUnavailable, SettingError
from gateway.local.data_directory import DataDirectory
from gateway.local.ports import Voice
from gateway.local.processes import DIED, HUNG, ProcessSpec, run_to_end
from gateway.run import lifecycle
from gateway.run.reload import Renewal
from gateway.run.serving import plain_options, resolved, tell_slips
from gateway.run.supervisor import Supervisor, _watching
from gateway.settings.settings import load
from gateway.telemetry import metrics as tallies
from tests.waiting import HUNG_S, eventually


async def test_a_loop_that_keeps_failing_goes_on_and_says_so_once_a_minute() -> None:
    runs, said = 0, list[tuple[str, object]]()
    enough = asyncio.Event()

    async def fails() -> None:
        nonlocal runs
        runs += 1
        if runs > 9:
            enough.set()
        raise OSError("gone")

    task = asyncio.create_task(
        lifecycle.forever(
            "pusher", fails, lambda event, **facts: said.append((event, facts["failures"])), restart_s=0.0
        )
    )
    await enough.wait()
    await lifecycle.cancel([task])
    assert said == [("loop failed", 1)]


async def test_what_is_not_done_in_time_is_left_and_what_fails_is_said() -> None:
    did: list[str] = []
    said: list[tuple[str, str]] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            did.append("left")

    async def fails(error: Exception) -> None:
        raise error

    async def does() -> None:
        did.append("done")

    works = [hangs(), fails(OSError("gone")), fails(CountersUnavailable()), does()]
    await lifecycle.all_within(0.05, works, lambda event, **facts: said.append((event, facts["error"])))
    assert did == ["done", "left"]
    assert said == [("not done before the end", "OSError('gone')")]


def hanging(tmp_path: Path, at_last: str) -> subprocess.CompletedProcess[bytes]:
    """A process of which a thread never ends, and what its `main` does at last."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = f"""
import asyncio
from gateway.local.processes import run_to_end
async def main():
    asyncio.create_task(asyncio.to_thread(open, {str(pipe)!r}))
    await asyncio.sleep(0.1)
    {at_last}
run_to_end(asyncio.run, main(), 0.2)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HUNG_S, check=False)


def test_a_process_ends_though_a_thread_does_not(tmp_path: Path) -> None:
    ended = hanging(tmp_path, 'print("stopped", flush=True)')
    assert (ended.returncode, ended.stdout) == (0, b"stopped\n"), ended.stderr
    assert b"a thread does not end" in ended.stderr


def test_a_process_that_failed_says_why_though_a_thread_does_not_end(tmp_path: Path) -> None:
    ended = hanging(tmp_path, 'raise OSError("the disk is gone")')
    assert ended.returncode == 1
    assert b"a thread does not end" in ended.stderr
    assert b"OSError: the disk is gone" in ended.stderr


def test_a_process_whose_threads_end_is_left_to_end_by_itself() -> None:
    done = []

    async def main() -> None:
        done.append(await asyncio.to_thread(lambda: "read"))

    run_to_end(asyncio.run, main())
    assert done == ["read"]
    for timer in [each for each in threading.enumerate() if isinstance(each, threading.Timer)]:
        timer.join(5)
        assert not timer.is_alive(), "what would end the process has ended"


# --- serving ----------------------------------------------------------------------------
# A plain `serve` is told from one that wants the whole command line; what is told of its workers.


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("--config /etc/x.yaml --workers 2", {"config": "/etc/x.yaml", "workers": "2"}),
        (
            "--config=/etc/x.yaml --redis-url=redis://a?b=c",
            {"config": "/etc/x.yaml", "redis_url": "redis://a?b=c"},
        ),
        ("--gateway-port 0 --ops-port 0", {"gateway_port": "0", "ops_port": "0"}),
    ],
)
def test_plain_options_are_read(line: str, options: dict[str, str]) -> None:
    assert plain_options(line.split()) == options


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--workers",
        "--workers two",
        "--workers -1",
        "--worker 2",
        "config x",
        "x",
        "--config a --config b",
    ],
)
def test_whatever_else_is_left_to_the_whole_command_line(line: str) -> None:
    assert plain_options(line.split()) is None


async def test_restarts_that_cannot_be_told_end_nothing_and_are_told_once_they_can(tmp_path: Path) -> None:
    settings = load({}).with_values(data_dir=str(tmp_path / "data"))
    settings.metrics_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.metrics_dir.write_text("in the way")
    supervisor = Supervisor(DataDirectory(tmp_path), Voice())
    watching = asyncio.ensure_future(_watching(supervisor, Renewal(settings, lambda: settings)))
    try:
        for _ in range(5):  # a first try, at once
            await asyncio.sleep(0)
        settings.metrics_dir.unlink()
        await eventually(lambda: tallies.collect(settings.metrics_dir))
        collected = tallies.collect(settings.metrics_dir)
        assert {name: collected[name] for name in ("worker_restarts", "configuration_stale")} == {
            "worker_restarts": [[DIED, 0], [HUNG, 0]], "configuration_stale": 0,
        }  # fmt: skip
        assert ["worker_restarts", 0.0] in collected["last_timestamp_seconds"]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_all_children_are_stopped_though_the_data_directory_is_gone(tmp_path: Path) -> None:
    async def ready(_pid: int) -> bool:
        return True

    data = tmp_path / "data"
    (data / "logs").mkdir(parents=True)
    voice = SpokenVoice()
    supervisor = Supervisor(DataDirectory(data), voice)
    for role in Supervisor.STOP_ORDER:
        logs = data / "logs" / "of.log"
        await supervisor.run(role, ProcessSpec(role, ("sleep", "600"), ready, log=logs))
    pids = [child.pid for role in Supervisor.STOP_ORDER for child in supervisor.children(role)]
    assert None not in pids
    shutil.rmtree(data)
    os.kill(pids[-1] or 0, signal.SIGKILL)  # nobody can start it again: its log has no place
    await eventually(lambda: [line for line in voice.lines if "trying again" in line])
    await supervisor.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)
    assert any(f"{data} cannot be written" in line for line in voice.lines)


class SpokenVoice(Voice):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, sentence: str) -> None:
        self.lines.append(sentence)


def test_resolved_refuses_the_same_port_for_two_purposes() -> None:
    said = "TOLLKEEPER_GATEWAY_PORT and TOLLKEEPER_OPS_PORT are both 7000"
    with pytest.raises(SettingError, match=said):
        resolved(None, "serve", gateway_port=7000, ops_port=7000)


def test_settings_a_file_states_in_vain_are_told_by_name_and_never_by_value(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"settings: {{workers: 4, admin_token: {'a' * 20}, log_level: debug}}")
    said: list[str] = []
    tell_slips(load({"TOLLKEEPER_LOG_LEVEL": "debug"}, path), "serve", said.append)
    assert said == []
    environ = {"TOLLKEEPER_WORKERS": "2", "TOLLKEEPER_ADMIN_TOKEN": "b" * 20}
    tell_slips(load(environ, path), "serve", said.append)
    [line] = said
    assert (str(path) in line, line.endswith(": TOLLKEEPER_ADMIN_TOKEN, TOLLKEEPER_WORKERS")) == (True, True)
    assert not any(value * 20 in line for value in "ab")
