"""Ten thousand histories on the scripts of the release before and of now, at night others: see `test_scripts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import ValkeyServer
from tests.model.two_programs import TwoPrograms
from tests.release_before import write_release
from tests.search import another

HISTORIES = 10_000


def test_scripts_answer_as_in_the_release_before_in_many_histories(
    own_valkey: Callable[..., ValkeyServer], tmp_path: Path
) -> None:
    first = another(1_000)
    programs = TwoPrograms(write_release(tmp_path / "release", "tests"), own_valkey().url)
    try:
        for _ in programs.compare(range(first, first + HISTORIES)):
            pass
    finally:
        programs.close()
