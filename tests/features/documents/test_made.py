"""A final document is made to its end, however long somebody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.admin.http.problems import refusal
from gateway.admin.http.work_slots import ConcurrencyLimits
from gateway.core.accounts.administration import Actor
from gateway.errors import Conflict, Overloaded, TooManyRequests, Unprocessable
from gateway.features.documents.maker import DRAFTS_KEPT_MAX, RETRY_S, DocumentMaker
from gateway.features.documents.renderer import InvoiceRenderer
from persistence.store import Store
from tests.features.documents.made import invoice
from tests.waiting import HUNG_S, eventually

AT_ONCE = 0.001


class DocumentStore:
    """What is kept of documents: the first one made of each."""

    def __init__(self) -> None:
        self.documents: dict[tuple[int, str, str], bytes] = {}

    async def document(self, invoice_id: int, kind: str, status: str, made: bytes = b"") -> bytes | None:
        if made:
            self.documents.setdefault((invoice_id, kind, status), made)
        return self.documents.get((invoice_id, kind, status))


class Slow:
    """Makes PDFs once it is let, of invoices that have no XML."""

    def __init__(self, fails: Callable[[int], bool] = lambda _: False) -> None:
        self.let, self.made, self._fails = threading.Event(), 0, fails

    def pdf(self, row: dict[str, Any], _: bytes = b"") -> bytes:
        self.made += 1
        number = self.made
        assert self.let.wait(HUNG_S)
        if self._fails(number):
            raise Conflict("It has too many lines.")
        return b"%%PDF-%d" % number

    def xml(self, row: dict[str, Any], *_: object) -> bytes:
        raise Unprocessable


class Asks:
    """Somebody of an organization, or of staff, who may read what is kept."""

    def __init__(self, organization_id: int | None = None, store: Store | None = None) -> None:
        self.store = store or cast("Store", DocumentStore())
        self.actor = Actor("somebody", "readonly", organization_id=organization_id)

    async def kept(self, invoice_id: int, status: str = "finalized") -> bytes | None:
        return await self.store.document(invoice_id, "pdf", status)


def press(slow: Slow, **bounds: Any) -> tuple[DocumentMaker, Asks]:
    return DocumentMaker(cast("InvoiceRenderer", slow), **bounds), Asks()


async def test_pdf_slower_than_the_request_is_503_first_and_ready_for_a_later_request() -> None:
    slow = Slow()
    made, mine = press(slow, wait_s=AT_ONCE)
    for _ in range(2):
        with pytest.raises(Overloaded, match="being made") as told:
            await made.pdf(mine, 7, invoice())
        answer = refusal(told.value, instance="/x")
        assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_S))
    slow.let.set()

    async def there() -> bool:
        return await mine.kept(7) is not None

    await eventually(there)
    assert await made.pdf(mine, 7, invoice()) == b"%PDF-1"
    assert slow.made == 1


async def test_pdf_is_still_delivered_to_a_client_when_another_waiting_client_leaves() -> None:
    slow = Slow()
    made, mine = press(slow, wait_s=60.0)
    leaves, stays = (asyncio.create_task(made.pdf(mine, 7, invoice())) for _ in range(2))
    await eventually(lambda: bool(slow.made))
    leaves.cancel()
    slow.let.set()
    assert await stays == b"%PDF-1"
    assert leaves.cancelled() or leaves.cancelling()


async def test_failed_pdf_is_reported_and_generated_again_on_the_next_request() -> None:
    slow = Slow(fails=lambda number: number == 1)
    slow.let.set()
    made, mine = press(slow)
    with pytest.raises(Conflict, match="too many"):
        await made.pdf(mine, 7, invoice())
    assert await made.pdf(mine, 7, invoice()) == b"%PDF-2"


async def test_draft_pdf_is_generated_again_only_when_the_draft_content_changes() -> None:
    slow = Slow()
    made, mine = press(slow)
    drafted = invoice(status="draft", number=None)
    asked = [asyncio.create_task(made.pdf(mine, 7, drafted)) for _ in range(3)]
    await eventually(lambda: bool(slow.made))
    slow.let.set()
    assert set(await asyncio.gather(*asked)) == {b"%PDF-1"}
    assert await made.pdf(mine, 7, dict(reversed(drafted.items()))) == b"%PDF-1"
    assert await made.pdf(mine, 7, drafted | {"customer": "Another"}) == b"%PDF-2"
    assert await made.pdf(mine, 8, drafted) == b"%PDF-3"
    assert await mine.kept(7, "draft") is None


async def test_cache_of_draft_pdfs_drops_the_least_recently_used_beyond_the_maximum() -> None:
    slow = Slow()
    slow.let.set()
    made, mine = press(slow)
    drafted = invoice(status="draft", number=None)
    for each in range(DRAFTS_KEPT_MAX + 1):
        await made.pdf(mine, each, drafted)
        await made.pdf(mine, 0, drafted)  # asked for last, so it stays
    assert slow.made == DRAFTS_KEPT_MAX + 1
    assert await made.pdf(mine, 1, drafted) == b"%%PDF-%d" % (DRAFTS_KEPT_MAX + 2)


async def test_draft_pdf_beyond_the_limit_of_pdfs_generated_at_once_is_refused() -> None:
    slow = Slow()
    made, mine = press(slow, wait_s=AT_ONCE, under_way=ConcurrencyLimits(1, 1, 1))
    drafted = invoice(status="draft", number=None)
    with pytest.raises(Overloaded, match="being made:"):
        await made.pdf(mine, 7, drafted)
    with pytest.raises(Overloaded, match="1 of these is"):
        await made.pdf(mine, 8, drafted)
    slow.let.set()
    await made.stop(cast("Any", None))


async def test_pdf_beyond_the_limit_of_pdfs_generated_at_once_is_refused() -> None:
    slow = Slow()
    made, mine = press(slow, wait_s=AT_ONCE, under_way=ConcurrencyLimits(1, 1, 1))
    with pytest.raises(Overloaded, match="being made:"):
        await made.pdf(mine, 7, invoice())
    with pytest.raises(Overloaded, match="1 of these is"):
        await made.pdf(mine, 8, invoice())
    slow.let.set()
    await made.stop(cast("Any", None))


async def test_organization_over_the_pdf_limit_is_refused_while_staff_and_others_get_pdfs() -> None:
    slow = Slow()
    made, staff = press(slow, wait_s=60.0, under_way=ConcurrencyLimits(1, 2, 3))
    acme, beta = Asks(1, staff.store), Asks(2, staff.store)
    asked = [asyncio.create_task(made.pdf(acme, number, invoice())) for number in (1, 2)]
    await eventually(lambda: bool(slow.made))
    with pytest.raises(TooManyRequests, match="for this organization"):
        await made.pdf(acme, 3, invoice())
    asked += [asyncio.create_task(made.pdf(who, 9 if who is beta else 8, invoice())) for who in (beta, staff)]
    await eventually(lambda: made._making.waiting == 3)
    slow.let.set()
    # Made in this order: Acme's first, which was begun, staff's, then organizations in turn.
    first, second, betas, staffs = await asyncio.gather(*asked)
    assert [first, staffs, second, betas] == [b"%%PDF-%d" % number for number in range(1, 5)]
