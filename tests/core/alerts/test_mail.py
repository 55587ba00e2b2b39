"""Which addresses a message may be mailed to, and the mail it is."""

from __future__ import annotations

import email
from datetime import UTC, datetime, timedelta
from email.policy import default

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.alerts.messages import (
    RECIPIENTS_MAX,
    Delivery,
    is_mail,
    mail_of,
    recipient_refusal,
    recipients_of,
    worded,
)

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)
FROM = "tollkeeper@example.com"


def delivery(url: str = "mailto:a@example.com", event: str = "tenant.unblocked", **data: object) -> Delivery:
    return Delivery(7, url, "", event, data, NOW, 1)


@pytest.mark.parametrize(
    "url",
    [
        "mailto:a@example.com",
        "MAILTO:a.b+c=d@mail.example.co.uk",
        "mailto:o'brien@example.com,x_y-z@example.org",
        "mailto:" + ",".join(["a@example.com"] * RECIPIENTS_MAX),
    ],
)
def test_addresses_as_they_are_usually_written(url: str) -> None:
    assert is_mail(url)
    assert recipient_refusal(url, private=False) is None


@pytest.mark.parametrize(
    "url",
    [
        "mailto:", "mailto:a", "mailto:@example.com", "mailto:a@", "mailto:a@b", "mailto:a@example.com,",
        "mailto:a@example.com?subject=x", "mailto:a@example.com?bcc=b@example.com",
        "mailto:a%0d%0a@example.com", "mailto:a@example.com\r\nBcc: b@example.com", "mailto:a@example.com\n",
        "mailto:a b@example.com", "mailto:a@[127.0.0.1]", "mailto:a@127.0.0.1", "mailto:a@2130706433",
        "mailto:a@localhost", "mailto:root@box.local", "mailto:a@x.internal", "mailto:a@example.com.",
        "mailto://a@example.com", "mailto:a@b@example.com", "mailto:a%b.example@example.org",
        "mailto:b!a@example.com", 'mailto:"a"@example.com', "mailto:<a@example.com>",
        "mailto:a..b@example.com",
        "mailto:.a@example.com", "mailto:ä@example.com", "mailto:a@exämple.com",
        "mailto:" + "a" * 65 + "@example.com", "mailto:" + ",".join(["a@example.com"] * 11),
        "mailto:a@" + "x" * 2000 + ".com",
    ],
)  # fmt: skip
def test_anything_else_is_refused(url: str) -> None:
    assert recipient_refusal(url, private=False) is not None


def test_domains_of_a_local_network_where_private_addresses_are_allowed() -> None:
    assert recipient_refusal("mailto:root@box.local", private=True) is None
    assert recipient_refusal("mailto:root@box.local\r\n", private=True) is not None


@given(st.text(alphabet=st.sampled_from("ab.@,+\r\n\0<>%!\"' :;()[]\\é")))
def test_what_passes_ends_no_line_and_is_one_address_each(text: str) -> None:
    url = f"mailto:{text}"
    if recipient_refusal(url, private=True) is None:
        for each in recipients_of(url):
            assert each.count("@") == 1
            assert each.isascii()
            assert not set(each) & set('\r\n\0<>%!" :;()[]\\,')


def test_a_mail() -> None:
    sent = mail_of(delivery("mailto:a@example.com,b@example.org", tenant="Red", tenant_id=3), FROM, NOW)
    assert (sent.sender, sent.recipients) == (FROM, ("a@example.com", "b@example.org"))
    read = email.message_from_bytes(sent.content, policy=default)
    assert read["from"] == "Tollkeeper <tollkeeper@example.com>"
    assert read["to"] == "a@example.com, b@example.org"
    assert read["subject"] == "[Tollkeeper] No longer blocked: Red"
    assert read["auto-submitted"] == "auto-generated"
    lines = ["Calls of Red are admitted again.", "", "tenant: Red", "tenant id: 3"]
    assert read.get_content().splitlines() == lines


def test_every_attempt_has_the_same_id() -> None:
    ids = {
        email.message_from_bytes(mail_of(delivery(), FROM, at).content, policy=default)["message-id"]
        for at in (NOW, NOW + timedelta(hours=1))
    }
    assert len(ids) == 1


NAMES = st.text() | st.lists(
    st.sampled_from(
        ["=?utf-8?q?", "=?us-ascii?b?", "=0D=0ABcc:_b@example.com", "DQpYOiB5", "?=", "=", "?", " "]
    )
).map("".join)


@given(NAMES, st.sampled_from(["tenant.unblocked", "webhook.test", "budget.threshold"]))
@example("=?utf-8?q?a=0D=0AReply-To:_b@example.com=0D=0A=0D=0Ahello?=", "budget.threshold")
@example("=?us-ascii?b?YQ0KWDogeQ==?=", "tenant.unblocked")
def test_no_name_reaches_another_header(name: str, event: str) -> None:
    sent = mail_of(delivery(event=event, tenant=name, budget=name, organization=name), FROM, NOW)
    assert sent.content.isascii()
    assert b"\n" not in sent.content.replace(b"\r\n", b"")
    read = email.message_from_bytes(sent.content, policy=default)
    assert [each.lower() for each in read.keys()] == [  # noqa: SIM118  # a name twice is there twice
        "from", "to", "subject", "date", "message-id", "auto-submitted", "x-tollkeeper-event", "content-type",
        "content-transfer-encoding", "mime-version",
    ]  # fmt: skip
    said = worded(event, {"tenant": name, "budget": name, "organization": name}).title
    shown = " ".join(str(read["subject"]).split())
    assert shown == " ".join(f"[Tollkeeper] {said}".replace("=?", "= ?").split())
