"""What a worker remembers of holds is bounded, and a hold that ended is never open again."""

from __future__ import annotations

from gateway.core.accounts.caller_holds import UNITS, CallerHold, HeldAmounts, HoldEnd
from gateway.core.model import Service
from gateway.counters.admission.remembered_holds import RememberedHold, RememberedHolds

END = HoldEnd(False, True, "facts", "told")


def record(number: int, end: HoldEnd | None = None, until_ms: int = 2_000) -> RememberedHold:
    return RememberedHold(
        CallerHold(
            f"00000000-0000-4000-8000-{number:012d}", 1, 7, 3, 0, Service(1, "search"), UNITS, 1,
            HeldAmounts(), 0, 1_000, "charge",
        ),
        until_ms,
        end,
    )  # fmt: skip


def known(remembered: RememberedHolds) -> list[tuple[int, bool]]:
    return [(int(one.hold.id[-12:]), one.end is not None) for one in remembered]


def test_remembered_holds_drop_the_oldest_beyond_the_bytes_of_open_and_of_ended_holds() -> None:
    noted = list[bytes]()
    RememberedHolds(noted.append).remember(record(1))
    size = len(noted[0])
    remembered = RememberedHolds(noted.append, bytes_max=3 * size)
    for number in (1, 2, 3, 4):
        remembered.remember(record(number))
    assert known(remembered) == [(2, False), (3, False), (4, False)]
    remembered.remember(record(2))  # extended: the same size, and the newest
    remembered.remember(record(5))
    assert known(remembered) == [(4, False), (2, False), (5, False)]
    for number in range(10, 20):
        remembered.remember(record(number, END))
    assert [one for one in known(remembered) if not one[1]] == [(4, False), (2, False), (5, False)]


def test_remembered_hold_that_ended_is_not_recalled_as_open() -> None:
    noted = list[bytes]()
    remembered = RememberedHolds(noted.append)
    remembered.remember(record(1))
    remembered.remember(record(1, END))
    assert known(remembered) == [(1, True)]
    successor = RememberedHolds(lambda _: None)
    for raw in (*reversed(noted), b"{}", b"[", *noted):
        successor.recall(raw)
    assert known(successor) == [(1, True)]


def test_remembered_holds_are_noted_again_while_open_and_forgotten_once_over() -> None:
    noted = list[bytes]()
    remembered = RememberedHolds(noted.append)
    for one in (record(1), record(2, END), record(3, until_ms=1_000), record(4, END, until_ms=1_000)):
        remembered.remember(one)
    opened = [noted[0], noted[2]]
    noted.clear()
    remembered.note_again()
    assert noted == opened
    remembered.forget(1_000)
    assert known(remembered) == [(2, True), (1, False)]
