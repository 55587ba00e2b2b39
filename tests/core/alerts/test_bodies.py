"""What Slack, Teams and everybody else gets: our own fields always, and theirs where they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.core.alerts.messages import Delivery, body_of

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
