"""Who sends wrong credentials is told of: a line a site and interval, and on file for people's port."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.background.loops import FailureTeller
from gateway.core.credentials import FailureReport, Failures
from persistence import engine as engines
from persistence.resources import access


async def test_a_line_a_site_and_a_row_where_there_is_a_file() -> None:
    lines: list[tuple[str, dict[str, object]]] = []
    kept: list[FailureReport] = []

    async def keep(told: Sequence[FailureReport]) -> None:
        kept.extend(told)

    failures = Failures(lambda: 0.0)
    teller = FailureTeller("admin", failures, lambda event, /, **facts: lines.append((event, facts)), keep)
    for _ in range(300):
        failures.count("192.0.2.1", "unknown")
    await teller.tell()
    await teller.tell()
    [(event, facts)] = lines
    assert (event, facts["port"], facts["address"], facts["attempts"]) == (
        "wrong credentials", "admin", "192.0.2.1", 300,
    )  # fmt: skip
    assert [(one.site, one.attempts) for one in kept] == [("192.0.2.1", 300)]


async def test_rows_of_the_audit_log(migrated: str) -> None:
    engine = engines.create(migrated)
    try:
        await access.note_failures(
            engine, [FailureReport("192.0.2.1", 3, {"unknown": 3}), FailureReport("", 1, {"missing": 1})]
        )
        async with engine.connect() as connection:
            rows = (
                await connection.exec_driver_sql(
                    "select actor, action, resource, resource_id, after from audit_log order by id"
                )
            ).all()
    finally:
        await engine.dispose()
    assert [tuple(row) for row in rows] == [
        ("nobody", "fail", "authentication", "192.0.2.1", {"attempts": 3, "reasons": {"unknown": 3}}),
        ("nobody", "fail", "authentication", None, {"attempts": 1, "reasons": {"missing": 1}}),
    ]
