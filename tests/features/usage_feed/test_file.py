"""Usage events in a file: in order, each once, wherever the keeper that wrote them died."""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.features.usage_feed.events import FeedEvent
from gateway.features.usage_feed.file import RECENT_MAX, EventFile
from tests.search import histories

AT = datetime(2026, 4, 1, 12, 0, 0, 123_000, tzinfo=UTC)
TYPE = "tollkeeper_use"


def events(first: int, last: int) -> list[FeedEvent]:
    return [
        FeedEvent(number, f"e{number:05}:use", "7", AT, {"tokens": str(number), "user": "Zoë\n"})
        for number in range(first, last + 1)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def numbers(path: Path) -> list[int]:
    return [int(one["data"]["tokens"]) for one in lines(path)]


async def test_usage_event_file_has_a_cloud_event_per_line_in_the_order_of_use(tmp_path: Path) -> None:
    file = EventFile(str(tmp_path / "use.ndjson"), TYPE)
    sent = await file.send(events(1, 3))
    assert (sent.taken, sent.refused, sent.pause) == ({1, 2, 3}, {}, None)
    await file.send(events(4, 5))
    assert numbers(tmp_path / "use.ndjson") == [1, 2, 3, 4, 5]
    assert lines(tmp_path / "use.ndjson")[0] == {
        "specversion": "1.0", "id": "e00001:use", "source": "tollkeeper", "type": TYPE, "subject": "7",
        "time": "2026-04-01T12:00:00.123000Z", "datacontenttype": "application/json",
        "data": {"tokens": "1", "user": "Zoë\n"},
    }  # fmt: skip
    assert (tmp_path / "use.ndjson").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("seed", range(histories(2)))
async def test_usage_event_file_has_each_event_once_although_keepers_die_while_writing(
    tmp_path: Path, seed: int
) -> None:
    path, draw, noted = tmp_path / "use.ndjson", random.Random(seed), 0
    while noted < 400:
        file = EventFile(str(path), TYPE)
        for _ in range(draw.randint(1, 3)):
            size = path.stat().st_size if path.exists() else 0
            last = min(400, noted + draw.randint(1, 40))
            await file.send(events(noted + 1, last))
            if draw.random() < 0.5:  # it dies on its way to the disk, or before it is noted
                now = path.stat().st_size  # less where half a line was cut off, and no event was new
                os.truncate(path, draw.randint(min(size, now), now))
                break
            noted = last
    assert numbers(path) == list(range(1, 401))


async def test_usage_event_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "use.ndjson"
    file = EventFile(str(path), TYPE)
    await file.send(events(1, 2))
    path.rename(tmp_path / "use.1")
    await file.send(events(3, 4))
    assert (numbers(tmp_path / "use.1"), numbers(path)) == ([1, 2], [3, 4])


async def test_usage_event_file_keeps_foreign_lines_and_skips_events_already_among_the_recent_lines(
    tmp_path: Path,
) -> None:
    path = tmp_path / "use.ndjson"
    path.write_bytes(b"not ours\n")
    await EventFile(str(path), TYPE).send(events(1, RECENT_MAX + 1))
    sent = await EventFile(str(path), TYPE).send(events(2, 3))
    assert (sent.taken, len(path.read_bytes().splitlines())) == ({2, 3}, RECENT_MAX + 2)


@pytest.mark.parametrize("what", ["directory", "pipe", "nowhere", "held"])
async def test_usage_feed_pauses_while_the_event_file_cannot_be_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "use.ndjson"
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "nowhere":
        path = tmp_path / "none" / "use.ndjson"
    held = None
    if what == "held":
        import fcntl  # of this case alone

        held = path.open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    sent = await EventFile(str(path), TYPE).send(events(1, 2))
    assert (sent.taken, sent.refused) == (set(), {})
    assert sent.pause is not None
    assert str(path) in sent.pause.reason
    if held is not None:
        held.close()
