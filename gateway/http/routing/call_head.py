"""One call's head as the data plane uses it, put together from what its lines mean."""

from __future__ import annotations

from gateway.core.calls.trace import Parent
from gateway.core.in_use import Kept
from gateway.core.model import Attribution
from gateway.errors import Refusal
from gateway.http.routing.routed_head import RoutedHead, family_of_head

_NO_ATTRIBUTION = Attribution()


class Proof(Kept):
    """The digest of the credential that some lines carry, or why there is none; with a signed `token`, it.

    `others` are what it would be under other peppers that are taken.
    """

    __slots__ = ("digest", "others", "refusal", "token")

    def __init__(
        self,
        digest: str = "",
        refusal: Refusal | None = None,
        token: bytes = b"",
        others: tuple[str, ...] = (),
    ) -> None:
        self.digest = digest
        self.others = others
        self.refusal = refusal
        self.token = token


class Said(Kept):
    """What some lines say of their call, and its `columns` as they travel to the rows; or a refusal."""

    __slots__ = ("attribution", "columns", "refusal")

    def __init__(
        self, attribution: Attribution = _NO_ATTRIBUTION, columns: str = "", refusal: Refusal | None = None
    ) -> None:
        self.attribution = attribution
        self.columns = columns
        self.refusal = refusal


UNPROVEN, NOTHING = Proof(), Said()


class CallHead(Kept):
    """One call's head, understood.

    `attribution` is what it says of itself, `parent` the caller's span where calls are traced. `passed`
    are the lines that go on to the upstream, beside what `routed` has. `source` is there where a service is
    bound, and the head may have to be read again; `news` is what is worth remembering of it, until it is.
    `cors` are the lines that a page of another origin needs in the answer; empty where none may call.
    """

    __slots__ = ("attribution", "cors", "news", "parent", "passed", "proof", "routed", "said", "source")

    def __init__(self, routed: RoutedHead, proof: Proof = UNPROVEN, said: Said = NOTHING) -> None:
        self.routed = routed
        self.proof = proof
        self.said = said
        self.attribution = said.attribution
        self.parent: Parent | None = None
        self.passed = self.source = self.cors = b""
        self.news: Reading | None = None

    @property
    def identity_refusal(self) -> Refusal | None:
        """Why nobody can be asked who sent it: told once its route is known."""
        return self.routed.query_refusal or self.proof.refusal

    @property
    def refusal(self) -> Refusal | None:
        """What its fields earn: told once its caller is known."""
        return self.routed.object_refusal or self.said.refusal or self.routed.field_refusal


class Line(Kept):
    """A line that was judged: its role."""

    __slots__ = ("role",)

    def __init__(self, role: int) -> None:
        self.role = role


class Reading:
    """A head that is read by its lines, sorted by what they do, and what was new of it.

    Those of `proving` and of `saying` are one text each. `trace_id` is what one of `traces` says in the usual
    form. `whole` are all its bytes where every line was known, `new` lines that were not; `routed`, `proof`
    and `said` are there where they had to be worked out. `said_as` is what that is kept under.
    """

    __slots__ = (
        "deciding", "new", "passing", "proof", "proving", "routed", "said", "said_as", "saying", "trace_id",
        "traces", "whole",
    )  # fmt: skip

    def __init__(self, head: bytes, request_line: bytes) -> None:
        self.whole = head
        self.deciding = [request_line]
        self.passing: list[bytes] = []
        self.proving = self.saying = self.said_as = b""
        self.traces: list[bytes] = []
        self.trace_id = ""
        self.new: list[tuple[bytes, Line]] = []
        self.routed: RoutedHead | None = None
        self.proof: Proof | None = None
        self.said: Said | None = None

    @property
    def is_news(self) -> bool:
        """Whether there is anything to remember."""
        if self.whole or self.new:
            return True
        return self.routed is not None or self.proof is not None or self.said is not None


def unreadable(head: bytes, refusal: Refusal) -> CallHead:
    """The head of a call that is refused for bytes that are no request."""
    return CallHead(RoutedHead(family_of_head(head), refusal=refusal, fatal=True))
