"""The recorded answers of `answers/` and how they are filled for one call. Pure.

A file is what a provider once wrote, with holes:

    "$name"                     the value of that name as it is; as text inside other text
    {"$name": {"case": …}}      what stands at its value or at `*`; left out where nothing does
    {"$each": "name", …}        in a list: one for each of them
    "$whole"                    in a stream: the answer of the same name that is no stream

In a stream, a comment before an event says when it is sent: `each piece`, `if tool`, `unless tool`;
`counted` if it is output, `announced` if it reports a token before any is sent, `last` if nothing follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from typing import Any

from gateway.local.demo.turn import Turn

HOLE = re.compile(r"\$(\w+)")
GONE = object()


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: its name, its data, and the rules by which it is sent."""

    name: str
    data: Any
    rules: tuple[tuple[str, str], ...]

    def named(self, rule: str) -> list[str]:
        """What a rule names, in the order of the comment."""
        return [name for word, name in self.rules if word == rule]

    def marked(self, mark: str) -> bool:
        """Whether the comment says this of the event."""
        return (mark, "") in self.rules


def _event(block: str) -> Event:
    fields = {name: value for name, _, value in (line.partition(": ") for line in block.splitlines())}
    rules = tuple(rule.partition(" ")[::2] for rule in fields.get("", "").split(", "))
    data = fields["data"]
    return Event(fields.get("event", ""), json.loads(data) if data.startswith("{") else data, rules)


_texts = {path.name: path.read_text("utf-8") for path in files(__package__).joinpath("answers").iterdir()}
WHOLE = {name[:-5]: json.loads(text) for name, text in _texts.items() if name.endswith(".json")}
STREAMS = {
    name[:-4]: [
        _event(block.replace('"$whole"', json.dumps(WHOLE.get(name[:-4])))) for block in text.split("\n\n")
    ]
    for name, text in _texts.items()
    if name.endswith(".sse")
}


def whole(name: str, turn: Turn) -> bytes:
    """An answer in one piece."""
    turn.finish()
    return written(fill(WHOLE[name], turn.values, turn.lists)).encode()


def stream(name: str, turn: Turn) -> Iterator[tuple[str, str]]:
    """Events, each with its name and data, made as they are sent; `turn` knows how much of it was said."""
    values, number = turn.values, 0
    for event in STREAMS[name]:
        wanted = all(values[name] for name in event.named("if"))
        if wanted and not any(values[name] for name in event.named("unless")):
            loops = event.named("each")
            for found in product(*(turn.lists[name] for name in loops)):
                values |= zip(loops, found, strict=True)
                values["number"], number = number, number + 1
                turn.spoken += event.marked("counted")
                turn.announced += event.marked("announced") and turn.values["reports"]
                yield fill(event.name, values, {}), written(fill(event.data, values, turn.lists))
            if event.marked("last"):
                return
        elif event.marked("last"):
            turn.finish()


def written(content: Any) -> str:
    """JSON as it is sent; text as it is."""
    return content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))


def fill(template: Any, values: dict[str, Any], lists: dict[str, Any]) -> Any:
    """The template with its holes filled, `GONE` for a choice that has no such case."""
    if isinstance(template, str):
        hole = HOLE.fullmatch(template)
        return values[hole[1]] if hole else HOLE.sub(lambda found: str(values[found[1]]), template)
    if isinstance(template, list):
        made = (fill(*each, lists) for item in template for each in _each(item, values, lists))
        return [item for item in made if item is not GONE]
    if not isinstance(template, dict):
        return template
    name, cases = next(iter(template.items()), ("", None))
    if name.startswith("$") and isinstance(cases, dict):
        return fill(cases.get(str(values[name[1:]]).lower(), cases.get("*", GONE)), values, lists)
    filled = {name: fill(item, values, lists) for name, item in template.items() if name != "$each"}
    return {name: item for name, item in filled.items() if item is not GONE}


def _each(item: Any, values: dict[str, Any], lists: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    if not isinstance(item, dict) or "$each" not in item:
        return [(item, values)]
    return [(item, {**values, item["$each"]: one}) for one in lists[item["$each"]]]
