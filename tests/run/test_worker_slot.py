"""A worker's slot is nobody else's while it lives, and its successor's afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from uuid import UUID

from gateway.run.gateway_worker import take_worker_slot

TAKE = """
import pathlib, sys
from gateway.run.gateway_worker import take_worker_slot
print(take_worker_slot(pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def sit(directory: Path) -> tuple[subprocess.Popen[str], UUID]:
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, UUID(process.stdout.readline().strip())


def test_a_slot_is_taken_once_and_found_again_after_a_kill(tmp_path: Path) -> None:
    first, its = sit(tmp_path / "worker_slots")
    second, other = sit(tmp_path / "worker_slots")
    assert its != other
    first.kill()
    first.wait(60)
    third, again = sit(tmp_path / "worker_slots")
    assert again == its
    for process in (second, third):
        process.kill()
        process.wait(60)


def test_a_slot_that_cannot_be_kept_is_a_slot_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    assert take_worker_slot(blocked) != take_worker_slot(blocked)


def test_a_slot_that_was_half_written_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("half of i")
    process, worker_slot = sit(tmp_path)
    assert (tmp_path / "0").read_text() == str(worker_slot)
    process.kill()
    process.wait(60)
