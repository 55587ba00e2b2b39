"""Events of API keys."""

from typing import Final

from gateway.core.alerts.events.event import Event
from gateway.core.alerts.words import spoken

# Days before the end of a key; each is reported once.
MARKS_DAYS: Final = (7, 1)

EVENTS = (
    Event(
        name="api_key.expiring",
        title="An API key expires: {name}",
        sentence="The API key {name} ({prefix}…) of {tenant} expires on {expires_at}, within {within}.",
        fields="organization_id api_key_id name:text prefix:text tenant:text expires_at:time days:count",
        when=(
            "a key expires within 7 days, and again within 1 day (`days`). Revoked keys are not reported, nor a"
            " mark that had passed when the key was made"
        ),
        once="a mark and date of expiry",
        produced_by="persistence/keeper/events/api_keys.py",
        words={
            "expires_at": lambda data: spoken(data.get("expires_at")),
            "within": lambda data: "1 day" if data.get("days") == 1 else f"{data.get('days')} days",
        },
    ),
)
