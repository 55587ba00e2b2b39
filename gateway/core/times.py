"""Times in milliseconds since 1970, UTC. Pure."""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)


def ms_of(moment: datetime | None) -> int:
    """Return a time in milliseconds since the epoch, rounded; 0 for None, which means never."""
    return 0 if moment is None else round(moment.timestamp() * 1000)


def floor_ms(moment: datetime | None) -> int:
    """Return the millisecond since the epoch that a time is in, by which prices go; 0 for None."""
    return 0 if moment is None else (moment - EPOCH) // MILLISECOND


def ceil_ms(moment: datetime) -> int:
    """Return the first whole millisecond since the epoch that is not before a time."""
    return -((EPOCH - moment) // MILLISECOND)


def rfc3339(moment: datetime, timespec: str = "auto") -> str:
    """Format a time by RFC 3339 in UTC: `2026-01-31T10:00:00Z`; `timespec` as of `isoformat`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def to_second(moment: object) -> str:
    """Format a time, RFC 3339 or a datetime, for people, in UTC: `2026-01-31 10:00:00`."""
    at = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def in_utc(moment: object) -> str:
    """Format a time as `to_second` does, with its zone: `2026-01-31 10:00:00 UTC`."""
    return f"{to_second(moment)} UTC"


def moment_of(at_ms: int) -> datetime:
    return EPOCH + at_ms * MILLISECOND


# The time in request ids: gateways generate UUIDs of version 7. Pure.

VERSION_AT: Final = 14
VERSION: Final = "7"
GIVEN: Final = ("4", VERSION)
# How much a gateway's clock may be ahead of Redis's; beyond that the day of arrival is used.
AHEAD_MAX_MS: Final = DAY_MS
AHEAD_MAX: Final = timedelta(milliseconds=AHEAD_MAX_MS)


def is_of_gateway(request_id: str) -> bool:
    """Return whether a gateway of this or an earlier version made a request id; leases have other ids."""
    return request_id[VERSION_AT : VERSION_AT + 1] in GIVEN


def says_when(request_id: str) -> bool:
    """Return whether a request id contains the time of its request (UUID version 7)."""
    return request_id[VERSION_AT : VERSION_AT + 1] == VERSION


def began_ms(request_id: str) -> int:
    """Return the Unix ms in a request id that `says_when`, by its gateway's clock."""
    return int(request_id[:8] + request_id[9:13], 16)


def began(request_id: str) -> datetime | None:
    """Return the time in a request id; None if it has none, or one beyond the calendar."""
    if not says_when(request_id):
        return None
    try:
        return moment_of(began_ms(request_id))
    except (ValueError, OverflowError):
        return None


# Time zones, by which days and months are counted: those of one edition in all of a process, which nobody else reads.
# Two editions disagree on when a day begins.
#
# The scripts know no zones, only offsets to UTC: those of a zone are exact until its clocks change for the
# second time.

TimeZone = zoneinfo.ZoneInfo
UnknownZone = zoneinfo.ZoneInfoNotFoundError
# The package `tzdata` as it is locked, or the files of the system.
BUNDLED, SYSTEM = "bundled", "system"
UNKNOWN_EDITION: Final = "unknown"
# An edition says its year alone: it is old so long after the end of that, for each year has a new one by then.
EDITION_DAYS_MAX: Final = 180
_EDITION: Final = re.compile(r"(20[0-9]{2})[a-z]{1,2}", re.ASCII)
zoneinfo.reset_tzpath(to=())
_chosen = list[str]()


def use_zones(source: str) -> None:
    """Read all zones of this process from here, `bundled` or `system`. The first call decides: it comes before any zone."""
    if not _chosen and source == SYSTEM:
        zoneinfo.reset_tzpath()
        TimeZone.clear_cache()
        _read_clock.cache_clear()
    _chosen[:] = _chosen or [source]


def zones_source() -> str:
    """Return where the zones of this process come from."""
    return _chosen[0] if _chosen else BUNDLED


@cache
def zones_edition() -> str:
    """Return the edition of this process's zones, such as `2026f`; `unknown` if the system does not say it."""
    paths = zoneinfo.TZPATH if zones_source() == SYSTEM else ()
    folders = [folder for path in paths if (folder := Path(path)).is_dir()]
    bundled = find_spec("tzdata.zoneinfo")
    folders = folders or [Path(path) for path in (bundled and bundled.submodule_search_locations) or ()]
    for path in (folder / name for folder in folders for name in ("tzdata.zi", "+VERSION")):
        if path.is_file():
            with path.open("rb") as file:
                word = file.readline(80).decode("ascii", "replace").removeprefix("# version ").strip()
            return word if _EDITION.fullmatch(word) else UNKNOWN_EDITION
    return UNKNOWN_EDITION


def is_old_edition(edition: str, now: datetime) -> bool:
    """Return whether an edition of time zones is of an earlier year, and a newer one is there by now."""
    match = _EDITION.fullmatch(edition)
    if match is None:
        return False
    return now >= datetime(int(match[1]) + 1, 1, 1, tzinfo=UTC) + timedelta(EDITION_DAYS_MAX)


# How far apart the clocks of a keeper and of Redis may be: an offset is kept for so long after its change.
APART_MS: Final = DAY_MS
# How far ahead, and in what steps, a change is searched: clocks keep a changed offset for weeks.
_AHEAD_MS: Final = 400 * DAY_MS
_STEP_MS: Final = DAY_MS
_ZONES_KEPT: Final = 1_024


class ZoneOffset(NamedTuple):
    """A zone's offset to UTC in ms, the Unix ms of its next change (0: never), and the offset after it."""

    offset: int = 0
    turns_at: int = 0
    offset_after: int = 0


CLOCK_OF_UTC: Final = ZoneOffset()


def clock_of(time_zone: str, at_ms: int) -> ZoneOffset:
    """Return the offsets of a time zone around `at_ms` (Unix ms), as Lua scripts use them.

    Raise UnknownZone if the zone is unknown.
    """
    return _read_clock(time_zone, (at_ms - APART_MS) // HOUR_MS)


def offset_at(zone: TimeZone, at_ms: int) -> int:
    """Return the offset of a zone's clocks to UTC at a time, in milliseconds."""
    offset = moment_of(at_ms).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // MILLISECOND


@cache
def _zones() -> frozenset[str]:
    # These names are local files of some systems, and no zones for others.
    return frozenset(zoneinfo.available_timezones()) - {"localtime", "posixrules", "Factory"}


def is_zone(name: str) -> bool:
    """Return whether this is the name of a known time zone."""
    return name in _zones()


@lru_cache(_ZONES_KEPT)
def _read_clock(time_zone: str, hour: int) -> ZoneOffset:
    """Return the offset of a time zone at an hour, and its next turn within `_AHEAD_MS`."""
    zone, since = TimeZone(time_zone), hour * HOUR_MS
    offset = offset_at(zone, since)
    for until in range(since + _STEP_MS, since + _AHEAD_MS, _STEP_MS):
        if offset_at(zone, until) != offset:
            turns_at = _turn(zone, until - _STEP_MS, until)
            return ZoneOffset(offset, turns_at, offset_at(zone, turns_at))
    return ZoneOffset(offset, 0, offset)


def _turn(zone: TimeZone, before: int, after: int) -> int:
    """Return the Unix ms at which a zone changes its clocks, between two times with different offsets."""
    offset = offset_at(zone, before)
    while after - before > 1:
        middle = (before + after) // 2
        if offset_at(zone, middle) == offset:
            before = middle
        else:
            after = middle
    return after
