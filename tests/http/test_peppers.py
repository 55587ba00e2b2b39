"""Keys that were digested under an earlier pepper: taken as before, found at once from their second call."""

from __future__ import annotations

import pytest

from gateway.http.identity import key_digests
from tests.http.fakes import ANSWER, CHAT, KEY, PEPPER, post
from tests.http.stage import Stage, staged

EARLIER = (b"the pepper before it", b"the one before that")
DIGESTS = key_digests(KEY.encode(), (PEPPER, *EARLIER))


@pytest.mark.parametrize("digest", DIGESTS)
async def test_a_key_is_known_under_whichever_pepper_it_is_kept(digest: str) -> None:
    async with staged(earlier_peppers=EARLIER) as stage:
        directory = stage.directory
        directory.digest = digest
        got = await stage.ask(post(CHAT))
        assert (got.status, got.body) == (200, ANSWER)
        directory.fresh = True
        directory.digests.clear()
        assert (await stage.ask(post(CHAT))).status == 200
        assert directory.digests == [digest]  # no other is asked for
        # It was kept anew, or went: all are tried again.
        directory.digest = next(one for one in DIGESTS if one != digest)
        assert (await stage.ask(post(CHAT))).status == 200
        directory.known = directory.fresh = False
        assert (await stage.ask(post(CHAT))).status == 401


async def test_without_it_such_a_key_is_unknown(stage: Stage) -> None:
    stage.directory.digest = DIGESTS[1]
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (401, "invalid_api_key")


async def test_nobody_is_refused_for_a_redis_that_is_away() -> None:
    async with staged(earlier_peppers=EARLIER) as stage:
        stage.directory.down = True
        assert (await stage.ask(post(CHAT))).status == 503
