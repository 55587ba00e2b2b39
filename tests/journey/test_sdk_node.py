"""The Node package `openai` once: it reads what passes and raises its own errors."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.journey.node import install
from tests.journey.sdk import account
from tests.journey.stack import Stack
from tests.waiting import HUNG_S

SCRIPT = """
import OpenAI from "openai";
const [baseURL, apiKey] = process.argv.slice(2);
const demo = usage => ({ headers: { "x-demo-usage": usage } });
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hello there" }];
const found = {};
const whole = await client.chat.completions.create({ model: "demo-small", messages }, demo("10,20"));
found.total = whole.usage.total_tokens;
let text = "", frames = 0;
for await (const chunk of await client.chat.completions.create(
    { model: "demo-small", messages, stream: true }, demo("3,4"))) {
  text += chunk.choices[0]?.delta?.content ?? "";
  frames += chunk.usage ? 1 : 0;
}
found.text = text; found.frames = frames;
const events = [];
for await (const event of await client.responses.create(
    { model: "demo-small", input: "hello", stream: true }, demo("5,6"))) events.push(event.type);
found.last = events.at(-1);
try {
  await new OpenAI({ baseURL, apiKey: "tk_nobody", maxRetries: 0 }).models.list();
} catch (error) { found.refused = error instanceof OpenAI.AuthenticationError; }
await client.chat.completions.create({ model: "demo-small", messages }, demo("500,500"));
try {
  await client.chat.completions.create({ model: "demo-small", messages });
} catch (error) { found.limited = error instanceof OpenAI.RateLimitError && error.code; }
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed from the registry npm is set up with."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, and the Node package cannot be had without it")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private":true,"type":"module"}')
    install(npm, folder, "openai")
    (folder / "calls.js").write_text(SCRIPT)
    return folder


@pytest.mark.nightly
def test_node_sdk(stack: Stack, project: Path) -> None:
    a = account(stack, 1000, reset_interval="daily")
    ran = subprocess.run(
        ["node", "calls.js", f"{stack.gateway_url}/v1", a.key],
        cwd=project,
        capture_output=True,
        timeout=HUNG_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found: dict[str, Any] = json.loads(ran.stdout)
    assert (found["total"], found["frames"], found["last"]) == (30, 0, "response.completed")
    assert found["text"].startswith("You said:")
    assert (found["refused"], found["limited"]) == (True, "insufficient_quota")
    assert a.amounts(4) == [30, 7, 11, 1000]
