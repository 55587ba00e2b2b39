"""Rows of events: what is made of them fits them."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from gateway.core.alerts.events.event import Event
from gateway.core.alerts.events.registry import all_events, selectable_events
from gateway.core.alerts.words import WORDS

ROOT = Path(__file__).parents[4]
EVERY = pytest.mark.parametrize("event", all_events().values(), ids=lambda event: event.name)


@EVERY
def test_texts_of_an_event_name_its_fields_or_words_alone(event: Event) -> None:
    named = {name for _, name, _, _ in Formatter().parse(event.title + event.sentence) if name}
    assert named <= event.names | event.words.keys() | WORDS.keys()


@EVERY
def test_event_is_made_in_the_module_that_its_row_names(event: Event) -> None:
    source = (ROOT / event.produced_by).read_text(encoding="utf-8")
    subject, _, status = event.name.partition(".")
    constant = f"{status}_EVENT".upper()
    assert re.search(rf'"{re.escape(event.name)}"|\b{constant}\b|"{subject}\.{{', source)


def test_webhook_may_select_all_events_except_tests_and_consents() -> None:
    assert {*all_events()} - {*selectable_events()} == {"webhook.test", "webhook.consent"}
    assert {"api_key.expiring", "raise.requested", "invoice.reminder"} <= {*selectable_events()}
