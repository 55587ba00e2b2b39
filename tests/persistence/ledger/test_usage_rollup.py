"""The names of roll-ups: however many strangers make up, their rows are bounded and every sum is exact."""

from __future__ import annotations

import asyncio
import uuid

import msgspec

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.usage import NO_PROJECT, OTHER, OTHER_PROJECTS, SPANS
from persistence.ledger.usage_rollup import MODELS_A_DAY_MAX, PROJECTS_A_DAY_MAX, TAG_VALUES_A_DAY_MAX
from persistence.ledger.writer import LedgerWriter
from tests.connections import connected
from tests.persistence.ledger.test_calls import added, calls_in, rollup_in
from tests.persistence.scenario import Account, batch_of, broken, rows_of, settle_in
from tests.waiting import eventually

FACTS = CallFacts(
    model="m", status=200, counts=(5, 0, 0, 0, 2, 0, 0, 0, 0, 0), total=7, cost=3, currency="USD"
)
A_DAY_MS = 86_400_000


def named(model: str) -> bytes:
    return write_facts(msgspec.structs.replace(FACTS, model=model))


def opened(url: str) -> Account:
    [account] = settle_in(url, 10**9)
    account.reset()
    return account


async def test_models_beyond_a_days_most_are_told_together_and_the_journal_has_their_names(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    count = MODELS_A_DAY_MAX + 40
    for part in range(2):
        for number in range(part * count // 2, (part + 1) * count // 2):
            account.consume(7, metadata=named(f"made-up-{number}"))
        await writer.write(batch_of(account))
    # The same names once more: what is told apart stays so, what is not does not become so.
    for number in range(count):
        account.consume(7, metadata=named(f"made-up-{number}"))
    await writer.write(batch_of(account))
    assert len({call["model"] for call in calls_in(migrated)}) == count
    for span in SPANS:
        rows = rollup_in(migrated, span)
        assert len(rows) == MODELS_A_DAY_MAX + 1
        assert added(rows)["requests"] == 2 * count
        assert added(rows)["cost"] == 2 * count * 3
        assert {row["model"]: row["requests"] for row in rows}[OTHER] == 80
        assert {row["requests"] for row in rows if row["model"] != OTHER} == {2}
    assert await broken(migrated) == []


async def test_projects_are_bounded_by_day_and_none_is_not_one_of_them(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    # Of the day's names, all but three are taken.
    rows_of(
        migrated,
        "INSERT INTO usage_name (organization_id, day, kind, name)"
        " SELECT %s, to_timestamp(%s / 1000) AT TIME ZONE 'UTC', 'project', n"
        " FROM generate_series(1, %s) AS n",
        (account.organization_id, account.at_ms, PROJECTS_A_DAY_MAX - 3),
    )
    for number in range(3 + 5):
        account.consume(7, attribution=f"\t{(number + 1) * 10**9}\t", metadata=named("m"))
    account.consume(7, metadata=named("m"))
    await writer.write(batch_of(account))
    account.at_ms += A_DAY_MS
    account.consume(7, attribution="\t17\t", metadata=named("m"))
    await writer.write(batch_of(account))
    days = rollup_in(migrated, "day")
    first = [row for row in days if row["start"] == days[0]["start"]]
    by_project = {row["project_id"]: row["requests"] for row in first}
    assert len(by_project) == 3 + 2
    assert (by_project[OTHER_PROJECTS], by_project[NO_PROJECT]) == (5, 1)
    assert {row["project_id"] for row in days if row not in first} == {17}
    assert await broken(migrated) == []


async def test_a_correction_takes_a_call_out_of_the_row_it_was_put_into(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    for number in range(MODELS_A_DAY_MAX + 3):
        account.consume(7, metadata=named(f"made-up-{number:04}"))
    account.consume(5, request_id=request, metadata=named("zz-last"))
    await writer.write(batch_of(account))
    facts = msgspec.structs.replace(FACTS, model="made-up-0000")
    account.consume(
        2, kind=EventKind.ADJUST, metadata=mark_as_correction(write_facts(facts), request, "settled late")
    )
    await writer.write(batch_of(account))
    rows = {row["model"]: row["requests"] for row in rollup_in(migrated, "hour")}
    assert (rows[OTHER], rows["made-up-0000"]) == (3, 2)
    assert min(rows.values()) == 1
    assert "usage_adds_up" not in {one.invariant for one in await broken(migrated)}


async def test_organizations_do_not_fill_each_others_names(migrated: str, writer: LedgerWriter) -> None:
    loud, quiet = settle_in(migrated, 10**9, 10**9)
    for account in (loud, quiet):
        account.reset()
    for number in range(MODELS_A_DAY_MAX + 1):
        loud.consume(7, metadata=named(f"made-up-{number}"))
    quiet.consume(7, metadata=named("mine"))
    await writer.write(batch_of(loud, quiet))
    found = rows_of(
        migrated,
        f"SELECT model FROM usage_rollup WHERE span = 'day' AND organization_id = {quiet.organization_id}",
    )
    assert found == [("mine",)]


async def test_two_writers_that_learn_a_name_at_once_put_it_into_one_row(
    migrated: str, writer: LedgerWriter
) -> None:
    """The second waits for the first one's name, and has it told apart too."""
    account = opened(migrated)
    account.consume(7, metadata=named("both"))
    day = account.at_ms // A_DAY_MS
    with connected(migrated) as other:
        other.execute(
            "INSERT INTO usage_name VALUES (%s, date '1970-01-01' + %s, 'model', 'both')",
            (account.organization_id, day),
        )
        writing = asyncio.create_task(writer.write(batch_of(account)))
        with connected(migrated, autocommit=True) as looking:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: looking.execute(waiting).fetchall() != [(0,)])
        other.commit()
        await writing
    assert [row["model"] for row in rollup_in(migrated, "hour")] == ["both"]


# --- tags -------------------------------------------------------------------------------------


def tagged(url: str, span: str) -> dict[tuple[str, ...], int]:
    """The requests of calls with tags, by the values of feature and team."""
    rows = rows_of(
        url,
        "SELECT coalesce(tags->>'feature', ''), coalesce(tags->>'team', ''), requests FROM usage_tag WHERE span = %s",
        (span,),
    )
    return {(feature, team): requests for feature, team, requests in rows}


def of_tags(**tags: str) -> bytes:
    return write_facts(msgspec.structs.replace(FACTS, tags=tags))


async def test_calls_with_tags_are_added_up_by_hour_and_day_and_others_are_not(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    account.at_ms -= account.at_ms % A_DAY_MS
    for feature in ("a", "b", "a"):
        account.consume(7, metadata=of_tags(feature=feature, team="x"))
        account.at_ms += 3_600_000
    account.consume(7, metadata=named("m"))
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT count(*), sum(requests) FROM usage_tag WHERE span = 'hour'") == [(3, 3)]
    assert tagged(migrated, "day") == {("a", "x"): 2, ("b", "x"): 1}
    assert [row["requests"] for row in rollup_in(migrated, "day")] == [4]


async def test_values_of_each_tag_are_bounded_by_day(migrated: str, writer: LedgerWriter) -> None:
    """Values that a caller makes up for one tag leave the values of another as they are."""
    account = opened(migrated)
    rows_of(
        migrated,
        "INSERT INTO usage_name (organization_id, day, kind, name)"
        " SELECT %s, to_timestamp(%s / 1000) AT TIME ZONE 'UTC', 'tag:feature', n"
        " FROM generate_series(1, %s) AS n RETURNING 1",
        (account.organization_id, account.at_ms, TAG_VALUES_A_DAY_MAX - 1),
    )
    for feature in ("one", "two", "three", "17"):
        account.consume(7, metadata=of_tags(feature=feature, team=feature))
        await writer.write(batch_of(account))
    teams = {("one", "one"): 1, (OTHER, "two"): 1, (OTHER, "three"): 1, ("17", "17"): 1}
    assert tagged(migrated, "day") == teams
    assert await broken(migrated) == []


async def test_a_correction_moves_a_call_to_its_own_tags(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    account.consume(5, request_id=request, metadata=of_tags(feature="a"))
    account.consume(5, metadata=of_tags(feature="a"))
    await writer.write(batch_of(account))
    account.consume(
        2, kind=EventKind.ADJUST, metadata=mark_as_correction(of_tags(feature="b"), request, "settled late")
    )
    await writer.write(batch_of(account))
    assert tagged(migrated, "hour") == tagged(migrated, "day") == {("a", ""): 1, ("b", ""): 1}
    assert [call["tags"] for call in calls_in(migrated)] == [{"feature": "b"}, {"feature": "a"}]


async def test_longest_tags_of_a_call_are_stored(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    account.consume(5, metadata=of_tags(**{f"{n}" * 64: "\U0001f600" * 64 for n in range(8)}))
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT requests FROM usage_tag") == [(1,), (1,)]
