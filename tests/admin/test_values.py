"""What rows hold is told, also where another version stored it."""

from __future__ import annotations

import json

from pydantic import TypeAdapter

from gateway.admin.resources.values import Metadata
from gateway.core.accounts.outbox import CallFacts, write_facts

told = TypeAdapter(Metadata | None).validate_python


def test_facts_that_an_older_keeper_stored_as_they_came_are_told_as_metadata() -> None:
    stored = json.loads(write_facts(CallFacts(model="m", status=200, counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0))))
    assert told(stored) == {
        "model": "m", "streamed": False, "status": 200, "duration_ms": 0, "input": 14, "output": 7,
        "cached": 4, "reasoning": 6, "estimated": False,
    }  # fmt: skip


def test_a_list_that_is_no_facts_keeps_no_page_from_being_read() -> None:
    assert told([1]) == {"unreadable": True}
    assert (told({"a": [1]}), told(None)) == ({"a": [1]}, None)
