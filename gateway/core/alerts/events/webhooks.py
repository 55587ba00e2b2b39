"""Events of webhooks themselves, which are sent to the webhook that they are about."""

from typing import Final

from gateway.core.alerts.events.event import Event

TEST_EVENT: Final = "webhook.test"
# A mail address is asked for consent to messages.
CONSENT_EVENT: Final = "webhook.consent"
# Days that the link for consent is valid.
LINK_DAYS: Final = 7
_MADE = "persistence/resources/webhooks.py"

EVENTS = (
    Event(
        name=TEST_EVENT,
        title="A test",
        sentence="Messages arrive here: this one was sent to try it.",
        fields="webhook_id",
        when="somebody tries a webhook",
        once="a test",
        produced_by=_MADE,
        is_selectable=False,
    ),
    Event(
        name=CONSENT_EVENT,
        title="May {organization} have messages sent to you?",
        sentence=(
            "{organization} wants messages about its use and bills to be sent to {address}. "
            "If you agree, say so within {link_days} days:\n\n{link}\n\nIf you do not, do nothing."
        ),
        fields="organization_id address:text",
        when="an organization's people write a mail address that has not agreed",
        once="a request",
        produced_by=_MADE,
        is_selectable=False,
        words={"link_days": lambda _: str(LINK_DAYS), "link": lambda data: str(data.get("link"))},
    ),
)
