"""The settings of the archive: after how many months the calls and rows of each ledger may go there."""

from __future__ import annotations

from gateway.settings.feature_settings import FeatureSettings
from gateway.settings.value_types import Months


class ArchiveSettings(FeatureSettings, frozen=True, kw_only=True):
    """For how many months each ledger stays in PostgreSQL; 0 is for ever."""

    archive_token_ledger_after_months: Months = 1
    archive_credit_transactions_after_months: Months = 1
    archive_feature_usage_after_months: Months = 1
    archive_calls_after_months: Months = 1
    archive_audit_log_after_months: Months = 0
