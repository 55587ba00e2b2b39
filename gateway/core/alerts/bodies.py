"""The body of a message, as whoever is at its address reads it.

Everybody gets the fields of Standard Webhooks and a `text`. Slack and Teams show what is in fields of their
own; what everybody gets stands beside, as `tollkeeper`. Names in a message are somebody's: they are text to
both (`plain_text`, `TextRun`), and never mention, link or format anything. Sources: Slack's Block Kit and its
escaping of text; Microsoft's "Create incoming webhooks with Workflows", and the schema of Adaptive Cards 1.4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.core.alerts.webhook import Delivery
from gateway.core.alerts.wording import Worded, worded
from gateway.core.moments import rfc3339

SLACK_HOSTS: Final = ("hooks.slack.com", "hooks.slack-gov.com")
# Of connectors, and of workflows before and after they had addresses of their own.
TEAMS_DOMAINS: Final = (".webhook.office.com", ".logic.azure.com", ".powerplatform.com")
# Slack's own maximum of a section's fields.
FIELDS_MAX: Final = 10
CARD: Final = "application/vnd.microsoft.card.adaptive"

Content = dict[str, Any]


def body_of(delivery: Delivery) -> bytes:
    """The body of an attempt; the same for every attempt."""
    said = worded(delivery.event, delivery.data)
    content = _reader_of(delivery.url)(_ours(delivery, said), said)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _reader_of(url: str) -> Callable[[Content, Worded], Content]:
    """What makes the body for a URL, by its host alone."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host in SLACK_HOSTS:
        return _slack
    return _teams if host.endswith(TEAMS_DOMAINS) else _anybody


def _ours(delivery: Delivery, said: Worded) -> Content:
    return {
        "type": delivery.event,
        "timestamp": rfc3339(delivery.happened),
        "text": f"{said.title}. {said.sentence}".strip(),
        "data": delivery.data,
    }


def _anybody(ours: Content, _: Worded) -> Content:
    return ours


def _slack(ours: Content, said: Worded) -> Content:
    """`text` is what notifications show; the blocks are the message."""
    blocks: list[Content] = [{"type": "header", "text": _plain_text(said.title)}]
    if said.sentence:
        blocks.append({"type": "section", "text": _plain_text(said.sentence)})
    fields = [_plain_text(f"{name}\n{value}") for name, value in said.facts]
    blocks += ({"type": "section", "fields": some} for some in _in_parts(fields))
    return {"text": _escaped(ours["text"]), "blocks": blocks, "tollkeeper": ours}


def _in_parts(fields: list[Content]) -> Iterable[list[Content]]:
    return (fields[at : at + FIELDS_MAX] for at in range(0, len(fields), FIELDS_MAX))


def _plain_text(text: str) -> Content:
    return {"type": "plain_text", "text": text, "emoji": False}


def _escaped(text: str) -> str:
    """Text in which Slack finds neither mentions nor links."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(ours: Content, said: Worded) -> Content:
    body = [_text(_run(said.title, size="Large", weight="Bolder"))]
    if said.sentence:
        body.append(_text(_run(said.sentence)))
    body += (_text(_run(f"{name}: ", weight="Bolder"), _run(value)) for name, value in said.facts)
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    attachment = {"contentType": CARD, "contentUrl": None, "content": card}
    return {"type": "message", "summary": said.title, "attachments": [attachment], "tollkeeper": ours}


def _text(*runs: Content) -> Content:
    return {"type": "RichTextBlock", "inlines": list(runs)}


def _run(text: str, **style: str) -> Content:
    return {"type": "TextRun", "text": text, **style}
