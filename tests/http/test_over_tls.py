"""What holds of connections without TLS holds over it: the same tests once more, over real handshakes."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from tests.certificates import issued, trusting
from tests.http import test_connections, test_slow_readers
from tests.http.stage import OVER, Tls, staged

Held = Callable[..., Awaitable[None]]


def all_of(module: ModuleType) -> list[Held]:
    """Its tests that take nothing but a stage."""
    found = [one for name, one in vars(module).items() if name.startswith("test_")]
    return [one for one in found if {*inspect.signature(one).parameters} <= {"stage"}]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    authority = trustme.CA()
    folder: Path = tmp_path_factory.mktemp("certificates")
    return Tls(issued(folder, authority), trusting(authority))


@pytest.mark.parametrize(
    "held", [*all_of(test_connections), *all_of(test_slow_readers)], ids=lambda one: one.__name__
)
async def test_it_holds_over_tls(held: Held, tls: Tls) -> None:
    reset = OVER.set(tls)
    try:
        if inspect.signature(held).parameters:
            async with staged() as stage:
                await held(stage)
        else:
            await held()
    finally:
        OVER.reset(reset)
