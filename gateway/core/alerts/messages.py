"""Messages about events: their texts, their form for webhooks, Slack, Teams and mail, and their signature.

Webhooks are signed by the Standard Webhooks specification, so that its libraries verify them: HMAC-SHA-256
over `id.timestamp.body` with the key inside `whsec_<base64>`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, EmailPolicy
from email.utils import format_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from gateway.core.alerts.events.event import Data
from gateway.core.alerts.events.registry import all_events
from gateway.core.alerts.words import WORDS, cut, plain
from gateway.core.circuit_breaker import RetryPolicy
from gateway.core.network import URL_CHARS_MAX, is_full_name
from gateway.core.times import rfc3339

# Most mails and test messages per hour: of one webhook, and of all webhooks of an organization.
HOURLY_OF_WEBHOOK_MAX, HOURLY_OF_ORGANIZATION_MAX = 60, 200
SECRET_PREFIX = "whsec_"  # noqa: S105  # the prefix of a secret

# About sixteen hours in all.
RETRIES = RetryPolicy(attempts_max=10, first_s=10.0, factor=3.0, longest_s=6 * 3600.0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event to be sent to one address. `attempts` includes the current one."""

    id: int
    url: str
    secret: str
    event: str
    data: Mapping[str, object]
    happened: datetime
    attempts: int
    webhook_id: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """The outcome of one attempt: the HTTP or SMTP status of the answer, or the error without one."""

    status: int | None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a message: its status, or an error; the start of its body; and its `Retry-After`."""

    status: int | None
    error: str | None = None
    body: bytes = b""
    retry_after: str = ""


def headers_of(delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
    """Return the HTTP header fields, with a signature, of an attempt to deliver `body` at `now`."""
    identity, timestamp = f"msg_{delivery.id}", str(int(now.timestamp()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "tollkeeper",
        "webhook-id": identity,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature(delivery.secret, identity, timestamp, body)}",
    }


def signature(secret: str, identity: str, timestamp: str, body: bytes) -> str:
    """Return the base64 HMAC-SHA-256 of a message by Standard Webhooks."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{identity}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


# Texts of events for people: a title, a sentence, and facts. Pure.
#
# Names in them come from others: a user's name is any text of a call. Names are shortened and made visible
# here, and escaped if a format has control characters.

TITLE_CHARS_MAX: Final = 120
FACTS_MAX: Final = 20


class AlertText(NamedTuple):
    """An event described for people; facts are (name, value) pairs."""

    title: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


def describe_event(event: str, data: Data) -> AlertText:
    """Describe an event in a title, a sentence and facts.

    Any field of `data` may be missing, because an older version may have stored the message.
    """
    row = all_events().get(event)
    title, sentence = (
        ("", "")
        if row is None
        else (text.format_map(_Fields(data, row.words)) for text in (row.title, row.sentence))
    )
    shown = ((name.replace("_", " "), plain(value)) for name, value in sorted(data.items()) if name != "link")
    facts = tuple((name, value) for name, value in shown if value)[:FACTS_MAX]
    return AlertText(cut(title, TITLE_CHARS_MAX) or event, sentence, facts)


def _link_of(data: Data, text: AlertText) -> str:
    """Return the link to add to a message; empty without one, or if the sentence `text` contains it."""
    link = str(data.get("link") or "")
    return "" if link in text.sentence else link


@dataclass(frozen=True, slots=True)
class _Fields:
    data: Data
    words: Mapping[str, Callable[[Data], str]]

    def __getitem__(self, name: str) -> str:
        word = self.words.get(name) or WORDS.get(name)
        return plain(self.data.get(name)) if word is None else word(self.data)


# The body of a message, in the form of its receiver.
#
# All receivers get the fields of Standard Webhooks and a `text`. Slack and Teams show their own fields, and
# the common ones are in `tollkeeper`. Names in a message come from others: they are sent as plain text
# (`plain_text`, `TextRun`), and never mention, link or format anything. Sources: Slack's Block Kit and
# its escaping of text; Microsoft's "Create incoming webhooks with Workflows", and the schema of Adaptive
# Cards 1.4.

SLACK_HOSTS: Final = ("hooks.slack.com", "hooks.slack-gov.com")
# Domains of connectors, and of workflows before and after Microsoft moved them.
TEAMS_DOMAINS: Final = (".webhook.office.com", ".logic.azure.com", ".powerplatform.com")
# Slack's maximum of fields in a section.
FIELDS_MAX: Final = 10
CARD: Final = "application/vnd.microsoft.card.adaptive"

# The label of a link's button.
LINK_TEXT: Final = "Look and decide"

Content = dict[str, Any]


def body_of(delivery: Delivery) -> bytes:
    """Return the JSON body of a delivery in the form of its receiver. It is the same for every attempt."""
    text = describe_event(delivery.event, delivery.data)
    content = _reader_of(delivery.url)(_ours(delivery, text), text)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _reader_of(url: str) -> Callable[[Content, AlertText], Content]:
    """Return the function that makes the body for the receiver of a URL, selected by its host."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host in SLACK_HOSTS:
        return _slack
    return _teams if host.endswith(TEAMS_DOMAINS) else _anybody


def _ours(delivery: Delivery, text: AlertText) -> Content:
    return {
        "type": delivery.event,
        "timestamp": rfc3339(delivery.happened),
        "text": f"{text.title}. {text.sentence} {_link_of(delivery.data, text)}".strip(),
        "data": delivery.data,
    }


def _anybody(ours: Content, _: AlertText) -> Content:
    return ours


def _slack(ours: Content, text: AlertText) -> Content:
    """Format a message for Slack: `text` is for notifications, the blocks are the message."""
    blocks: list[Content] = [{"type": "header", "text": _plain_text(text.title)}]
    if text.sentence:
        blocks.append({"type": "section", "text": _plain_text(text.sentence)})
    fields = [_plain_text(f"{name}\n{value}") for name, value in text.facts]
    blocks += ({"type": "section", "fields": some} for some in _split_fields(fields))
    if link := _link_of(ours["data"], text):
        button = {"type": "button", "text": _plain_text(LINK_TEXT), "url": link}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": _escaped(ours["text"]), "blocks": blocks, "tollkeeper": ours}


def _split_fields(fields: list[Content]) -> Iterable[list[Content]]:
    return (fields[at : at + FIELDS_MAX] for at in range(0, len(fields), FIELDS_MAX))


def _plain_text(text: str) -> Content:
    return {"type": "plain_text", "text": text, "emoji": False}


def _escaped(text: str) -> str:
    """Return the text escaped so that Slack finds neither mentions nor links in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(ours: Content, text: AlertText) -> Content:
    """Return the message for Microsoft Teams, as an adaptive card."""
    body = [_text(_run(text.title, size="Large", weight="Bolder"))]
    if text.sentence:
        body.append(_text(_run(text.sentence)))
    body += (_text(_run(f"{name}: ", weight="Bolder"), _run(value)) for name, value in text.facts)
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    if link := _link_of(ours["data"], text):
        card["actions"] = [{"type": "Action.OpenUrl", "title": LINK_TEXT, "url": link}]
    attachment = {"contentType": CARD, "contentUrl": None, "content": card}
    return {"type": "message", "summary": text.title, "attachments": [attachment], "tollkeeper": ours}


def _text(*runs: Content) -> Content:
    return {"type": "RichTextBlock", "inlines": list(runs)}


def _run(text: str, **style: str) -> Content:
    return {"type": "TextRun", "text": text, **style}


# Messages by mail: the addresses that a `mailto:` URL may name, and the mail about an event.
#
# Only the usual form of an address is accepted: no header fields after a `?`, no escapes, no routes, no
# quotes. So no address can end a line of a command or header, and no title can. Sources: RFC 6068, RFC 5321
# section 4.5.3.1, RFC 3834, RFC 2047.

SCHEME: Final = "mailto:"
RECIPIENTS_MAX: Final = 10
ADDRESS_CHARS_MAX, LOCAL_CHARS_MAX = 254, 64
# Most requests for consent: per hour by an organization's people, and per day to one mailbox.
ASKED_OF_ORGANIZATION_MAX, ASKED_OF_MAILBOX_MAX = 20, 3

_ATOM = r"[A-Za-z0-9_+'=~-]+"
_LOCAL = re.compile(rf"{_ATOM}(\.{_ATOM})*", re.ASCII)


class Mail(NamedTuple):
    """A mail with its sender and recipients."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


def is_mail(url: str) -> bool:
    """Return whether messages to this URL are sent by mail."""
    return url[: len(SCHEME)].lower() == SCHEME


def recipients_of(url: str) -> tuple[str, ...]:
    """Return the addresses of a `mailto:` URL that `recipient_refusal` accepts."""
    return tuple(url[len(SCHEME) :].split(","))


def mailbox_of(address: str) -> str:
    """Return an address as most servers identify its mailbox: in lower case, without a `+tag`."""
    local, _, domain = address.lower().rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


def digest_of(token: str) -> str:
    """Return the SHA-256 digest of the token in a consent link."""
    return hashlib.sha256(token.encode()).hexdigest()


def recipient_refusal(url: str, *, private: bool) -> str | None:
    """Return why mail to a URL is refused, or None. `private` allows domains of a local network."""
    if len(url) > URL_CHARS_MAX:
        return f"must be at most {URL_CHARS_MAX} characters"
    recipients = recipients_of(url)
    if len(recipients) > RECIPIENTS_MAX:
        return f"must name at most {RECIPIENTS_MAX} recipients"
    if all(is_address(recipient, private=private) for recipient in recipients):
        return None
    return "must be mailto: and addresses such as name@example.com, with commas between and nothing else"


def is_address(text: str, *, private: bool) -> bool:
    """Return whether a text is a plain mail address. `private` allows domains of a local network."""
    local, _, domain = text.rpartition("@")
    fits = len(text) <= ADDRESS_CHARS_MAX and len(local) <= LOCAL_CHARS_MAX
    named = not domain.endswith(".") and is_full_name(domain.lower(), private=private)
    return fits and named and _LOCAL.fullmatch(local) is not None


class _MailPolicy(EmailPolicy):
    """A policy that encodes a subject as a whole; the library's loses spaces between encoded words."""

    def fold_binary(self, name: str, value: str) -> bytes:
        """Return the header `name` in lines, each with its end."""
        if name != "Subject":
            return super().fold_binary(name, value)
        encoded = Header(str(value), header_name=name).encode(linesep=self.linesep)
        return f"{name}: {encoded}{self.linesep}".encode("ascii")


def mail_of(delivery: Delivery, sender: str, now: datetime) -> Mail:
    """Return the mail of an attempt. All attempts of a delivery have the same Message-ID."""
    text = describe_event(delivery.event, delivery.data)
    recipients = recipients_of(delivery.url)
    message = EmailMessage(policy=_MailPolicy(linesep=SMTP.linesep, cte_type="7bit"))
    message["From"] = Address("Tollkeeper", addr_spec=sender)
    message["To"] = [Address(addr_spec=recipient) for recipient in recipients]
    # No encoded word (RFC 2047) may remain: the library decodes it, and it could end the line.
    message["Subject"] = f"[Tollkeeper] {text.title}".replace("=?", "= ?")
    message["Date"] = format_datetime(now)
    domain, happened = sender.rpartition("@")[2], int(delivery.happened.timestamp())
    message["Message-ID"] = f"<msg_{delivery.id}.{happened}@{domain}>"
    # This prevents automatic replies (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    message["X-Tollkeeper-Event"] = delivery.event
    link = _link_of(delivery.data, text)
    facts = (f"{name}: {value}" for name, value in text.facts)
    lines = [text.sentence or text.title, "", *((link, "") if link else ()), *facts]
    message.set_content("\n".join(lines) + "\n")
    return Mail(sender, recipients, message.as_bytes())
