"""What a gateway worker says of itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway.app import LEAVING_S_MAX
from gateway.core.http_limits import HttpLimits
from gateway.counters.settlement_log.log import LogLimits
from gateway.run.serving import SETTLING_S_MAX
from gateway.settings.settings import Settings, to_json
from tests.tree import ROOT
from tests.waiting import HUNG_S

HUNG = """
import sys, threading
from gateway.counters.settlement_log.log import LogSegment
LogSegment.leave = LogSegment.remove = lambda segment: threading.Event().wait()
from gateway.__main__ import main
sys.exit(main(["serve", "--worker"]))
"""


def test_a_worker_that_ends_is_not_killed_before_each_of_its_last_steps_had_its_time() -> None:
    breaking_off, told_and_left = HttpLimits().counters_s, 2 * LEAVING_S_MAX
    assert breaking_off + told_and_left + LogLimits().close_s_max <= SETTLING_S_MAX


def test_a_worker_whose_disk_hangs_ends_all_the_same(valkey: str, tmp_path: Path) -> None:
    settings = Settings(
        redis_url=valkey, gateway_port=0, data_dir=str(tmp_path), key_pepper="p" * 32,
        shutdown_grace_s=1.0,
    )  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", HUNG],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as worker:  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(to_json(settings) + b"\n")
            worker.stdin.flush()
            while b"gateway started" not in (line := worker.stdout.readline()):
                assert line, "it ended before it had started"
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(HUNG_S) == 0
            assert b"its disk hangs" in worker.stdout.read()
        finally:
            worker.kill()
