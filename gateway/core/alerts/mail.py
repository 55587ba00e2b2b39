"""Messages by mail: which addresses a `mailto:` URL may name, and the mail an event is.

An address is taken as it is usually written and not otherwise: no header fields behind a `?`, no escapes, no
routes, nothing quoted. So nothing in one can end a line of a command or of a header, and nothing in a title
can. Sources: RFC 6068, RFC 5321 section 4.5.3.1, RFC 3834, RFC 2047.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final, NamedTuple

from gateway.core.addresses import URL_CHARS_MAX, is_full_name
from gateway.core.alerts.webhook import Delivery
from gateway.core.alerts.wording import worded

SCHEME: Final = "mailto:"
RECIPIENTS_MAX: Final = 10
ADDRESS_CHARS_MAX, LOCAL_CHARS_MAX = 254, 64
# Addresses that people of an organization have asked an hour, and times that a mailbox is asked a day.
ASKED_OF_ORGANIZATION_MAX, ASKED_OF_MAILBOX_MAX = 20, 3

_ATOM = r"[A-Za-z0-9_+'=~-]+"
_LOCAL = re.compile(rf"{_ATOM}(\.{_ATOM})*", re.ASCII)


class Mail(NamedTuple):
    """A mail, and to whom and from whom it goes."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


def is_mail(url: str) -> bool:
    """Whether messages to this URL go by mail."""
    return url[: len(SCHEME)].lower() == SCHEME


def recipients_of(url: str) -> tuple[str, ...]:
    """The addresses of a `mailto:` URL that `refusal` has nothing against."""
    return tuple(url[len(SCHEME) :].split(","))


def mailbox_of(address: str) -> str:
    """Who reads an address, as most servers have it: in any case, and with any tag behind a `+`."""
    local, _, domain = address.lower().rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


def digest_of(token: str) -> str:
    """What is kept of the link that somebody agrees by."""
    return hashlib.sha256(token.encode()).hexdigest()


def refusal(url: str, *, private: bool) -> str | None:
    """Say why no mail may go to a URL; None if it may. `private` allows domains of a local network."""
    if len(url) > URL_CHARS_MAX:
        return f"must be at most {URL_CHARS_MAX} characters"
    recipients = recipients_of(url)
    if len(recipients) > RECIPIENTS_MAX:
        return f"must name at most {RECIPIENTS_MAX} recipients"
    if all(is_address(each, private=private) for each in recipients):
        return None
    return "must be mailto: and addresses such as name@example.com, with commas between and nothing else"


def is_address(text: str, *, private: bool) -> bool:
    """Whether text is somebody's address, as it is usually written."""
    local, _, domain = text.rpartition("@")
    fits = len(text) <= ADDRESS_CHARS_MAX and len(local) <= LOCAL_CHARS_MAX
    named = not domain.endswith(".") and is_full_name(domain.lower(), private=private)
    return fits and named and _LOCAL.fullmatch(local) is not None


def mail_of(delivery: Delivery, sender: str, now: datetime) -> Mail:
    """The mail of an attempt; it has the same id in every attempt."""
    said = worded(delivery.event, delivery.data)
    recipients = recipients_of(delivery.url)
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["From"] = Address("Tollkeeper", addr_spec=sender)
    message["To"] = [Address(addr_spec=each) for each in recipients]
    message["Subject"] = _unencoded(f"[Tollkeeper] {said.title}")
    message["Date"] = format_datetime(now)
    domain, happened = sender.rpartition("@")[2], int(delivery.happened.timestamp())
    message["Message-ID"] = f"<msg_{delivery.id}.{happened}@{domain}>"
    # Nobody's absence note answers it.
    message["Auto-Submitted"] = "auto-generated"
    message["X-Tollkeeper-Event"] = delivery.event
    lines = [said.sentence or said.title, "", *(f"{name}: {value}" for name, value in said.facts)]
    message.set_content("\n".join(lines) + "\n")
    return Mail(sender, recipients, message.as_bytes())


def _unencoded(text: str) -> str:
    """A line in which nothing reads as an encoded word (RFC 2047).

    Whoever reads one decodes it, the library that writes the header too: a name could end the line with it.
    """
    return text.replace("=?", "= ?")
