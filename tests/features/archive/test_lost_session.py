"""Whose session in PostgreSQL ended archives no more: another run may have taken the month out since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from gateway.errors import ArchiveFailed
from gateway.features.archive import archiving
from gateway.features.archive.archiving import archive
from gateway.features.archive.reading import RowFilter, prove, rows
from gateway.ops.storage import FileStore
from tests.features.archive.aging import Aging, clones, old
from tests.features.archive.test_reading import CALL
from tests.features.archive.test_retention import NEVER
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "old", "template"]

END = "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7810"
CALLS = replace(NEVER, calls=1)
FILE = archiving.file_of("call", date(2026, 1, 1))


class Overtaken(FileStore):
    """At one moment its run's session ends, a call comes late, and another run archives all of it."""

    def __init__(self, url: str, old: Aging, moment: str) -> None:
        super().__init__(url)
        self.old, self.moment, self.done = old, moment, False

    def overtake(self, moment: str, name: str) -> None:
        if moment == self.moment and name.startswith(FILE) and not self.done:
            self.done = True
            assert rows_of(self.old.url, END) == [(True,)]
            rows_of(self.old.url, CALL)
            done = archive(self.old.url, FileStore(self.url), self.old.today, None, retention=CALLS)
            assert FILE in {one.file for one in done.files}

    @contextmanager
    def write_whole(self, name: str, still: Callable[[], object]) -> Iterator[Any]:
        with super().write_whole(name, still) as sink:
            yield sink
            self.overtake("write", name)

    def digest(self, name: str) -> tuple[int, str]:
        found = super().digest(name)
        self.overtake("digest", name)
        return found

    def open(self, name: str) -> Any:
        found = super().open(name)
        self.overtake("open", name)
        return found


@pytest.mark.parametrize("moment", ["write", "digest", "open"])
async def test_archive_run_that_lost_the_database_connection_does_not_overwrite_a_newer_run(
    old: Aging, moment: str
) -> None:
    """While a file is written, or read back, or one that is torn is looked at."""
    await old.settle()
    root = str(old.root)
    with pytest.raises(ArchiveFailed, match="session in PostgreSQL ended"):
        await asyncio.to_thread(
            archive, old.url, Overtaken(root, old, moment), old.today, None, retention=CALLS
        )
    assert (await asyncio.to_thread(prove, old.url, FileStore(root))).broken == []
    assert sum(row["reason"] == "a report" for row in rows(FileStore(root), "calls", RowFilter())) == 0
    assert len(rows(FileStore(root), "calls", RowFilter(limit=1_000))) > 0
    assert not [*old.root.rglob("*.part")]


async def test_archive_run_that_lost_the_connection_does_not_damage_a_file_rewritten_by_a_newer_run(
    old: Aging,
) -> None:
    await old.settle()
    root, file = str(old.root), old.root / FILE

    class Stopping(FileStore):
        def write_json(self, name: str, value: object) -> None:
            super().write_json(name, value)
            raise OSError("the machine is gone")

    with pytest.raises(Exception, match="the machine is gone"):
        await asyncio.to_thread(archive, old.url, Stopping(root), old.today, None, retention=CALLS)
    file.write_bytes(b"torn")
    with pytest.raises(ArchiveFailed, match="session in PostgreSQL ended"):
        await asyncio.to_thread(
            archive, old.url, Overtaken(root, old, "digest"), old.today, None, retention=CALLS
        )
    assert (await asyncio.to_thread(prove, old.url, FileStore(root))).broken == []
