"""How far tests search: a fifth of examples and cases, one step in four for a change, all of it at night.

A night draws its seed, which is printed with what failed: `make nightly SEED=…` plays the same again. What
hypothesis found stays in `build/examples` and is tried first in the next night.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

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


def cases(every: Sequence[_T]) -> list[_T]:
    """Return the cases of a matrix that are tried: all at night, else a fifth, and the same ones each day."""
    return [*every] if is_night() else random.Random(SHARE).sample(every, -(-len(every) // SHARE))


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


class _WithProfile(MetaPathFinder, Loader):
    """Imports hypothesis, and loads the profile of this run before anybody makes settings from it."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != "hypothesis":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        self.real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.real
        self.real.exec_module(module)
        load_profile()


def load_profile_with_hypothesis() -> None:
    """Load the profile as soon as a test imports hypothesis, which takes most of a second: few tests do."""
    if "hypothesis" in sys.modules:
        load_profile()
    else:
        sys.meta_path.insert(0, _WithProfile())


def load_profile() -> None:
    """Have hypothesis try the same examples on each run; at night drawn ones, and what failed before."""
    from hypothesis import HealthCheck, core, settings
    from hypothesis.database import DirectoryBasedExampleDatabase
    from hypothesis.vendor import pretty

    settings.register_profile(
        "search", deadline=None, derandomize=not is_night(), max_examples=examples(100),
        database=DirectoryBasedExampleDatabase(FOUND) if is_night() else None,
        # No example fails for being slow: what fails is the code, not the machine.
        suppress_health_check=list(HealthCheck), print_blob=is_night(),
    )  # fmt: skip
    settings.load_profile("search")
    # The one of schemathesis, which is a plugin of pytest, prints no value of any test.
    core.RepresentationPrinter = pretty.RepresentationPrinter  # type: ignore[attr-defined]  # not exported
