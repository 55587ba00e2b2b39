"""Reads the head of a call line by line, with a cache of lines that is bounded in bytes.

Heads are seldom repeated, but most of their lines are: only the trace or the user differs. So each line is
judged by itself, and these results are cached: the meaning of the lines that decide the route (`RoutedHead`),
the credential (`HeaderCredential`), the attribution (`HeaderAttribution`), and which lines are only
forwarded; also the shared rest of heads of equal clients. The cache never changes a result. Nothing is cached
before the credential is verified, of a refused head, or of lines that differ each time.
"""

from __future__ import annotations

from gateway.core.http_limits import HttpLimits
from gateway.core.issuers import TOKEN_BYTES_MAX
from gateway.core.lru import CachePool, LruEntry
from gateway.core.model import Attribution, Family
from gateway.core.traces import FIELD, STATE_FIELD, Parent, read_parent, read_trace_id
from gateway.errors import MalformedRequest, Refusal
from gateway.http.attribution import read_attribution, run_in_baggage
from gateway.http.identity import credential_of, key_digest, key_digests
from gateway.http.protocol.request import (
    AMBIGUOUS,
    CUT_LINES_MAX,
    DECIDES,
    LISTED,
    PASSES,
    PROVES,
    SAYS,
    TRACES,
    VARIES,
    HeadCut,
    LruParseCache,
    RequestHead,
    Values,
    cut_head,
    read_fields,
    read_request_head,
    role_of,
)
from gateway.http.routing.cors import Cors
from gateway.http.routing.routed_head import HeadRouter, RoutedHead
from gateway.http.routing.routes import family_of_head
from gateway.http.server.buffers import bare

_NO_ATTRIBUTION = Attribution()


class HeaderCredential(LruEntry):
    """The digest of the credential in a head's lines, or the refusal of these lines.

    `token` is the signed token itself, if it is one; `others` are the digests under earlier peppers.
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


class HeaderAttribution(LruEntry):
    """The attribution in a head's lines, with its `columns` as stored in rows; or its refusal."""

    __slots__ = ("attribution", "columns", "refusal")

    def __init__(
        self, attribution: Attribution = _NO_ATTRIBUTION, columns: str = "", refusal: Refusal | None = None
    ) -> None:
        self.attribution = attribution
        self.columns = columns
        self.refusal = refusal


UNPROVEN, NOTHING = HeaderCredential(), HeaderAttribution()


class CallHead(LruEntry):
    """The head of one call with the meaning of its lines.

    `parent` is the caller's span if calls are traced. `passed` are the forwarded lines, in addition to those
    of `routed`, and `others` those that some upstreams get. `news` are new parts for the cache, until they
    are stored. `free` is the number of lines that a cached head may still add. `cors` are the CORS lines for
    the answer, empty if no other origin may call.
    """

    __slots__ = (
        "attribution", "cors", "free", "news", "others", "parent", "passed", "proof", "routed", "said",
    )  # fmt: skip

    def __init__(
        self, routed: RoutedHead, proof: HeaderCredential = UNPROVEN, attribution: HeaderAttribution = NOTHING
    ) -> None:
        self.routed = routed
        self.proof = proof
        self.said = attribution
        self.attribution = attribution.attribution
        self.parent: Parent | None = None
        self.passed = self.others = self.cors = b""
        self.free = 0
        self.news: ParsedHead | None = None

    def routed_as(self, routed: RoutedHead, proof: HeaderCredential) -> CallHead:
        """Return a copy with the route `routed` and the credential `proof`."""
        call = CallHead(routed, proof, self.said)
        call.attribution, call.parent = self.attribution, self.parent
        call.passed, call.cors, call.others = self.passed, self.cors, self.others
        return call

    @property
    def identity_refusal(self) -> Refusal | None:
        """The refusal of a missing or invalid credential. It applies if the route exists."""
        return self.routed.query_refusal or self.proof.refusal

    @property
    def refusal(self) -> Refusal | None:
        """The refusal of an invalid header field. It applies once the caller is known."""
        return self.routed.object_refusal or self.said.refusal or self.routed.field_refusal


class HeaderLine(LruEntry):
    """The role of one field line, as cached."""

    __slots__ = ("role",)

    def __init__(self, role: int) -> None:
        self.role = role


class ParsedHead:
    """A head whose lines are sorted by role, with its new parts for the cache.

    `proving` and `saying` are lines joined to one text. `trace_id` is the id of a `trace` line in the usual
    form. `listed` are lines of `passing` that not every upstream gets. `rest` is the head without all of these, if every other line was known, and `new` are lines that
    were not. `routed`, `proof` and `said` are set if they were not cached. `said_as` is the cache's key of
    `said`.
    """

    __slots__ = (
        "deciding", "listed", "new", "passing", "proof", "proving", "rest", "routed", "said", "said_as",
        "saying", "trace", "trace_id", "traces",
    )  # fmt: skip

    def __init__(self, rest: bytes, request_line: bytes, trace: bytes, trace_id: str) -> None:
        self.rest = rest
        self.deciding = [request_line]
        self.passing: list[bytes] = []
        self.listed: list[bytes] = []
        self.proving = self.saying = self.said_as = b""
        self.traces: list[bytes] = []
        self.trace, self.trace_id = trace, trace_id
        self.new: list[tuple[bytes, HeaderLine]] = []
        self.routed: RoutedHead | None = None
        self.proof: HeaderCredential | None = None
        self.said: HeaderAttribution | None = None

    @property
    def is_news(self) -> bool:
        """Whether the head has parts that are not in the cache yet."""
        if self.rest or self.new:
            return True
        return self.routed is not None or self.proof is not None or self.said is not None


def unreadable(head: bytes, refusal: Refusal) -> CallHead:
    """Return a head for a call whose bytes are not a valid request, with the `refusal` to send."""
    return CallHead(RoutedHead(family_of_head(head), refusal=refusal, fatal=True))


# Enough for the credentials of 15,000 callers; if more call in rotation, the cache never hits.
BYTES_MAX = 24 * 1024 * 1024
HEAD_BYTES_MAX = 4096
# Maximum of the lines of a credential: the longest accepted token.
PROOF_BYTES_MAX = TOKEN_BYTES_MAX + 256
OTHER_DIGEST_BYTES = 128
NEW_LINES_MAX = 32  # of one head; the others are cached with its next request


class HeadReader:
    """Reads heads under one configuration, with a cache of `bytes_max` bytes; `known` are cached heads.

    With `tokens` a credential may be a signed token of an issuer. `earlier` are the previous peppers.
    """

    def __init__(
        self,
        router: HeadRouter,
        pepper: bytes,
        limits: HttpLimits,
        *,
        traced: bool = False,
        bytes_max: int = BYTES_MAX,
        cors: Cors | None = None,
        tokens: bool = False,
        earlier: tuple[bytes, ...] = (),
        pool: CachePool | None = None,
    ) -> None:
        self._tokens = tokens
        self._cors = cors
        self.bindings = router.bindings
        self.router = self._router = router
        self.pepper = pepper
        self._earlier = earlier
        self._limits = limits
        self._traced = traced
        tenth = bytes_max // 10
        # An entry has parts of its key again, as text up to four times as long. A head keeps what its
        # lines mean as well, also when that is forgotten by itself.
        self._heads: LruParseCache[bytes, CallHead] = LruParseCache(2 * tenth, HEAD_BYTES_MAX, 7, 2560)
        self._lines: LruParseCache[bytes, HeaderLine] = LruParseCache(2 * tenth, HEAD_BYTES_MAX, 1, 256)
        self._routed: LruParseCache[bytes, RoutedHead] = LruParseCache(tenth, HEAD_BYTES_MAX, 3, 1536)
        self._proofs: LruParseCache[bytes, HeaderCredential] = LruParseCache(
            3 * tenth, PROOF_BYTES_MAX, 2, 384 + OTHER_DIGEST_BYTES * len(earlier)
        )
        self._attributions: LruParseCache[bytes, HeaderAttribution] = LruParseCache(
            2 * tenth, HEAD_BYTES_MAX, 5, 512
        )
        if pool is not None:
            pool.join("heads", self._heads)
            pool.join("header_lines", self._lines)
            pool.join("routed_heads", self._routed)
            pool.join("credentials", self._proofs)
            pool.join("attributions", self._attributions)
        self.known = self._heads.known

    def read(self, head: bytes) -> CallHead:
        """Read a head up to its blank line; a `Refusal` is stored in the result instead of raised."""
        return self.read_cut(cut_head(head))

    def read_cut(self, cut: HeadCut) -> CallHead:
        """Read a head that `cut_head` has split; a `Refusal` is stored in the result instead of raised."""
        head, rest, _, proving, saying, trace, trace_id, _ = cut
        known = self._heads.find(rest)
        if known is not None:
            current = self._router.is_current(known.routed)
            call = None
            if current and not (trace and self._traced):
                call = self._find_call(known, proving, saying, trace, trace_id)
            if call is not None:
                return call
            rest = b"" if current else rest
        lines = head.split(b"\r\n")
        reading = ParsedHead(rest, lines[0], trace, trace_id)
        if len(lines) - 3 > self._limits.head_fields_max or not self._sort(lines[1:-2], reading):
            call = self._refused(head)
        else:
            if reading.proving != proving or reading.saying != saying:
                reading.rest = b""
            call = self._understand(self._route(reading), reading)
            opens = call.routed.opens
            if opens is not None:  # it was routed by some of its fields
                opens.fields, opens.read = read_fields(lines[1:-2])
        if self._cors is not None:
            # CORS: lines for the answer, or the answer to a preflight
            call.cors = self._cors.lines(head)
            answer = None if call.routed.fatal else self._cors.preflight(head)
            if answer is not None:
                routed = call.routed
                call.news, call.routed = None, RoutedHead(
                    Family(routed.family), "preflight", refusal=answer, method=routed.method,
                    minor=routed.minor, length=routed.length, chunked=routed.chunked,
                    keep_alive=routed.keep_alive, expects=routed.expects,
                )  # fmt: skip
        return call

    def read_again(self, request: RequestHead) -> CallHead:
        """Return the head of a call with the fields of a request that was read before."""
        reading = ParsedHead(b"", b"", b"", "")
        self._sort([line for _, line in request.fields], reading)
        call = self._understand(self._router.route_read(request), reading)
        call.news = None  # no other socket has its key
        return call

    def remember(self, call: CallHead) -> None:
        """Store those parts of a head in the cache that are new, after the credential was found valid."""
        news, call.news = call.news, None
        if news is None:
            return
        for line, judged in news.new:
            self._lines.keep(line, judged)
        if news.routed is not None:
            self._routed.keep(_joined(news.deciding), news.routed)
        if news.proof is not None:
            self._proofs.keep(news.proving, news.proof)
        if news.said is not None:
            self._attributions.keep(news.said_as, news.said)
        if news.rest:
            known = CallHead(call.routed)
            known.cors, known.passed, known.others = call.cors, call.passed, call.others
            known.free = self._limits.head_fields_max - (news.rest.count(b"\r\n") - 2)
            if news.trace:
                known.passed = call.passed.removesuffix(news.trace + b"\r\n")
            self._heads.keep(news.rest, known)

    def _find_call(
        self, known: CallHead, proving: bytes, saying: bytes, trace: bytes, trace_id: str
    ) -> CallHead | None:
        """Return a call's head from cached parts and the lines cut from it; None if a part is not cached.

        The trace line is never cached: it is forwarded unless the route drops it, and its id is added to the
        attribution.
        """
        routed = known.routed
        # No head has more cut lines than CUT_LINES_MAX: they are counted only if `free` may be too few for them.
        if known.free < CUT_LINES_MAX and _count(proving) + _count(saying) + bool(trace) > known.free:
            return None
        proof = self._proofs.find(_add_line(proving, routed.key) if routed.key else proving)
        if proof is None:
            return None
        attribution = self._attributions.find(_said_as(routed.family, saying)) if saying else NOTHING
        if attribution is None:
            return None
        call = CallHead(routed, proof, attribution)
        call.cors, call.passed, call.others = known.cors, known.passed, known.others
        if trace:
            if FIELD not in routed.dropped:
                call.passed = b"%b%b\r\n" % (known.passed, trace)
            call.attribution = _add_trace(attribution, trace_id)
        return call

    def _sort(self, lines: list[bytes], reading: ParsedHead) -> bool:
        """Sort header lines into the lists of `reading` by their role; return False if a line is invalid."""
        known_lines, due = self._lines.known, self._lines.due
        passing = reading.passing
        for line in lines:
            known = known_lines.get(line)
            if known is not None:
                role = known.role
                if known.kept_at < due:
                    self._lines.renew(line, known)
            else:
                role = _judge(line, reading)
            if role & PASSES:
                passing.append(line)
            if role == PASSES:
                continue
            if role & LISTED:
                reading.listed.append(line)
            if role & DECIDES:
                reading.deciding.append(line)
            elif role & PROVES:
                reading.proving = _add_line(reading.proving, line)
            elif role & SAYS:
                reading.saying = _add_line(reading.saying, line)
            elif role & TRACES:
                reading.traces.append(line)
            elif role & AMBIGUOUS:
                return False
        return True

    def _understand(self, routed: RoutedHead, reading: ParsedHead) -> CallHead:
        """Return the head of a call: its credentials, attribution, and header lines to pass."""
        if routed.refusal is not None:
            call = CallHead(routed)
        else:
            if routed.key:
                reading.proving = _add_line(reading.proving, routed.key)
            said = self._say(reading, routed.family) if reading.saying else NOTHING
            call = CallHead(routed, self._prove(reading), said)
            if reading.traces or self._traced:
                self._trace(call, said, reading)
            lines = _passed(routed, reading.passing)
            if reading.listed and routed.headers is not None:
                lines, others = _sort_listed(lines, reading.listed, routed.headers)
                call.others = _ended(others)
            call.passed = _ended(lines)
            refused = call.refusal is not None or call.identity_refusal is not None
            if reading.is_news and routed.opens is None and not refused:
                call.news = reading
        return call

    def _route(self, reading: ParsedHead) -> RoutedHead:
        """Return the routed head for the lines that decide the route, remembered by their bytes."""
        deciding = _joined(reading.deciding)
        routed = self._routed.find(deciding)
        if routed is not None and self._router.is_current(routed):
            return routed
        reading.routed = routed = self._router.route(deciding + b"\r\n\r\n")
        # On an unknown path, the field of the key also shows which API's client this is.
        if routed.route is None and reading.proving:
            routed = self._router.route(b"%b\r\n%b\r\n\r\n" % (deciding, reading.proving))
        return routed

    def _prove(self, reading: ParsedHead) -> HeaderCredential:
        """Return the credential in these header lines, remembered by their bytes."""
        proof = self._proofs.find(reading.proving)
        if proof is not None:
            return proof
        try:
            credential, signed = credential_of(_values(reading.proving), self._tokens)
            token = credential if signed else b""
            proof = HeaderCredential(key_digest(credential, self.pepper), token=token)
            if not signed:
                proof.others = key_digests(credential, self._earlier)
        except Refusal as refusal:
            proof = HeaderCredential(refusal=bare(refusal))
        reading.proof = proof
        return proof

    def _say(self, reading: ParsedHead, family: Family) -> HeaderAttribution:
        """Return the attribution in these header lines, remembered by their bytes."""
        # The meaning of these lines depends on the API.
        said_as = _said_as(family, reading.saying)
        header_attribution = self._attributions.find(said_as)
        if header_attribution is not None:
            return header_attribution
        try:
            attribution, columns = read_attribution(_values(reading.saying), family)
            header_attribution = HeaderAttribution(attribution, columns)
        except Refusal as refusal:
            header_attribution = HeaderAttribution(refusal=bare(refusal))
        reading.said, reading.said_as = header_attribution, said_as
        return header_attribution

    def _trace(self, call: CallHead, attribution: HeaderAttribution, reading: ParsedHead) -> None:
        """Set a call's session to its trace id if it names none; if traces are recorded, send our span."""
        traces, trace_id = reading.traces, reading.trace_id
        if len(traces) == 1 and trace_id and not self._traced:
            reading.passing.remove(traces[0])  # last, as in cached heads
            reading.passing.append(traces[0])
        else:
            trace_id = self._take_spans(call, reading)
        call.attribution = _add_trace(attribution, trace_id)

    def _take_spans(self, call: CallHead, reading: ParsedHead) -> str:
        """Return the trace id of unusual trace lines; if traces are recorded, store the client's span."""
        if reading.traces:
            reading.rest = b""
        values = [line.partition(b":")[2] for line in reading.traces]
        if self._traced:
            call.parent = read_parent(values, reading.passing)
            # Without a valid span, its state is meaningless.
            taken = (FIELD,) if call.parent is not None else (FIELD, STATE_FIELD)
            reading.passing = [
                line for line in reading.passing if line.partition(b":")[0].lower() not in taken
            ]
        return read_trace_id(values)

    def _refused(self, head: bytes) -> CallHead:
        """Return a head with the refusal of the request; reading the head as a whole finds the fault."""
        refusal: Refusal = MalformedRequest()
        try:
            read_request_head(head, self._limits)
        except Refusal as found:
            refusal = bare(found)
        return unreadable(head, refusal)


class SocketOpening:
    """The `request` with whose head each turn of a WebSocket is a call."""

    __slots__ = ("_head", "_heads", "_request")

    _head: CallHead

    def __init__(self, request: RequestHead) -> None:
        self._request = request
        self._heads: HeadReader | None = None

    def head(self, heads: HeadReader) -> CallHead:
        """Return the head of a turn, which another configuration routes again."""
        if self._heads is not heads or not heads.router.is_current(self._head.routed):
            self._heads, self._head = heads, heads.read_again(self._request)
        return self._head


def _add_trace(attribution: HeaderAttribution, trace_id: str) -> Attribution:
    """Return the attribution that header fields state; the trace id replaces a missing session id."""
    known = attribution.attribution
    if not trace_id or known.session or attribution.refusal is not None:
        return known
    return Attribution(
        known.user, known.content_id, known.project_id, known.feature_version, known.metadata, trace_id,
        known.run, known.priority, known.tags, True,
    )  # fmt: skip


def _said_as(family: Family, saying: bytes) -> bytes:
    return b"%b %b" % (family.encode(), saying)


def _count(text: bytes) -> int:
    """Return the number of lines in a text."""
    return text.count(b"\r\n") + 1 if text else 0


def _joined(lines: list[bytes]) -> bytes:
    return lines[0] if len(lines) == 1 else b"\r\n".join(lines)


def _add_line(text: bytes, line: bytes) -> bytes:
    """Return a text of lines with one line added."""
    return b"%b\r\n%b" % (text, line) if text else line


def _values(text: bytes) -> Values:
    _, values = read_fields(text.split(b"\r\n") if text else [])
    return values


def _judge(line: bytes, reading: ParsedHead) -> int:
    """Return the role of a header line that is not cached, and note the line in `reading` for the cache."""
    if line == reading.trace:
        return TRACES | PASSES | VARIES
    role = role_of(line)
    if not role & (PROVES | SAYS):
        reading.rest = b""
    if role & VARIES:
        said = run_in_baggage(line) if role & SAYS else b""
        if said:  # the run is the same in each of its calls
            reading.saying = _add_line(reading.saying, said)
        return role & ~SAYS
    if len(reading.new) < NEW_LINES_MAX:
        reading.new.append((line, HeaderLine(role)))
    return role


def _passed(routed: RoutedHead, lines: list[bytes]) -> list[bytes]:
    """Return the lines that some upstream may get."""
    for line in routed.withdrawn:
        lines.remove(line)
    dropped = routed.dropped
    if dropped:
        lines = [line for line in lines if line.partition(b":")[0].lower() not in dropped]
    return lines


def _sort_listed(
    lines: list[bytes], listed: list[bytes], headers: frozenset[bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Return the lines that every upstream gets, and those that some get.

    The API's clients send the fields `headers`. The others are in `listed`.
    """
    others = {line for line in listed if line.partition(b":")[0].lower() not in headers}
    return [line for line in lines if line not in others], [line for line in lines if line in others]


def _ended(lines: list[bytes]) -> bytes:
    """Return these lines as one text, each with CRLF."""
    return b"\r\n".join((*lines, b""))
