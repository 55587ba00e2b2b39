"""The whole matrix in its long form, with progress, resumable: `make faults`.

Usage: python -m tests.faults.run [--seed N] [--rows NAME,…] [--fresh] [--short] [--list]

Results are kept in build/faults after each row; a run that was interrupted goes on with the rows
that have not held yet under the same seed. Exit status 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults import matrix
from tests.faults.matrix import ROWS
from tests.faults.report import COLUMNS, Played, Results, cells
from tests.faults.scene import Row

FOLDER = Path("build/faults")
SEED = 20_261


def main() -> int:
    """Play, print, keep."""
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or SEED))
    parser.add_argument("--rows", default="", help="names, separated by commas; all without")
    parser.add_argument("--fresh", action="store_true", help="play rows again that held already")
    parser.add_argument("--short", action="store_true", help="the short forms, as in `make test`")
    parser.add_argument("--list", action="store_true", help="the rows there are")
    options = parser.parse_args()
    wanted = [one for one in options.rows.split(",") if one] or list(ROWS)
    if unknown := [one for one in wanted if one not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}")
    if options.list:
        for one in ROWS.values():
            print(f"{one.name:20} {'(long alone) ' * one.only_long}{one.title}")
        return 0
    results = Results(FOLDER)
    if not options.fresh:
        results.resume(options.seed)
    _play([ROWS[one] for one in wanted], results, options.seed, long=not options.short)
    played = [results.played[one] for one in wanted if one in results.played]
    _print(played)
    return 0 if all(one.holds for one in played) else 1


def _play(rows: list[Row], results: Results, seed: int, *, long: bool) -> None:
    about = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "on": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "form": "long" if long else "short",
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[at]}"), console=console
    ) as progress:
        task = progress.add_task("faults", total=len(rows), at="")
        for row in rows:
            if row.name not in results.played:

                def say(at: str, name: str = row.name) -> None:
                    progress.update(task, at=f"{name}: {at}")

                played = _one(row, seed, long=long, say=say)
                results.add(played, about)
                progress.console.print(
                    f"{'holds' if played.holds else 'FAILS'} {row.title} ({played.seconds:.0f} s)"
                )
            progress.advance(task)


def _one(row: Row, seed: int, *, long: bool, say: matrix.Say) -> Played:
    """One row on a world of its own."""
    began = time.monotonic()
    say("starting")
    world = matrix.world_of(row, seed)
    try:
        world.open()
        figures = world.run(
            asyncio.wait_for(matrix.play(row, world, long=long, seed=seed, say=say), row.limit_s)
        )
        if figures.broken:
            FOLDER.joinpath(f"{row.name}.log").write_text(matrix.told(world, figures))
        return Played.of(row, seed, time.monotonic() - began, figures)
    except Exception as error:  # noqa: BLE001  # the other rows are played all the same
        told = "".join(traceback.format_exception(error))
        FOLDER.joinpath(f"{row.name}.log").write_text(told + matrix.ends(world))
        return Played.of(row, seed, time.monotonic() - began, None, f"{type(error).__name__}: {error}")
    finally:
        world.close()


def _print(played: list[Played]) -> None:
    table = Table(*COLUMNS, title="Nothing lost, nothing doubled")
    for one in played:
        table.add_row(*cells(one), style="" if one.holds else "bold red")
    Console(width=200 if not sys.stdout.isatty() else None).print(table)


if __name__ == "__main__":
    sys.exit(main())
