"""What a keeper looks up of the servers it stands on, for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gateway.counters.redis.wires import Wires
from gateway.settings.settings import Settings
from persistence.keeper import watch


async def certificates(settings: Settings, wires: Wires) -> Mapping[str, object]:
    """When the servers' own certificates end."""
    ends = {
        "redis": min((one.certificate_end for one in wires.wires if one.certificate_end), default=None),
        "postgresql": await asyncio.to_thread(watch.certificate_end, settings.database_url),
    }
    return {"certificate_expiry_timestamp_seconds": [row for row in ends.items() if row[1] is not None]}
