"""Memory of a burst goes back to the system, whatever came to lie behind it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.run.lifecycle import MAPPED_BYTES_MIN

BURST = f"""
import resource
from gateway.run.lifecycle import give_back_large_blocks
def resident():
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * resource.getpagesize()
print(int(give_back_large_blocks()))
large = bytearray(30 << 20)  # by itself the library would take such a block for usual from now on
del large
before, kept = resident(), []
burst = []
for _ in range(1000):
    burst.append(b"x" * {2 * MAPPED_BYTES_MIN})
    kept.append(b"y" * 600)
at_its_peak = resident()
del burst
print(at_its_peak - before, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is resident")
def test_large_blocks_go_back_though_small_ones_lie_between() -> None:
    run = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, check=True)
    done, sizes = run.stdout.splitlines()
    if done == "0":
        pytest.skip("the C library has no such setting")
    at_its_peak, left = map(int, sizes.split())
    assert at_its_peak > 60 * (1 << 20)
    assert left < at_its_peak / 10
