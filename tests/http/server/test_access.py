"""What the log says of each request where it is asked to."""

from __future__ import annotations

from tests.http.fakes import CHAT, post
from tests.http.stage import Stage


async def test_a_call_is_told_with_who_made_it_what_it_asked_for_and_where_it_went(stage: Stage) -> None:
    await stage.ask(post(CHAT))
    [told] = stage.events("request")
    caller = stage.directory.caller
    assert told["status"] == 200
    assert (told["organization_id"], told["tenant_id"]) == (caller.organization_id, caller.tenant_id)
    assert (told["route"], told["upstream"]) == ("/v1/chat/completions", "up")
    assert told["model"]
    assert 0 < float(str(told["upstream_ms"])) <= float(str(told["duration_ms"]))


async def test_what_was_never_let_in_is_told_without_a_caller(stage: Stage) -> None:
    await stage.ask(post(b"{}", b"/nothing/here"))
    [told] = stage.events("request")
    assert (told["status"], told["reason"]) == (404, "unknown_route")
    assert not {"tenant_id", "model", "upstream"} & told.keys()
