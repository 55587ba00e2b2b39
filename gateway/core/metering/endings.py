"""The end of a streamed answer, by API: it is complete once its last word came, however its connection ended.

Without its last word a stream broke off, even if its connection ended in good order. Answers of APIs that are
not in the table, and unreadable answers, end with their connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Ending:
    """The last word of an answer in one API: one of `events`, the `mark` [DONE], or the end of each choice.

    Any one of these suffices.
    """

    events: frozenset[str] = frozenset()
    mark: bool = False
    choices: bool = False


def _event(*names: str) -> Ending:
    return Ending(frozenset(names))


BY_CONNECTION: Final = Ending()
ENDINGS: Final = {
    "chat": Ending(mark=True, choices=True),  # some servers send no mark, some no reason to finish
    "responses": _event("response.completed", "response.incomplete", "response.failed", "response.cancelled"),
    "messages": _event("message_stop"),
    "gemini": Ending(choices=True),
    "interactions": _event("interaction.completed"),
    "converse": _event("messageStop", "metadata"),
    "cohere": _event("message-end", "stream-end"),
    "ollama": _event("done"),
    "conversations": _event("conversation.response.done"),
    "media": _event(
        "image_generation.completed", "image_edit.completed", "speech.audio.done", "transcript.text.done"
    ),
}  # fmt: skip
