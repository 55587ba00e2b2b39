"""Events of organizations' credits."""

from gateway.core.alerts.events.event import KEPT_LONG_DAYS, Data, Event


def _when(data: Data) -> str:
    return "once their invoice is paid" if data.get("invoicing") == "prepaid" else "now"


EVENTS = (
    Event(
        name="credits.low",
        title="Credits are low: {organization}",
        sentence="{organization} has {credit_balance} credits left, of {last_added} last added.",
        fields="organization_id organization:text credit_balance:count last_added:count",
        when="the balance is a tenth of the last addition, or less",
        once="an addition",
        produced_by="persistence/keeper/events/credits.py",
        kept_days=KEPT_LONG_DAYS,
    ),
    Event(
        name="credits.topped_up",
        title="Credits were bought automatically: {organization}",
        sentence=(
            "{organization} had {credit_balance} credits left and gets {credits_added} {when}, at "
            "{unit_cost} {currency} each: number {of_month} of {monthly_max} this month."
        ),
        fields=(
            "organization_id organization:text credit_balance:count credit_addition_id credits_added:count"
            " invoicing:text unit_cost:money currency:text monthly_max:count? of_month:count"
        ),
        when="credits were [bought automatically](../billing.md#credits)",
        once="an order",
        produced_by="persistence/billing/top_ups.py",
        words={"when": _when},
    ),
)
