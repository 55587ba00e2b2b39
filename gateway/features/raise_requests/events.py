"""The event of a request for more of a budget."""

from gateway.core.alerts.events.event import Event
from gateway.core.alerts.words import spoken

EVENTS = (
    Event(
        name="raise.requested",
        title="More is asked for of {budget}",
        sentence="The budget {budget} should be raised to {amount} {unit} until {until}: {reason}",
        fields=(
            "raise_request_id organization_id organization:text budget_id budget:text each:text?"
            " account:text? amount:money unit:text currency:text? until:time reason:text requested_by:text"
        ),
        when="somebody asks for [more of a budget](../raise-requests.md#decide-by-a-link)",
        once="a request",
        produced_by="persistence/raise_requests.py",
        words={"until": lambda data: spoken(data.get("until"))},
    ),
)
