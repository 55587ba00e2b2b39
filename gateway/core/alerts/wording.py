"""Events as people read them: a title, a sentence, and facts. Pure.

Names in them are other people's: a user's is whatever a call said. They are shortened and made visible here,
and escaped where a format has signs of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from gateway.core.alerts.webhook import LINK_DAYS
from gateway.core.visible import visible

Data = Mapping[str, object]

TITLE_CHARS_MAX: Final = 120
VALUE_CHARS_MAX: Final = 200
FACTS_MAX: Final = 20


class Worded(NamedTuple):
    """An event in words; facts are pairs of a name and a value."""

    title: str
    sentence: str
    facts: tuple[tuple[str, str], ...]


def worded(event: str, data: Data) -> Worded:
    """Say an event in words. `data` may lack anything: a message may have waited through an upgrade."""
    title, sentence = _SAID.get(event, _nameless)(data)
    shown = ((name.replace("_", " "), plain(value)) for name, value in sorted(data.items()) if name != "link")
    facts = tuple((name, value) for name, value in shown if value)[:FACTS_MAX]
    return Worded(_cut(title, TITLE_CHARS_MAX) or event, sentence, facts)


def plain(value: object) -> str:
    """A value on one line, with whatever hides in it shown; nothing of what is no single value."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _cut(visible(" ".join(text[: VALUE_CHARS_MAX + 1].split())))


def spoken(moment: object, time_zone: object = "UTC") -> str:
    """A moment (RFC 3339) by the clocks of a zone; as it is where one of them is none."""
    zone = str(time_zone or "UTC")
    try:
        at = datetime.fromisoformat(str(moment)).astimezone(ZoneInfo(zone))
    except (ValueError, KeyError):
        return plain(moment)
    return f"{at.day} {at:%B %Y, %H:%M} ({zone})"


def _cut(text: str, most: int = VALUE_CHARS_MAX) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _who(data: Data, kind: str) -> str:
    """Somebody by name, else by id."""
    return plain(data.get(kind)) or f"{kind} {plain(data.get(f'{kind}_id'))}".strip()


def _quota(data: Data) -> tuple[str, str]:
    percent, who = plain(data.get("percent")), _who(data, "tenant")
    used, left = plain(data.get("tokens_used")), plain(data.get("tokens_remaining"))
    again = data.get("next_reset_at")
    until = f" It begins again on {spoken(again)}." if again else ""
    return (
        f"{percent} % of the tokens are used: {who}",
        f"{who} has used {percent} % of its tokens: {used} are used, {left} remain.{until}",
    )


def _blocked(data: Data) -> tuple[str, str]:
    who = _who(data, "tenant")
    why = "by hand" if data.get("manual_block") else "as nothing remains of its tokens"
    return f"Blocked: {who}", f"Calls of {who} are refused from now on: it was blocked {why}."


def _unblocked(data: Data) -> tuple[str, str]:
    who = _who(data, "tenant")
    return f"No longer blocked: {who}", f"Calls of {who} are admitted again."


def _credits(data: Data) -> tuple[str, str]:
    who, left = _who(data, "organization"), plain(data.get("credit_balance"))
    added = plain(data.get("last_added"))
    return f"Credits are low: {who}", f"{who} has {left} credits left, of {added} last added."


def _topped_up(data: Data) -> tuple[str, str]:
    who, added = _who(data, "organization"), plain(data.get("credits_added"))
    left = plain(data.get("credit_balance"))
    price = f"{plain(data.get('unit_cost'))} {plain(data.get('currency'))} each"
    when = "once their invoice is paid" if data.get("invoicing") == "prepaid" else "now"
    month = f"number {plain(data.get('of_month'))} of {plain(data.get('monthly_max'))} this month"
    return (
        f"Credits are bought: {who}",
        f"{who} had {left} credits left and gets {added} {when}, at {price}: {month}.",
    )


def _invoice(data: Data) -> tuple[str, str]:
    number, who = plain(data.get("number")), _who(data, "organization")
    total = f"{plain(data.get('total_amount'))} {plain(data.get('currency'))}"
    return f"Invoice {number} is final", f"Invoice {number} of {who} is final: {total}."


def _paid(data: Data) -> tuple[str, str]:
    number, who = plain(data.get("number")), _who(data, "organization")
    return f"Invoice {number} is paid", f"Nothing is left to pay of invoice {number} of {who}."


def _overdue(data: Data) -> tuple[str, str]:
    number, who, due = plain(data.get("number")), _who(data, "organization"), plain(data.get("due_date"))
    return f"Invoice {number} is overdue", f"Invoice {number} of {who} was to be paid by {due}."


def _given_up(data: Data) -> tuple[str, str]:
    number, who = plain(data.get("number")), _who(data, "organization")
    return f"Invoice {number} is given up", f"What is left to pay of invoice {number} of {who} is given up."


def _reminded(data: Data) -> tuple[str, str]:
    number, who, due = plain(data.get("number")), _who(data, "organization"), plain(data.get("due_date"))
    rest = f"{plain(data.get('amount_due'))} {plain(data.get('currency'))}"
    block = plain(data.get("block_date"))
    until = f" Calls are refused from {block} on." if block else ""
    return (
        f"Please pay invoice {number}",
        f"Of invoice {number} of {who}, {rest} were to be paid by {due} and are not.{until}",
    )


def _unpaid_block(data: Data) -> tuple[str, str]:
    number, who = plain(data.get("number")), _who(data, "organization")
    return f"Blocked: {who}", f"Calls of {who} are refused from now on: invoice {number} is not paid."


def _unpaid_no_more(data: Data) -> tuple[str, str]:
    who = _who(data, "organization")
    return f"No longer blocked: {who}", f"Calls of {who} are no more refused for what was not paid."


def _ending(data: Data) -> tuple[str, str]:
    who, end = _who(data, "organization"), plain(data.get("end_date"))
    return f"A subscription ends: {who}", f"The subscription of {who} ends on {end}."


def _test(_: Data) -> tuple[str, str]:
    return "A test", "Messages arrive here: this one was sent to try it."


def _consent(data: Data) -> tuple[str, str]:
    who, address, link = _who(data, "organization"), plain(data.get("address")), data.get("link")
    wants = f"{who} wants messages about its use and bills to be sent to {address}."
    return (
        f"May {who} have messages sent to you?",
        f"{wants} If you agree, say so within {LINK_DAYS} days:\n\n{link}\n\nIf you do not, do nothing.",
    )


def _budget_of(data: Data) -> str:
    whom, each = plain(data.get("account")), plain(data.get("each"))
    of = f" of {each} {whom}" if whom else ""
    return f"“{_who(data, 'budget')}”{of} ({_who(data, 'organization')})"


def _so_much(data: Data) -> str:
    unit = plain(data.get("currency")) or plain(data.get("unit"))
    return f"{plain(data.get('used'))} of {plain(data.get('amount'))} {unit}"


def _again(data: Data) -> str:
    resets = data.get("resets_at")
    return f" It begins again on {spoken(resets, data.get('time_zone'))}." if resets else ""


def _threshold(data: Data) -> tuple[str, str]:
    budget, percent = _budget_of(data), plain(data.get("percent"))
    return (
        f"{percent} % of a budget are used: {budget}",
        f"Of the budget {budget}, {_so_much(data)} are used, {percent} % or more.{_again(data)}",
    )


def _exceeded(data: Data) -> tuple[str, str]:
    budget, refused = _budget_of(data), " Its calls are refused." if data.get("mode") == "enforce" else ""
    return (
        f"A budget is used up: {budget}",
        f"Of the budget {budget}, {_so_much(data)} are used.{refused}{_again(data)}",
    )


def _forecast(data: Data) -> tuple[str, str]:
    budget, end = _budget_of(data), spoken(data.get("exhausted_at"), data.get("time_zone"))
    return (
        f"A budget will not last: {budget}",
        f"At this pace the budget {budget} is used up on {end}: {_so_much(data)} are used.{_again(data)}",
    )


def _sudden(data: Data) -> tuple[str, str]:
    kind = plain(data.get("scope"))
    who, currency = f"{kind.replace('_', ' ')} {_who(data, kind)}", plain(data.get("currency"))
    usual = f"in the last 7 days it was {plain(data.get('usual'))} {currency} at most at this time of day"
    return (
        f"Sudden use: {who}",
        f"The {who} has used {plain(data.get('cost'))} {currency} since {spoken(data.get('hour'))}; {usual}.",
    )


def _nameless(_: Data) -> tuple[str, str]:
    return "", ""


_SAID: Final[Mapping[str, Callable[[Data], tuple[str, str]]]] = {
    "quota.50": _quota,
    "quota.80": _quota,
    "quota.100": _quota,
    "credits.low": _credits,
    "credits.topped_up": _topped_up,
    "tenant.blocked": _blocked,
    "tenant.unblocked": _unblocked,
    "invoice.finalized": _invoice,
    "invoice.paid": _paid,
    "invoice.overdue": _overdue,
    "invoice.uncollectible": _given_up,
    "invoice.reminder": _reminded,
    "invoice.blocked": _unpaid_block,
    "invoice.unblocked": _unpaid_no_more,
    "subscription.ending": _ending,
    "budget.threshold": _threshold,
    "budget.exceeded": _exceeded,
    "budget.forecast": _forecast,
    "usage.sudden": _sudden,
    "webhook.test": _test,
    "webhook.consent": _consent,
}
