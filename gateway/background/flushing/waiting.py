"""What waits behind accounts in quarantine, apart from the outbox: checked once, and bounded.

An organization's entries there come before any of it in the outbox, so a partition's outbox is read only
where all that waits of it was checked. It is checked again where it would be otherwise by now: an account was
released or stopped, or the partition was verified. That is told by what the writer checked under, so a
release between a read and its transaction is seen there. Nothing here outlives the process: what waits is
checked once by each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gateway.core.accounts.outbox import FlushReport, Judged, Owner


@dataclass(slots=True)
class _Waiting:
    """Of one partition: under what it was checked, and by organization up to which entry; None: all."""

    judged: Judged
    after: dict[int, bytes | None] = field(default_factory=dict)


class WaitingEntries:
    """By partition, for as long as it has entries that wait."""

    def __init__(self) -> None:
        self._found: dict[int, _Waiting] = {}

    def note_waiting(self, there: Collection[Owner], now: Mapping[int, Judged]) -> None:
        """Take up who has entries waiting, and what would be checked otherwise now."""
        for partition in self._found.keys() - {partition for partition, _ in there}:
            del self._found[partition]
        for partition, organization_id in there:
            one = self._found.get(partition)
            if one is None or one.judged != now[partition]:
                one = self._found[partition] = _Waiting(now[partition])
            one.after.setdefault(organization_id, b"")

    def unread(self) -> dict[Owner, bytes]:
        """Whose entries are to be checked before anything newer, and after which one."""
        return {
            (partition, organization_id): after
            for partition, one in self._found.items()
            for organization_id, after in one.after.items()
            if after is not None
        }

    def unknown(self, there: Collection[Owner]) -> frozenset[int]:
        """The partitions of which something waits that was not checked, of those that have any."""
        return frozenset(
            partition
            for partition, organization_id in there
            if partition not in self._found
            or self._found[partition].after.get(organization_id, b"") is not None
        )

    def judged(self) -> dict[int, Judged]:
        """Under what that is checked which waits, by partition."""
        return {partition: one.judged for partition, one in self._found.items()}

    def note_checked(self, behind: Mapping[Owner, bytes | None], report: FlushReport) -> None:
        """Note up to where what waits was checked again; None is to its end."""
        for (partition, organization_id), after in behind.items():
            if partition not in report.left_over:
                one = self._found[partition]
                one.after[organization_id] = after
                one.judged = report.judged.get(partition, one.judged)

    def add(self, report: FlushReport) -> None:
        """Note what was checked to wait from now on."""
        for partition, organization_id in report.parked:
            judged = report.judged[partition]
            one = self._found.setdefault(partition, _Waiting(judged))
            one.judged, one.after[organization_id] = judged, None

    def forget(self) -> None:
        """Judge everything again: whether it was, or is still there, is not known."""
        self._found.clear()


def too_many(waiting: Mapping[Owner, int], report: FlushReport, entries_max: int) -> dict[int, list[int]]:
    """By partition, the tenants that added to an organization of which more waits than may."""
    full: dict[int, list[int]] = {}
    for partition, organization_id, tenant_id in report.waiting:
        if tenant_id and waiting.get((partition, organization_id), 0) > entries_max:
            full.setdefault(partition, []).append(tenant_id)
    return full
