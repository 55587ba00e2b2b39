"""The SDKs of Cohere and Mistral, as they are, by the files of `deploy/providers`."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import pytest

from tests.http.fakes import KEY
from tests.http.stage import Stage, Step, staged
from tests.http.test_skins import BILLED, TABLE, at_provider, charged, whole
from tests.journey.clients import python_of_clients
from tests.waiting import HUNG_S

COHERE = """
import json, sys
import cohere

client = cohere.ClientV2(api_key=sys.argv[2], base_url=sys.argv[1])
said = [{"role": "user", "content": "hi"}]
"""
MISTRAL = """
import sys
from mistralai.client import Mistral

client = Mistral(api_key=sys.argv[2], server_url=sys.argv[1])
"""
CHATTED = {
    "id": "1", "finish_reason": "COMPLETE", "usage": BILLED,
    "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
}  # fmt: skip
FILLED = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "codestral",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50},
}  # fmt: skip
CALLS: dict[str, tuple[str, str, list[Step], str]] = {
    "cohere chat": (
        COHERE,
        'print(client.chat(model="command-a", messages=said).message.content[0].text)',
        whole(CHATTED),
        "Hello",
    ),
    "cohere stream": (
        COHERE,
        (
            'print("".join(one.delta.message.content.text for one in client.chat_stream(model="command-a",'
            ' messages=said) if one.type == "content-delta"))'
        ),
        TABLE["cohere stream"][3],
        "Hello",
    ),
    "cohere rerank": (
        COHERE,
        (
            'told = client.rerank(model="rerank-v3.5", query="q", documents=["a", "b"])\n'
            "print(told.meta.billed_units.search_units)"
        ),
        TABLE["cohere rerank"][3],
        "3.0",
    ),
    "mistral fim": (
        MISTRAL,
        'print(client.fim.complete(model="codestral", prompt="def").choices[0].message.content)',
        whole(FILLED),
        "Hello",
    ),
    "mistral ocr": (
        MISTRAL,
        (
            'shown = {"type": "document_url", "document_url": "https://x"}\n'
            'print(client.ocr.process(model="mistral-ocr", document=shown).usage_info.pages_processed)'
        ),
        TABLE["mistral ocr"][3],
        "4",
    ),
}


def run(program: str, stage: Stage) -> Any:
    command = [str(python_of_clients()), "-c", program, f"http://127.0.0.1:{stage.port}", KEY]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HUNG_S)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*CALLS])
async def test_a_client_works_and_its_call_costs_what_the_table_says(name: str) -> None:
    opening, asking, script, expected = CALLS[name]
    async with staged() as stage:
        at_provider(stage, TABLE[name][0])
        stage.upstream.scripts.append(script)
        done = await asyncio.to_thread(run, opening + asking, stage)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
        assert charged(stage).cost == TABLE[name][4]
        assert json.loads(stage.upstream.received[0].body)["model"]
