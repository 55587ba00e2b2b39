"""Cases that find what the last one left: a test of many refusals needs its database, or its server, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def in_turn(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable[..., Any]], Any]:
    """As `parametrize`, within one test and its fixtures; all the cases that fail are told."""
    own = (names,) if isinstance(names, str) else names
    given = [dict(zip(own, (one,) if isinstance(names, str) else one, strict=True)) for one in cases]
    assert given, "no case"

    def made(test: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(test)

        async def each_awaited(**fixtures: Any) -> None:
            failed = []
            for one in given:
                try:
                    await test(**fixtures, **one)
                except Exception as error:  # noqa: BLE001  # every case is told
                    failed.append(_named(error, one))
            _tell(failed)

        def each(**fixtures: Any) -> None:
            failed = []
            for one in given:
                try:
                    test(**fixtures, **one)
                except Exception as error:  # noqa: BLE001  # every case is told
                    failed.append(_named(error, one))
            _tell(failed)

        run = each_awaited if inspect.iscoroutinefunction(test) else each
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.__dict__.update(test.__dict__)  # marks
        rest = [one for one in signature.parameters.values() if one.name not in own]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]  # what pytest reads
        return run

    return made


def _named(error: Exception, case: dict[str, Any]) -> Exception:
    error.add_note(f"in the case {case!r:.300}")
    return error


def _tell(failed: list[Exception]) -> None:
    if failed:
        raise ExceptionGroup(f"{len(failed)} cases failed", failed)
