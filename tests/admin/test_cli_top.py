"""`tollkeeper top`: one look for programs and pipes, a live one that a key ends, also on narrow terminals."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.admin.conftest import ADMIN, Api
from tests.admin.test_cli import Run, run
from tests.tree import ROOT

__all__ = ["run"]


async def busy(api: Api) -> None:
    tenant = await api.make("tenants", name="a tenant of a rather long name, as they come")
    api.counters.busy = [
        ((tenant["id"], "requests"), 120),
        ((tenant["id"], "tokens"), 4_200),
        ((tenant["id"], "rate_limited"), 30),
    ]


async def test_one_look_is_json_for_programs(run: Run, api: Api) -> None:
    await busy(api)
    result = await run("top", "--once", "--json", "--window", "60")
    look = json.loads(result.stdout)
    assert (look["requests_per_s"], look["tokens_per_s"], look["refused_per_s"]) == (2.0, 70.0, 0.5)
    assert look["tenants"][0]["refused"] == {"rate_limited": 30}
    assert look["latency_s"] == {"p50": None, "p99": None, "added_p99": None}


async def test_one_look_is_a_table_for_people_and_pipes(run: Run, api: Api) -> None:
    await busy(api)
    result = await run("top")
    assert result.exit_code == 0
    assert "a tenant of a rather long name" in result.stdout
    assert "rate_limited 30" in result.stdout


async def test_without_anybody_it_says_so_in_numbers(run: Run, api: Api) -> None:
    result = await run("top", "--once")
    assert result.exit_code == 0
    assert "requests/s 0" in result.stdout


class Terminal:
    """`tollkeeper top` on a terminal of its own."""

    def __init__(self, api: Api, columns: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        environ = {
            name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "top", "--interval", "0.5"],
            cwd=ROOT,
            env=environ
            | {
                "TERM": "xterm-256color",
                "TOLLKEEPER_ADMIN_URL": str(api.client.make_url("")),
                "TOLLKEEPER_ADMIN_TOKEN": ADMIN,
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self.slave = slave
        self.seen = ""

    async def until(self, word: str) -> None:
        deadline = time.monotonic() + 60
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.seen += (await asyncio.to_thread(os.read, self.master, 65536)).decode(errors="replace")

    async def quit(self) -> int:
        os.write(self.master, b"q")
        loop = asyncio.get_running_loop()
        loop.add_reader(self.master, os.read, self.master, 65536)  # what it still says is let go
        status = await asyncio.to_thread(self.process.wait, 60)
        loop.remove_reader(self.master)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@pytest.mark.parametrize("columns", [120, 60])
async def test_it_is_live_until_q_and_leaves_the_terminal_as_it_was(api: Api, columns: int) -> None:
    await busy(api)
    terminal = Terminal(api, columns)
    try:
        await terminal.until("requests/s")
        await terminal.until("tenant of")
        if columns == 120:
            await terminal.until("│ rate_limited 30")
        api.counters.busy = [((0, "invalid_api_key"), 990)]
        await terminal.until("99")
        assert ("│ rate_limited 30" in terminal.seen) is (columns == 120)
        api.counters.away = True
        await terminal.until("cannot be")
        assert await terminal.quit() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()
