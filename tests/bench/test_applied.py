"""The bench of large configurations, on a small one: a command, a keeper and a gateway that admits by it."""

from __future__ import annotations

from pathlib import Path

from tests.bench.applied import STEPS, Stage, measure, objects_of, report


def test_what_is_applied_is_what_gateways_admit_by_again_nothing_and_pruned_no_more(
    tmp_path: Path, valkey: str, database: str
) -> None:
    assert sum(map(len, objects_of(10_000).values())) == 10_000
    stage = Stage(tmp_path, valkey, database)
    try:
        steps = measure(stage, 200)
    finally:
        stage.stop()
    assert {name: (each.changes, each.unchanged) for name, each in steps.items()} == {
        "first": (200, 0), "again": (0, 200), "changes": (2, 198), "prune": (16, 184),
    }  # fmt: skip
    told = report(200, steps)
    assert all(f"| {said} |" in told for said in STEPS.values())
