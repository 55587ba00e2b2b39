"""The vital signs of a process: its event loop and open files."""

from __future__ import annotations

import asyncio

from gateway.core.histograms import Histogram
from gateway.core.http_limits import HttpLimits
from gateway.core.times import zones_edition
from gateway.local import heartbeat
from gateway.settings.settings import Settings

LOOK_S = 0.5  # ticks of `coarse_loop.py`, so that only a busy loop makes this timer late
FILES_LOOK_S = 5.0


class ProcessVitals:
    """The delay of a process' event loop, which all its calls wait for, and its open files."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.seconds = Histogram()
        self.files, self.files_max = heartbeat.count_open_files(), heartbeat.open_files_limit()

    async def keep_looking(self) -> None:
        files_at, clock = 0.0, asyncio.get_running_loop().time
        while True:
            due = (clock() // LOOK_S + 1) * LOOK_S
            await asyncio.sleep(due - clock())
            now = clock()
            self.seconds.observe(max(0.0, now - due))
            if now - files_at >= FILES_LOOK_S:
                self.files, files_at = heartbeat.count_open_files(), now

    def open_files(self) -> dict[str, object]:
        return {
            "open_files": [(self.process, self.files)],
            "open_files_max": [(self.process, self.files_max)],
        }

    def snapshot(self) -> dict[str, object]:
        lag = {self.process: self.seconds.snapshot()}
        return {"loop_lag_seconds": lag, "time_zones_info": [(zones_edition(), 1)], **self.open_files()}


def limits_here(settings: Settings, files_max: int | None = None) -> HttpLimits:
    """Return the HTTP limits of a gateway worker, reduced if it may open too few files.

    `files_max` is the number of files it may open, by default the system's limit.
    """
    return settings.http.within(files_max or heartbeat.open_files_limit(), len(settings.upstreams))


def few_files(settings: Settings, files_max: int | None = None) -> str:
    """Return a warning if too few open files (`files_max`) reduce a worker's connections, else ""."""
    most = files_max or heartbeat.open_files_limit()
    wanted, here = settings.http.connections_max, limits_here(settings, most).connections_max
    if here == wanted:
        return ""
    message = f"a process may have {most:,} open files, so a gateway worker takes {here:,} connections"
    wished = f"not the {wanted:,} of TOLLKEEPER_CONNECTIONS_MAX"
    return f"{message}, {wished}: raise the limit (ulimit -n, LimitNOFILE=)"
