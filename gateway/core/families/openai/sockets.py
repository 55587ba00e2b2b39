"""Messages of a WebSocket of the Responses API, and the last response that a connection remembers. Pure.

Source: OpenAI's guide to WebSockets of the Responses API. If nothing is stored, a response continues the last
one of its connection. The upstream is called by HTTP, without connections, so the whole conversation is sent
again each time.
"""

from __future__ import annotations

import msgspec

from gateway.core.families.controlled import ControlledNames, Document
from gateway.core.metering.reading import UNREADABLE
from gateway.errors import InvalidRequest

_CREATE = "response.create"
# Fields that exist in a message alone, or have one value there.
_IMPLIED = {"stream": True, "background": False, "generate": True, "stream_id": None}
_NAMES = ControlledNames("type", *_IMPLIED)
_BEFORE = "previous_response_id"
_ITEM = "response.output_item.done"
_ENDS = ("response.completed", "response.incomplete")
# The most that is stored of a message and of the items that answer it.
REMEMBERED_BYTES_MAX = 16 * 1024 * 1024
# First characters of an event that contain its type.
_TYPE_CHARACTERS = 256


class _ToldResponse(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    type: str
    item: Document | None = None
    response: _ToldResponse | None = None


_event = msgspec.json.Decoder(_Event).decode


class ResponseMessages:
    """The messages of one connection, with the last response for a later message to continue.

    `size` bytes of it are in memory.
    """

    def __init__(self) -> None:
        self._id = ""
        # The id of the stored response that the last one continues at its upstream.
        self._before: object = None
        self._asked_before: object = None
        self._conversation = self._input = b""
        self._items: list[Document] = []
        self._bytes_left = 0

    @property
    def size(self) -> int:
        """The bytes stored so that the next message can continue the conversation."""
        return len(self._conversation) + (REMEMBERED_BYTES_MAX - self._bytes_left if self._input else 0)

    def forget(self) -> None:
        """Forget the last response. A client that continues it must send the whole conversation again."""
        self._id, self._conversation = "", b""
        self.end()

    def end(self) -> None:
        """End the current answer. Unless it was complete, no later message can continue it."""
        self._input, self._items = b"", []

    def read(self, document: Document) -> None:
        """Turn a message into the body of a streamed call, with the remembered conversation in its input.

        Raise `InvalidRequest` for other events.
        """
        self.end()
        _NAMES.check(document)
        if document.pop("type", None) != _CREATE:
            raise InvalidRequest(f'type must be "{_CREATE}": no other event is taken here.', param="type")
        for name, implied in _IMPLIED.items():
            if name in document and document.pop(name) not in (None, implied):
                raise InvalidRequest(f"{name} cannot be chosen on a WebSocket: leave it out.", param=name)
        document["stream"] = True
        if self._id and document.get(_BEFORE) == self._id:
            document[_BEFORE] = self._before
            if self._before is None:
                del document[_BEFORE]
            document["input"] = [*msgspec.json.decode(self._conversation), *_items(document.get("input"))]
        if document.get("store") is False:
            self._asked_before = document.get(_BEFORE)
            asked = msgspec.json.encode(_items(document.get("input")))
            self._bytes_left = REMEMBERED_BYTES_MAX - len(asked)
            self._input = asked if self._bytes_left >= 0 else b""

    def hear(self, event: str) -> None:
        """Record an event of the current answer, so that a later message can continue the answer."""
        if not self._input or not any(one in event[:_TYPE_CHARACTERS] for one in (_ITEM, *_ENDS)):
            return
        self._bytes_left -= len(event)
        try:
            said = _event(event)
        except UNREADABLE:
            self._bytes_left = -1
        if self._bytes_left < 0:  # a part alone is of no use
            self.end()
            return
        if said.type == _ITEM and said.item is not None:
            self._items.append(said.item)
        if said.type not in _ENDS or said.response is None:
            return
        items = [one for item in self._items if (one := _again(item))]
        answer = msgspec.json.encode(items)
        inner = b",".join(part for part in (self._input[1:-1], answer[1:-1]) if part)
        self._id, self._before, self._conversation = said.response.id, self._asked_before, b"[" + inner + b"]"
        self.end()


def _items(value: object) -> list[object]:
    """Return the `input` of a request as a list of items."""
    if isinstance(value, list):
        return value
    return [] if value is None else [{"role": "user", "content": value}]


def _again(item: Document) -> Document | None:
    """Return an item of an answer as input of the next request, without its id, because it is not stored.

    None for reasoning without encrypted content, which cannot be sent again.
    """
    if item.get("type") == "reasoning" and not item.get("encrypted_content"):
        return None
    return {name: value for name, value in item.items() if name != "id"}
