"""How far tests search: a fifth of their examples and one step in four for a change, all of it at night.

A night draws its seed, which is printed with what failed: `make nightly SEED=…` plays the same again. What
hypothesis found stays in `build/examples` and is tried first in the next night.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from hypothesis import HealthCheck, core, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.vendor import pretty

# The environment variable that has a night's seed, for forked processes and for programs that tests start.
SEED: Final = "SEARCH_SEED"
SHARE, STRIDE = 5, 4
EXAMPLES_MIN: Final = 4
FOUND: Final = Path(__file__).resolve().parent.parent / "build" / "examples"

_T = TypeVar("_T")


def is_night() -> bool:
    """Return whether all examples and all steps are played."""
    return SEED in os.environ


def another(usual: int) -> int:
    """Return the seed of a test's own random generator: at night another than the usual one."""
    return usual + int(os.environ.get(SEED) or 0)


def examples(number: int) -> int:
    """Return how many of a number of examples are tried: all at night, else a fifth."""
    return number if is_night() else max(number // SHARE, min(number, EXAMPLES_MIN))


def histories(number: int) -> int:
    """Return how many histories are played, each of which costs seconds: ten times the number at night."""
    return 10 * number if is_night() else number


@contextmanager
def seeds_of(name: str, usual: int, number: int, found: Path = FOUND) -> Iterator[Iterator[int]]:
    """Give the seeds that are played: those of this name that failed before, then so many others.

    The one at which the block ends with an error is kept among what was `found`, for as long as it fails.
    """
    kept = found / f"{name}.json"
    failed: list[int] = json.loads(kept.read_text()) if kept.exists() else []
    left = [*failed, *(another(usual) + at for at in range(histories(number)))]
    played = list[int]()

    def play() -> Iterator[int]:
        for seed in left:
            played.append(seed)
            yield seed

    try:
        yield play()
    except BaseException:
        failed = [*dict.fromkeys((played[-1], *failed))]
        raise
    else:
        failed = []
    finally:
        found.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(failed))


def steps(every: Sequence[_T]) -> Sequence[_T]:
    """Return the steps at which a matrix breaks off: all at night, else each fourth and the last."""
    return every if is_night() or len(every) <= STRIDE else [*every[:-1:STRIDE], every[-1]]


def load_profile() -> None:
    """Have hypothesis try the same examples on each run; at night drawn ones, and what failed before."""
    settings.register_profile(
        "search", deadline=None, derandomize=not is_night(), max_examples=examples(100),
        database=DirectoryBasedExampleDatabase(FOUND) if is_night() else None,
        # No example fails for being slow: what fails is the code, not the machine.
        suppress_health_check=list(HealthCheck), print_blob=is_night(),
    )  # fmt: skip
    settings.load_profile("search")
    # The one of schemathesis, which is a plugin of pytest, prints no value of any test.
    core.RepresentationPrinter = pretty.RepresentationPrinter  # type: ignore[attr-defined]  # not exported
