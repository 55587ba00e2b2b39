"""What Slack, Teams and everybody else gets: our own fields always, and theirs where they are."""

from __future__ import annotations

import email
import json
from datetime import UTC, datetime, timedelta
from email.policy import default
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.alerts.events.registry import selectable_events
from gateway.core.alerts.events.webhooks import TEST_EVENT
from gateway.core.alerts.messages import (
    FACTS_MAX,
    RECIPIENTS_MAX,
    RETRIES,
    TITLE_CHARS_MAX,
    Delivery,
    DeliveryOutcome,
    body_of,
    describe_event,
    headers_of,
    is_mail,
    mail_of,
    recipient_refusal,
    recipients_of,
    signature,
)
from gateway.core.alerts.words import VALUE_CHARS_MAX, plain, spoken
from gateway.core.text import hidden_in

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)
HOSTILE = "<!channel> *x* [y](https://evil.example) &\n@here :skull:"
SLACK = "https://hooks.slack.com/services/T0/B0/x"
TEAMS = "https://acme.webhook.office.com/webhookb2/x"


def body(url: str, **data: Any) -> dict[str, Any]:
    found = json.loads(body_of(Delivery(7, url, "", "tenant.unblocked", {"tenant_id": 3} | data, NOW, 1)))
    assert isinstance(found, dict)
    return found


def test_a_message_to_anybody() -> None:
    said = "No longer blocked: tenant 3. Calls of tenant 3 are admitted again."
    ours = {
        "type": "tenant.unblocked",
        "timestamp": "2026-04-01T12:00:00Z",
        "text": said,
        "data": {"tenant_id": 3},
    }
    assert body("https://example.com/") == ours
    assert body(SLACK)["tollkeeper"] == body(TEAMS)["tollkeeper"] == ours


@pytest.mark.parametrize(
    ("url", "reader"),
    [
        (SLACK, "slack"),
        ("https://HOOKS.slack.com:443/x", "slack"),
        ("https://hooks.slack-gov.com/x", "slack"),
        ("https://hooks.slack.com.evil.example/x", "anybody"),
        ("https://example.com/hooks.slack.com", "anybody"),
        (TEAMS, "teams"),
        ("https://prod-1.westeurope.logic.azure.com:443/workflows/x", "teams"),
        ("https://default1.a.environment.api.powerplatform.com:443/powerautomate/x", "teams"),
        ("https://evilwebhook.office.com/", "anybody"),
        ("https://logic.azure.com.evil.example/", "anybody"),
    ],
)
def test_the_host_decides_who_reads_it(url: str, reader: str) -> None:
    known = {"blocks": "slack", "attachments": "teams"}
    found = body(url)
    assert [known[name] for name in known if name in found] == ([] if reader == "anybody" else [reader])


def test_what_slack_reads() -> None:
    found = body(SLACK, tenant=HOSTILE)
    assert "<" not in found["text"]
    assert "&lt;!channel&gt;" in found["text"]
    texts = [block["text"] for block in found["blocks"] if "text" in block]
    texts += [each for block in found["blocks"] for each in block.get("fields", ())]
    assert {each["type"] for each in texts} == {"plain_text"}
    assert not any(each["emoji"] for each in texts)
    header, sentence, facts = found["blocks"]
    assert (header["type"], sentence["type"], facts["type"]) == ("header", "section", "section")
    assert len(header["text"]["text"]) <= 150
    assert {"type": "plain_text", "text": "tenant id\n3", "emoji": False} in facts["fields"]


def test_a_section_of_slack_has_ten_fields_at_most() -> None:
    found = body(SLACK, **{f"n{at:02}": at for at in range(30)})
    assert [len(block["fields"]) for block in found["blocks"] if "fields" in block] == [10, 10]


def test_what_teams_reads() -> None:
    found = body(TEAMS, tenant=HOSTILE)
    assert found["type"] == "message"
    [attachment] = found["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    card = attachment["content"]
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    assert {run["type"] for block in card["body"] for run in block["inlines"]} == {"TextRun"}
    shown = ["".join(run["text"] for run in block["inlines"]) for block in card["body"]]
    assert shown[-1] == "tenant id: 3"


# --- mail -------------------------------------------------------------------------------
# Which addresses a message may be mailed to, and the mail it is.


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
# More than a line: its spaces stay.
@example("é 0" * 9, "tenant.unblocked")
@example("0" * 66, "budget.threshold")
def test_no_name_reaches_another_header(name: str, event: str) -> None:
    sent = mail_of(delivery(event=event, tenant=name, budget=name, organization=name), FROM, NOW)
    assert sent.content.isascii()
    assert b"\n" not in sent.content.replace(b"\r\n", b"")
    read = email.message_from_bytes(sent.content, policy=default)
    assert [each.lower() for each in read.keys()] == [  # noqa: SIM118  # a name twice is there twice
        "from", "to", "subject", "date", "message-id", "auto-submitted", "x-tollkeeper-event", "content-type",
        "content-transfer-encoding", "mime-version",
    ]  # fmt: skip
    said = describe_event(event, {"tenant": name, "budget": name, "organization": name}).title
    shown = " ".join(str(read["subject"]).split())
    assert shown == " ".join(f"[Tollkeeper] {said}".replace("=?", "= ?").split())


# --- webhook ----------------------------------------------------------------------------
# Messages are signed as the specification has it and tried again with longer pauses.


def test_the_signature_of_the_specifications_own_example() -> None:
    """From the reference libraries' test: https://github.com/standard-webhooks/standard-webhooks."""
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b'{"test": 2432232314}',
    )
    assert signed == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_attempt_is_signed() -> None:
    fields = headers_of(Delivery(7, "https://example.com", "whsec_AAAA", "quota.80", {}, NOW, 1), b"{}", NOW)
    assert (fields["webhook-id"], fields["webhook-timestamp"]) == ("msg_7", str(int(NOW.timestamp())))
    version, _, signed = fields["webhook-signature"].partition(",")
    assert version == "v1"
    assert signed == signature("whsec_AAAA", "msg_7", fields["webhook-timestamp"], b"{}")


def test_a_message_is_given_up_within_a_day() -> None:
    pauses = [RETRIES.after_s(attempts) for attempts in range(1, 11)]
    assert pauses == [10, 30, 90, 270, 810, 2430, 7290, 21_600, 21_600, None]


def test_only_2xx_is_delivered() -> None:
    assert [DeliveryOutcome(status).delivered for status in (200, 204, 301, 404, 500, None)] == [
        True,
        True,
    ] + [False] * 4


# --- wording ----------------------------------------------------------------------------
# Every event is said in words; other people's names stay names.


BUDGET = {
    "budget_id": 4, "budget": "Team A", "organization_id": 2, "organization": "Acme", "each": "user",
    "account": "alice",
    "unit": "money", "currency": "EUR", "used": "81.5", "amount": "100", "percent": 80, "mode": "enforce",
    "time_zone": "Europe/Berlin", "resets_at": "2026-11-30T23:00:00Z", "exhausted_at": "2026-11-24T13:00:00Z",
}  # fmt: skip


AGAIN = "It resets on 1 December 2026, 00:00 (Europe/Berlin)."
QUOTA = {
    "tenant_id": 3, "tenant": "Red", "percent": 80, "tokens_used": 8, "tokens_remaining": 2,
    "next_reset_at": "2026-05-01T00:00:00+00:00",
}  # fmt: skip
INVOICE = {"number": "INV-1", "organization": "Acme", "total_amount": "9.5", "currency": "EUR"}
SUDDEN = {
    "scope": "api_key", "api_key": "CI", "api_key_id": 9, "cost": "12", "usual": "0.5", "currency": "EUR",
    "hour": "2026-11-24T13:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "data", "said"),
    [
        (
            "quota.80",
            QUOTA,
            (
                "80 % of the tokens are used: Red. Red has used 80 % of its tokens: 8 are used, 2 remain. "
                "It resets on 1 May 2026, 00:00 (UTC)."
            ),
        ),
        (
            "tenant.blocked",
            {"tenant_id": 3, "manual_block": True},
            "Blocked: tenant 3. Calls of tenant 3 are refused from now on: it was blocked by hand.",
        ),
        (
            "tenant.blocked",
            {"tenant_id": 3, "manual_block": True, "block_cause": "dunning"},
            (
                "Blocked: tenant 3. Calls of tenant 3 are refused from now on: it was blocked as an invoice is"
                " not paid."
            ),
        ),
        (
            "tenant.blocked",
            {"tenant_id": 3},
            (
                "Blocked: tenant 3. Calls of tenant 3 are refused from now on: it was blocked as"
                " nothing remains"
                " of its tokens."
            ),
        ),
        ("tenant.unblocked", {"tenant": "Red"}, "No longer blocked: Red. Calls of Red are admitted again."),
        (
            "credits.low",
            {"organization": "Acme", "credit_balance": 9, "last_added": 100},
            "Credits are low: Acme. Acme has 9 credits left, of 100 last added.",
        ),
        ("invoice.finalized", INVOICE, "Invoice INV-1 is final. Invoice INV-1 of Acme is final: 9.5 EUR."),
        (
            "subscription.ending",
            {"organization": "Acme", "end_date": "2026-05-01"},
            "A subscription ends: Acme. The subscription of Acme ends on 2026-05-01.",
        ),
        (
            "budget.threshold",
            BUDGET,
            (
                "80 % of a budget are used: “Team A” of user alice (Acme). Of the budget “Team A” of"
                " user alice (Acme), "
                f"81.5 of 100 EUR are used, 80 % or more. {AGAIN}"
            ),
        ),
        (
            "budget.exceeded",
            BUDGET | {"account": "", "resets_at": None},
            (
                "A budget is used up: “Team A” (Acme). Of the budget “Team A” (Acme), 81.5 of 100"
                " EUR are used. "
                "Its calls are refused."
            ),
        ),
        (
            "budget.forecast",
            BUDGET,
            (
                "A budget will not last: “Team A” of user alice (Acme). At this pace the budget “Team A” of"
                f" user alice (Acme) is used up on 24 November 2026, 14:00 (Europe/Berlin): 81.5 of 100 EUR"
                f" are used. {AGAIN}"
            ),
        ),
        (
            "budget.reset",
            BUDGET | {"account": None},
            (
                "A budget has reset: “Team A” (Acme). In the interval that has ended, 81.5 of 100 EUR of the"
                f" budget “Team A” (Acme) were used. {AGAIN}"
            ),
        ),
        (
            "usage.sudden",
            SUDDEN,
            (
                "Sudden use: api key CI. The api key CI has used 12 EUR since 24 November 2026, 13:00 (UTC); "
                "in the last 7 days it was 0.5 EUR at most at this time of day."
            ),
        ),
        (
            "api_key.expiring",
            {
                "name": "CI",
                "prefix": "tk-ab",
                "days": 7,
                "tenant": "Red",
                "expires_at": "2026-11-24T13:00:00Z",
            },
            (
                "An API key expires: CI. The API key CI (tk-ab…) of Red expires on 24 November 2026, 13:00"
                " (UTC), within 7 days."
            ),
        ),
        ("webhook.test", {"webhook_id": 3}, "A test. Messages arrive here: this one was sent to try it."),
    ],
)
def test_an_event_in_words(event: str, data: dict[str, Any], said: str) -> None:
    assert ". ".join(describe_event(event, data)[:2]) == said


def test_facts_are_what_is_known() -> None:
    said = describe_event("webhook.test", {"tenant_id": 3, "name": None, "is_blocked": True, "lines": [1]})
    assert said.facts == (("is blocked", "true"), ("tenant id", "3"))


def test_a_name_cannot_break_a_line_or_hide() -> None:
    assert plain("a\r\nBcc: b\u202e\x00") == "a Bcc: b\\u202e\\u0000"
    assert plain("x" * 1000) == "x" * (VALUE_CHARS_MAX - 1) + "…"


def test_a_moment_nobody_can_read_is_said_as_it_is() -> None:
    assert spoken("soon") == "soon"
    assert spoken("2026-11-24T13:00:00Z", "Mars/Base") == "2026-11-24T13:00:00Z"
    assert spoken(datetime(2026, 11, 4, 13, tzinfo=UTC)) == "4 November 2026, 13:00 (UTC)"


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())


@given(
    st.sampled_from((*selectable_events(), TEST_EVENT, "of.another.version")),
    st.dictionaries(
        st.sampled_from([*BUDGET, "scope", "hour", "next_reset_at", "tenant"]) | st.text(), VALUES
    ),
)
def test_whatever_is_in_a_message_can_be_said(event: str, data: dict[str, Any]) -> None:
    said = describe_event(event, data)
    assert 0 < len(said.title) <= TITLE_CHARS_MAX
    assert len(said.facts) <= FACTS_MAX
    text = said.title + said.sentence + "".join(value for _, value in said.facts)
    assert hidden_in(text) == ""
    assert len(text.splitlines()) == 1
