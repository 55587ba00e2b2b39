"""Clients without a key are known by their certificate, where the configuration names the URI in it."""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gateway.errors import SettingError
from gateway.run.reload import with_credentials
from gateway.settings.settings import load
from tests.certificates import issued, trusting, workload
from tests.http.fakes import ANSWER, CHAT, KEY, PEPPER, answer, get, post
from tests.http.stage import OVER, Answer, Stage, Tls, staged
from tests.waiting import eventually

AGENT, BATCH = "spiffe://example.org/ns/prod/sa/agent", "spiffe://example.org/ns/prod/sa/batch"
AGENTS_KEY = "tk_the-key-of-agents"
WORKLOADS = ((AGENT, AGENTS_KEY),)
SERVERS, CLIENTS = trustme.CA(), trustme.CA()
NO_KEY = post(CHAT).replace(b"authorization: Bearer " + KEY.encode() + b"\r\n", b"")


def digest_of(key: str) -> str:
    return hmac.new(PEPPER, key.encode(), "sha256").hexdigest()


async def asked(stage: Stage, request: bytes, *uris: str) -> Answer:
    """An answer to a client whose certificate has these URIs."""
    over = OVER.get()
    assert over is not None
    reset = OVER.set(replace(over, context=trusting(SERVERS, workload(CLIENTS, *uris))))
    try:
        return await stage.ask(request)
    finally:
        OVER.reset(reset)


async def test_a_named_workload_needs_no_key_and_whoever_sends_one_is_known_by_that(tmp_path: Path) -> None:
    reset = OVER.set(Tls(issued(tmp_path, SERVERS, clients=CLIENTS), trusting(SERVERS)))
    try:
        async with staged(workloads=WORKLOADS) as stage:
            got = await asked(stage, NO_KEY, AGENT)
            assert (got.status, got.body) == (200, ANSWER)
            assert stage.directory.digests == [digest_of(AGENTS_KEY)]
            assert len(stage.counters.charges) == 1
            assert (await asked(stage, post(CHAT), AGENT)).status == 200
            assert stage.directory.digests[1:] == [digest_of(KEY)]
            for names in ((BATCH,), (), (AGENT, BATCH), (AGENT + "/",)):
                refused = await asked(stage, NO_KEY, *names)
                assert (refused.status, refused.reason) == (401, "invalid_api_key")
            malformed = await asked(stage, get(b"/v1/models", b"authorization: Basic x\r\n"), AGENT)
            assert malformed.status == 401
            query = await asked(stage, get(b"/v1/models?key=x", b""), AGENT)
            assert query.status == 400
            assert len(stage.directory.digests) == 2
            stage.directory.known = False  # its key was revoked
            assert (await asked(stage, NO_KEY, AGENT)).status == 401
    finally:
        OVER.reset(reset)


async def test_a_workload_is_nobody_once_its_certificate_is_over(tmp_path: Path) -> None:
    """On a connection that stands as on a new one; the call that is under way is finished."""
    now = [time.time()]
    clients = trusting(SERVERS, workload(CLIENTS, AGENT))
    reset = OVER.set(Tls(issued(tmp_path, SERVERS, clients=CLIENTS), clients, lambda: now[0]))
    try:
        async with staged(workloads=WORKLOADS) as stage:
            idle, busy = await stage.client(), await stage.client()
            for client in (idle, busy):
                assert (await client.ask(NO_KEY)).status == 200
            go = asyncio.Event()
            stage.upstream.scripts.append([go, answer()])
            await busy.send(NO_KEY)
            await eventually(lambda: len(stage.upstream.received) == 3)
            now[0] += 7_200.0
            for late in (NO_KEY, post(CHAT)):  # with a key of its own, too
                await busy.send(late)
            await idle.send(NO_KEY)
            assert await idle.is_closed()
            go.set()
            assert (await busy.answer()).status == 200
            assert await busy.is_closed()
            assert await (await stage.client()).is_closed()
            assert len(stage.counters.holds) == 3
    finally:
        OVER.reset(reset)


async def test_without_tls_nobody_is_a_workload() -> None:
    async with staged(workloads=WORKLOADS) as stage:
        assert (await stage.ask(NO_KEY)).status == 401


def test_workloads_are_read_from_the_configuration_and_their_keys_from_files(tmp_path: Path) -> None:
    key, config = tmp_path / "key", tmp_path / "c.yaml"
    key.write_text(AGENTS_KEY)
    config.write_text(f"workloads: {{'{AGENT}': '${{AGENT_KEY}}'}}")
    environ = {"AGENT_KEY_FILE": str(key)}
    with pytest.raises(
        SettingError, match="TOLLKEEPER_TLS_CLIENT_CA_FILE is not set, but there are workloads"
    ):
        load(environ, config)
    environ |= {f"TOLLKEEPER_TLS_{name}_FILE": "x" for name in ("CERT", "KEY", "CLIENT_CA")}
    before = load(environ, config)
    assert before.workloads == WORKLOADS
    key.write_text("tk_another")
    assert with_credentials(before, load(environ, config)).workloads == ((AGENT, "tk_another"),)
    for wrong in ("{agent: x}", "{'spiffe://a b': x}", f"{{'{AGENT}': ''}}", f"{{'{AGENT}': 'a b'}}"):
        config.write_text(f"workloads: {wrong}")
        with pytest.raises(SettingError, match="workloads"):
            load(environ, config)
