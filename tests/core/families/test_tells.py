"""Only events that may name an object are looked through for ids."""

from __future__ import annotations

import pytest

from gateway.core.families.anthropic.calls import may_tell


@pytest.mark.parametrize(
    ("event", "may"),
    [
        (b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"id"}}', False),
        (b'{"type":"message_delta","delta":{"container":{"id":"c"}}}', True),
        (b'{"type":"content_block_start","content_block":{"content":[{"file_id":"f"}]}}', True),
    ],
)
def test_an_event_of_text_is_not_looked_through(event: bytes, may: bool) -> None:
    assert may_tell(event) is may
