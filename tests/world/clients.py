"""The table of clients: coding agents and SDKs, how each is pointed at an address and asked one thing.

Each has a folder of its own in `build/world/`, for Node or for Python; each run has a home of its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.world.programs import HERE, PLACE, run_step, split_release
from tests.world.relay import CHAT, GEMINI, MESSAGES, RESPONSES

_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NODE = f"node-{sys.platform}-{_MACHINE}@24.21.0"
USER = "alice"
USER_FIELD = "x-tollkeeper-user"
MODELS = {
    CHAT: "gpt-4o-mini",
    RESPONSES: "gpt-5-codex",
    MESSAGES: "claude-sonnet-4-5",
    GEMINI: "gemini-2.5-flash",
}
CONTEXT, OUTPUT = 200_000, 16_000
PROMPT = "Say pong"
TOOL = "look_up"  # what SDKs offer


@dataclass(frozen=True)
class Seat:
    """One run of a client: where it is installed, its home, and whom it asks what, by which key and model.

    With `tool` an SDK offers a function, as a coding agent does always.
    """

    place: Path
    home: Path
    url: str
    key: str
    model: str
    prompt: str = PROMPT
    tool: bool = False

    def write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def bin(self, name: str) -> str:
        return str(self.place / "node_modules/.bin" / name)


# What is run, and what it finds in its environment.
Start = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Client:
    """One client by one API. `package` has its version; `then` is the script that it wants to be run."""

    name: str
    package: str
    api: str
    start: Callable[[Seat], Start]
    more: tuple[str, ...] = ()
    then: str = ""
    folder: str = ""
    agent: bool = True
    model: str = ""
    node: bool = True
    under: str = ""  # the folder of build/world that has it, where it is not the pinned one
    # What follows the word `after` where the client goes on with its last session; it has one at all.
    after: str = ""
    again: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        return PLACE / self.under / (self.folder or self.name.replace(" ", "-"))

    @property
    def version(self) -> str:
        return split_release(self.package)[1]


def _claude(seat: Seat) -> Start:
    fields = f"{USER_FIELD}: {USER}"
    return [seat.bin("claude"), "-p", seat.prompt, "--model", seat.model], {
        "ANTHROPIC_BASE_URL": seat.url, "ANTHROPIC_AUTH_TOKEN": seat.key, "DISABLE_AUTOUPDATER": "1",
        "ANTHROPIC_CUSTOM_HEADERS": fields, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }  # fmt: skip


def _codex(seat: Seat) -> Start:
    seat.write(
        ".codex/config.toml",
        f'model = "{seat.model}"\nmodel_provider = "tollkeeper"\n[model_providers.tollkeeper]\n'
        f'name = "Tollkeeper"\nbase_url = "{seat.url}/v1"\nenv_key = "TOLLKEEPER_API_KEY"\n'
        f'wire_api = "responses"\nhttp_headers = {{ "{USER_FIELD}" = "{USER}" }}\n',
    )
    return [seat.bin("codex"), "exec", "--skip-git-repo-check", seat.prompt], {"TOLLKEEPER_API_KEY": seat.key}


def _gemini_cli(seat: Seat) -> Start:
    seat.write(
        ".gemini/settings.json", json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}})
    )
    return [seat.bin("gemini"), "-p", seat.prompt, "-m", seat.model, "--skip-trust"], {
        "GOOGLE_GEMINI_BASE_URL": seat.url, "GEMINI_API_KEY": seat.key,
        "GEMINI_CLI_CUSTOM_HEADERS": f"{USER_FIELD}: {USER}",
    }  # fmt: skip


def _opencode(seat: Seat) -> Start:
    anthropic = seat.model.startswith("claude")
    provider = {
        "npm": "@ai-sdk/anthropic" if anthropic else "@ai-sdk/openai-compatible",
        "name": "Tollkeeper",
        "options": {"baseURL": f"{seat.url}/v1", "apiKey": seat.key, "headers": {USER_FIELD: USER}},
        "models": {seat.model: {"limit": {"context": CONTEXT, "output": OUTPUT}}},
    }
    seat.write(".config/opencode/opencode.json", json.dumps({"provider": {"tollkeeper": provider}}))
    return [seat.bin("opencode"), "run", "-m", f"tollkeeper/{seat.model}", seat.prompt], {
        "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1",
    }  # fmt: skip


def _qwen_code(seat: Seat) -> Start:
    headers = {"model": {"generationConfig": {"customHeaders": {USER_FIELD: USER}}}}
    seat.write(".qwen/settings.json", json.dumps(headers))
    words = [seat.bin("qwen"), "-p", seat.prompt, "--auth-type", "openai"]
    return words, {
        "OPENAI_BASE_URL": f"{seat.url}/v1", "OPENAI_API_KEY": seat.key, "OPENAI_MODEL": seat.model,
    }  # fmt: skip


def _cline(seat: Seat) -> Start:
    """Write what `cline auth` does, and a field besides."""
    name = "openai-compatible"
    settings = {"provider": name, "apiKey": seat.key, "model": seat.model, "baseUrl": f"{seat.url}/v1"}
    provider = {
        "settings": settings | {"headers": {USER_FIELD: USER}}, "tokenSource": "manual",
        "updatedAt": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    written = {"version": 1, "lastUsedProvider": name, "modes": {}, "providers": {name: provider}}
    seat.write(".cline/data/settings/providers.json", json.dumps(written))
    return [seat.bin("cline"), "-P", "openai", seat.prompt], {}


def _cn(seat: Seat) -> Start:
    model = {
        "name": "Tollkeeper", "provider": "openai", "model": seat.model, "apiBase": f"{seat.url}/v1",
        "apiKey": seat.key, "roles": ["chat"], "requestOptions": {"headers": {USER_FIELD: USER}},
    }  # fmt: skip
    settings = {"name": "ours", "version": "0.0.1", "schema": "v1", "models": [model]}
    path = seat.write(".continue/config.yaml", yaml.safe_dump(settings))
    return [seat.bin("cn"), "-p", "--config", str(path), seat.prompt], {"CONTINUE_TELEMETRY_ENABLED": "0"}


def _pi(seat: Seat) -> Start:
    kinds = {
        "gpt-4": ("openai-completions", "/v1"),
        "claud": ("anthropic-messages", ""),
        "gemin": ("google-generative-ai", "/v1beta"),
    }
    kind, behind = kinds[seat.model[:5]]
    model = {"id": seat.model, "contextWindow": CONTEXT, "maxTokens": OUTPUT}
    provider = {
        "baseUrl": seat.url + behind, "api": kind, "apiKey": seat.key, "models": [model],
        "headers": {USER_FIELD: USER},
    }  # fmt: skip
    seat.write(".pi/agent/models.json", json.dumps({"providers": {"tollkeeper": provider}}))
    words = ["-p", "--no-session", "--provider", "tollkeeper", "--model", seat.model, seat.prompt]
    return [seat.bin("pi"), *words], {"PI_OFFLINE": "1"}


def _copilot(seat: Seat) -> Start:
    anthropic = seat.model.startswith("claude")
    return [seat.bin("copilot"), "-p", seat.prompt, "--allow-all-tools"], {
        "COPILOT_PROVIDER_BASE_URL": seat.url if anthropic else f"{seat.url}/v1",
        "COPILOT_PROVIDER_TYPE": "anthropic" if anthropic else "openai",
        "COPILOT_PROVIDER_API_KEY": seat.key, "COPILOT_MODEL": seat.model,
        "COPILOT_PROVIDER_HEADERS": f"{USER_FIELD}: {USER}",
    }  # fmt: skip


def _aider(seat: Seat) -> Start:
    fields = {"extra_headers": {USER_FIELD: USER}}
    named = [{"name": f"openai/{seat.model}", "extra_params": fields}]
    path = seat.write(".aider.model.settings.yml", yaml.safe_dump(named))
    words = [
        "--model", f"openai/{seat.model}", "--message", seat.prompt, "--yes-always", "--no-git",
        "--no-pretty", "--no-check-update", "--no-show-release-notes", "--analytics-disable",
        "--no-show-model-warnings", "--no-detect-urls", "--model-settings-file", str(path),
    ]  # fmt: skip
    return [str(seat.place / "venv/bin/aider"), *words], {
        "OPENAI_API_BASE": f"{seat.url}/v1", "OPENAI_API_KEY": seat.key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip


def _python(name: str) -> Callable[[Seat], Start]:
    """Return how a function of `sdk_calls.py` is run."""

    def start(seat: Seat) -> Start:
        words = [str(seat.place / "venv/bin/python"), str(HERE / "sdk_calls.py"), name]
        more = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        return [*words, seat.url, seat.key, seat.model, seat.prompt, TOOL * seat.tool], more

    return start


def _javascript(name: str) -> Callable[[Seat], Start]:
    """Return how a function of `sdk_calls.mjs` is run, beside its packages."""

    def start(seat: Seat) -> Start:
        script = shutil.copy(HERE / "sdk_calls.mjs", seat.place / "sdk_calls.mjs")
        return ["node", script, name, seat.url, seat.key, seat.model, seat.prompt, TOOL * seat.tool], {}

    return start


def _llm(seat: Seat) -> Start:
    named = {"model_id": "gate", "model_name": seat.model, "api_base": f"{seat.url}/v1"}
    named |= {"api_key_name": "gate", "headers": {USER_FIELD: USER}, "supports_tools": seat.tool}
    seat.write(".config/io.datasette.llm/extra-openai-models.yaml", yaml.safe_dump([named]))
    offers = ["--functions", f"def {TOOL}(place: str) -> str: return place"] if seat.tool else []
    return [str(seat.place / "venv/bin/llm"), "-m", "gate", "--key", seat.key, *offers, seat.prompt], {}


def _sdk(name: str, package: str, api: str, *more: str, folder: str = "") -> Client:
    """Return the client that is a function of `sdk_calls.py`."""
    start = _python(name.replace("-", "_").replace(" ", "_"))
    return Client(name, package, api, start, more, folder=folder, agent=False, node=False)


CLAUDE_CODE, OPENCODE = "@anthropic-ai/claude-code@2.1.332", "opencode-ai@1.18.33"
CLAUDE_THEN, OPENCODE_THEN = "@anthropic-ai/claude-code/install.cjs", "opencode-ai/postinstall.mjs"
PI, COPILOT = "@earendil-works/pi-coding-agent@1.6.0", "@github/copilot@1.0.102"
LANGCHAIN = ("langchain-openai==1.7.4", "langchain-anthropic==1.7.10", "langchain-google-genai==4.4.3")
PYDANTIC = "pydantic-ai-slim[openai,anthropic,google]==2.66.0"
AI = ("@ai-sdk/openai@4.0.118", "@ai-sdk/anthropic@4.0.105", "@ai-sdk/google@4.0.121")
CLIENTS = {
    one.name: one
    for one in (
        Client("Claude Code", CLAUDE_CODE, MESSAGES, _claude, then=CLAUDE_THEN, folder="claude",
               after="claude", again=("--continue",)),
        Client("Codex", "@openai/codex@0.171.0", RESPONSES, _codex, folder="codex", after="exec",
               again=("resume", "--last")),
        Client("gemini-cli", "@google/gemini-cli@0.61.0", GEMINI, _gemini_cli, after="gemini",
               again=("--resume", "latest")),
        Client("opencode", OPENCODE, CHAT, _opencode, then=OPENCODE_THEN, after="run", again=("--continue",)),
        Client("opencode messages", OPENCODE, MESSAGES, _opencode, then=OPENCODE_THEN, folder="opencode",
               after="run", again=("--continue",)),
        Client("qwen-code", "@qwen-code/qwen-code@0.24.4", CHAT, _qwen_code),
        Client("cline", "cline@3.0.65", CHAT, _cline, then="cline/postinstall.mjs"),
        Client("Continue cn", "@continuedev/cli@1.5.47", CHAT, _cn, folder="cn"),
        Client("pi", PI, CHAT, _pi),
        Client("pi messages", PI, MESSAGES, _pi, folder="pi"),
        Client("pi gemini", PI, GEMINI, _pi, folder="pi"),
        Client("Copilot CLI", COPILOT, CHAT, _copilot, folder="copilot"),
        Client("Copilot CLI messages", COPILOT, MESSAGES, _copilot, folder="copilot"),
        Client("aider", "aider-chat==0.86.2", CHAT, _aider, node=False),
        Client("llm", "llm==0.36", CHAT, _llm, agent=False, node=False),
        _sdk("openai", "openai==3.57.0", CHAT),
        _sdk("openai responses", "openai==3.57.0", RESPONSES, folder="openai"),
        _sdk("anthropic", "anthropic==2.14.0", MESSAGES),
        _sdk("google-genai", "google-genai==3.6.1", GEMINI),
        _sdk("openai-agents", "openai-agents==0.24.0", RESPONSES),
        _sdk("claude-agent-sdk", "claude-agent-sdk==0.2.189", MESSAGES),
        _sdk("google-adk", "google-adk==2.13.0", GEMINI),
        _sdk("pydantic-ai", PYDANTIC, CHAT),
        _sdk("pydantic-ai messages", PYDANTIC, MESSAGES, folder="pydantic-ai"),
        _sdk("pydantic-ai gemini", PYDANTIC, GEMINI, folder="pydantic-ai"),
        _sdk("langchain", "langchain==1.5.2", CHAT, *LANGCHAIN),
        _sdk("langchain messages", "langchain==1.5.2", MESSAGES, *LANGCHAIN, folder="langchain"),
        _sdk("langchain gemini", "langchain==1.5.2", GEMINI, *LANGCHAIN, folder="langchain"),
        _sdk("litellm", "litellm==1.110.2", CHAT, folder="litellm-sdk"),
        _sdk("litellm messages", "litellm==1.110.2", MESSAGES, folder="litellm-sdk"),
        _sdk("dspy", "dspy==3.4.1", CHAT),
        _sdk("crewai", "crewai==1.15.30", CHAT),
        _sdk("semantic-kernel", "semantic-kernel==1.45.0", CHAT, "azure-ai-agents>=1.2.0b3"),
        _sdk("instructor", "instructor==1.17.0", CHAT),
        Client("ai-sdk", "ai@7.0.173", CHAT, _javascript("ai"), AI, agent=False),
        Client("openai node", "openai@7.59.0", CHAT, _javascript("openai"), agent=False),
        Client("anthropic node", "@anthropic-ai/sdk@1.14.0", MESSAGES, _javascript("anthropic"), agent=False),
        Client("google-genai node", "@google/genai@3.3.0", GEMINI, _javascript("google"), agent=False),
    )
}  # fmt: skip


def node_folder() -> Path:
    """Return the folder of the Node that all of them run by, which is newer than the machine's."""
    place = PLACE / "node"
    _npm(place, (NODE,))
    return place / "node_modules" / NODE.partition("@")[0] / "bin"


def install_client(client: Client) -> None:
    """Put a client into its place, once."""
    if client.node:
        _npm(client.place, (client.package, *client.more), client.then)
        return
    wanted, stamp = "\n".join((client.package, *client.more)), client.place / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    client.place.mkdir(parents=True, exist_ok=True)
    uv, venv = str(Path(sys.executable).with_name("uv")), str(client.place / "venv")
    for step in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv],
        [uv, "pip", "install", "--quiet", "--python", f"{venv}/bin/python", *wanted.split("\n")],
    ):
        run_step(step, client.place)
    stamp.write_text(wanted)


def _npm(place: Path, packages: tuple[str, ...], then: str = "") -> None:
    """Install packages of Node. No script of theirs is run but the one that a client cannot do without."""
    wanted, stamp = "\n".join(packages), place / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / "package.json").write_text('{"private":true,"type":"module"}')
    words = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", *packages]
    run_step(words, place)
    if then:
        path = f"{node_folder()}{os.pathsep}{os.environ['PATH']}"
        script = ["node", str(place / "node_modules" / then)]
        run_step(script, place, os.environ | {"PATH": path})
    stamp.write_text(wanted)
