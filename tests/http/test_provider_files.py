"""The files of `deploy/providers` with the answers that were recorded of their providers, call by call.

Each answer is asked for by the name that callers use. Its provider is asked for its own name at its own path,
and the call has the use that `expected.csv` says. What engines answer, `test_engines.py` tries.
"""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from gateway.settings.settings import load
from tests.http.fakes import AUTH, STREAM_HEAD, answer, chunks
from tests.http.stage import Stage, staged
from tests.recorded.answers import answers, table
from tests.recorded.prices import KINDS
from tests.settings.test_providers import ENVIRON, FOLDER

# Of a file: whose recorded answers, what stands before a model's name, the path asked for, the provider's.
CHAT = "/v1/chat/completions"
FILES = {
    "azure": ("azure", "azure/", CHAT, "/openai/deployments/{}/chat/completions?api-version=2024-10-21"),
    "azure-v1": ("azure", "azure/", CHAT, "/openai/v1/chat/completions"),
    "cohere": ("cohere", "", f"/compatibility{CHAT}", f"/compatibility{CHAT}"),
    "deepseek": ("deepseek", "", CHAT, CHAT),
    "groq": ("groq", "groq/", CHAT, f"/openai{CHAT}"),
    "mistral": ("mistral", "", CHAT, CHAT),
    "openrouter": ("openrouter", "openrouter/", CHAT, f"/api{CHAT}"),
}


def takes(stage: Stage, name: str) -> None:
    """Have the gateway take the file of a provider, whose upstreams are the stage's own."""
    settings = load(ENVIRON, FOLDER / f"{name}.yaml")
    here = f"http://127.0.0.1:{stage.upstream.port}"
    targets = [replace(one, base_url=here + urlsplit(one.base_url).path) for one in settings.upstreams]
    stage.plane.renew(settings.routes, targets, stage.plane.limits, models=settings.models)


async def sent(stage: Stage, path: str, asked: dict[str, object], told: bytes) -> tuple[str, str]:
    """Send a call that is answered so; the path and the model that its provider saw."""
    streamed = not told.startswith(b"{")
    stage.upstream.scripts.append([STREAM_HEAD, chunks(told)] if streamed else [answer(told)])
    body = json.dumps(asked).encode()
    head = b"POST %b HTTP/1.1\r\nhost: g\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    got = await stage.ask(head % (path.encode(), AUTH, len(body)) + body)
    assert got.status == 200, got.body
    await stage.settled(len(stage.counters.charges))
    seen = stage.upstream.received[-1]
    return seen.target.decode(), json.loads(seen.body).get("model", "")


@pytest.mark.parametrize("name", FILES)
async def test_a_recorded_answer_of_a_provider_has_its_use_by_its_file(name: str) -> None:
    whose, prefix, path, own = FILES[name]
    async with staged(headers=()) as stage:
        takes(stage, name)
        for one in (one for one in answers() if one.family == whose and one.api == "chat"):
            asked = {"model": f"{prefix}{one.asked}", "messages": [{"role": "user", "content": "Where?"}]}
            told = await sent(stage, path, asked | {"stream": one.mode == "sse"}, one.body)
            assert told == (own.format(one.asked), one.asked)
            said = stage.facts()
            assert dict(zip(KINDS, said.counts, strict=False)) == table()[one.name].counts, one.name
