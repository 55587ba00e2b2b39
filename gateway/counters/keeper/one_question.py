"""What loops ask of all partitions, again and again: in one question, where one may have keys of all slots.

A cluster is asked of each, and so is a server that refuses the question: a key of another type troubles its
own partition alone, and a user of an older `deploy/users.acl` may not ask for many streams.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from gateway.core.wait import in_task
from gateway.counters.keeper.client import Client, each, entries_behind, entries_in
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import encode
from gateway.errors import CountersRefused

# Entries (id, packed) of one stream, or why there are none.
Read = list[tuple[bytes, bytes]] | CountersRefused


async def markers_of(client: Client, partitions: Iterable[int]) -> dict[int, Reply]:
    """The markers of partitions as they stand; None of one that is not there or is of another type."""
    asked = list(partitions)
    if not client.wire.is_one:
        return dict(zip(asked, await client.ask_each(_each_marker(asked)), strict=True))
    return dict(zip(asked, await client.states([keys.marker(one) for one in asked]), strict=True))


async def entries_of(client: Client, after: Mapping[str, bytes], count: int) -> list[Read]:
    """Up to `count` entries of each stream behind an id, b"" being its start, in the order asked."""
    if client.wire.is_one and after:
        names = [name.encode() for name in after]
        behind = (one or b"0" for one in after.values())
        with suppress(CountersRefused):
            words = (b"XREAD", b"COUNT", b"%d" % count, b"STREAMS", *names, *behind)
            answer = cast("list[list[Reply]] | None", await in_task(client.wire.send(encode(*words))))
            found = {cast("bytes", name): entries for name, entries in answer or ()}
            return [entries_in(found.get(name)) for name in names]
    answers = await each([client.send(*entries_behind(name, one, count)) for name, one in after.items()])
    return [one if isinstance(one, CountersRefused) else entries_in(one) for one in answers]


async def are_any_there(client: Client, names: Sequence[str]) -> bool:
    """Whether there is any of these keys; also where that is not known."""
    if client.wire.is_one and names:
        with suppress(CountersRefused):
            asked = encode(b"EXISTS", *(name.encode() for name in names))
            return await in_task(client.wire.send(asked)) != 0
    return bool(names)


async def with_late(client: Client) -> list[tuple[int, Read]]:
    """Partitions with settlements in their late queue, the first of each, or why it does not say."""
    asked = list(client.partitions)
    found = await entries_of(client, {keys.late(one): b"" for one in asked}, 1)
    return [pair for pair in zip(asked, found, strict=True) if pair[1] != []]


def _each_marker(partitions: Collection[int]) -> Iterable[tuple[bytes, bytes]]:
    return ((b"GET", keys.marker(one).encode()) for one in partitions)
