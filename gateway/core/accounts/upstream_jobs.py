"""Jobs: many calls that an upstream completes later, under one hold that lasts as long as the job may.

Pure. The id of a batch's line is derived from the id of its job. So a line is one request, however often it
is charged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Final, TypeVar

import msgspec

from gateway.core.accounts.steps import Substitution
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.weights import Weights
from gateway.core.model import Caller

T = TypeVar("T")
BATCH: Final = "batch"
VIDEO: Final = "video"
RESPONSE: Final = "response"
SERVICE_TIER: Final = "batch"
SECONDS: Final = "video_second"
# Most seconds from the creation of a job to its end: providers allow a day, and report late.
JOB_S_MAX: Final = 48 * 3600
# The hold lasts longer, so that the last poll charges the job, and not a reclaim.
HOLD_S_MAX: Final = JOB_S_MAX + 3600
HOLD_MS_MAX: Final = 1000 * HOLD_S_MAX
# Seconds to search the upstream's list for a job that was sent and never confirmed, before giving up.
UNANSWERED_S_MAX: Final = 900.0
# Seconds until a job that was not found is polled again; after the last it is charged as held.
AGAIN_S: Final = (300, 3600)
# Most seconds that an upstream's clock may be behind.
EARLY_S_MAX: Final = 60
# The key in a batch's metadata that names its hold, if its API has metadata; most keys of a caller.
MARK: Final = "tollkeeper_hold"
METADATA_MAX: Final = 15
# Most pages of an account's batches that are searched for one batch.
PAGES_MAX: Final = 20
# Most bytes that are read of a result.
RESULT_BYTES_MAX: Final = 256 << 20

# States of a job: `opening` until its upstream has given it an id. Those in `ENDED` are final.
OPENING, RUNNING = "opening", "in_progress"
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
NO_COST: Final = -1
KINDS: Final = (BATCH, VIDEO, RESPONSE)
STATUSES: Final = (RUNNING, *sorted(ENDED))


class Job(msgspec.Struct):
    """One job as it is stored, from before it is sent to its upstream until its row is written.

    `hold_id` is the request id of its hold. `held` and `cost` are in nano-units of `currency`; the other
    amounts are what its hold reserved of each account. `settled_ms` is 0 until it is settled. The charges of
    its lines are in the late queue between the entries `lines_after` and `lines_until`: the first is set
    before a line is charged, the second once all are. Then the job gets the status `ended`. A single call has
    one line, whose charge replaces the hold; `sent` is the model's name as its upstream got it. A call that
    makes several `videos` was held for their `seconds` in sum. `batches` is the path of a batch at its
    upstream. `misses` counts polls that did not find the job; before `next_look_ms` another miss does not
    count. Times are those of Redis. A `cost` that must not be charged is `NO_COST`. `output_max` (0: none) is
    the call's limit of output tokens, and `tiers` are the service tiers that it requested. `priced_ms` is the
    time of its prices by its gateway's clock, 0 for `created_ms`. Its call, or each of its lines, names the models
    `beside` too.
    """

    hold_id: str
    organization_id: int
    tenant_id: int
    key_id: int
    partition: int
    user: str
    service: str
    upstream: str
    endpoint: str
    model: str
    input_id: str
    lines: int
    created_ms: int
    expires_ms: int
    id: str = ""
    kind: str = BATCH
    status: str = OPENING
    held: int = 0
    tokens: int = 0
    credits: int = 0
    units: int = 0
    money: int = 0
    budget_tokens: int = msgspec.field(default=0, name="raw_tokens")
    currency: str = ""
    cost: int = 0
    settled_ms: int = 0
    accounts: tuple[str, ...] = ()
    columns: str = ""
    session: str = ""
    metadata: str = ""
    own: bool = False
    weights: tuple[tuple[int, ...], int, int] | None = None
    lines_after: str = ""
    lines_until: str = ""
    ended: str = ""
    sent: str = ""
    videos: int = 1
    seconds: int = 0
    batches: str = ""
    misses: int = 0
    next_look_ms: int = 0
    output_max: int = 0
    tiers: tuple[str, ...] = ()
    priced_ms: int = 0
    tags: Tags = ()
    groups: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()
    substitution: Substitution | None = None

    @property
    def is_charged(self) -> bool:
        """Whether the use of the job's calls is charged, or will be charged without further action."""
        return bool(self.lines_until or self.settled_ms)

    @property
    def caller(self) -> Caller:
        return Caller(self.organization_id, self.tenant_id, self.key_id, self.partition)

    @property
    def weighing(self) -> Weights | None:
        """The weight of each kind of token in the tenant's plan when the job began; None without weights."""
        return None if self.weights is None else Weights(*self.weights)


def round_robin(items: Iterable[T], owner_of: Callable[[T], object]) -> Iterator[T]:
    """Yield all items, one of each owner in turn; items of one owner keep their order."""
    waiting: dict[object, deque[T]] = {}
    for item in items:
        waiting.setdefault(owner_of(item), deque()).append(item)
    while waiting:
        for owner, queue in list(waiting.items()):
            yield queue.popleft()
            if not queue:
                del waiting[owner]


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Job).decode


def write_job(job: Job) -> bytes:
    return _encode(job)


def read_job(raw: bytes) -> Job | None:
    """Return the decoded job, or None if the bytes are no job."""
    try:
        return _decode(raw)
    except msgspec.MsgspecError:
        return None


def id_of(name: str, created_ms: int, *, of: str) -> str:
    """Return an id for the part `name` of request `of`: a UUID version 7 (RFC 9562) at `created_ms`.

    The same arguments always give the same id.
    """
    tail = sha256(f"{of}\n{name}".encode()).hexdigest()
    at = f"{created_ms & 0xFFFFFFFFFFFF:012x}"
    variant = f"{0x80 | int(tail[3:5], 16) & 0x3F:02x}"
    return f"{at[:8]}-{at[8:]}-7{tail[:3]}-{variant}{tail[5:7]}-{tail[7:19]}"
