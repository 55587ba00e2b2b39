"""A child process: what it is told while it is being started, and what counts as started again."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StartError
from gateway.local import heartbeat, ports
from gateway.local.heartbeat import Heartbeat
from gateway.local.ports import Voice
from gateway.local.processes import DIED, HUNG, LAST_WORDS_S, Child, ProcessSpec
from tests.conftest import free_port
from tests.tree import ROOT
from tests.waiting import HUNG_S, eventually, wait_until

READS = "import sys; line = sys.stdin.readline(); open(sys.argv[1], 'w').write(line); sys.stdin.read()"


async def test_what_is_told_while_it_starts_is_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"

    async def ready(_pid: int) -> bool:
        return said.exists() and said.read_text().endswith("\n")

    program = ProcessSpec("reader", (sys.executable, "-c", READS, str(said)), ready, stdin=b"old")
    child = Child(program, lambda _: None, lambda: None)
    spawns = asyncio.create_subprocess_exec

    async def told(*words: Any, **more: Any) -> asyncio.subprocess.Process:
        await child.tell(b"new")
        return await spawns(*words, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", told)
    await child.start()
    await child.stop()
    assert said.read_text() == "new\n"


async def test_one_that_loads_is_told_its_settings_once_it_is_started(tmp_path: Path) -> None:
    said = tmp_path / "said"

    async def ready(_pid: int) -> bool:
        return said.exists() and said.read_text().endswith("\n")

    child = Child(ProcessSpec("reader", (sys.executable, "-c", READS, str(said)), ready), print, lambda: None)
    await child.load()
    loading = child.pid
    child.program = replace(child.program, stdin=b"settings")
    assert not said.exists()
    await child.start()
    assert (child.pid, said.read_text()) == (loading, "settings\n")
    await child.stop()


async def test_a_start_that_fails_is_no_restart(tmp_path: Path) -> None:
    program, away = tmp_path / "program", tmp_path / "away"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    said: list[str] = []

    async def ready(_pid: int) -> bool:
        return True

    child = Child(ProcessSpec("sleeper", (str(program),), ready, stop_max_s=0.1), said.append, lambda: None)
    await child.start()
    try:
        program.rename(away)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await eventually(lambda: sum("cannot be started" in one for one in said) >= 2)
        assert child.restarts == {DIED: 0, HUNG: 0}
        away.rename(program)
        await eventually(lambda: any("started again" in one for one in said))
        assert child.restarts == {DIED: 1, HUNG: 0}
    finally:
        await child.stop()


# --- announce ---------------------------------------------------------------------------
# What `up` tells a person who has never seen it.


FACTS: dict[str, Any] = {
    "gateway_url": "http://127.0.0.1:8080", "admin_url": "http://127.0.0.1:8081", "admin_token": "secret",
    "api_key": "tk_x", "data_dir": ".tollkeeper",
}  # fmt: skip


@pytest.mark.parametrize("key", ["tk_x", ""])
def test_the_console_comes_first_with_what_opens_it(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    Voice().ready(FACTS | {"api_key": key}, "curl -s http://127.0.0.1:1/v1")
    first, second, *others = filter(None, map(str.strip, capsys.readouterr().out.splitlines()))
    assert first.split() == ["Console", "http://127.0.0.1:8081"]
    assert second.split() == ["Admin", "token", "secret"]
    assert any("curl" in line for line in others) == bool(key)


# --- heartbeat --------------------------------------------------------------------------
# A process whose loop stands still is noticed, killed and started again; one that merely waits is not.


# Beats from its loop; hangs, without giving way, once it is told `hang`.
BEATS = """
import asyncio, faulthandler, signal, sys, time
from gateway.local.heartbeat import keep_beating
faulthandler.register(signal.SIGUSR2)
async def main():
    sys.stdin.readline()
    beating = asyncio.create_task(keep_beating(0.05))
    await asyncio.sleep(0.2)
    open(sys.argv[1], "w").close()
    line = await asyncio.to_thread(sys.stdin.readline)
    if line == "hang\\n":
        time.sleep(1000)
asyncio.run(main())
"""
SILENT = "import sys; sys.stdin.readline(); sys.stdin.readline()"


class BeatingChild:
    """A child that beats, with what was said of it."""

    def __init__(
        self, folder: Path, code: str, silent_s_max: float, ready_max_s: float = 60.0,
        last_words_s: float = LAST_WORDS_S,
    ) -> None:  # fmt: skip
        self.there, self.log = folder / "there", folder / "log"
        self.said: list[str] = []

        async def ready(_pid: int) -> bool:
            return code is SILENT or self.there.exists()

        program = ProcessSpec(
            "worker", (sys.executable, "-c", code, str(self.there)), ready, ready_max_s,
            stdin=b"settings", log=self.log, cwd=ROOT, silent_s_max=silent_s_max, stop_max_s=0.1,
            last_words_s=last_words_s,
        )  # fmt: skip
        self.child = Child(program, self.said.append, lambda: None)

    def restarted(self, why: str, before: int | None) -> bool:
        return self.child.restarts[why] >= 1 and self.child.pid not in {None, before}


async def test_a_loop_that_stands_still_is_killed_after_saying_where(tmp_path: Path) -> None:
    kept = BeatingChild(tmp_path, BEATS, silent_s_max=5.0, last_words_s=5.0)
    await kept.child.start()
    before = kept.child.pid
    await kept.child.tell(b"hang")
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()
    assert any("hangs: " in one for one in kept.said)
    assert any("hung for" in one and "starting it again" in one for one in kept.said)
    assert "time.sleep" not in kept.log.read_text()  # places, no lines of code
    assert 'File "<string>", line 12 in main' in kept.log.read_text()


async def test_a_process_that_is_stopped_is_started_again(tmp_path: Path) -> None:
    kept = BeatingChild(tmp_path, BEATS, silent_s_max=5.0)
    await kept.child.start()
    before = kept.child.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()
    assert kept.child.restarts[DIED] == 0


async def test_one_that_never_begins_to_beat_has_the_time_of_a_start(tmp_path: Path) -> None:
    kept = BeatingChild(tmp_path, SILENT, silent_s_max=0.1, ready_max_s=2.0)
    await kept.child.start()
    before = kept.child.pid
    try:
        await eventually(lambda: kept.restarted(HUNG, before))
    finally:
        await kept.child.stop()


async def test_one_that_dies_is_no_one_that_hangs(tmp_path: Path) -> None:
    kept = BeatingChild(tmp_path, BEATS, silent_s_max=30.0)
    await kept.child.start()
    before = kept.child.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    try:
        await eventually(lambda: kept.restarted(DIED, before))
    finally:
        await kept.child.stop()
    assert kept.child.restarts[HUNG] == 0
    assert any("was killed by SIGKILL" in one for one in kept.said)


async def test_time_in_which_the_listener_stood_still_does_not_count() -> None:
    """A machine that slept: an hour is over at once, and a beat comes later; then none does."""
    beats, looks, slept = Heartbeat(), 0, 0.0

    def seconds() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic() + slept

    os.write(beats.theirs, b".")
    listening = asyncio.create_task(beats.wait_until_lost(60.0, 1.0, look_s=0.01, seconds=seconds))
    await eventually(lambda: looks > 2)
    slept, before = 3600.0, looks
    await eventually(lambda: looks > before + 2)
    assert not listening.done()
    os.write(beats.theirs, b".")
    assert 1.0 < await listening < 60.0
    beats.started()
    beats.close()


def test_report_is_known_whole_and_for_ten_seconds() -> None:
    now = [0.0]
    beats = Heartbeat(lambda: now[0])
    assert beats.report() == b""
    os.write(beats.theirs, b'.\n{"away":1}\n.\n{"aw')
    assert beats.report() == b'{"away":1}'
    now[0] = 10.0
    assert beats.report() == b'{"away":1}'
    now[0] = 10.1
    assert beats.report() == b""
    os.write(beats.theirs, b'ay":"!"}\n.')
    assert (beats.report(), beats.is_ready()) == (b'{"away":"!"}', False)
    os.write(beats.theirs, b"\n!")
    assert beats.is_ready()
    beats.started()
    beats.close()


async def test_who_is_not_listened_to_beats_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heartbeat.HEARTBEAT_VARIABLE, raising=False)
    await asyncio.wait_for(heartbeat.keep_beating(), 10)


# --- ports ------------------------------------------------------------------------------
# A port that is held is its workers' alone, from the moment it is chosen, and none of them is missed.


HERE = "127.0.0.1"


def listener(port: int, **said: bool) -> socket.socket:
    return socket.create_server((HERE, port), **said)


def test_nobody_else_is_given_a_free_port_that_was_chosen() -> None:
    with ports.held_port(HERE, 0, "test", 2) as held:
        with pytest.raises(OSError, match="in use") as refused:  # as servers ask for ports, with SO_REUSEADDR
            listener(held.number)
        assert refused.value.errno == errno.EADDRINUSE


def test_nobody_is_let_wait_before_the_first_worker_listens_nor_refused_after_it_died() -> None:
    with ports.held_port(HERE, 0, "test", 2) as held:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HERE, held.number))
        with socket.socket(fileno=os.dup(held.sockets[0].fileno())) as worker:
            worker.listen()
        with socket.create_connection((HERE, held.number)):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, held.number))


def test_a_named_port_is_held_again_although_connections_end_there() -> None:
    port = free_port()
    for _ in range(2):
        with ports.held_port(HERE, port, "test") as held:
            server = held.sockets[0]
            server.listen()
            server.setblocking(True)
            with socket.create_connection((HERE, port)):
                server.accept()[0].close()  # who closes first keeps the port for a while


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_somebody_listens_on_is_refused(shares: bool) -> None:
    with (
        listener(0, reuse_port=shares) as server,
        pytest.raises(StartError, match="is in use; choose another for the test"),
    ):
        ports.held_port(HERE, server.getsockname()[1], "test")


def test_an_address_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0 for the test"):
        ports.held_port("192.0.2.1", 0, "test")


@pytest.mark.parametrize(
    ("sockets", "workers", "own"),
    [(3, 3, [[0], [1], [2]]), (1, 3, [[0], [0], [0]]), (3, 2, [[0, 2], [1]]), (2, 3, [[0], [1], [0]])],
)
def test_each_socket_is_a_workers_own_and_the_others_are_known_to_it(
    sockets: int, workers: int, own: list[list[int]]
) -> None:
    """Also where a service manager listens with more sockets than there are workers, or fewer."""
    with ports.held_port(HERE, 0, "test", sockets) as held:
        every = [one.fileno() for one in held.sockets]
        for worker in range(workers):
            given, told = held.given(worker, workers)
            mine, _, others = told[ports.VARIABLE].partition("/")
            assert list(given) == every
            assert [int(one) for one in mine.split(",")] == [every[at] for at in own[worker]]
            assert {int(one) for one in filter(None, others.split(","))} == {*every} - {
                every[at] for at in own[worker]
            }


# As systemd starts a program: descriptor 3 listens.
HANDED_OVER = """
import os, sys
os.dup2(int(sys.argv.pop(1)), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
from gateway.errors import StartError
from gateway.local import ports
here, *served = map(int, sys.argv[1:])
try:
    ports.refuse_unknown(served)
except StartError as error:
    sys.exit(error.message)
with ports.held_port("127.0.0.1", here, "test", 2) as held:
    print(held.number, len(held.sockets), os.get_inheritable(3))
"""


def started_with(server: socket.socket, folder: Path, *words: int) -> subprocess.CompletedProcess[str]:
    script = folder / "handed_over.py"
    script.write_text(HANDED_OVER)
    there = server.fileno()
    return subprocess.run(
        [sys.executable, str(script), *map(str, (there, *words))], pass_fds=[there],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_socket_that_a_service_manager_listens_with_is_taken(tmp_path: Path) -> None:
    with listener(0) as server:
        port = server.getsockname()[1]
        done = started_with(server, tmp_path, port, port, 9090)
        assert (done.stdout.split(), done.stderr) == ([str(port), "1", "False"], "")


def test_a_socket_of_a_port_that_nobody_serves_is_named(tmp_path: Path) -> None:
    with listener(0) as server:
        port = server.getsockname()[1]
        done = started_with(server, tmp_path, 1, 1, 9090)
        assert done.returncode == 1
        assert done.stderr.strip() == (
            f"the service manager handed over a socket of port {port}, and this process serves 1 and 9090: "
            "its .socket unit must name these"
        )


FORKS = """
import asyncio, os, sys, time
from pathlib import Path
from gateway.local import heartbeat
from gateway.local.processes import Child, ProcessSpec

said, folder = [], Path(sys.argv[1])
again = (sys.executable, "-c", f"import os; open({str(folder / 'again')!r}, 'w').write(os.environ['HERE'])"
    "; os.write(int(os.environ['HEARTBEAT_DESCRIPTOR']), b'.!'); import sys; sys.stdin.read()")
child = Child(ProcessSpec("copy", again, stdin=b"settings " + b"x" * 200_000, environment={"HERE": "told"},
    silent_s_max=60.0, stop_max_s=5.0), said.append, lambda: None)
if not child.fork():
    first = sys.stdin.buffer.readline()
    heartbeat.say_ready()
    second = sys.stdin.buffer.readline()
    leads = os.getsid(0) == os.getpid()
    (folder / "heard").write_text(f"{len(first)} {second!r} {os.environ['HERE']} {leads}")
    rest = sys.stdin.buffer.read()
    (folder / "over").write_text(repr(rest))
    sys.exit(3)

async def until(ready):
    for _ in range(1000):
        if ready():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError

async def main():
    if sys.argv[2] == "ends first":
        os.kill(child.pid, 9)
        try:
            await child.start()
        except Exception as error:
            print(type(error).__name__, error)
        return
    forked = child.pid
    await child.start()
    assert child.is_ready and child.pid == forked
    await child.send(b"more")
    await until((folder / "heard").exists)
    if sys.argv[2] == "parent goes":
        os._exit(0)
    if sys.argv[2] == "dies":
        os.kill(forked, 9)
        await until(lambda: child.restarts["died"] and child.is_ready and child.pid != forked)
        print(child.restarts["died"])
    await child.stop()
    print(child.pid, [one for one in said if "killed by" not in one and "started again" not in one])

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "printed"),
    [
        ("stops", "None []\n"),
        ("dies", "1\nNone []\n"),
        ("parent goes", ""),
        ("ends first", "StartError copy cannot start: it was killed by SIGKILL\n"),
    ],
)
def test_a_copy_of_this_process_is_a_child_like_others(tmp_path: Path, what: str, printed: str) -> None:
    asked = [sys.executable, "-c", FORKS, str(tmp_path), what]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=True)
    assert done.stdout == printed, done.stderr
    if what != "ends first":
        assert (tmp_path / "heard").read_text() == "200010 b'more\\n' told True"
    if what == "dies":
        assert (tmp_path / "again").read_text() == "told"
    if what == "parent goes":
        wait_until((tmp_path / "over").exists, 20.0)
        assert (tmp_path / "over").read_text() == "b''"
