"""Questions on a connection of their own, apart from all calls: to sentinels, and to members of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import hiredis

from gateway.core.wait import Within
from gateway.counters.redis.address import NO_REDIS, Address, why_not
from gateway.counters.redis.calls import Reply
from gateway.errors import CountersUnavailable

ANSWER_S_MAX = 0.5
READ_BYTES = 65_536


async def ask_apart(
    address: Address, place: tuple[str, int], login: tuple[str, str], *commands: Sequence[str]
) -> list[Reply]:
    """The answers of whoever listens there, by the TLS of `address`; `login` is a user's name and password.

    CountersUnavailable where it does not answer within `ANSWER_S_MAX`, or refuses.
    """
    user, password = login
    asked = [*([("AUTH", *([user] if user else []), password)] if password else []), *commands]
    try:
        async with Within(ANSWER_S_MAX):
            answers = await _answers(address, place, asked)
    except (OSError, TimeoutError, hiredis.ProtocolError) as error:
        raise CountersUnavailable(f"{place[0]}:{place[1]} does not answer: {why_not(error)}") from error
    for one in answers:
        if isinstance(one, hiredis.ReplyError):
            raise CountersUnavailable(f"{place[0]}:{place[1]} refused: {str(one)[:200]}")
    return cast("list[Reply]", answers[len(asked) - len(commands) :])


async def _answers(address: Address, place: tuple[str, int], asked: Sequence[Sequence[str]]) -> list[object]:
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
