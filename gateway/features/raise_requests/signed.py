"""The links of raise requests and their signatures, without the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.core.alerts.events.webhooks import LINK_DAYS
from gateway.core.alerts.messages import Delivery

PAGE: Final = "/raise/{token}"


def link_of(digest: Callable[[str], str], console: str, message: Delivery) -> str:
    """Return the decision link in a webhook's message, valid for `LINK_DAYS`."""
    ends = int(message.happened.timestamp()) + LINK_DAYS * 86_400
    text = f"{message.data['raise_request_id']}-{message.webhook_id}-{ends}"
    return console + PAGE.format(token=f"{text}-{digest(signed(text, message.url))}")


def signed(text: str, url: str) -> str:
    """Return the text to sign for a decision link: `text`, the unsigned link, and the URL of its webhook."""
    return f"raise-request {text} {url}"
