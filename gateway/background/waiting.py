"""What waits in the outbox behind stopped accounts: read once, counted, and bounded.

Up to a place in its stream everything of a partition is stored or waits for a person, so the next pass
goes on from there. It begins anew only where the waiting entries have to be judged again: an account was
released or stopped, or the partition was verified. That is told by what the writer judged them under,
so a release between a read and its transaction is seen there. Nothing here outlives the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.core.outbox import Batch, FlushReport, Judged

# Of one organization; calls of its tenants that would add to more are refused.
WAITING_ENTRIES_MAX = 50_000


@dataclass(slots=True)
class _Waiting:
    """Of one partition: the last entry that was judged, under what, how much waits by organization."""

    after: bytes
    judged: Judged
    entries: Counter[int] = field(default_factory=Counter)


class WaitingEntries:
    """By partition, for as long as it has entries that wait."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._found: dict[int, _Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def after(self) -> dict[int, bytes]:
        """Behind which entry each partition is read on; absent: from its beginning."""
        return {partition: one.after for partition, one in self._found.items()}

    def judged(self) -> dict[int, Judged]:
        """Under what the entries were judged that are not read again."""
        return {partition: one.judged for partition, one in self._found.items()}

    def begin(self, now: Mapping[int, Judged]) -> None:
        """Read those partitions from their beginning that would be judged otherwise now."""
        changed = [partition for partition, one in self._found.items() if now.get(partition) != one.judged]
        for partition in changed:
            del self._found[partition]

    def note(self, batch: Batch, report: FlushReport) -> dict[int, list[int]]:
        """Keep how far a batch was judged; answers, by partition, the tenants to refuse from now on."""
        full: dict[int, list[int]] = {}
        for partition in batch.keys() - report.left_over:
            one = self._found.get(partition)
            if partition in report.judged:
                if one is None:
                    one = self._found[partition] = _Waiting(b"", report.judged[partition])
                one.judged = report.judged[partition]
            if one is not None:
                one.after = batch[partition][-1][0]
        for (partition, organization_id, tenant_id), entries in report.waiting.items():
            counted = self._found[partition].entries
            counted[organization_id] += entries
            if counted[organization_id] > self._entries_max and tenant_id:
                full.setdefault(partition, []).append(tenant_id)
        return full

    def forget(self) -> None:
        """Read everything from its beginning: whether it was judged, or deleted, is not known."""
        self._found.clear()
