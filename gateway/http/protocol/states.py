"""How far a message has come, as tables: state, event, next state. What is not in a table is an error.

A request that comes in has one table, for its bytes alone: whether its client is still there is no
state of its framing. What goes to an upstream has two, since an answer may overtake its request.
"""

from __future__ import annotations

# States.
IDLE = "idle"
BODY = "body"
WHOLE = "whole"
DISCARDING = "discarding"
BROKEN = "broken"
CLOSING = "closing"
OWED = "owed"
SENT = "sent"
GIVEN_UP = "given up"
AWAITED = "awaited"
COMPLETE = "complete"

# Events.
BARE = "a request with nothing behind its head"
BEGUN = "a request with a body"
ENDED = "the last byte of a message"
FAULT = "bytes that cannot be what they should"
ANSWERED = "the whole answer is written"
CLOSED = "nothing more is read"
HEAD = "a final answer's head"
OVERTAKEN = "the answer is whole before its request"
NEXT = "another exchange"


class IllegalEvent(Exception):
    """An event that cannot happen in the state it met."""


class Row(dict[str, str]):
    """What may happen in one state; anything else raises."""

    def __missing__(self, event: str) -> str:
        raise IllegalEvent(f"{event}: none of {', '.join(self) or 'nothing'}")


# The request a client sends. Once answered, the rest of its body is read and dropped.
INCOMING = {
    IDLE: Row({BARE: WHOLE, BEGUN: BODY, FAULT: BROKEN, CLOSED: CLOSING}),
    BODY: Row({ENDED: WHOLE, ANSWERED: DISCARDING, FAULT: BROKEN, CLOSED: CLOSING}),
    WHOLE: Row({ANSWERED: IDLE, CLOSED: CLOSING}),
    DISCARDING: Row({ENDED: IDLE, FAULT: BROKEN, CLOSED: CLOSING}),
    BROKEN: Row({CLOSED: CLOSING}),
    CLOSING: Row({CLOSED: CLOSING}),
}

# The request an upstream is sent. What was given up is owed for ever.
OUTGOING = {
    IDLE: Row({BARE: SENT, BEGUN: OWED, FAULT: GIVEN_UP}),
    OWED: Row({ENDED: SENT, OVERTAKEN: GIVEN_UP, FAULT: GIVEN_UP}),
    SENT: Row({NEXT: IDLE, OVERTAKEN: SENT, FAULT: GIVEN_UP}),
    GIVEN_UP: Row({FAULT: GIVEN_UP}),
}

# The answer an upstream owes.
ANSWER = {
    IDLE: Row({BEGUN: AWAITED, FAULT: BROKEN}),
    AWAITED: Row({HEAD: BODY, FAULT: BROKEN}),
    BODY: Row({ENDED: COMPLETE, FAULT: BROKEN}),
    COMPLETE: Row({NEXT: IDLE, FAULT: BROKEN}),
    BROKEN: Row({FAULT: BROKEN}),
}
