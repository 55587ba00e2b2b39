"""The data plane is given another table and other limits while it serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.calls.routes import UpstreamTarget
from gateway.errors import StartError
from tests.http.fakes import CHAT, CHAT_STREAM, EVENT, ROUTES, STREAM_HEAD, chunks, post
from tests.http.stage import staged
from tests.waiting import eventually


async def test_what_was_renewed_is_in_force_for_the_next_request_and_what_runs_ends_as_it_began() -> None:
    async with staged() as stage:
        client = await stage.client()
        done = chunks(EVENT, b"data: [DONE]\n\n")
        stage.upstream.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), 0.2, done])
        await client.send(post(CHAT_STREAM))
        await eventually(lambda: stage.upstream.received)
        chat = next(route for route in ROUTES if route.path == "/v1/chat/completions")
        target = UpstreamTarget("up", f"http://127.0.0.1:{stage.upstream.port}", (("x-renewed", "yes"),))
        limits = replace(stage.plane.limits, body_bytes_max=1024)
        stage.plane.renew([chat], [target], limits)
        assert (await client.answer()).body.endswith(b"[DONE]\n\n")
        # The upstream that was left keeps no connection for a call that will not come.
        await eventually(lambda: stage.upstream_connections == 0)

        assert (await client.ask(post(CHAT))).status == 200
        assert (b"x-renewed", b"yes") in stage.upstream.received[-1].headers
        assert (await client.ask(post(CHAT, b"/v1/abort"))).status == 404
        assert (await stage.ask(post(CHAT + b" " * 1024))).status == 413
        assert stage.upstream_connections == 1
        stage.plane.renew([chat], [target], limits)
        assert stage.upstream_connections == 1  # nothing changed, so it is kept


async def test_a_table_that_does_not_fit_changes_nothing() -> None:
    async with staged() as stage:
        client = await stage.client()
        assert (await client.ask(post(CHAT))).status == 200
        with pytest.raises(StartError, match="no-such"):
            stage.plane.renew([replace(ROUTES[0], upstream="no-such")], [], stage.plane.limits)
        assert (await client.ask(post(CHAT))).status == 200
        assert stage.upstream_connections == 1
