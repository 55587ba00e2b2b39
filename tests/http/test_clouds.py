"""Upstreams of clouds: requests are signed here, by credentials that are there before any call."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.calls.routes import ModelRule, ModelTarget, UpstreamTarget
from gateway.ops.doctor import upstream_finding
from gateway.outbound.cloud import CloudSigner, signer_of
from tests.clouds import PROFILE, REGION, is_signed, token_place
from tests.http.fakes import post
from tests.http.stage import Received, Stage, staged

CHAT = json.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}).encode()


def renew(stage: Stage) -> None:
    for _, one in stage.plane.signers():
        one.renew(time.time())


def signer_at(signer: CloudSigner, place: str) -> dict[str, str]:
    """How what asks beside calls would sign a request for another place."""
    other = signer_of(replace(signer._target, base_url=place))
    assert other is not None
    other.renew(time.time())
    return other.fields(f"{place}/a%3Ab?c=d")


def fields(sent: Received) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in sent.headers}


def of_aws(folder: Path, **more: object) -> dict[str, object]:
    file = folder / "aws"
    file.write_text(PROFILE)
    return {"auth": "aws", "region": REGION, "credentials_file": str(file), **more}


async def test_a_signature_is_of_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")  # the file is named, so it counts
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    arn = "arn:aws:bedrock:eu-central-1:1:inference-profile/eu.m-v1:0"
    named = of_aws(tmp_path, path="/model/{model}/{operation}", query=(("a", "b c"),))
    rule = ModelRule("m", False, (ModelTarget("up", arn),))
    async with staged(headers=(("x-amz-team", "a"),), of_target=named, models=(rule,)) as stage:
        renew(stage)
        more = b"x-amz-date: 20200101T000000Z\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n"
        told = await stage.ask(post(CHAT, fields=more))
        assert told.status == 200
        [sent] = stage.upstream.received
        assert sent.target == (
            b"/model/arn%3Aaws%3Abedrock%3Aeu-central-1%3A1%3Ainference-profile%2Feu.m-v1%3A0/chat/completions?a=b%20c"
        )
        said = ("POST", sent.target.decode(), fields(sent))
        assert is_signed(*said, sent.body)
        assert not is_signed(*said, sent.body + b" ")
        assert not is_signed(*said, sent.body, secret="another")
        assert len(sent.all(b"x-amz-date")) == 1
        assert not sent.all(b"x-amz-content-sha256")
        assert b"secret" not in told.body
        [(_, signer)] = stage.plane.signers()
        of_get = {"host": "127.0.0.1:1", **signer_at(signer, "http://127.0.0.1:1")}
        assert is_signed("GET", "/a%3Ab?c=d", of_get, b"")


async def test_upstreams_with_credentials_of_two_files_are_two_accounts(tmp_path: Path) -> None:
    """So an account that is limited or out of money leaves the other one alone."""
    first = UpstreamTarget("first", "http://127.0.0.1:9", **of_aws(tmp_path))  # type: ignore[arg-type]  # as its fields
    other = tmp_path / "other"
    other.write_text(PROFILE)
    same, second = replace(first, name="same"), replace(first, name="second", credentials_file=str(other))
    async with staged(others=(first, same, second)) as stage:
        accounts = {name: upstream.accounts for name, upstream in stage.plane._upstreams.items()}
        assert accounts["first"] == accounts["same"] != accounts["second"]


async def test_a_token_of_googles_is_there_before_the_call_and_is_renewed_ahead(tmp_path: Path) -> None:
    with token_place() as place:
        of_google = {"auth": "google", "credentials_file": str(place.account(tmp_path))}
        async with staged(headers=(), of_target=of_google) as stage:
            [(_, signer)] = stage.plane.signers()
            renew(stage)
            for _ in range(2):
                assert (await stage.ask(post(CHAT))).status == 200
            assert place.given == ["token-1"]
            now = time.time()
            assert not signer.is_due(now + 2_900)
            assert signer.is_due(now + 3_100)
            assert signer.is_ready(now + 3_500)
            assert not signer.is_ready(now + 3_600)
            renew(stage)
            assert (await stage.ask(post(CHAT))).status == 200
            assert [one.all(b"authorization")[0] for one in stage.upstream.received] == [
                b"Bearer token-1", b"Bearer token-1", b"Bearer token-2",
            ]  # fmt: skip
            place.refuses = True
            renew(stage)
            assert "account is disabled" in signer.why
            assert signer.is_ready(now)


async def test_without_credentials_nothing_is_sent(tmp_path: Path) -> None:
    missing = {"auth": "google", "credentials_file": str(tmp_path / "none.json")}
    async with staged(headers=(), of_target=missing) as stage:
        assert stage.plane.snapshot()["upstream_credentials_missing"] == [("up", 1)]
        renew(stage)
        told = await stage.ask(post(CHAT))
        assert (told.status, told.reason) == (503, "upstream_credentials")
        assert b"upstream up" in told.body
        assert told.one(b"retry-after") == b"10"
        assert not stage.upstream.received
        assert not stage.counters.charges
        target = stage.plane.target_of("up")
        assert target is not None
        found = await upstream_finding(target)
        assert not found.well
        assert "auth: google" in found.says
        assert "was not found" in found.says


async def test_the_next_target_is_asked_where_one_has_no_credentials(tmp_path: Path) -> None:
    rule = ModelRule("m", False, (ModelTarget("cloud", ""), ModelTarget("up", "")))
    async with staged(
        models=(rule,), others=(UpstreamTarget("cloud", "http://127.0.0.1:9", auth="google"),)
    ) as stage:
        assert (await stage.ask(post(CHAT))).status == 200
        assert stage.tally.snapshot()["upstream_fallbacks"] == [("cloud", "unreachable", 1)]


def test_credentials_that_have_expired_are_none(tmp_path: Path) -> None:
    with token_place() as place:
        place.lifetime_s = 5
        target = UpstreamTarget(
            "up", "https://x", auth="google", credentials_file=str(place.account(tmp_path))
        )
        signer = signer_of(target)
        assert signer is not None
        signer.renew(time.time())
        assert signer.why == "they have expired"
        assert not signer.is_ready(time.time())
        assert signer_of(replace(target, auth="header")) is None
