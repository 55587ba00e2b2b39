"""The day that units were supplied on, and the one they were told on, as an entry says it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.accounts.outbox import CallFacts, EventKind, OutboxEntry
from gateway.core.times import DAY_MS, ms_of
from persistence.ledger.rollup import supplied_day, told_day
from tests.persistence.scenario import Account, document

NOON = ms_of(datetime(2026, 5, 10, 12, tzinfo=UTC))
TODAY = NOON // DAY_MS


def entry(**facts: object) -> OutboxEntry:
    account = Account(1, 2, None)
    account.at_ms = NOON
    made = account.consume(None, units=-3, kind=EventKind.ADJUST)
    return replace(made, **facts)  # type: ignore[arg-type]  # by their names


@pytest.mark.parametrize(
    ("used_ms", "day"),
    [(0, TODAY), (NOON, TODAY), (NOON - 3 * DAY_MS, TODAY - 3), (NOON + DAY_MS, TODAY), (1, 0)],
)
def test_an_event_was_used_on_its_own_day_but_never_on_one_to_come(used_ms: int, day: int) -> None:
    facts = CallFacts(used_ms=used_ms)
    assert supplied_day(entry(kind=EventKind.CONSUME, units=3, facts=facts)) == day


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("2026-05-07", TODAY - 3), ("2026-05-10", TODAY), ("2026-05-11", TODAY), ("2026-02-30", TODAY),
        ("", TODAY), (5, TODAY), (None, TODAY),
    ],
)  # fmt: skip
def test_a_correction_names_its_days_and_what_is_none_is_that_of_its_entry(said: object, day: int) -> None:
    both = entry(metadata=document(corrects="x", supplied_on=said, told_on=said))
    assert (supplied_day(both), told_day(both)) == (day, day)
    # Only what is taken back is of another one that was told, and only a correction is believed.
    assert told_day(replace(both, units=3)) == TODAY
    assert supplied_day(replace(both, kind=EventKind.CONSUME)) == TODAY


@pytest.mark.parametrize("metadata", [b"", b'"supplied_on"', b'{"supplied_on":', b"[]"])
def test_what_cannot_be_read_says_no_day(metadata: bytes) -> None:
    assert supplied_day(entry(metadata=metadata)) == TODAY
