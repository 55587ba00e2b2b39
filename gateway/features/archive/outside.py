"""Findings of `tollkeeper doctor` about rows of months without a partition."""

from __future__ import annotations

from gateway.errors import SchemaUnavailable
from gateway.ops.doctor_redis import FAILED, UNKNOWN, Finding
from persistence.archive.months import ROWS_TOLD_MAX, months_outside
from persistence.error_mapping import LOCK_NOT_AVAILABLE, QUERY_CANCELED

_NO_KEEPER_CAN = "no keeper can make a partition of those months while rows of them are there"
_ARCHIVE = "run tollkeeper archive, which brings them in, and look whether a clock is wrong"


def months_findings(url: str) -> list[Finding]:
    """Return a finding for each ledger with rows outside all partitions, or that nobody could look."""
    findings = []
    try:
        outside = months_outside(url)
    except SchemaUnavailable as error:
        if error.sqlstate not in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}:  # another finding says it
            return []
        message = f"whether rows have no partition of their month could not be asked: {error.message}"
        return [Finding(UNKNOWN, "postgresql", message)]
    for ledger, first, last, rows in outside:
        many = f"{rows:,}" if rows < ROWS_TOLD_MAX else f"{rows:,} or more"
        months = f"{first:%Y-%m}" if first == last else f"{first:%Y-%m} to {last:%Y-%m}"
        said = f"{ledger}_default has rows of months without a partition, {many} of {months}"
        findings.append(Finding(FAILED, "postgresql", f"{said}: {_NO_KEEPER_CAN}; {_ARCHIVE}"))
    return findings
