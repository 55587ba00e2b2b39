"""`tollkeeper archive`: closed months of the ledgers, as Parquet, and out of PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.admin.output import AsJson, print_json, waiting
from gateway.cli.databases import Config, Database, DataDir, owner_url, settings_of

if TYPE_CHECKING:
    from gateway.features.archive.archiving import ArchiveRun
    from gateway.features.archive.reading import ArchiveProof
    from gateway.ops.storage import FileStore

DAYS_MAX = 36_500
Drop = Annotated[
    bool, typer.Option("--drop", help="Drop the tables of months that this archive has, once read back.")
]
DropAfter = Annotated[
    int | None,
    typer.Option(
        "--drop-after", min=0, max=DAYS_MAX, metavar="DAYS",
        help="The same, of months that it has since so many days.",
    ),
]  # fmt: skip


def archive(
    *,
    to: Annotated[str, typer.Option(help="A directory, file:///… or s3://bucket/….")],
    before: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="Months of the ledgers and calls that ended by this day, whatever settings say.",
        ),
    ] = None,
    audit_before: Annotated[
        datetime | None,
        typer.Option(
            "--audit-before", formats=["%Y-%m-%d"], help="Months of the audit log that ended by this day."
        ),
    ] = None,
    drop: Drop = False,
    drop_after: DropAfter = None,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove", help="Archive nothing: prove that this archive and the database are one ledger."
        ),
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: Database = None,
    as_json: AsJson = False,
) -> None:
    """Write closed months that are not kept any more to Parquet, and take them out of PostgreSQL.

    Settings say how long each ledger, calls and the audit log are kept.
    """
    from gateway.features.archive.archiving import archive as take_out  # each command loads what it needs
    from gateway.features.archive.retention import Retention
    from gateway.ops.storage import FileStore

    url = owner_url(config, database_url, data_dir)
    if prove:
        if drop or drop_after is not None or before or audit_before:
            raise typer.BadParameter(
                "--prove archives and drops nothing: leave --before, --audit-before, --drop, --drop-after out"
            )
        raise typer.Exit(_prove(url, FileStore(to), as_json=as_json))
    retention = Retention.of(settings_of(config, database_url, data_dir))
    with waiting("Archiving what is closed"):
        done = take_out(
            url, FileStore(to), datetime.now(UTC).date(), before.date() if before else None,
            audit_before=audit_before.date() if audit_before else None, retention=retention,
            drop_after=0 if drop else drop_after,
        )  # fmt: skip
    if as_json:
        print_json(_facts(done))
    else:
        _tell(done)
    raise typer.Exit(1 if done.open else 0)


def _prove(url: str, place: FileStore, *, as_json: bool) -> int:
    from gateway.features.archive.reading import prove  # each command loads what it needs

    with waiting("Proving the archive and the database"):
        proof = prove(url, place)
    _tell_proof(proof, as_json=as_json)
    return 1 if proof.broken else 0


def _facts(done: ArchiveRun) -> dict[str, object]:
    """Return the outcome of an archive run as JSON."""
    return {
        "moved": [
            {"ledger": month.ledger, "month": f"{month.month:%Y-%m}", "rows": month.rows} for month in done.moved
        ],
        "files": [
            {
                "ledger": file.ledger, "month": f"{file.month:%Y-%m}", "file": f"{file.url}/{file.file}",
                "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256,
            }
            for file in done.files
        ],
        "dropped": done.dropped,
        "open_month": f"{done.open[0].month:%Y-%m}" if done.open else None,
        "open": list(dict.fromkeys(reason for month in done.open for reason in month.reasons)),
        "open_months": [
            {"month": f"{month.month:%Y-%m}", "ledgers": month.ledgers, "reasons": month.reasons}
            for month in done.open
        ],
    }  # fmt: skip


def _tell(done: ArchiveRun) -> None:
    """Print what an archive run did, and why months stay open."""
    for moved in done.moved:
        typer.echo(f"{moved.ledger} {moved.month:%Y-%m} had no partition: {moved.rows:,} rows are in one now")
    for file in done.files:
        typer.echo(f"{file.url}/{file.file}: {file.rows:,} rows, {file.bytes:,} bytes")
    for name in done.dropped:
        typer.echo(f"dropped {name}")
    for stopped in done.open:
        typer.echo(f"{stopped.month:%Y-%m} is not closed ({', '.join(stopped.ledgers)}):")
        for reason in stopped.reasons:
            typer.echo(f"  {reason}")
    if not (done.open or done.files or done.dropped):
        typer.echo("No month is left that could be archived.")


def _tell_proof(proof: ArchiveProof, *, as_json: bool) -> None:
    """Print the result of comparing the archive with the database."""
    if as_json:
        print_json(asdict(proof))
        return
    for reason in proof.broken:
        typer.echo(reason)
    for place in proof.elsewhere:
        typer.echo(f"other months are in {place}: prove it with --to")
    verdict = "do not agree" if proof.broken else "agree"
    typer.echo(
        f"{proof.files} files, {proof.rows:,} rows, {proof.movements:,} movements:"
        f" the archive and the database {verdict}"
    )
