"""Shares what workers learned about the use of calls, among all gateways, in one small key.

A worker uses another worker's lessons for calls that it has not met, and so does a worker that starts.
Otherwise its own calls count. Nothing is decided by these lessons: if two workers write at once, one may lose
some, and learns them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from gateway.core.calls.estimate import LESSONS_MAX, Estimator, Lesson
from gateway.core.wait import in_task
from gateway.counters.admission.key_news import KeyNews
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode

# The pause between two exchanges.
PAUSE_S = 0.5
KEPT_MS: Final = 3_600_000
STORED_BYTES_MAX: Final = 256 * 1024  # no worker writes a longer value
NAMES_BYTES_MAX: Final = 160  # of service and model together, each character up to six bytes in JSON
SHARE_MAX: Final = LESSONS_MAX // 4  # lessons of one organization
# Characters of a model or a service; calls have shorter names (`MODEL_CHARACTERS_MAX`).
NAME_CHARACTERS_MAX: Final = 512
NAME: Final = keys.LESSONS.encode()

_Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]
_Level = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], list[Lesson]] = msgspec.json.Decoder(
    Annotated[
        list[tuple[_Id, _Id, _Name, _Name, bool, _Level, _Level, _Level, _Level]],
        msgspec.Meta(max_length=LESSONS_MAX),
    ]
).decode


class SharedLessons:
    """Exchanges what one worker's estimator learned about calls with the key that all workers share."""

    def __init__(self, wires: RedisConnections, estimator: Estimator) -> None:
        self._wires, self._estimator = wires, estimator
        self._news = KeyNews(wires, NAME)
        self._raw: object = None
        estimator.learned = self._news.come

    async def keep_sharing(self, pause_s: float = PAUSE_S) -> None:
        """Share lessons with other workers until cancelled: on changes of the key, and at intervals."""
        await self._news.keep_sharing(self.share, pause_s)

    async def share(self) -> None:
        """Adopt other workers' lessons (learned uses of calls), and store new ones of this worker.

        CountersUnavailable if Redis does not answer.
        """
        wire = self._wires.of_key(NAME)
        raw = await in_task(wire.send(encode(b"GET", NAME)))
        stored = _read(raw)
        if raw != self._raw:
            self._raw = raw
            for lesson in stored:
                self._estimator.take_over(lesson)
        added = self._estimator.take_lessons()
        if not added:
            return
        newest = {lesson[:5]: lesson for lesson in stored}
        for lesson in added:
            newest.pop(lesson[:5], None)
            newest[lesson[:5]] = lesson
        packed = _encode(_fitting(list(newest.values())))
        await in_task(wire.send(encode(b"SET", NAME, packed, b"PX", b"%d" % KEPT_MS)))


def _fitting(lessons: list[Lesson]) -> list[Lesson]:
    """Return the newest lessons (learned uses of calls) that each organization and the key have room for.

    Lessons with long names are left out.
    """
    kept, by_organization = list[Lesson](), Counter[int]()
    for lesson in reversed(lessons):
        organization_id, _, service, model, *_ = lesson
        if len(service.encode()) + len(model.encode()) > NAMES_BYTES_MAX:
            continue
        by_organization[organization_id] += 1
        if by_organization[organization_id] <= SHARE_MAX:
            kept.append(lesson)
    return kept[LESSONS_MAX - 1 :: -1]


def _read(raw: object) -> list[Lesson]:
    """Return the lessons (learned uses of calls) in the key's value; [] if it is unreadable."""
    if not isinstance(raw, bytes) or len(raw) > STORED_BYTES_MAX:
        return []
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
