"""What `up` says: progress and news on standard error, the result on standard output.

With JSON asked for, standard output is exactly one line; the news are JSON lines as the logs of
the other processes are. Without it a person reads, so both are sentences.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where the commands look by themselves.
DATA_DIR = ".tollkeeper"


class Voice:
    """Sentences for a person; steps carry the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, sentence: str) -> None:
        """Say what is being done during the start."""
        _news(f"tollkeeper [{time.monotonic() - self._began:4.1f} s] {sentence}")

    def say(self, sentence: str) -> None:
        """Say what happened."""
        _news(f"tollkeeper: {sentence}")

    def warn(self, sentence: str) -> None:
        """Say what somebody should look at."""
        self.say(sentence)

    def ready(self, facts: dict[str, Any]) -> None:
        """Say where everything is."""
        self.step("ready")
        print(self._result(facts), flush=True)  # noqa: T201  # standard output is the result

    def _result(self, facts: dict[str, Any]) -> str:
        return _for_a_person(facts)


class JsonVoice(Voice):
    """Lines of JSON for a program; the news go to `log`."""

    def __init__(self, log: Callable[..., None]) -> None:
        super().__init__()
        self._log = log

    def step(self, sentence: str) -> None:
        """Say what is being done during the start."""
        self._log(sentence, after_s=round(time.monotonic() - self._began, 1))

    def say(self, sentence: str) -> None:
        """Say what happened."""
        self._log(sentence)

    def warn(self, sentence: str) -> None:
        """Say what somebody should look at."""
        self._log(sentence, level="warning")

    def _result(self, facts: dict[str, Any]) -> str:
        return json.dumps(facts, separators=(",", ":"))


def _news(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # standard error is where news go


def _for_a_person(facts: dict[str, Any]) -> str:
    key = facts["api_key"]
    lines = [
        "",
        f"  Console      {facts['admin_url']}",
        f"  Admin token  {facts['admin_token']}",
        f"  Gateway      {facts['gateway_url']}",
        *([f"  API key      {key}"] if key else []),
        f"  Admin API    {facts['admin_url']}/admin/docs",
    ]
    if key:
        usage = usage_line(Path(facts["data_dir"]), Path(sys.executable).with_name("tollkeeper"), Path.cwd())
        lines += ["", "  Try it:", "", curl_line(facts["gateway_url"], key), usage]
    return "\n".join([*lines, "", "  Ctrl-C stops everything in order; the next start keeps every row.", ""])


def usage_line(data_dir: Path, program: Path, here: Path) -> str:
    """A command that shows what was used, as it must be typed in this directory."""
    shown = program.relative_to(here) if program.is_relative_to(here) else program
    words = f"{shlex.quote(str(shown))} usage" if program.exists() else "tollkeeper usage"
    return (
        words if data_dir == here / DATA_DIR else f"TOLLKEEPER_DATA_DIR={shlex.quote(str(data_dir))} {words}"
    )


def curl_line(gateway_url: str, key: str) -> str:
    """A command that works when pasted into a shell."""
    body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]})
    return (
        f"curl -s {gateway_url}/v1/chat/completions -H 'Authorization: Bearer {key}'"
        f" -H 'Content-Type: application/json' -d '{body}'"
    )
