"""How long each ledger stays in PostgreSQL before its months are archived, by settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from gateway.features.archive.settings import ArchiveSettings
from gateway.settings.settings import Settings
from persistence.archive.months import (
    AUDIT,
    BY_NAME,
    CALLS,
    CREDITS,
    GRACE_DAYS,
    SPENDS,
    TOKENS,
    MonthlyLedger,
    latest,
)
from persistence.schema.partitions import end_of


@dataclass(frozen=True, slots=True)
class Retention:
    """Whole months that each ledger stays in PostgreSQL after the current month; 0 means for ever.

    `calls_days` is the maximum of days for calls, 0 without one: they are archived before they would be
    deleted.
    """

    tokens: int = 1
    credits: int = 1
    usage: int = 1
    calls: int = 1
    audit: int = 0
    calls_days: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        after = settings.select(ArchiveSettings)
        return cls(
            tokens=after.archive_token_ledger_after_months,
            credits=after.archive_credit_transactions_after_months,
            usage=after.archive_feature_usage_after_months,
            calls=after.archive_calls_after_months,
            audit=after.archive_audit_log_after_months,
            calls_days=settings.calls_keep_days,
        )

    def before(self, ledger: MonthlyLedger, today: date) -> date | None:
        """Return the date up to which a ledger's months are archived, or None if all are retained."""
        months = self._months(ledger)
        if not months:
            return None
        day = _months_later(today, -months)
        if ledger is CALLS and self.calls_days:
            day = max(day, _days_before(today, self.calls_days))
        return min(day, latest(today))

    def due(self, ledger: str, month: date) -> date | None:
        """Return the day from which a month of a ledger is archived, or None if all are retained."""
        monthly_ledger, end = BY_NAME[ledger], end_of(month)
        months = self._months(monthly_ledger)
        if not months:
            return None
        day = _months_later(end, months)
        if monthly_ledger is CALLS and self.calls_days:
            day = min(day, end + timedelta(days=self.calls_days))
        return max(day, end + timedelta(days=GRACE_DAYS))

    def _months(self, ledger: MonthlyLedger) -> int:
        return {
            TOKENS.name: self.tokens,
            CREDITS.name: self.credits,
            SPENDS.name: self.usage,
            CALLS.name: self.calls,
            AUDIT.name: self.audit,
        }[ledger.name]


def _months_later(day: date, months: int) -> date:
    """Return the first day of the month `months` after `day`, limited to the years that `date` knows."""
    count = min(max(12, day.year * 12 + day.month - 1 + months), date.max.year * 12 + 11)
    return date(count // 12, count % 12 + 1, 1)


def _days_before(today: date, days: int) -> date:
    return (today - timedelta(days=min(days, today.toordinal() - 1))).replace(day=1)
