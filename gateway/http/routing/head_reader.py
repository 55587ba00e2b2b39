"""A call's head, read by its lines, and what is remembered of lines, bounded in bytes.

A head is seldom the same twice, its lines mostly are: another trace, another user, all else as before. So
each line is judged by itself, and judgments are kept: what the deciding lines mean (`RoutedHead`), whose
credential a line carries (`Proof`), what others say of the call (`Said`), which ones only pass; and heads
that came again as they were. What is kept changes nothing: a head is read the same with it and without.
Nothing is kept before the credential was found good, nor of what is refused, nor what is new each time.
"""

from __future__ import annotations

from gateway.core.calls.trace import FIELD, STATE_FIELD, read_parent, read_trace_id, read_usual_line
from gateway.core.http_limits import HttpLimits
from gateway.core.issuers.signed_token import TOKEN_BYTES_MAX
from gateway.core.model import Attribution, Family
from gateway.errors import Refusal
from gateway.http.protocol.fields import AMBIGUOUS, DECIDES, PASSES, PROVES, SAYS, TRACES, VARIES
from gateway.http.protocol.remembered import KeptInUse
from gateway.http.protocol.request import MalformedRequest, Values, read_fields, read_request_head, role_of
from gateway.http.routing.attribution import read_attribution
from gateway.http.routing.call_head import NOTHING, CallHead, Line, Proof, Reading, Said, unreadable
from gateway.http.routing.cors import Cors
from gateway.http.routing.identity import credential_of, key_digest, key_digests
from gateway.http.routing.routed_head import HeadRouter, RoutedHead
from gateway.http.server.request_driver import bare

# Room for the credentials of 15,000 callers; where more of them call in turn, none is found again.
BYTES_MAX = 24 * 1024 * 1024
HEAD_BYTES_MAX = 4096
# The lines of a credential, where that is the longest token that is read.
PROOF_BYTES_MAX = TOKEN_BYTES_MAX + 256
OTHER_DIGEST_BYTES = 128
NEW_LINES_MAX = 32  # of one head; the others when it comes again


class HeadReader:
    """Read heads by one configuration, and remember `bytes_max` of them: `known` are those kept whole.

    With `tokens` a credential may be a signed token of an issuer. `earlier` are peppers before this one.
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
    ) -> None:
        self._tokens = tokens
        self._cors = cors
        self.bindings = router.bindings
        self._router = router
        self._pepper = pepper
        self._earlier = earlier
        self._limits = limits
        self._traced = traced
        tenth = bytes_max // 10
        # An entry has parts of its key again, as text up to four times as long. A head keeps what its
        # lines mean as well, also when that is forgotten by itself.
        self._heads: KeptInUse[bytes, CallHead] = KeptInUse(2 * tenth, HEAD_BYTES_MAX, 7, 2560)
        self._lines: KeptInUse[bytes, Line] = KeptInUse(2 * tenth, HEAD_BYTES_MAX, 1, 256)
        self._routed: KeptInUse[bytes, RoutedHead] = KeptInUse(tenth, HEAD_BYTES_MAX, 3, 1536)
        self._proofs: KeptInUse[bytes, Proof] = KeptInUse(
            3 * tenth, PROOF_BYTES_MAX, 2, 384 + OTHER_DIGEST_BYTES * len(earlier)
        )
        self._said: KeptInUse[bytes, Said] = KeptInUse(2 * tenth, HEAD_BYTES_MAX, 5, 512)
        self.known = self._heads.known

    def read(self, head: bytes) -> CallHead:
        """Understand a head that ends in its blank line; never raises a `Refusal`, it holds them."""
        return self._heads.find(head) or self.read_by_line(head)

    def read_by_line(self, head: bytes) -> CallHead:
        """The same for a head that is not known as a whole, or does not mean any more what it did."""
        lines = head.split(b"\r\n")
        reading = Reading(head, lines[0])
        if len(lines) - 3 > self._limits.head_fields_max or not self._sort(lines, reading):
            call = self._refused(head)
        else:
            call = self._understand(head, reading)
        if self._cors is not None:
            self._tell_origin(call, head, self._cors)
        return call

    def remember(self, call: CallHead) -> None:
        """The credential of this head is good: what was new of it is understood already from now on."""
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
            self._said.keep(news.said_as, news.said)
        if news.whole:
            self._heads.keep(news.whole, call)

    def _sort(self, lines: list[bytes], reading: Reading) -> bool:
        """Sort lines by what they do; False where one of them cannot be read for itself."""
        known_lines, due = self._lines.known, self._lines.due
        passing = reading.passing
        for line in lines[1:-2]:
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
            if role & DECIDES:
                reading.deciding.append(line)
            elif role & PROVES:
                reading.proving = _with(reading.proving, line)
            elif role & SAYS:
                reading.saying = _with(reading.saying, line)
            elif role & TRACES:
                reading.traces.append(line)
            elif role & AMBIGUOUS:
                return False
        return True

    def _understand(self, head: bytes, reading: Reading) -> CallHead:
        routed = self._route(reading)
        if routed.refusal is not None:
            call = CallHead(routed)
        else:
            said = self._say(reading, routed.family) if reading.saying else NOTHING
            call = CallHead(routed, self._prove(reading), said)
            if reading.traces or self._traced:
                self._trace(call, said, reading)
            call.passed = _passed(routed, reading.passing)
            if reading.is_news and call.refusal is None and call.identity_refusal is None:
                call.news = reading
        if routed.bound:
            call.source = head
        return call

    def _tell_origin(self, call: CallHead, head: bytes, cors: Cors) -> None:
        """Note what the browser of a page is told, be it asking for a page or for leave to ask."""
        call.cors = cors.lines(head)
        preflight = cors.preflight(head, call.routed)
        if preflight is not None:
            call.routed, call.news, call.source = preflight, None, b""

    def _route(self, reading: Reading) -> RoutedHead:
        deciding = _joined(reading.deciding)
        routed = self._routed.find(deciding)
        if routed is not None and self._router.is_current(routed):
            return routed
        reading.routed = routed = self._router.route(deciding + b"\r\n\r\n")
        return routed

    def _prove(self, reading: Reading) -> Proof:
        proof = self._proofs.find(reading.proving)
        if proof is not None:
            return proof
        try:
            credential, signed = credential_of(_values(reading.proving), self._tokens)
            token = credential if signed else b""
            proof = Proof(key_digest(credential, self._pepper), token=token)
            if not signed:
                proof.others = key_digests(credential, self._earlier)
        except Refusal as refusal:
            proof = Proof(refusal=bare(refusal))
        reading.proof = proof
        return proof

    def _say(self, reading: Reading, family: Family) -> Said:
        # The same lines may say another thing in another API.
        said_as = b"%b %b" % (family.encode(), reading.saying)
        said = self._said.find(said_as)
        if said is not None:
            return said
        try:
            attribution, columns = read_attribution(_values(reading.saying), family)
            said = Said(attribution, columns)
        except Refusal as refusal:
            said = Said(refusal=bare(refusal))
        reading.said, reading.said_as = said, said_as
        return said

    def _trace(self, call: CallHead, said: Said, reading: Reading) -> None:
        """Note which trace a call is part of. Where calls are traced here, another span goes on than came."""
        traces = reading.traces
        if len(traces) == 1 and reading.trace_id and not self._traced:
            trace_id = reading.trace_id
        else:
            trace_id = self._take_spans(call, reading)
        known = call.attribution
        if trace_id and not known.session and said.refusal is None:
            call.attribution = Attribution(
                known.user,
                known.content_id,
                known.project_id,
                known.feature_version,
                known.metadata,
                trace_id,
            )

    def _take_spans(self, call: CallHead, reading: Reading) -> str:
        """The same of what is not one usual line, or is not passed on as it came."""
        values = [line.partition(b":")[2] for line in reading.traces]
        if self._traced:
            call.parent = read_parent(values)
            # Without a valid span its state means nothing.
            taken = (FIELD,) if call.parent is not None else (FIELD, STATE_FIELD)
            reading.passing = [
                line for line in reading.passing if line.partition(b":")[0].lower() not in taken
            ]
        return read_trace_id(values)

    def _refused(self, head: bytes) -> CallHead:
        """What is wrong with a head that no line can be read for itself of."""
        refusal: Refusal = MalformedRequest()
        try:
            read_request_head(head, self._limits)
        except Refusal as found:
            refusal = bare(found)
        return unreadable(head, refusal)


def _joined(lines: list[bytes]) -> bytes:
    return lines[0] if len(lines) == 1 else b"\r\n".join(lines)


def _with(text: bytes, line: bytes) -> bytes:
    """A text of lines with one more."""
    return b"%b\r\n%b" % (text, line) if text else line


def _values(text: bytes) -> Values:
    _, values = read_fields(text.split(b"\r\n") if text else [])
    return values


def _judge(line: bytes, reading: Reading) -> int:
    """The role of a line that is not known."""
    reading.whole = b""
    trace_id = read_usual_line(line)
    if trace_id:
        reading.trace_id = trace_id
        return TRACES | PASSES | VARIES
    role = role_of(line)
    if not role & VARIES and len(reading.new) < NEW_LINES_MAX:
        reading.new.append((line, Line(role)))
    return role


def _passed(routed: RoutedHead, lines: list[bytes]) -> bytes:
    """Of these lines those that go on to the upstream, each with its end."""
    for line in routed.withdrawn:
        lines.remove(line)
    dropped = routed.dropped
    if dropped:
        lines = [line for line in lines if line.partition(b":")[0].lower() not in dropped]
    lines.append(b"")
    return b"\r\n".join(lines)
