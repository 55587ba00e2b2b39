"""One call to the demo upstream as every API needs it: what is answered and what it cost. Pure.

Token counts are deterministic: words and punctuation marks of what is sent and answered, unless
the request dictates them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.local.demo.request import Asked

WORD = re.compile(r"\w+|[^\w\s]")
OUTPUT_TOKENS_MAX = 16
OPENING_PIECES = 2  # said before a stream's first sign of life in between
WORDS_MAX = 100_000
THOUGHT = "The user said something."
UNREPORTED = "none"
PROMPTS = ("messages", "input", "prompt", "contents", "requests", "content")
# What stands for the result of a tool: a type in most APIs, a role in chats, a name in Gemini's.
RESULTS = frozenset({"tool_result", "function_call_output", "custom_tool_call_output", "tool"})
UNHEARD = frozenset({"system", "developer"})  # who says how to answer, and not what
SAYING = ("content", "text", "parts", "output")
ARGUMENTS_FIRST = 9  # characters of a tool's arguments in the first piece of them
COUNTS = ("input", "output", "cached", "reasoning", "created")
STATUSES = {"incomplete": "incomplete", "failed": "failed"}


@dataclass(slots=True)
class Turn:
    """One call and its answer: `values` and `lists` are what the holes of a recorded answer name.

    `spoken` counts the output tokens sent so far, `announced` those reported before any was sent. It is
    `over` once nothing more is sent, `complete` if that was everything.
    """

    asked: Asked
    values: dict[str, Any]
    lists: dict[str, Sequence[Any]]
    spoken: int = 0
    announced: int = 0
    over: bool = False
    complete: bool = False

    def finish(self) -> None:
        """Everything was produced, sent or not."""
        self.spoken = self.values["output"]
        self.values["status"] = STATUSES.get(self.values["end"], "completed")

    def told(self) -> dict[str, Any]:
        """The call as JSON. A broken one cost its input and what was sent of its output."""
        values = self.values
        cached = values["cached"] + values["created"] if self.asked.path == "/v1/messages" else 0
        sent = max(self.spoken, self.announced)
        output = values["output"] if self.complete and not values["end"] else sent
        return {
            "request_id": self.asked.headers.get("x-request-id", ""),
            "path": self.asked.path,
            "model": values["model"],
            "body_sha256": hashlib.sha256(self.asked.content).hexdigest(),
            "body_bytes": len(self.asked.content),
            "input": values["input"] + cached,
            "output": output,
            "total": values["input"] + cached + output,
            "sent": sent,
            "reported": values["reports"],
            "over": self.over,
            "complete": self.complete,
        }


def tokens_in(value: Any) -> int:
    """Words and punctuation marks of every text inside a JSON value; a number is a token of its own."""
    if isinstance(value, str):
        return len(WORD.findall(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return 1
    if isinstance(value, list):
        return sum(map(tokens_in, value))
    if isinstance(value, dict):
        return sum(tokens_in(item) for name, item in value.items() if name not in {"role", "type"})
    return 0


def prompt_of(body: dict[str, Any]) -> Any:
    """What is asked, in whichever API."""
    return next((body[name] for name in PROMPTS if name in body), "")


def read_turn(asked: Asked, model: str, *, speaks: bool) -> Turn:
    """Read a call of any API and what it dictates; embeddings do not speak."""
    body, prompt, dictates = asked.json(), prompt_of(asked.json()), asked.headers.get
    said = ["You", " said", ":", *re.findall(r"\s*\S+", " " + (_last_text(_of_people(prompt)) or "nothing"))]
    words = min(asked.number("x-demo-words") or 0, WORDS_MAX)
    said = [" and"] * words or said
    stated = _output_max(body)
    pieces = said[: words or min(stated or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)]
    choices = range(int(body.get("n") or 1))
    usage, end = dictates("x-demo-usage", ""), dictates("x-demo-end", "")
    thinks = "x-demo-thinking" in asked.headers
    tool = "x-demo-tool" in asked.headers and not _has_result(prompt)
    called, arguments = _called(dictates("x-demo-tool", ""))
    counts = [tokens_in(prompt), len(pieces) * len(choices)]
    if usage not in {"", UNREPORTED}:
        counts = [int(each) for each in usage.split(",")]
    used = dict(zip(COUNTS, counts + [0] * (5 - len(counts)), strict=True))
    used["output"] *= speaks
    values = used | {
        "id": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24],
        "model": model or str(body.get("model", "demo-small")),
        "text": "".join(pieces),
        "final": pieces[-1],
        "longer": len(pieces) > OPENING_PIECES,
        "thought": THOUGHT,
        "thinks": thinks,
        "tool": tool,
        "called": called,
        "given": json.loads(arguments),
        "arguments": arguments,
        "arguments_begun": arguments[:ARGUMENTS_FIRST],
        "arguments_rest": arguments[ARGUMENTS_FIRST:],
        "at": int(thinks),  # where the answer stands after its thoughts, and what follows it
        "after": int(thinks) + 1,
        "end": end,
        "broken": bool(end),
        "failing": end == "error",
        "stop": "tool" if tool else "length" if len(said) > len(pieces) == stated else "end",
        "status": "in_progress",
        "reports": usage != UNREPORTED,
        "asked": bool((body.get("stream_options") or {}).get("include_usage")),
        "encoding": str(body.get("encoding_format", "")),
        "total": used["input"] + used["output"],
        "visible": used["output"] - used["reasoning"],
        "caches": used["cached"] > 0,
        "reasons": used["reasoning"] > 0,
    }
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    lists: dict[str, Sequence[Any]] = {
        "choice": choices,
        "piece": pieces,
        "early": pieces if end else pieces[:-1],
        "opening": pieces[:OPENING_PIECES],
        "rest": pieces[OPENING_PIECES:],
        "text_at": range(len(prompt) if many else 1),
    }
    return Turn(asked, values, lists)


def _called(asked: str) -> tuple[str, str]:
    """The tool to call, and its arguments as JSON: `NAME {…}`, or `look_up` where none is named."""
    if asked in {"", "1"}:
        return "look_up", '{"place":"here"}'
    name, _, arguments = asked.partition(" ")
    return name, json.dumps(json.loads(arguments or "{}"), separators=(",", ":"))


def _has_result(value: Any) -> bool:
    """Whether what is sent has the result of a tool in it: it was called, and is not called again."""
    if isinstance(value, list):
        return any(map(_has_result, value))
    if not isinstance(value, dict):
        return False
    if value.get("type") in RESULTS or value.get("role") in RESULTS or "functionResponse" in value:
        return True
    return any(_has_result(value.get(name)) for name in ("content", "parts"))


def _output_max(body: dict[str, Any]) -> int | None:
    generation = body.get("generationConfig")
    stated = [body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    stated += [generation.get("maxOutputTokens")] if isinstance(generation, dict) else []
    return next((int(each) for each in stated if isinstance(each, int) and each > 0), None)


def _of_people(prompt: Any) -> Any:
    """What was said by anybody but the program that asks, where there is such."""
    if not isinstance(prompt, list):
        return prompt
    return [one for one in prompt if not isinstance(one, dict) or one.get("role") not in UNHEARD] or prompt


def _last_text(value: Any) -> str:
    """The last text said, however it is wrapped."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return _last_text(value[-1])
    if isinstance(value, dict):
        return _last_text(next((value[name] for name in SAYING if name in value), ""))
    return ""
