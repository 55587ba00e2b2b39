"""Events of upstreams, for staff alone: they have no organization."""

from gateway.core.alerts.events.event import KEPT_LONG_DAYS, Event
from gateway.core.alerts.words import spoken

EVENTS = (
    Event(
        name="upstream.empty",
        title="Out of money or quota: the upstream {upstream}",
        sentence=(
            "The upstream {upstream} has said with {status} since {since} that an account is out of money or "
            "quota. Calls go to the next target, where their model has one."
        ),
        fields="upstream:text status:count since:time",
        when=(
            "an account of an upstream is [out of money or quota](../models.md#accounts-out-of-money)."
            " Webhooks of organizations do not hear of it"
        ),
        once="an account, until it answered well",
        produced_by="persistence/keeper/news.py",
        kept_days=KEPT_LONG_DAYS,
        words={"since": lambda data: spoken(data.get("since"))},
    ),
)
