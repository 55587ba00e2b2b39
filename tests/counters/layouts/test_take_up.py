"""Programs of two layouts serve one partition: until it is taken up, the older one reads what either writes.

The newer program is this one with a field more in everything that is stored (`tests/newer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.accounts.outbox import VERSION
from gateway.core.layout import LAYOUT
from tests import newer
from tests.conftest import ValkeyServer
from tests.layout_player import USED, Other, Player, Step, history
from tests.search import is_night

LENGTH = 90
SEEDS = range(6 if is_night() else 2)


@pytest.fixture
def old(valkey: str) -> Player:
    return Player(valkey, made=False)


@pytest.fixture(scope="module")
def new(valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Other]:
    made = Other(newer.make(tmp_path_factory.mktemp("newer"), newer.CHANGES), valkey_server.url)
    yield made
    made.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_two_programs_do_by_turns_is_what_one_does_alone(old: Player, new: Other, seed: int) -> None:
    steps, more = history(seed, LENGTH), history(seed + 100, LENGTH // 2)
    old.begin()
    said = [old.play(step) for step in steps]
    alone = old.found()
    said_more = [old.play(step) for step in more]
    alone_more = old.found()

    old.begin(LAYOUT)
    players = old, new
    assert [players[(at + seed) % 2].play(step) for at, step in enumerate(steps)] == said
    assert old.found() == alone
    assert (old.layouts(), old.versions()) == ({LAYOUT}, {VERSION})

    new.ask("lift", newer.NEWER)
    before = old.world.everything()
    assert old.play(Step("reserve", 5000, 1)) == "UNVERIFIED"
    assert old.world.everything() == before
    assert [new.play(step) for step in more] == said_more
    assert new.ask("found") == alone_more
    assert newer.NEWER in new.ask("layouts")
    assert VERSION + 1 in new.ask("versions")


def test_each_partition_is_written_in_its_own_layout(old: Player, new: Other) -> None:
    """Calls of two come together: what is written of the one says nothing of the next call in the other."""
    old.begin(LAYOUT)
    assert new.ask("beside") == newer.NEWER
    assert old.layouts() == {LAYOUT}


def test_steps_reach_every_kind_of_what_is_stored(old: Player) -> None:
    kinds, met = set[str](), set[str]()
    for seed in SEEDS:
        old.begin()
        met |= {f"{step.verb} {old.play(step)}" for step in history(seed, LENGTH)}
        kinds |= {name.split(":")[2] for name in old.found() if ":" in name}
        kinds |= {name for name in ("outbox", "late") if old.found()[name]}
    assert kinds == {*"kutohab", "outbox", "late"}
    assert {
        "reserve ADMITTED", "raise ADMITTED", "several ADMITTED ADMITTED ADMITTED", "lease 1",
        "settle 1", "settle -1", "settle -2", "reclaim 1", "release 1", "post 1", "correct 1",
    } <= met  # fmt: skip


def test_what_a_newer_worker_left_on_its_disk_is_sent_by_an_older_one_until_it_is_taken_up(
    old: Player, new: Other, tmp_path: Path
) -> None:
    old.begin()
    for layout, adopted in ((LAYOUT, [USED]), (newer.NEWER, [])):
        folder = str(tmp_path / str(layout))
        new.ask("spool", folder, layout)
        assert old.adopted(folder) == adopted
        assert new.ask("adopted", folder) == [USED]
