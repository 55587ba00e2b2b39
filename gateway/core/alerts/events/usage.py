"""Events of use that is suddenly high."""

from gateway.core.alerts.events.event import Data, Event
from gateway.core.alerts.words import plain, spoken, who


def _somebody(data: Data) -> str:
    kind = plain(data.get("scope"))
    return f"{kind.replace('_', ' ')} {who(data, kind)}"


EVENTS = (
    Event(
        name="usage.sudden",
        title="Sudden use: {somebody}",
        sentence=(
            "The {somebody} has used {cost} {currency} since {hour}; in the last 7 days it was {usual} "
            "{currency} at most at this time of day."
        ),
        fields=(
            "scope:text organization_id organization:text tenant_id:id? tenant:text? api_key_id:id?"
            " api_key:text? hour:time cost:money usual:money currency:text"
        ),
        when="an hour of an organization, a tenant or a key costs [many times the usual](../webhooks.md#sudden-use)",
        once="an hour each",
        produced_by="persistence/keeper/news.py",
        words={"somebody": _somebody, "hour": lambda data: spoken(data.get("hour"))},
    ),
)
