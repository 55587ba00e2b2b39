"""What is due is made, organization by organization: one that fails stops no other, and is told why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from gateway.background.timed.invoicing import Invoicing
from gateway.core.billing.due import Due
from gateway.errors import Conflict

MONTH = (date(2026, 4, 1), date(2026, 5, 1))


class Books:
    """Organizations with an invoice due; some accounts do not agree."""

    def __init__(self, *ids: int, torn: frozenset[int] = frozenset()) -> None:
        self.ids, self.torn = ids, torn
        self.finalized: list[int] = []
        self.drafted: list[int] = []
        self.left: dict[int, str | None] = {}
        self.at_once = self.most = 0

    async def invoices_due(self, after: int, count: int, *, finalize: bool) -> Sequence[Due]:
        page = [id_ for id_ in self.ids if id_ > after][:2]
        return [Due(id_, None, *MONTH, None, finalize=finalize) for id_ in page]

    async def close(self, organization_id: int) -> None:
        if organization_id in self.torn:
            raise Conflict("The accounts do not agree.")

    async def draft_invoice(self, due: Due) -> int | None:
        self.drafted.append(due.organization_id)
        return due.organization_id

    async def finalize_invoice(self, draft_id: int) -> None:
        self.finalized.append(draft_id)

    async def leave_invoice(self, organization_id: int, why: str | None) -> None:
        self.left[organization_id] = why


def invoicing(books: Books, *, finalize: bool) -> Invoicing:
    return Invoicing(books, books, lambda *_, **__: None, finalize=finalize, at_once=2)


async def test_one_that_is_left_stops_no_other_and_says_why() -> None:
    books = Books(1, 2, 3, 4, 5, torn=frozenset({2}))
    assert await invoicing(books, finalize=True).turn() == (4, 1)
    assert books.finalized == [1, 3, 4, 5]
    assert books.left == {1: None, 2: "The accounts do not agree.", 3: None, 4: None, 5: None}


async def test_drafts_are_left_to_people_where_that_is_asked() -> None:
    books = Books(1, 2, torn=frozenset({2}))
    assert await invoicing(books, finalize=False).turn() == (2, 0)
    assert (books.drafted, books.finalized) == ([1, 2], [])
