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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    version: str
    packages: tuple[str, ...]
    file: str
    variable: str
    model: str
    apis: tuple[str, ...]
    command: Callable[[Path, int, str], list[str]]
    ready: str
    counters: Callable[[Path, str], Counted] | None = None
    behind: str = ""  # what it stands in front of, and whose counters are its own
    prepare: str = ""  # the kind of model that tiny.py makes for it
    environ: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> Path:
        return PLACE / self.name.replace(" ", "-")


@dataclass(frozen=True)
class Running:
    """A program that answers at `url`, and what counts for it."""

    program: Program
    url: str
    counted: Callable[[], Counted]


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


def _llama(place: Path, port: int, behind: str) -> list[str]:
    return [str(HERE / "serve_llama.py"), str(place / "model"), str(port), str(SLOTS)]


def _litellm(place: Path, port: int, behind: str) -> list[str]:
    target = {"model": "openai/tiny", "api_base": f"{behind}/v1", "api_key": "none"}
    listed = [{"model_name": "tiny", "litellm_params": target}]
    (place / "config.yaml").write_text(json.dumps({"model_list": listed}))
    words = ["--config", str(place / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [str(place / "venv/bin/litellm"), *words, "--telemetry", "False"]


def _transformers(place: Path, port: int, behind: str) -> list[str]:
    return [str(HERE / "serve_transformers.py"), "model", str(port)]


PROGRAMS = {
    one.name: one
    for one in (
        Program(
            "llama.cpp", "xllamacpp 2026.10.11549", ("xllamacpp==2026.10.11549", "gguf==0.19.0"),
            "llamacpp", "LLAMACPP_URL", "llamacpp/tiny", (CHAT, COMPLETIONS, MESSAGES, RESPONSES),
            _llama, "/health", _metrics, prepare="gguf",
        ),
        Program(
            "LiteLLM", "1.108.7, in front of llama.cpp", ("litellm[proxy]==1.108.7",),
            "litellm", "LITELLM_URL", "litellm/tiny", (CHAT, COMPLETIONS, MESSAGES, RESPONSES),
            _litellm, "/health/liveliness", behind="llama.cpp",
            environ=(("LITELLM_MASTER_KEY", "sk-world"), ("LITELLM_LOCAL_MODEL_COST_MAP", "True")),
        ),
        Program(
            "transformers serve", "5.23.0", ("torch==2.13.0", "transformers[serving]==5.23.0"),
            "transformers", "TRANSFORMERS_URL", "transformers/model", (CHAT, COMPLETIONS, RESPONSES),
            _transformers, "/health", _steps, prepare="hf",
        ),
    )
}  # fmt: skip


def installed(program: Program) -> Path:
    """Return the Python of a program, after its packages and its model were put into its place once."""
    place, python = program.place, program.place / "venv/bin/python"
    wanted, stamp = "\n".join(program.packages), place / "installed"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        place.mkdir(parents=True, exist_ok=True)
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(place / "venv")],
            [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *program.packages],
        ]
        if program.prepare:
            steps.append([str(python), str(HERE / "tiny.py"), program.prepare, str(place / "model")])
        for step in steps:
            subprocess.run(step, check=True, timeout=INSTALL_S_MAX)
        stamp.write_text(wanted)
    return python


@contextmanager
def running(program: Program) -> Iterator[Running]:
    """Run a program, and before it the one that it stands in front of."""
    with ExitStack() as started:
        counted: Callable[[], Counted]
        if program.behind:
            behind = started.enter_context(running(PROGRAMS[program.behind]))
            counted, target = behind.counted, behind.url
        python = installed(program)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        words = program.command(program.place, port, target if program.behind else "")
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
        yield Running(program, url, counted)


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
