"""Questions on a connection of their own, apart from all calls: to sentinels, and to members of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, cast

import hiredis

from gateway.core.wait import Within
from gateway.counters.redis.address import NO_REDIS, Address, why_not
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.slots import Place
from gateway.errors import CountersUnavailable

ANSWER_S_MAX = 0.5
# Who says nothing for so long is waited for together with the next one.
NEXT_S = 0.05
READ_BYTES = 65_536

T = TypeVar("T")


async def first_known(
    places: Iterable[Place], ask: Callable[[Place], Coroutine[Any, Any, T | None]]
) -> T | None:
    """What the first of these says that knows, asked in their order; None where nobody does."""
    left, asked = iter(places), set[asyncio.Task[T | None]]()
    try:
        while True:
            place = next(left, None)
            if place is not None:
                asked.add(asyncio.create_task(ask(place)))
            elif not asked:
                return None
            next_s = None if place is None else NEXT_S
            done, asked = await asyncio.wait(asked, timeout=next_s, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                if (found := one.result()) is not None:
                    return found
    finally:
        for one in asked:
            one.cancel()


async def ask_apart(
    address: Address, place: Place, login: tuple[str, str], *commands: Sequence[str]
) -> list[Reply]:
    """The answers of whoever listens there, by the TLS of `address`; `login` is a user's name and password.

    CountersUnavailable where it does not answer within `ANSWER_S_MAX`, or refuses.
    """
    user, password = login
    asked = [*([("AUTH", *([user] if user else []), password)] if password else []), *commands]
    try:
        async with Within(ANSWER_S_MAX):
            answers = await _answers(address, place, asked)
    except (OSError, TimeoutError, UnicodeError, hiredis.ProtocolError) as error:
        raise CountersUnavailable(f"{place[0]}:{place[1]} does not answer: {why_not(error)}") from error
    for one in answers:
        if isinstance(one, hiredis.ReplyError):
            raise CountersUnavailable(f"{place[0]}:{place[1]} refused: {str(one)[:200]}")
    return cast("list[Reply]", answers[len(asked) - len(commands) :])


async def _answers(address: Address, place: Place, asked: Sequence[Sequence[str]]) -> list[object]:
    host, port = place
    tls, name = (address.tls.context(), host) if address.tls else (None, None)
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    parser, answers = hiredis.Reader(), list[object]()
    try:
        # Its type is written as that of a single word.
        writer.write(b"".join(hiredis.pack_command(cast("tuple[str]", tuple(one))) for one in asked))
        while len(answers) < len(asked):
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionError(NO_REDIS)
            parser.feed(data)
            while (answer := parser.gets()) is not False:
                answers.append(answer)
        return answers
    finally:
        writer.close()
