"""A batch whose answer is lost is taken by its mark alone, and was never made where none may be it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from gateway.core.accounts.upstream_jobs import MARK, OPENING, RUNNING, UNANSWERED_S_MAX, Job
from gateway.core.families.family import BatchPaths
from gateway.features.jobs.polling import LOOKS_MAX, Jobs
from gateway.settings.settings import Settings

CREATED_S = 1_700_000_000
PATHS = BatchPaths("", "/batches", {}, "requests")


class OneOwner:
    """Stored jobs that only say whose a batch is."""

    def __init__(self, other: str) -> None:
        self.other = other

    async def own(self, _: Job, id_: str) -> bool:
        return id_ != self.other

    async def owner(self, _: Job, id_: str) -> str:
        return "another" if id_ == self.other else ""

    async def now_ms(self, _: Job) -> int:
        return int(1000 * (CREATED_S + UNANSWERED_S_MAX + 1))

    async def keep(self, job: Job) -> None:
        """Nobody reads it again."""


class Listed(Jobs):
    """Jobs of an upstream that lists these pages."""

    def __init__(self, pages: list[list[dict[str, Any]]], other: str = "") -> None:
        super().__init__(cast("Any", OneOwner(other)), cast("Settings", None), lambda *_, **__: None)
        self.pages, self.other = pages, other

    def _target(self, upstream: str) -> Any:
        return SimpleNamespace(keys=("", "") if self.other == "key" else ())

    async def _ask(self, *asked: Any, **_: Any) -> tuple[int, bytes]:
        page = 1 if "after=" in asked[1] else 0
        return 200, msgspec.json.encode({"data": self.pages[page], "has_more": page + 1 < len(self.pages)})

    async def _never_made(self, job: Job) -> None:
        job.status = "failed"


def one(id_: str, at_s: int = 1, lines: int = 3, **metadata: str) -> dict[str, Any]:
    counts = {"processing": lines}
    return {"id": id_, "created_at": CREATED_S + at_s, "request_counts": counts, "metadata": metadata}


@pytest.mark.parametrize(
    ("pages", "other", "status", "id_"),
    [
        ([[one("a"), one("b", **{MARK: "hold"})]], "", RUNNING, "b"),
        ([[one("a", 500)], [one("b", **{MARK: "hold"})]], "", RUNNING, "b"),
        ([[one("b", **{MARK: "hold"})]], "b", "failed", ""),
        ([[one("a")]], "", OPENING, ""),
        ([[one("a")]], "a", "failed", ""),
        ([[one("a", lines=4), one("b", 2_000), one("c", -2_000)]], "", "failed", ""),
        ([[]], "", "failed", ""),
        ([[]], "key", OPENING, ""),  # it may be in the account of another key
    ],
)
def test_batch_with_a_lost_creation_answer_is_recognized_by_the_mark_sent_with_the_batch(
    pages: list[list[dict[str, Any]]], other: str, status: str, id_: str
) -> None:
    job = Job(
        "hold", 1, 2, 3, 0, "", "chat", "openai", "/v1/messages", "m", "", 3, 1000 * CREATED_S, 0
    )  # fmt: skip
    asyncio.run(Listed(pages, other)._was_made(job, PATHS.listed))
    assert (job.status, job.id) == (status, id_)


class Slow(Jobs):
    """Jobs of two upstreams. Only one of them answers."""

    def __init__(self, jobs: list[Job]) -> None:
        stored = SimpleNamespace(due=lambda _: later(jobs), claim=lambda job, _: later(job))
        super().__init__(cast("Any", stored), cast("Settings", SimpleNamespace(jobs_interval_s=0)), print)
        self.begun: list[str] = []
        self.rounds = asyncio.Event()

    def look(self, job: Job) -> asyncio.Future[bool]:
        self.begun.append(job.upstream)
        looked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if job.upstream == "fast":
            looked.set_result(True)
            if self.begun.count("fast") > 30:
                self.rounds.set()
        return looked


async def later(value: Any) -> Any:
    return value


async def test_slow_upstream_delays_polling_of_jobs_at_that_upstream_only() -> None:
    jobs = Slow([
        Job("hold", 1, 2, 3, 0, "", "chat", upstream, "/v1/messages", "m", "", 3, 1000 * CREATED_S, 0)
        for upstream in ("slow",) * 10 + ("fast",) * 10
    ])  # fmt: skip
    looking = asyncio.create_task(jobs.keep_looking())
    await asyncio.wait_for(jobs.rounds.wait(), 30)
    looking.cancel()
    assert jobs.begun.count("slow") == LOOKS_MAX
