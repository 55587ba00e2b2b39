"""Events of subscriptions."""

from gateway.core.alerts.events.event import Event

ENDING_DAYS = 7

EVENTS = (
    Event(
        name="subscription.ending",
        title="A subscription ends: {organization}",
        sentence="The subscription of {organization} ends on {end_date}.",
        fields="organization_subscription_id organization_id organization:text plan_id end_date:date",
        when=f"it ends within {ENDING_DAYS} days",
        once="an end",
        produced_by="persistence/keeper/events/subscriptions.py",
    ),
)
