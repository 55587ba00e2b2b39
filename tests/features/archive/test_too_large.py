"""A file that no bucket takes is refused before it is uploaded for hours, and nothing of it stays."""

from __future__ import annotations

import pytest

from gateway.errors import ArchiveFailed
from gateway.features.archive.archiving import outgrown
from gateway.ops.storage import STORED_BYTES_MAX, FileStore
from tests.features.archive.aging import Aging, clones, held, old
from tests.persistence.migrated import template

__all__ = ["clones", "old", "template"]

GB = 10**9


async def test_month_too_large_for_an_s3_bucket_is_refused_but_can_be_archived_to_a_directory(
    old: Aging, store: str
) -> None:
    small = FileStore(store, stored_bytes_max=100)
    said = r"2026-\d\d \w+ comes to 0\.0 GB, .* archive into a directory, such as --to /archive"
    with pytest.raises(ArchiveFailed, match=said):
        await old.archive(small)
    assert [small.names(f"{one}/{month}") for one in small.folders("") for month in small.folders(one)] == [
        []
    ]
    await old.archive()
    assert held(old.url, FileStore(str(old.root))) == old.all_of_it()


@pytest.mark.parametrize(
    ("written", "size", "expected", "whole"),
    [
        (1, 104, 10**9, 0),  # of one row nobody knows yet what the others have
        (10**6, 104 * 10**6, 10**9, 0),  # 104 GB, or a little less
        (10**6, 200 * 10**6, 10**9, 200 * GB),
        (10**6, 200 * 10**6, 10**8, 0),
        (10**9, STORED_BYTES_MAX + 1, 0, STORED_BYTES_MAX + 1),  # whose rows nobody has estimated
        (10**9, STORED_BYTES_MAX, 10**9, 0),
    ],
)
def test_final_archive_file_size_is_estimated_from_the_rows_written_so_far(
    written: int, size: int, expected: int, whole: int
) -> None:
    assert outgrown(written, size, expected, STORED_BYTES_MAX) == whole
