"""Events of tenants' tokens."""

from gateway.core.alerts.events.event import KEPT_LONG_DAYS, Event
from gateway.core.alerts.words import resets_on

# Per cent of a tenant's tokens.
PERCENTS = (50, 80, 100)

EVENTS = tuple(
    Event(
        name=f"quota.{percent}",
        title="{percent} % of the tokens are used: {tenant}",
        sentence=(
            "{tenant} has used {percent} % of its tokens: {tokens_used} are used, {tokens_remaining} remain."
            "{next_reset}"
        ),
        fields=(
            "organization_id tenant_id tenant:text percent:count tokens_used:count tokens_remaining:count"
            " cycle:count next_reset_at:time?"
        ),
        when=f"{percent} per cent of a tenant's tokens are used",
        once="a cycle",
        produced_by="persistence/keeper/events/quotas.py",
        kept_days=KEPT_LONG_DAYS,
        words={"next_reset": lambda data: resets_on(data.get("next_reset_at"))},
    )
    for percent in PERCENTS
)
