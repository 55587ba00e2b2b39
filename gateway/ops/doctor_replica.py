"""What `tollkeeper doctor` says of the replica that reads go to."""

from __future__ import annotations

import asyncio


async def of(url: str, read_url: str, shown: str, answer_s_max: float) -> tuple[bool, str, str]:
    """Whether it is read, and how far it is behind: well, subject, what is said."""
    from persistence.replica import examine  # noqa: PLC0415  # heavy to load

    try:
        async with asyncio.timeout(answer_s_max):
            well, says = await examine(url, read_url)
    except TimeoutError:
        well, says = False, f"gives no answer within {answer_s_max:g} s"
    rest = "" if well else "; until then all is read at TOLLKEEPER_DATABASE_URL"
    return well, "read replica", f"{shown} {says}{rest}"
