"""What a process says of its loop and of the disk below it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gateway.errors import LoopsSilent
from gateway.local.parent_pipe import ParentPipe
from gateway.run import gateway_worker
from gateway.run.admin_process import FactsReader, LoopFacts, written_fact
from gateway.run.health import FREE_BYTES_MIN, DiskWatch, disks, full_disks, has_free_files
from gateway.run.memory import MAPPED_BYTES_MIN
from gateway.run.process_vitals import LOOK_S, ProcessVitals
from gateway.settings.settings import Settings
from gateway.telemetry import metrics as tallies
from tests.waiting import eventually


async def test_a_loop_that_is_held_up_turned_late() -> None:
    lag = ProcessVitals("gateway")
    looking = asyncio.create_task(lag.keep_looking())
    await eventually(lambda: sum(lag.seconds.counts))
    before = lag.seconds.total
    until = time.monotonic() + LOOK_S * 3
    while time.monotonic() < until:  # work that holds a loop up
        pass
    await eventually(lambda: lag.seconds.total - before >= LOOK_S)
    looking.cancel()
    said = lag.snapshot()
    assert said["loop_lag_seconds"] == {"gateway": lag.seconds.snapshot()}


async def test_open_files_are_counted_again_and_a_process_that_has_hardly_any_left_is_told() -> None:
    vitals = ProcessVitals("gateway")
    before = vitals.files
    assert 0 < before < vitals.files_max
    looking = asyncio.create_task(vitals.keep_looking())
    with ExitStack() as opened:
        for _ in range(50):
            opened.enter_context(tempfile.TemporaryFile())
        await eventually(lambda: vitals.files >= before + 50)
    looking.cancel()
    assert has_free_files(vitals.snapshot())
    vitals.files = vitals.files_max
    assert not has_free_files(vitals.snapshot())
    keeper = ProcessVitals("keeper")
    assert not has_free_files(tallies.merge(vitals.snapshot(), keeper.snapshot()))


def test_of_several_workers_the_fullest_counts() -> None:
    one = {"open_files": [["gateway", 7]], "open_files_max": [["gateway", 256]]}
    other = {"open_files": [["gateway", 250]], "open_files_max": [["gateway", 1024]]}
    assert tallies.merge(one, other) == {
        "open_files": [["gateway", 250]], "open_files_max": [["gateway", 256]],
    }  # fmt: skip


def test_disks_are_told_by_what_they_are_for_also_before_their_directory_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "not" / "yet"))
    found = disks(settings)
    size = shutil.disk_usage(tmp_path).total
    assert found["disk_size_bytes"] == [("data", size), ("settlements", size)]
    assert isinstance(found["disk_free_bytes"], list)
    assert [name for name, free in found["disk_free_bytes"] if 0 <= free <= size] == ["data", "settlements"]


async def test_a_disk_that_fills_up_and_is_cleared_is_told_once_each(tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []
    watch = DiskWatch(
        Settings(data_dir=str(tmp_path)), lambda event, **more: said.append((event, more["place"]))
    )
    full, room = shutil.disk_usage(tmp_path).total + 1, 0

    async def looked(free_bytes_min: int) -> None:
        looking = asyncio.create_task(watch.keep_looking(look_s=0, free_bytes_min=free_bytes_min))
        await eventually(lambda: bool(watch.full) == bool(free_bytes_min))
        looking.cancel()

    for wanted in (room, full, full, room, full):
        await looked(wanted)
    place = str(tmp_path)
    assert said == [("disk is full", place), ("disk has room again", place), ("disk is full", place)]


async def test_of_two_disks_each_change_is_told(tmp_path: Path) -> None:
    said: list[tuple[str, object]] = []
    found: tuple[str, ...] = ()
    watch = DiskWatch(
        Settings(data_dir=str(tmp_path)),
        lambda event, **more: said.append((event, more["place"])),
        lambda *_: found,
    )
    looking = asyncio.create_task(watch.keep_looking(look_s=0))
    try:
        for found in (("/data",), ("/data", "/settlements"), ("/settlements",), ()):
            await eventually(lambda now=found: watch.full == now)
    finally:
        looking.cancel()
    full, room = "disk is full", "disk has room again"
    assert said == [(full, "/data"), (full, "/settlements"), (room, "/data"), (room, "/settlements")]


def test_a_place_without_a_size_is_no_full_disk() -> None:
    settings = Settings(data_dir="/proc/x")
    assert (full_disks(settings), disks(settings)) == ((), {"disk_free_bytes": [], "disk_size_bytes": []})


def test_a_disk_with_less_room_than_is_wanted_is_full(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    total = shutil.disk_usage(tmp_path).total
    assert full_disks(settings, total + 1) == (str(tmp_path),), "one disk is told once"
    if shutil.disk_usage(tmp_path).free > 2 * FREE_BYTES_MIN:
        assert full_disks(settings) == ()


# --- facts ------------------------------------------------------------------------------
# What the loops tell is read as it came last; what is no fact goes elsewhere; silence is told.


class Pipe(ParentPipe):
    """A keeper that says what a test does."""

    def __init__(self) -> None:
        self.say: Callable[[bytes], object] = lambda _: None

    def listen(self, told: Callable[[bytes], object]) -> None:
        self.say = told


def test_the_last_facts_count_until_nothing_came_for_too_long() -> None:
    pipe, now, begun, settings = Pipe(), [0.0], list[bool](), list[bytes]()
    heard = FactsReader(
        pipe, lambda: begun.append(True), settings.append, clock=lambda: now[0], silent_s_max=10.0
    )
    with pytest.raises(LoopsSilent):
        heard.last()
    for holds in (1, 2):
        pipe.say(b'{"log_level":"info"}\n')
        pipe.say(written_fact(LoopFacts({"holds": holds}, {"counters_verified": True})) + b"\n")
    assert heard.last() == LoopFacts({"holds": 2}, {"counters_verified": True})
    assert (begun, len(settings)) == ([True], 2)
    now[0] = 10.1
    with pytest.raises(LoopsSilent):
        heard.last()


# --- allocator --------------------------------------------------------------------------
# Memory of a burst goes back to the system, whatever came to lie behind it.


BURST = f"""
import resource
from gateway.run.memory import give_back_large_blocks
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


# --- tokenizer --------------------------------------------------------------------------
# OpenAI's tokenizers are used where their package is, and missed nowhere.


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    assert gateway_worker.load_tokenizer() is None


def test_each_model_has_the_encoding_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get_encoding(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(
            encode_ordinary=lambda text: list(text) if name == "o200k_base" else text.split()
        )

    package = ModuleType("bpe_openai")
    package.get_encoding = get_encoding  # type: ignore[attr-defined]  # as the package has it
    monkeypatch.setitem(sys.modules, "bpe_openai", package)
    of_model = gateway_worker.load_tokenizer()
    assert of_model is not None
    counts = [of_model(model) for model in ("gpt-4o-mini", "gpt-4-0613", "o3-mini", "text-embedding-3-small")]
    assert [count and count("ab cd") for count in counts] == [5, 2, 5, 2]
    trained = [
        of_model(model) for model in ("ft:gpt-4o-mini:acme::1", "ft:gpt-3.5-turbo:acme", "gpt-oss-20b")
    ]
    assert [count and count("ab cd") for count in trained] == [5, 2, 5]
    assert of_model("claude-3") is None
    assert of_model("ft:claude-3") is None
    assert asked == ["o200k_base", "cl100k_base"]  # each is made once


def test_the_real_package_counts_as_openai_does() -> None:
    pytest.importorskip("bpe_openai", reason="the tokenizer is an optional extra")
    of_model = gateway_worker.load_tokenizer()
    assert of_model is not None
    count = of_model("gpt-4o")
    assert count is not None
    assert count("hello world") == 2
    assert count("<|endoftext|>") > 1  # text is text, whatever it looks like
